"""The peer of scripts/bench/peers: LoRA training by Unsloth on one GPU. The last line that it prints is JSON.

A Llama of random weights and a tokenizer of its size are written to --folder, where they stay, for Unsloth reads models from
files; then one adapter trains on random tokens, all of them targets: AdamW, the forward pass under autocast in bf16 as
Unsloth's trainer runs it. Nothing is fetched. Unsloth compiles parts of a model as it likes; where that fails, or takes longer
than --patience, it is measured with less of it compiled, which the report calls `way`. --recomputation full computes layers
again, offload does and keeps their inputs in the machine's memory. --precision nf4 holds the base in 4 bits.

Its packages are those of unsloth.txt, on PYTHONPATH.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

WARM_UP = 3  # steps that are not counted: compiling, allocations
# How much is compiled, from all on down, as Unsloth's variables say it.
WAYS = {
    "as it is": {},
    "blocks not compiled": {"UNSLOTH_BLOCK_COMPILE_LEGACY": "0"},
    "nothing compiled": {"UNSLOTH_BLOCK_COMPILE_LEGACY": "0", "UNSLOTH_COMPILE_DISABLE": "1"},
}
QUIET = {
    **{name: "1" for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")},
    "UNSLOTH_DISABLE_STATISTICS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],  # it would use all that it sees
}
CHECKPOINTING = {"none": False, "full": True, "offload": "unsloth"}


def shapes() -> tuple[dict, dict]:
    """Llama's of peer.py, and its target modules; in the children alone, for that imports torch."""
    from peer import QKVO, SHAPES

    llamas = {name: values for name, values in SHAPES.items() if isinstance(values, dict)}
    return llamas, {"qkvo": QKVO, "all-linear": [*QKVO, "gate_proj", "up_proj", "down_proj"]}


def write_model(args: argparse.Namespace) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    values = shapes()[0][args.shape]
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    tokens = special + [f"t{i}" for i in range(len(special), values["vocab_size"])]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token=special[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special, strict=True))
    part = args.folder.with_name(args.folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **names).save_pretrained(part)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(**values, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    config.architectures = ["LlamaForCausalLM"]
    with torch.device(args.device):
        LlamaForCausalLM(config).save_pretrained(part)
    shutil.rmtree(args.folder, ignore_errors=True)
    part.rename(args.folder)  # last: a folder of this name is whole


def fused(model) -> int:
    """Linears and blocks that run Unsloth's own LoRA kernels, of 3 a layer."""
    from unsloth.kernels import fast_lora

    def has(module, name: str, wanted) -> bool:
        found = getattr(module, name, None)
        return getattr(found, "__func__", found) is wanted

    return sum(
        has(layer.self_attn, "apply_qkv", fast_lora.apply_lora_qkv)
        + has(layer.self_attn, "apply_o", fast_lora.apply_lora_o)
        + has(layer.mlp, "forward", fast_lora.apply_lora_mlp_swiglu)
        for layer in model.model.model.layers
    )


def measure(args: argparse.Namespace) -> None:
    import unsloth  # first, for it changes the others
    import peft
    import torch
    import transformers
    import trl
    from turn import turn

    checkpointing = CHECKPOINTING[args.recomputation]
    fast = unsloth.FastLanguageModel
    model, _ = fast.from_pretrained(
        model_name=str(args.folder),
        max_seq_length=args.length,
        dtype=torch.bfloat16,
        load_in_4bit=args.precision == "nf4",
        use_gradient_checkpointing=checkpointing,
        local_files_only=True,
    )
    model = fast.get_peft_model(
        model,
        r=args.rank,
        lora_alpha=args.rank,
        lora_dropout=args.dropout,
        target_modules=shapes()[1][args.targets],
        bias="none",
        use_gradient_checkpointing=checkpointing,
        random_state=0,
    )
    fast.for_training(model, use_gradient_checkpointing=checkpointing)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01)
    vocab = shapes()[0][args.shape]["vocab_size"]
    ids = torch.randint(0, vocab, (args.rows, args.length), device=args.device)
    cuda = args.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    while len(seconds) < WARM_UP + args.steps or sum(seconds[WARM_UP:]) < args.seconds:
        if len(seconds) == WARM_UP:
            turn()
        start = time.perf_counter()
        with torch.autocast(args.device, dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = loss.item()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[WARM_UP:])
    report = {name: value for name, value in vars(args).items() if name not in ("child", "folder", "patience")}
    report |= dict(
        ms=round(median * 1e3, 1),
        tokens_per_s=round(args.rows * args.length / median, 1),
        device_bytes=torch.cuda.max_memory_allocated() if cuda else None,
        trained=sum(parameter.numel() for parameter in trained),
        fused=fused(model),
        loss=round(loss, 4),
        unsloth=f"{unsloth.__version__} ({args.child})",
        peft=peft.__version__,
        transformers=transformers.__version__,
        trl=trl.__version__,
        torch=torch.__version__,
    )
    print(json.dumps(report), flush=True)


def child(args: argparse.Namespace, what: str, more: dict, seconds: float) -> tuple[int | str, str, str]:
    """This script again: how it ended, what it printed last, and what it said last on stderr."""
    command = [sys.executable, "-B", __file__, *sys.argv[1:], "--child", what]
    try:
        done = subprocess.run(command, env=os.environ | more, timeout=seconds, capture_output=True, text=True, errors="replace")
    except subprocess.TimeoutExpired:
        return f"more than {seconds:.0f} s", "", ""
    last = lambda text: next((line for line in reversed(text.splitlines()) if line.strip()), "")
    return done.returncode, last(done.stdout), last(done.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama2-7b")
    parser.add_argument("--targets", choices=("qkvo", "all-linear"), default="qkvo")
    parser.add_argument("--precision", choices=("bf16", "nf4"), default="bf16")
    parser.add_argument("--recomputation", choices=CHECKPOINTING, default="none")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=0.0, help="the least that the steps take together")
    parser.add_argument("--patience", type=float, default=200.0, help="seconds that a way to compile may take")
    parser.add_argument("--folder", type=Path, help="of the model; in the folder for temporary files unless given")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try this script out")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    for flag, default in dict(rows=8, length=512, rank=16, steps=10).items():
        parser.add_argument(f"--{flag}", type=int, default=default)
    args = parser.parse_args()
    args.folder = args.folder or Path(os.environ.get("TMPDIR", "/tmp")) / f"mlora-unsloth-{args.shape}"

    # Else in the folder it is started in; of each process, for several may compile at once.
    os.environ.update(QUIET | {"UNSLOTH_COMPILE_LOCATION": f"{args.folder}.compiled-{os.getpid()}"})
    if args.child == "model":
        return write_model(args)
    if args.child:
        return measure(args)
    if not args.folder.exists():
        ended, _, said = child(args, "model", {}, args.patience)
        if ended != 0:
            print(json.dumps(dict(error=f"its model was not written ({ended}): {said}"[:300])))
            sys.exit(1)
    failed = []
    for way, more in WAYS.items():
        ended, printed, said = child(args, way, more, args.patience)
        if ended == 0 and printed.startswith("{"):
            print(printed)
            return
        failed.append(f"{way} ({ended}): {said}")
        print(failed[-1], file=sys.stderr, flush=True)
        if "No module named" in said:  # it would fail again
            break
    print(json.dumps(dict(error="; ".join(failed)[:300])))
    sys.exit(1)


if __name__ == "__main__":
    main()
