"""Turns of the peers that scripts/bench/peers --ahead prepares at once: each is measured alone."""

import os
import time


def turn() -> None:
    """Says that all is ready to be measured, and waits for the turn: files of the name in MLORA_TURN. At once without it."""
    path = os.environ.get("MLORA_TURN")
    if path is None:
        return
    open(f"{path}.ready", "w").close()
    while not os.path.exists(path):
        time.sleep(0.05)
