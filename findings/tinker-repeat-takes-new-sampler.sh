#!/usr/bin/env bash
# tinker 0.38.0, Thinking Machines' client, against a server that only answers: when the answer to save_weights_for_sampler is
# lost (here a 503), the client sends the request again under the same seq_id and another sampling_session_seq_id, since it counts
# that number up within the call that is repeated. So the body of a repeat differs from the first, and a server that tells repeats
# by their bodies takes it for another request. optim_step is repeated byte for byte.
#
#   findings/tinker-repeat-takes-new-sampler.sh        # makes a temporary folder, installs there, prints, cleans up
#
# Seen: save_weights_for_sampler with (seq_id, sampling_session_seq_id) of (1, 0), then (1, 1); optim_step twice with one body.
set -euo pipefail
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --only-binary :all: tinker==0.38.0
TINKER_TELEMETRY=0 "$work/venv/bin/python" - <<'PYTHON' 2>/dev/null
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import tinker
from tinker import types

seen = {"optim_step": [], "save_weights_for_sampler": []}


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.removeprefix("/api/v1/")
        status, answer = 200, {"request_id": path}
        if path in seen:
            seen[path].append(body)
            if len(seen[path]) == 1:
                status, answer = 503, {"detail": "try again"}
        elif path == "client/config":
            answer = {}
        elif path == "create_session":
            answer = {"session_id": "S"}
        elif path == "session_heartbeat":
            answer = {"type": "session_heartbeat"}
        elif path == "get_info":
            answer = {"model_id": "S:train:0", "model_data": {"model_name": "a/b"}, "is_lora": True, "lora_rank": 1, "model_name": "a/b"}
        elif path == "retrieve_future":
            of = json.loads(body)["request_id"]
            answer = {"create_model": {"model_id": "S:train:0"}, "optim_step": {}}.get(of, {"sampling_session_id": "S:sample:0"})
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
service = tinker.ServiceClient(base_url=f"http://127.0.0.1:{server.server_port}", api_key="tml-" + "x" * 24)
client = service.create_lora_training_client(base_model="a/b", rank=1).result()
client.save_weights_and_get_sampling_client().result()
client.optim_step(types.AdamParams()).result()
numbers = [(of["seq_id"], of["sampling_session_seq_id"]) for of in map(json.loads, seen["save_weights_for_sampler"])]
print(f"tinker {tinker.__version__}: save_weights_for_sampler with {numbers}, optim_step with {len(set(seen['optim_step']))} body")
assert numbers == [(1, 0), (1, 1)], numbers
assert len(seen["optim_step"]) == 2 and len(set(seen["optim_step"])) == 1, seen["optim_step"]
print("as described")
os._exit(0)
PYTHON
