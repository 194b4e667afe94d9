"""Records of an event file as TensorBoard's own package writes them, for tests/pure/tracking.test.ts.

    pip install tensorboard==2.21.0 && python make.py
"""

import io
import json
from pathlib import Path

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import crc32c
from tensorboard.summary.writer.record_writer import RecordWriter


def record(event):
    out = io.BytesIO()
    RecordWriter(out).write(event.SerializeToString())
    return out.getvalue().hex()


def scalars(wall_time, step, values):
    summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
    return event_pb2.Event(wall_time=wall_time, step=step, summary=summary)


CASES = [
    (1.5, 1, {"train/loss": 2.25}),
    (1764456000.125, 127, {"train/loss": 0.1, "train/grad_norm": 3e-9, "train/learning_rate": 2e-4}),
    (1764456001.0, 128, {"eval/loss": -1.0, "größe/\u4e2d": 7.0}),
    (1764456002.0, 3_000_000_000, {f"tag/{i}": float(i) for i in range(40)}),
]
start = event_pb2.Event(wall_time=2.5, step=300, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
data = [b"", b"a", b"123456789", bytes(range(256)) * 5]
golden = {
    "crc32c": [{"hex": of.hex(), "crc": crc32c(of)} for of in data],
    "version": {"wall_time": 1764456000.5, "hex": record(event_pb2.Event(wall_time=1764456000.5, file_version="brain.Event:2"))},
    "start": {"wall_time": 2.5, "step": 300, "hex": record(start)},
    "scalars": [{"wall_time": w, "step": s, "scalars": v, "hex": record(scalars(w, s, v))} for w, s, v in CASES],
}
Path(__file__).with_name("events.json").write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")
