"""Loads the task of scripts/deploy by SkyPilot's own loader, as `sky jobs launch` does, and checks what it makes of it."""

import subprocess
import sys

import jsonschema
import sky  # first: its parts import each other
import yaml
from sky.utils import schemas

path = sys.argv[1]
config = yaml.safe_load(open(path))
jsonschema.validate(config, schemas.get_task_schema())
secrets = [("MLORA_NATS_TOKEN", "a" * 64), ("MLORA_RUN_KEY", "b" * 64)]
task = sky.Task.from_yaml_config(config, env_overrides=[("RECIPE", "other.toml")], secrets_overrides=secrets)
# As a launch does first, but for the catalogue of accelerators, which it fetches from GitHub.
task.validate_name()
task.validate_run()
task.expand_and_validate_workdir()
task.expand_and_validate_file_mounts()
(resources,) = task.resources
assert resources.accelerators == {"H100": 1} and resources.use_spot, resources
assert task.num_nodes == 2 and task.envs["RECIPE"] == "other.toml", task.envs
given = {name: value.get_secret_value() for name, value in task.secrets.items()}
assert given == dict(secrets), list(given)
storage = task.storage_mounts["/work"]
assert storage.name == "mlora-work" and storage.mode.value == "MOUNT", storage
for script in (task.setup, task.run):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
print("ok: SkyPilot", sky.__version__, "loads the task:", task)
