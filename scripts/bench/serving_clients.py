"""Clients of Tinker's Python package that train an adapter each: what serving.ts --python starts.

Reads an object of JSON from standard input: url, key, model, rank, rate, and data, of each adapter its steps. Prints a line of
JSON for each step that has been made.
"""

import asyncio
import json
import sys
import time

import tinker
from tinker import types


def datum_of(row: dict) -> types.Datum:
    inputs = {
        name: types.TensorData(data=of["values"], dtype=of["dtype"], shape=[len(of["values"])]) for name, of in row["inputs"].items()
    }
    return types.Datum(model_input=types.ModelInput.from_ints(row["tokens"]), loss_fn_inputs=inputs)


async def train(service: tinker.ServiceClient, asked: dict, adapter: int, steps: list) -> None:
    client = await service.create_lora_training_client(base_model=asked["model"], rank=asked["rank"], seed=adapter)
    adam = types.AdamParams(learning_rate=asked["rate"])
    for i, of in enumerate(steps):
        gradient = client.forward_backward([datum_of(row) for row in of["data"]], "cross_entropy")
        made = client.optim_step(adam)
        await gradient
        found = await made
        line = dict(adapter=adapter, step=i + 1, at=1000 * time.monotonic(), tokens=of["tokens"], gradNorm=found.metrics["grad_norm:mean"])
        print(json.dumps(line), flush=True)


async def main() -> None:
    asked = json.load(sys.stdin)
    service = tinker.ServiceClient(base_url=asked["url"], api_key=asked["key"])
    await asyncio.gather(*(train(service, asked, of["adapter"], of["steps"]) for of in asked["data"]))


asyncio.run(main())
