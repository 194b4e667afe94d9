"""Writes cache.json and splits.json: what huggingface_hub's cache holds after downloads from the server of the tests, and which
files of a repository `datasets` takes for which split.

Needs huggingface_hub 2.4.0, datasets 5.2.0 and the project's Bun.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]

for key in [key for key in os.environ if key.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
    del os.environ[key]
scratch = Path(tempfile.mkdtemp())
server = subprocess.Popen([ROOT / "node_modules/.bin/bun", ROOT / "tests/helpers/hub-process.ts"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
endpoint = server.stdout.readline().strip()
os.environ.update(HF_ENDPOINT=endpoint, HF_HOME=str(scratch / "home"), HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1")

from datasets import load_dataset_builder  # noqa: E402
from huggingface_hub import hf_hub_download, snapshot_download  # noqa: E402


def cache():
    hub = scratch / "home" / "hub"
    found = {}
    for path in sorted(hub.rglob("*")):
        name = str(path.relative_to(hub))
        if name.startswith((".locks", "CACHEDIR")) or "/.no_exist" in name or path.name.endswith(".lock") or "/.agents" in name:
            continue
        if path.is_symlink():
            found[name] = {"link": os.readlink(path)}
        elif path.is_file() and "/refs/" in name:
            found[name] = {"text": path.read_text()}
        elif path.is_file() and "/blobs/" in name:
            found[name] = {"bytes": path.stat().st_size}
    return found


SPLITS = {
    "shards": {"files": ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/odd-00000-of-00001.parquet"]},
    "folders": {"files": ["train/a.jsonl", "train/b.jsonl", "test/a.jsonl", "dev/x/y.jsonl"]},
    "names": {"files": ["train.csv", "my-validation.csv", "x_test_1.csv", "data.csv", "README.md"]},
    "training": {"files": ["training.jsonl", "eval.jsonl", "constraint.jsonl"]},
    "all": {"files": ["b.jsonl", "a.jsonl", "sub/c.jsonl", ".hidden/d.jsonl", "__x/e.jsonl", "dataset_infos.json"]},
    "card": {"files": ["x/1.csv", "x/2.csv", "y.csv", "z.csv"], "card": "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: [\"x/*.csv\", \"z.csv\"]\n  - split: test\n    path: y.csv\n"},
    "text": {"files": ["x/1.csv", "y.csv"], "card": "configs:\n- config_name: default\n  data_files: \"*.csv\"\n"},
    "configs": {"files": ["en/train.csv", "en/test.csv", "de/train.csv"], "card": "configs:\n- config_name: en\n  data_dir: en\n- config_name: de\n  data_dir: de\n  default: true\n", "configs": [None, "en", "de"]},
    "several": {"files": ["en.csv", "de.csv"], "card": "configs:\n- config_name: en\n  data_files: en.csv\n- config_name: de\n  data_files: de.csv\n", "configs": ["en", "de"]},
}


def splits():
    made = []
    for name, of in SPLITS.items():
        folder = scratch / "splits" / name
        for file in of["files"]:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            infos = "{}" if file == "dataset_infos.json" else '{"text": "row"}\n'
            path.write_text("text\nrow\n" if file.endswith("csv") else infos)
        readme = f"---\n{of['card']}---\n" if "card" in of else None
        if readme:
            (folder / "README.md").write_text(readme)
        for config in of.get("configs", [None]):
            found = load_dataset_builder(str(folder), config).config.data_files
            said = {str(split): [os.path.relpath(file, folder) for file in files] for split, files in found.items()}
            made.append({"name": name, "files": of["files"], "card": readme, "config": config, "splits": said})
    return made


def write(name, value):
    (HERE / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8", newline="")


patterns = ["*.json", "*.safetensors"]
snapshot_download("org/small.model", allow_patterns=patterns, ignore_patterns=["original/*"], max_workers=1)
for revision in [None, "v1.0", "refs/convert/parquet"]:
    hf_hub_download("org/rows", "data/train.jsonl", repo_type="dataset", revision=revision)
hf_hub_download("org/closed", "train.jsonl", repo_type="dataset", token="hf_secret")
found = cache()
asked = json.loads(server.communicate()[0].strip().splitlines()[-1])
tokens = [[host, method, token] for host, method, path, token in asked if "/org/closed/" in path or host == "store"]
write("cache.json", {"cache": found, "asked": sorted({f"{host} {method} {path}" for host, method, path, _ in asked if host == "hub" and "/api/" not in path}), "tokens": tokens})
os.environ["HF_HUB_OFFLINE"] = "1"
write("splits.json", splits())
