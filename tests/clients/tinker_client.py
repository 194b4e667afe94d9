"""Tinker's client against a server: train by every loss, save, continue, sample, delete. Prints "ok" and its version."""

import sys
import time
import warnings

import httpx
import numpy as np
import tinker
from tinker import types

warnings.simplefilter("ignore", FutureWarning)  # clients before 0.30 gave what later ones give as a future
url, key, other_key, model = sys.argv[1:5]
service = tinker.ServiceClient(base_url=url, api_key=key)
other = tinker.ServiceClient(base_url=url, api_key=other_key)
rng = np.random.default_rng(0)
VOCAB = 256


def of(made):
    return made.result() if hasattr(made, "result") else made


def fails(call, *words):
    try:
        of(call())
    except Exception as error:
        assert all(word in str(error) for word in words), (words, error)
        return
    raise AssertionError(f"expected an error with {words}")


def tokens(count):
    return [int(token) for token in rng.integers(1, VOCAB, count)]


def datum(ids, **inputs):
    return types.Datum(model_input=types.ModelInput.from_ints(ids[:-1]), loss_fn_inputs={"target_tokens": ids[1:], **inputs})


def make(seed=1, **more):
    return of(service.create_lora_training_client(base_model=model, rank=4, seed=seed, **more))


def logprobs(result):
    return [np.asarray(output["logprobs"].to_numpy(), np.float64) for output in result.loss_fn_outputs]


ROWS = [tokens(12) for _ in range(6)]
WEIGHTED = [datum(ids, weights=[0.0] * 3 + [1.0] * 8) for ids in ROWS]
RATE = types.AdamParams(learning_rate=3e-3)
assert [of.model_name for of in service.get_server_capabilities().supported_models] == [model]

# A loop, pipelined; and what the server says of the model
client = make()
info = client.get_info()
assert info.is_lora and info.lora_rank == 4 and info.model_data.model_name == model, info
pending = [(client.forward_backward(WEIGHTED, "cross_entropy"), client.optim_step(RATE)) for _ in range(8)]
results = [(made.result(), step.result()) for made, step in pending]
losses = [made.metrics["loss:sum"] for made, _ in results]
assert losses[-1] < 0.9 * losses[0], losses
weights = np.asarray([0.0] * 3 + [1.0] * 8)
for made, step in results:
    assert abs(made.metrics["loss:sum"] + sum((of * weights).sum() for of in logprobs(made))) < 1e-3
    assert step.metrics["grad_norm:mean"] > 0

# Every loss, against its definition: the value, and the gradient as that of cross-entropy by its slopes
p = logprobs(client.forward(WEIGHTED, "cross_entropy").result())
assert np.array_equal(p[0], logprobs(client.forward(WEIGHTED, "cross_entropy").result())[0])
q = [np.float32(of + rng.normal(0, 0.4, of.shape)).astype(np.float64) for of in p]
a = [np.float32(rng.normal(0, 1, of.shape)).astype(np.float64) for of in p]


def clipped(ratio, advantage, low, high):
    own, within = ratio * advantage, np.clip(ratio, low, high) * advantage
    return -np.minimum(own, within), np.where(own <= within, own, 0)


LOSSES = {
    "importance_sampling": ({}, lambda p, q, a: (-np.exp(p - q) * a, np.exp(p - q) * a)),
    "ppo": ({}, lambda p, q, a: clipped(np.exp(p - q), a, 0.8, 1.2)),
    "ppo wide": ({"clip_low_threshold": 0.5, "clip_high_threshold": 1.1}, lambda p, q, a: clipped(np.exp(p - q), a, 0.5, 1.1)),
    "cispo": ({}, lambda p, q, a: (-np.clip(np.exp(p - q), 0, 4) * a * p, np.clip(np.exp(p - q), 0, 4) * a)),
    "dro": ({"beta": 0.3}, lambda p, q, a: (-(p * a - 0.15 * (p - q) ** 2), a - 0.3 * (p - q))),
}
state = client.save_state("losses").result().path
for name, (config, definition) in LOSSES.items():
    sampled = [datum(ids, logprobs=q[i].tolist(), advantages=a[i].tolist()) for i, ids in enumerate(ROWS)]
    want, slopes = zip(*[definition(p[i], q[i], a[i]) for i in range(len(ROWS))])
    steps = []
    for data, loss, settings in [
        (sampled, name.split()[0], config),
        ([datum(ids, weights=slopes[i].tolist()) for i, ids in enumerate(ROWS)], "cross_entropy", None),
    ]:
        at = of(service.create_training_client_from_state(state))
        made = at.forward_backward(data, loss, settings).result()
        norm = at.optim_step(types.AdamParams(learning_rate=1e-2)).result().metrics["grad_norm:mean"]
        steps.append((made.metrics["loss:sum"], norm, logprobs(at.forward(WEIGHTED, "cross_entropy").result())))
    (value, norm, after), (_, norm_by_slopes, after_by_slopes) = steps
    total = sum(of.sum() for of in want)
    assert abs(value - total) <= 1e-5 * sum(np.abs(of).sum() for of in want), (name, value, total)
    assert abs(norm / norm_by_slopes - 1) < 1e-5, (name, norm, norm_by_slopes)
    for i, of_row in enumerate(after):
        assert np.abs(of_row - after_by_slopes[i]).max() < 1e-3 and np.abs(of_row - p[i]).max() > 1e-3, name

# Several targets a position, sparse where the client finds that smaller
soft = np.zeros((11, 40), np.int64)
share = np.zeros((11, 40), np.float32)
soft[:, :2] = rng.integers(1, VOCAB, (11, 2))
share[:, :2] = [0.75, -0.25]
several = types.Datum(
    model_input=types.ModelInput.from_ints(ROWS[0][:-1]),
    loss_fn_inputs={"target_tokens": tinker.TensorData.from_numpy(soft), "weights": tinker.TensorData.from_numpy(share)},
)
made = client.forward_backward([several, WEIGHTED[1]], "cross_entropy").result()
found = logprobs(made)
assert found[0].shape == (11, 40) and found[1].shape == (11,)
assert abs(made.metrics["loss:sum"] + (found[0] * share).sum() + (found[1] * weights).sum()) < 1e-3
for k in (0, 1):
    column = types.Datum(model_input=several.model_input, loss_fn_inputs={"target_tokens": soft[:, k].tolist()})
    assert np.abs(found[0][:, k] - logprobs(client.forward([column], "cross_entropy").result())[0]).max() < 1e-5

# What is wrong fails its future, and leaves no gradient
client.optim_step(RATE).result()
fails(lambda: client.forward_backward(WEIGHTED, "stable_reinforce"), "stable_reinforce")
fails(lambda: client.forward_backward(WEIGHTED, "ppo", {"clip_high_threshold": 1.1, "other": 1.0}), "other")
fails(lambda: client.forward_backward([WEIGHTED[0], datum([1, 2, VOCAB + 9])], "cross_entropy"), "265")
fails(lambda: client.forward_backward([datum([1, 2, 3], weights=[1.0])], "cross_entropy"), "weights", "shape")
fails(lambda: client.forward_backward([datum(tokens(500))], "cross_entropy"), "tokens")
fails(lambda: client.forward_backward([datum([1, 2, 3], weights=[float("nan"), 1.0])], "cross_entropy"), "NaN")
fails(lambda: client.forward_backward([datum([1, 2], logprobs=[-200.0], advantages=[1.0])], "ppo"), "-200")
assert client.optim_step(RATE).result().metrics["grad_norm:mean"] == 0
fails(lambda: service.create_lora_training_client(base_model=model, rank=512), "rank")
fails(lambda: service.create_lora_training_client(base_model="local/other", rank=4), "local/other")

# States: the moments are there where they are asked for, and a name is taken once
fails(lambda: client.save_state("losses"), "overwrite")
state = client.save_state("here").result().path
fails(lambda: other.create_training_client_from_state(state), "no weights")


def go_on(at):
    at.forward_backward(WEIGHTED, "cross_entropy")
    at.optim_step(RATE).result()
    return logprobs(at.forward(WEIGHTED, "cross_entropy").result())


straight = go_on(client)
resumed = go_on(of(service.create_training_client_from_state_with_optimizer(state)))
fresh = go_on(of(service.create_training_client_from_state(state)))
assert all(np.array_equal(straight[i], resumed[i]) for i in range(6))
assert any(not np.array_equal(straight[i], fresh[i]) for i in range(6))
loaded = make(seed=5)
loaded.load_state_with_optimizer(state).result()
assert all(np.array_equal(straight[i], of) for i, of in enumerate(go_on(loaded)))
fails(lambda: loaded.load_state(state), "LoadWeights is not permitted")

# Samples: of a snapshot, of saved weights, of the base
prompt = types.ModelInput.from_ints(ROWS[0])
sampler = of(client.save_weights_and_get_sampling_client())
scored = sampler.compute_logprobs(prompt).result()
trained = straight[0]
assert scored[0] is None and np.abs(np.asarray(scored[1:]) - trained).max() < 1e-5, (scored, trained)
params = types.SamplingParams(max_tokens=6, temperature=0.7, seed=4)
sampled = sampler.sample(prompt=prompt, num_samples=3, sampling_params=params, include_prompt_logprobs=True, topk_prompt_logprobs=2).result()
assert len({tuple(of.tokens) for of in sampled.sequences}) == 3 and sampled.prompt_logprobs == scored
assert sampled.topk_prompt_logprobs[0] is None and all(len(row) == 2 for row in sampled.topk_prompt_logprobs[1:])
for position, row in enumerate(sampled.topk_prompt_logprobs[1:], 1):
    assert row[0][1] >= row[1][1] and (row[0][1] >= scored[position] - 1e-5)
again = sampler.sample(prompt=prompt, num_samples=3, sampling_params=params).result()
assert [of.tokens for of in again.sequences] == [of.tokens for of in sampled.sequences]
first = sampled.sequences[0]
assert len(first.logprobs) == len(first.tokens) == 6 and first.stop_reason == "length"
unscaled = sampler.sample(prompt=prompt, num_samples=1, sampling_params=types.SamplingParams(max_tokens=1, temperature=1.0, seed=4, top_k=1)).result()
assert abs(unscaled.sequences[0].logprobs[0]) < 1e-6  # of what it was sampled from: one token
stopped = sampler.sample(prompt=prompt, num_samples=1, sampling_params=types.SamplingParams(max_tokens=6, temperature=0.7, seed=4, stop=[first.tokens[2]])).result().sequences[0]
assert stopped.tokens == first.tokens[: first.tokens.index(first.tokens[2]) + 1] and stopped.stop_reason == "stop"
path = client.save_weights_for_sampler("final").result().path
named = of(service.create_sampling_client(model_path=path))
assert named.compute_logprobs(prompt).result() == scored
base = of(service.create_sampling_client(base_model=model))
plain = np.asarray(base.compute_logprobs(prompt).result()[1:])
untrained = logprobs(make(seed=9).forward([datum(ROWS[0])], "cross_entropy").result())[0]
assert np.array_equal(np.float32(plain), np.float32(untrained))
fails(lambda: of(other.create_sampling_client(model_path=path)).compute_logprobs(prompt), "no weights")
fails(lambda: sampler.sample(prompt=prompt, num_samples=1, sampling_params=types.SamplingParams(max_tokens=4000)), "at most")

# Tokenizer, lists, files of weights, deletion
rest = service.create_rest_client()
runs = rest.list_training_runs().result().training_runs
run = next(of for of in runs if of.training_run_id == path.split("/")[2])
assert run.base_model == model and run.last_sampler_checkpoint.tinker_path == path
kinds = {of.checkpoint_id: of.checkpoint_type for of in rest.list_checkpoints(run.training_run_id).result().checkpoints}
assert kinds == {"weights/losses": "training", "weights/here": "training", "sampler_weights/final": "sampler"}, kinds
if hasattr(client, "save_weights_external"):
    outside = client.save_weights_external("peft").result().path
    urls = rest.get_external_weights_urls(outside).result().urls
    files = {name: httpx.get(address) for name, address in urls.items()}
    assert files["adapter_config.json"].json()["r"] == 4 and files["adapter_config.json"].json()["lora_alpha"] == 32
    assert len(files["adapter_model.safetensors"].content) > 1000
    assert httpx.get(next(iter(urls.values()))[:-1] + "x").status_code == 404
    rest.delete_checkpoint_from_tinker_path(outside).result()
rest.delete_checkpoint_from_tinker_path(path).result()
fails(lambda: named.compute_logprobs(prompt), "deleted")
assert other.create_rest_client().list_training_runs().result().training_runs == []
assert client.get_tokenizer().decode(ROWS[0]) == base.get_tokenizer().decode(ROWS[0]) != ""
print("ok", tinker.__version__)
