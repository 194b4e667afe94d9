"""Python's openai against a server: upload, train, watch, sample, delete. Prints "ok" and what it saw as JSON."""

import json
import sys
import time

import openai

url, key, other_key, model = sys.argv[1:5]
client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)
other = openai.OpenAI(base_url=f"{url}/v1", api_key=other_key, max_retries=0)
seen: dict = {"openai": openai.__version__}


def fails(kind, call, **expected):
    try:
        call()
    except kind as error:
        body = error.body if isinstance(error.body, dict) else {}
        for name, value in expected.items():
            assert body.get(name) == value, (name, value, body)
        return body
    raise AssertionError(f"expected {kind.__name__}")


def rows(count):
    turns = lambda i: [{"role": "user", "content": f"{i} + 1?"}, {"role": "assistant", "content": f"{i + 1}"}]
    return "".join(json.dumps({"messages": turns(i)}) + "\n" for i in range(count)).encode()


def watch(job):
    end = time.monotonic() + 60
    while job.status not in ("succeeded", "failed", "cancelled", "paused"):
        assert time.monotonic() < end, job
        time.sleep(0.05)
        job = client.fine_tuning.jobs.retrieve(job.id)
    return job


# Files
uploaded = client.files.create(file=("rows.jsonl", rows(12)), purpose="fine-tune")
held_out = client.files.create(file=("held-out.jsonl", rows(3)), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600})
assert uploaded.bytes == len(rows(12)) and uploaded.filename == "rows.jsonl" and uploaded.status == "processed"
assert client.files.content(uploaded.id).content == rows(12)
assert client.files.wait_for_processing(uploaded.id).id == uploaded.id
assert [file.id for file in client.files.list(limit=1)] == [held_out.id, uploaded.id]  # two pages
assert held_out.expires_at - held_out.created_at == 3600
fails(openai.BadRequestError, lambda: client.files.create(file=("a", b"x"), purpose="other"), param="purpose")
fails(openai.NotFoundError, lambda: other.files.retrieve(uploaded.id))
fails(openai.AuthenticationError, lambda: openai.OpenAI(base_url=f"{url}/v1", api_key="no").models.list(), code="invalid_api_key")

# A supervised job
job = client.fine_tuning.jobs.create(
    model=model,
    training_file=uploaded.id,
    validation_file=held_out.id,
    suffix="sums",
    seed=7,
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
    metadata={"team": "a"},
)
assert job.hyperparameters.n_epochs == 2 and job.hyperparameters.learning_rate_multiplier == 1 and job.metadata == {"team": "a"}
job = watch(job)
assert job.status == "succeeded", job
assert job.fine_tuned_model.startswith(f"ft:{model}:") and job.trained_tokens > 0 and job.error is None
events = list(client.fine_tuning.jobs.list_events(job.id, limit=2))
steps = [event.data for event in events if event.type == "metrics"]
assert [step["step"] for step in steps] == [6, 5, 4, 3, 2, 1], steps
assert steps[0]["train_loss"] < steps[-1]["train_loss"] and "valid_loss" in steps[0]
assert events[-1].message.startswith("Created fine-tuning job") and events[0].message == "The job has successfully completed"
checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
assert [checkpoint.step_number for checkpoint in checkpoints] == [6, 3]
table = client.files.content(job.result_files[0]).text
assert table.startswith("step,train_loss,train_accuracy,valid_loss") and len(table.splitlines()) == 7
fails(openai.NotFoundError, lambda: other.fine_tuning.jobs.retrieve(job.id))
fails(openai.BadRequestError, lambda: client.fine_tuning.jobs.cancel(job.id))
assert [of.id for of in client.fine_tuning.jobs.list(metadata={"team": "a"})] == [job.id]

# A job on preferences that continues it
pair = lambda answer: [{"role": "assistant", "content": answer}]
preferences = "".join(
    json.dumps(
        {
            "input": {"messages": [{"role": "user", "content": f"{i} + 1?"}], "tools": [], "parallel_tool_calls": True},
            "preferred_output": pair(f"{i + 1}"),
            "non_preferred_output": pair(f"{i + 2}"),
        }
    )
    + "\n"
    for i in range(10)
).encode()
pairs = client.files.create(file=("pairs.jsonl", preferences), purpose="fine-tune")
dpo = watch(
    client.fine_tuning.jobs.create(
        model=job.fine_tuned_model,
        training_file=pairs.id,
        method={"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 1, "batch_size": 5, "beta": 0.2}}},
    )
)
assert dpo.status == "succeeded", dpo
assert dpo.method.dpo.hyperparameters.beta == 0.2

# Answers that a grader likes are learned
asked = "".join(json.dumps({"messages": [{"role": "user", "content": f"{i}?"}], "answer": f"{i}"}) + "\n" for i in range(12)).encode()
prompts = client.files.create(file=("prompts.jsonl", asked), purpose="fine-tune")
grader = {"type": "string_check", "name": "has", "operation": "like", "input": "{{sample.output_text}}", "reference": "{{item.answer}}"}
both = {"type": "multi", "name": "both", "graders": {"a": grader, "b": {**grader, "operation": "eq"}}, "calculate_output": "(a + b) / 2"}


def reinforcement(grader):
    hyperparameters = {"n_epochs": 1, "batch_size": 6, "compute_multiplier": 0.5, "reasoning_effort": "default"}
    return {"type": "reinforcement", "reinforcement": {"grader": grader, "hyperparameters": hyperparameters}}


assert client.fine_tuning.alpha.graders.validate(grader=both).grader.name == "both"
graded = client.fine_tuning.alpha.graders.run(grader=both, model_sample="it is 7", item={"answer": "7"})
assert graded.reward == 0.5 and graded.sub_rewards == {"a": 1, "b": 0} and not graded.metadata.errors.invalid_variable_error, graded
assert client.fine_tuning.alpha.graders.run(grader=grader, model_sample="7", item={}).metadata.errors.invalid_variable_error
learned = watch(client.fine_tuning.jobs.create(model=model, training_file=prompts.id, method=reinforcement(both)))
assert learned.status == "succeeded" and learned.method.reinforcement.grader.name == "both", learned
assert b"train_mean_reward" in client.files.content(learned.result_files[0]).content
python = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1.0"}
with_python = {"model": model, "training_file": prompts.id, "method": reinforcement(python)}
fails(openai.BadRequestError, lambda: client.fine_tuning.jobs.create(**with_python), param="method.reinforcement.grader")

# What is wrong with a file is reported by line
broken = client.files.create(file=("b.jsonl", rows(10) + b'{"messages": [{"role": "user", "content": "x"}]}\n'), purpose="fine-tune")
failed = watch(client.fine_tuning.jobs.create(model=model, training_file=broken.id))
assert failed.status == "failed" and failed.error.param == "training_file" and "line 11" in failed.error.message, failed
fails(openai.NotFoundError, lambda: client.fine_tuning.jobs.create(model="gpt-9", training_file=uploaded.id), code="model_not_found")
fails(openai.BadRequestError, lambda: client.fine_tuning.jobs.create(model=model, training_file=job.result_files[0]), param="training_file")

# Models and answers
names = [of.id for of in client.models.list()]
assert names[0] == model and job.fine_tuned_model in names and checkpoints[1].fine_tuned_model_checkpoint in names
assert [of.id for of in other.models.list()] == [model]
ask = dict(model=job.fine_tuned_model, messages=[{"role": "user", "content": "2 + 1?"}], max_tokens=8, seed=3)
whole = client.chat.completions.create(**ask, n=2, logprobs=True, top_logprobs=2)
assert [choice.index for choice in whole.choices] == [0, 1] and whole.usage.completion_tokens > 0
first = whole.choices[0]
assert len(first.logprobs.content[0].top_logprobs) == 2 and first.finish_reason in ("stop", "length")
again = client.chat.completions.create(**ask)
assert again.choices[0].message.content == first.message.content
pieces = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
assert text == first.message.content, (text, first)
assert pieces[0].choices[0].delta.role == "assistant" and pieces[-1].usage.completion_tokens == again.usage.completion_tokens
greedy = dict(model=model, prompt="abc", max_tokens=8, temperature=0)
plain = client.completions.create(**greedy, logprobs=2)
assert plain.choices[0].logprobs.token_logprobs[0] == max(plain.choices[0].logprobs.top_logprobs[0].values())
assert client.completions.create(**greedy, echo=True).choices[0].text == "abc" + plain.choices[0].text
many = client.completions.create(**{**greedy, "prompt": ["abc", [97, 98, 99]], "n": 2})
assert {choice.text for choice in many.choices} == {plain.choices[0].text} and len(many.choices) == 4
end = plain.choices[0].text[2:4]
assert client.completions.create(**greedy, stop=[end]).choices[0].text == plain.choices[0].text[: plain.choices[0].text.index(end)]
fails(openai.NotFoundError, lambda: other.chat.completions.create(**ask), code="model_not_found")
fails(openai.BadRequestError, lambda: client.chat.completions.create(**ask, response_format={"type": "json_object"}), param="response_format")
fails(openai.BadRequestError, lambda: client.chat.completions.create(**{**ask, "max_tokens": 100000}), code="context_length_exceeded")

# Paused, resumed, cancelled
long = client.fine_tuning.jobs.create(model=model, training_file=uploaded.id, hyperparameters={"n_epochs": 50, "batch_size": 1})
paused = client.fine_tuning.jobs.pause(long.id)
assert paused.status == "paused", paused
assert client.fine_tuning.jobs.resume(long.id).status in ("validating_files", "queued", "running")
assert client.fine_tuning.jobs.cancel(long.id).status == "cancelled"

# Deleted
assert client.models.delete(job.fine_tuned_model).deleted
fails(openai.NotFoundError, lambda: client.models.retrieve(job.fine_tuned_model), code="model_not_found")
fails(openai.NotFoundError, lambda: client.chat.completions.create(**ask), code="model_not_found")
assert client.files.delete(uploaded.id).deleted
fails(openai.NotFoundError, lambda: client.files.retrieve(uploaded.id))
print("ok", json.dumps(seen))
