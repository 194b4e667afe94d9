// Tables of Tinker's sessions, the models that they train, and requests, from which a model comes to be what it was before a
// kill.

export const TINKER_TABLES = `
CREATE TABLE tinker_sessions (
  seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, created_at INTEGER NOT NULL, ended_at INTEGER,
  asked TEXT NOT NULL
);
CREATE TABLE tinker_models (
  seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, session TEXT NOT NULL, created_at INTEGER NOT NULL,
  asked_at INTEGER NOT NULL, asked TEXT NOT NULL, saved INTEGER NOT NULL
);
CREATE TABLE tinker_samplers (
  seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, session TEXT NOT NULL, model TEXT, path TEXT, source TEXT
);
CREATE TABLE tinker_requests (
  seq INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, tenant TEXT NOT NULL, session TEXT NOT NULL, owner TEXT NOT NULL,
  number INTEGER NOT NULL, kind TEXT NOT NULL, digest TEXT NOT NULL, body BLOB, seed INTEGER NOT NULL, done_at INTEGER,
  type TEXT, result BLOB, UNIQUE (owner, number)
);
CREATE TABLE tinker_checkpoints (
  seq INTEGER PRIMARY KEY, model TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, tenant TEXT NOT NULL,
  created_at INTEGER NOT NULL, expires_at INTEGER, folder TEXT NOT NULL, bytes INTEGER NOT NULL, is_public INTEGER NOT NULL,
  asked TEXT NOT NULL, metadata TEXT, UNIQUE (model, kind, name)
);
`;

/** The same checkpoints, whose numbers are never given again. */
export const NUMBERED_CHECKPOINTS = `
ALTER TABLE tinker_checkpoints RENAME TO tinker_checkpoints_before;
CREATE TABLE tinker_checkpoints (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, tenant TEXT NOT NULL,
  created_at INTEGER NOT NULL, expires_at INTEGER, folder TEXT NOT NULL, bytes INTEGER NOT NULL, is_public INTEGER NOT NULL,
  asked TEXT NOT NULL, metadata TEXT, UNIQUE (model, kind, name)
);
INSERT INTO tinker_checkpoints SELECT * FROM tinker_checkpoints_before;
DROP TABLE tinker_checkpoints_before;
`;
