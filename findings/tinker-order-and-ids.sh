#!/usr/bin/env bash
# tinker 0.38.0, Thinking Machines' client, against a server that only answers: (1) the parts of one forward_backward arrive with
# seq_id 2, 3, ..., n first and 1 last, although a server must add them up in the order of seq_id: one that computes what
# arrives, or that begins with the lowest number that is there, adds in another order in each run. (2) After
# create_training_client_from_state the client never reads the model_id of the answer: it continues with "SESSION:train:N", which
# it makes itself, so a server whose model ids are of another form answers all that follows with "not found".
#
#   findings/tinker-order-and-ids.sh        # makes a temporary folder, installs there, prints, cleans up
#
# Seen: parts arrive as [2, 3, 4, 1] of a request of four parts; the id used is S:train:1, where the server had said "mine".
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
from tinker.proto import tinker_public_pb2 as wire

parts, asked = [], []


class Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        path = self.path.removeprefix("/api/v1/")
        answer, kind = {}, "application/json"
        if path == "client/config":
            answer = {"fwdbwd_max_chunk_len": 1}
        elif path == "create_session":
            answer = {"session_id": "S"}
        elif path == "session_heartbeat":
            answer = {"type": "session_heartbeat"}
        elif path in ("create_model", "load_weights"):
            answer = {"request_id": path}
        elif path == "get_info":
            asked.append(json.loads(body)["model_id"])
            answer = {"model_id": asked[-1], "model_data": {"model_name": "a/b"}, "is_lora": True, "lora_rank": 1, "model_name": "a/b"}
        elif path == "forward_backward":
            parts.append(wire.ForwardBackwardRequest.FromString(body).seq_id)
            answer = {"request_id": f"part{parts[-1]}"}
        elif path == "retrieve_future":
            of = json.loads(body)["request_id"]
            if of.startswith("part"):
                kind = "application/x-protobuf"
            answer = {"model_id": "mine", "path": "tinker://mine/weights/x"} if of == "load_weights" else {"model_id": "S:train:0"}
        text = wire.ForwardBackwardOutput(metrics={"loss:sum": 1.0}).SerializeToString() if kind != "application/json" else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
service = tinker.ServiceClient(base_url=f"http://127.0.0.1:{server.server_port}", api_key="tml-" + "x" * 24)
client = service.create_lora_training_client(base_model="a/b", rank=1).result()
datum = types.Datum(model_input=types.ModelInput.from_ints([1, 2]), loss_fn_inputs={"target_tokens": [2, 3]})
client.forward_backward([datum] * 4, "cross_entropy").result()
print(f"tinker {tinker.__version__}: parts arrive as {parts}")
asked.clear()
service.create_training_client_from_state("tinker://other/weights/x").result().get_info()
print(f"the server says 'mine', the client asks for {asked}")
assert parts[-1] == 1 and sorted(parts) == [1, 2, 3, 4], parts
assert asked and all(of.startswith("S:train:") for of in asked), asked
print("as described")
os._exit(0)
PYTHON
