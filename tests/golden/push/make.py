"""Makes sent.json: what huggingface_hub sends to the server of the tests when it puts three files into a new private
repository, in one piece and in parts; and what it finds in a card of mlora's.

    python tests/golden/push/make.py      # with the packages of scripts/golden/index.ts
"""

import json
import os
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BUN = ROOT / "node_modules/.bin/bun"
FILES = {"README.md": b"---\nlicense: mit\n---\n# A card\n", "adapter_config.json": b'{"r": 8}\n', "adapter_model.safetensors": bytes(range(256)) * 10}

for key in [key for key in os.environ if key.startswith(("HF_", "HUGGING"))]:
    del os.environ[key]
os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_TOKEN="hf_writer")

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard  # noqa: E402


def sent(part_bytes: int) -> list:
    server = subprocess.Popen([BUN, ROOT / "tests/helpers/push-process.ts", str(part_bytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    api = HfApi(endpoint=server.stdout.readline().strip())
    api.create_repo("me/adapter", private=True, exist_ok=True)
    operations = [CommitOperationAdd(path, content) for path, content in FILES.items()]
    api.create_commit("me/adapter", operations, commit_message="Upload")
    out, _ = server.communicate()
    return [request for request in json.loads(out) if request["path"] != "/api/validate-yaml"]


def card() -> dict:
    shown = subprocess.run([BUN, ROOT / "tests/helpers/push-card.ts"], capture_output=True, text=True, check=True)
    text = json.loads(shown.stdout)
    found = ModelCard(text).data.to_dict()
    index = found.pop("model-index")[0]["results"][0]
    return dict(text=text, found=dict(found, results=[[metric["type"], metric["value"]] for metric in index["metrics"]]))


def main() -> None:
    made = dict(files={path: content.hex() for path, content in FILES.items()}, card=card(), cases=dict(whole=sent(0), parts=sent(1000)))
    (HERE / "sent.json").write_text(json.dumps(made, indent=1) + "\n")


main()
