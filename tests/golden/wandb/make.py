"""Records as W&B's own package writes them, one of each kind that this project writes, for tests/pure/wandb.test.ts.

    pip install wandb==0.31.0 && python make.py

With --file it also writes offline.json, a whole offline run: rows, a number that is not finite, and a setting that takes
several blocks of the file. That has the time in it, so each is another.
"""

import base64
import gzip
import json
import os
import sys
import tempfile
from pathlib import Path

from wandb.proto import wandb_internal_pb2 as messages

HERE = Path(__file__).parent


def record(number: int, **fields: object) -> messages.Record:
    return messages.Record(num=number, **fields)


def records() -> dict[str, messages.Record]:
    run = record(2)
    run.run.run_id, run.run.entity, run.run.project = "abc123", "me", "mlora"
    run.run.config.update.add(key="rank", value_json="16")
    run.run.run_group, run.run.display_name, run.run.host = "g", "tickets", "example"
    run.run.start_time.seconds, run.run.start_time.nanos = 1_764_456_000, 500_000_000
    rest = messages.MetricRecord(glob_name="*", step_metric="train/global_step")
    rest.options.step_sync = rest.options.defined = True
    row = record(5)
    for key, text in {"train/loss": "0.5", "train/global_step": "1", "_step": "0"}.items():
        row.history.item.add(nested_key=[key], value_json=text)
    row.history.step.num = 0
    last = record(6)
    last.summary.update.add(nested_key=["eval/loss"], value_json="NaN")
    return dict(
        header=record(1, header=messages.HeaderRecord(version_info=messages.VersionInfo(producer="mlora 1.2.3"))),
        run=run,
        step=record(3, metric=messages.MetricRecord(name="train/global_step", options=messages.MetricOptions(defined=True))),
        rest=record(4, metric=rest),
        row=row,
        last=last,
        end=record(7, exit=messages.RunExitRecord(exit_code=1, runtime=90)),
    )


def offline(folder: str) -> bytes:
    os.chdir(folder)
    os.environ |= dict(WANDB_SILENT="true", HOME=folder)
    import wandb

    quiet = dict(x_disable_stats=True, disable_git=True, console="off", x_disable_meta=True, disable_code=True, host="example")
    config = {"rank": 16, "targets": ["q_proj"], "long": "x" * 70_000}
    run = wandb.init(
        mode="offline", project="mlora", name="tickets", id="abc123", group="g", config=config, settings=wandb.Settings(**quiet)
    )
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step", step_sync=True)
    for step in range(1, 4):
        run.log({"train/loss": 1 / step, "train/learning_rate": 1e-4, "train/global_step": step})
    run.log({"eval/loss": float("nan"), "train/global_step": 3})
    run.finish()
    wandb.teardown()  # only then the file is whole
    [path] = Path(folder).glob("wandb/offline-run-*/run-abc123.wandb")
    return path.read_bytes()


def write(name: str, value: object) -> None:
    (HERE / name).write_text(json.dumps(value, indent=1) + "\n")


write("records.json", {name: of.SerializeToString().hex() for name, of in records().items()})
if "--file" in sys.argv:
    with tempfile.TemporaryDirectory() as folder:
        write("offline.json", {"gzip": base64.b64encode(gzip.compress(offline(folder), mtime=0)).decode()})
