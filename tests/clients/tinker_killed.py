"""Tinker's client while its server is killed: trains and samples; prints "again", waits for a line of input, and does the same
again. Prints "ok" if both came to the same."""

import hashlib
import sys
import warnings

import numpy as np
import tinker
from tinker import types

warnings.simplefilter("ignore", FutureWarning)
url, key, model = sys.argv[1:4]
service = tinker.ServiceClient(base_url=url, api_key=key)


def loop():
    client = service.create_lora_training_client(base_model=model, rank=4, seed=1).result()
    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    for step in range(10):
        rows = [[int(token) for token in row] for row in rng.integers(1, 200, (4, 30))]
        data = [
            types.Datum(model_input=types.ModelInput.from_ints(ids[:-1]), loss_fn_inputs={"target_tokens": ids[1:]})
            for ids in rows
        ]
        made = client.forward_backward(data, "cross_entropy")
        client.optim_step(types.AdamParams(learning_rate=1e-3))
        for output in made.result().loss_fn_outputs:
            digest.update(output["logprobs"].to_numpy().tobytes())
        if step % 4 == 3:
            sampler = client.save_weights_and_get_sampling_client().result()
            params = types.SamplingParams(max_tokens=20, seed=3)
            sampled = sampler.sample(prompt=types.ModelInput.from_ints(rows[0][:3]), num_samples=2, sampling_params=params).result()
            digest.update(str([sequence.tokens for sequence in sampled.sequences]).encode())
    return digest.hexdigest()


first = loop()
print("again", flush=True)
sys.stdin.readline()
again = loop()
assert again == first, f"{again} is not {first}"
print("ok")
