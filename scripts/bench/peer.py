"""The peer of scripts/bench/cpu and scripts/bench/gpu: LoRA training by transformers and PEFT. Prints one line of JSON.

One base model with random weights, adapters of one rank, AdamW; fp32 on a CPU, bf16 with SDPA attention on a GPU, there also
with every layer compiled or with gradient checkpointing. PEFT trains one adapter at a time, so a step of several adapters is a
step of each, one after another, on the base model that they share. A step feeds rows x length random tokens to each adapter;
all of them are targets. Reported are the median step and the process's peak memory.
"""

import argparse
import json
import os
import resource
import statistics
import time
import warnings

import peft
import torch
import transformers

WARM_UP = 2  # steps that are not counted: allocations, caches, thread pools


def llama(layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocab: int = 32000, theta: float = 10000.0) -> dict:
    return dict(
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=8192,
        rope_parameters=dict(rope_type="default", rope_theta=theta),
    )


SHAPES = {
    "smollm2-135m": dict(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        rope_parameters=dict(rope_type="default", rope_theta=100000.0),
        tie_word_embeddings=True,
    ),
    "tinyllama-1.1b": llama(22, 2048, 5632, 32, 4),
    "llama2-7b": llama(32, 4096, 11008, 32, 32),
    "llama2-13b": llama(40, 5120, 13824, 40, 40),
    "llama3-8b": llama(32, 4096, 14336, 32, 8, 128256, 500000.0),
}
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS = {"qkvo": QKVO, "all-linear": [*QKVO, "gate_proj", "up_proj", "down_proj"]}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_model(args: argparse.Namespace) -> tuple[peft.PeftModel, dict[str, torch.optim.Optimizer]]:
    """A model with `args.adapters` adapters, and an optimizer for each."""
    config = transformers.LlamaConfig(**SHAPES[args.shape], attn_implementation="sdpa", use_cache=False)
    lora = peft.LoraConfig(
        r=args.rank,
        lora_alpha=args.rank,
        lora_dropout=args.dropout,
        target_modules=TARGETS[args.targets],
        task_type="CAUSAL_LM",
    )
    names = [f"bench-{i}" for i in range(args.adapters)]
    with torch.device(args.device):
        base = transformers.LlamaForCausalLM(config)
    model = peft.get_peft_model(base, lora, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, lora)
    optimizers = {}
    for name in names:
        model.set_adapter(name)  # leaves gradients to this adapter's parameters alone
        optimizers[name] = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.01)
    if args.checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    if args.compile:  # layer by layer: the steady speed of the whole model compiled, in minutes less
        for layer in model.base_model.model.model.layers:
            layer.compile()
    return model.train(), optimizers


def step(model: peft.PeftModel, optimizers: dict[str, torch.optim.Optimizer], batches: list[torch.Tensor]) -> float:
    """One optimizer step of each adapter; the last one's loss."""
    for (name, optimizer), ids in zip(optimizers.items(), batches, strict=True):
        if len(optimizers) > 1:
            model.set_adapter(name)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--targets", choices=TARGETS, default="all-linear")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    for flag, default in dict(adapters=1, rows=4, length=64, rank=16, steps=10, threads=len(os.sched_getaffinity(0))).items():
        parser.add_argument(f"--{flag}", type=int, default=default)
    args = parser.parse_args()

    warnings.simplefilter("ignore", FutureWarning)  # transformers about itself
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cuda = args.device == "cuda"
    if cuda:
        torch.set_default_dtype(torch.bfloat16)
    imported = peak_bytes()
    model, optimizers = make_model(args)
    vocab = SHAPES[args.shape]["vocab_size"]
    batches = [torch.randint(0, vocab, (args.rows, args.length), device=args.device) for _ in range(args.adapters)]
    seconds = []
    for _ in range(WARM_UP + args.steps):
        start = time.perf_counter()
        loss = step(model, optimizers, batches)  # reads the loss, so that all of the step is done when it returns
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[WARM_UP:])
    report = vars(args) | dict(
        ms=round(median * 1e3, 1),
        tokens_per_s=round(args.adapters * args.rows * args.length / median, 1),
        peak_rss_bytes=peak_bytes(),
        device_bytes=torch.cuda.max_memory_allocated() if cuda else None,
        imported_rss_bytes=imported,
        loss=round(loss, 4),
        torch=torch.__version__,
        transformers=transformers.__version__,
        peft=peft.__version__,
    )
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
