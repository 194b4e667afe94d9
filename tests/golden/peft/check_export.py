"""Loads an adapter that mlora wrote into PEFT, and compares its logits with a reference.

    python tests/golden/peft/check_export.py MODEL ADAPTER [ADAPTER ...] [--like FOLDER | --logits FILE] [--rows FILE.json]

Each ADAPTER is a PEFT folder, loaded on the base model in MODEL. It is compared with the adapter in --like, run by PEFT on the
same rows, or with the tensors of a safetensors file: tensor `I` f32[tokens, vocabulary] for row I of --rows. --rows is a JSON
list of lists of token ids; without it, one random row. With nothing to compare with, the logits are summed up in a line. Needs
the packages of scripts/bench/requirements.txt. Exit code 1 where a logit is off by more than --tolerance.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def rows_of(path: Path | None, vocab: int) -> list[list[int]]:
    if path:
        return json.loads(path.read_text())
    return [torch.randint(0, vocab, (32,), generator=torch.Generator().manual_seed(0)).tolist()]


@torch.no_grad()
def logits_of(model_folder: Path, adapter: Path | None, rows: list[list[int]]) -> list[torch.Tensor]:
    """In fp32, each row alone, f32[tokens, vocabulary]."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    if adapter:
        refuse_unmatched(adapter, model)
        model = PeftModel.from_pretrained(model, adapter)
    return [model.eval()(torch.tensor([row])).logits[0] for row in rows]


def refuse_unmatched(adapter: Path, model: torch.nn.Module) -> None:
    """PEFT only warns where a tensor of the file has no place in the model, so that a wrong name would go unseen."""
    modules = {name for name, _ in model.named_modules()}
    for name in load_file(adapter / "adapter_model.safetensors"):
        if name in ("base_model.vera_A", "base_model.vera_B"):
            continue
        module, _, factor = name.removeprefix("base_model.model.").rpartition(".vera_" if ".vera_" in name else ".lora_")
        if module not in modules or factor not in ("A.weight", "B.weight", "magnitude_vector", "lambda_d", "lambda_b"):
            sys.exit(f"{adapter}: {name} is no factor of a linear layer of the model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapters", type=Path, nargs="+")
    reference = parser.add_mutually_exclusive_group()
    reference.add_argument("--like", type=Path)
    reference.add_argument("--logits", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="of a logit, absolute")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # transformers about itself
    if args.logits and not args.rows:
        parser.error("--logits wants --rows: the rows that the logits are of")

    vocab = json.loads((args.model / "config.json").read_text())["vocab_size"]
    rows = rows_of(args.rows, vocab)
    base = logits_of(args.model, None, rows)
    wanted = None
    if args.like:
        wanted = logits_of(args.model, args.like, rows)
    elif args.logits:
        file = load_file(args.logits)
        wanted = [file[str(i)].float() for i in range(len(rows))]

    failed = False
    for adapter in args.adapters:
        got = logits_of(args.model, adapter, rows)
        moved = max((a - b).abs().max().item() for a, b in zip(got, base, strict=True))
        line = f"{adapter}: moves the base model's logits by up to {moved:.3e}"
        if wanted:
            far = max((a - b).abs().max().item() for a, b in zip(got, wanted, strict=True))
            wrong = not far <= args.tolerance  # so that NaN is wrong
            failed |= wrong
            line += f", off the reference by up to {far:.3e}: {'WRONG' if wrong else 'right'}"
        print(line)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
