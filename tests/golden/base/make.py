"""Makes cases.json and logits.safetensors: how transformers reads a config.json or weights that say a thing twice, not at all,
or against one another. Each case is one of the models of tests/golden/peft with changed keys of its config.json, and with
another head or none.

    python tests/golden/base/make.py        # with torch, safetensors and transformers 5.24.0

Logits are of the case's row, [tokens, vocabulary], in float32; `tied` says whether transformers uses the embedding for the
head.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
MODELS = HERE.parent / "peft"
LENGTH = 20  # tokens

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
ORIGINAL = "original_max_position_embeddings"
# Keys that are null are taken out. A head: "other" and "alone" are the embedding with its rows seven further down, "same" and
# "f32" the embedding; with "alone" there is no embedding.
CASES = [
    dict(name="rope-all-positions", model="llama", config=dict(rope_scaling=LLAMA3)),
    dict(name="rope-outside", model="llama", config={"rope_scaling": LLAMA3, ORIGINAL: 16}),
    dict(name="rope-inside-and-outside", model="llama", config={"rope_scaling": LLAMA3 | {ORIGINAL: 128}, ORIGINAL: 16}),
    dict(name="rope-two-tables", model="llama", config=dict(rope_scaling=LLAMA3, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=70.0))),
    dict(name="rope-an-empty-table", model="llama", config=dict(rope_scaling={}, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=70.0))),
    dict(name="rope-parameters", model="qwen3", config=dict(rope_parameters=LLAMA3 | dict(rope_theta=500.0))),
    dict(name="head-none", model="qwen2"),
    dict(name="head-other", model="qwen2", head="other"),
    dict(name="head-same", model="qwen2", head="same"),
    dict(name="head-same-in-f32", model="qwen2", head="f32"),
    dict(name="head-alone", model="qwen2", head="alone"),
]


def write_model(folder: Path, model: str, config: dict, head: str | None) -> None:
    shutil.copytree(MODELS / model / "model", folder)
    keys = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in keys.items() if value is not None}))
    if head is None:
        return
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.roll(7, 0) if head in ("other", "alone") else embedding.clone()
    if head == "f32":
        tensors["lm_head.weight"] = tensors["lm_head.weight"].float()
    if head == "alone":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@torch.no_grad()
def main() -> None:
    cases, logits = [], {}
    for case in CASES:
        case = dict(config={}, head=None) | case
        with tempfile.TemporaryDirectory() as work:
            folder = Path(work) / "model"
            write_model(folder, case["model"], case["config"], case["head"])
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        ids = torch.randint(0, model.config.vocab_size, (LENGTH,), generator=torch.Generator().manual_seed(11))
        logits[case["name"]] = model(ids[None]).logits[0].clone()
        tied = model.lm_head.weight is model.model.embed_tokens.weight
        loss = torch.nn.functional.cross_entropy(logits[case["name"]][:-1], ids[1:]).item()
        cases.append(case | dict(ids=ids.tolist(), tied=tied, loss=loss))
        print(f"{case['name']}: tied {tied}, loss {loss:.6f}")
    head = json.dumps(dict(made_with=dict(torch=torch.__version__, transformers=transformers.__version__)))[:-1]
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    (HERE / "cases.json").write_text(f'{head}, "cases": [\n  {lines}\n]}}\n')
    save_file(logits, HERE / "logits.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
