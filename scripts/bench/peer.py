"""The peer of scripts/bench/cpu and scripts/bench/gpu: LoRA training by transformers and PEFT. Prints one line of JSON.

One base model with random weights, adapters of one rank, AdamW; fp32 on a CPU unless --precision says bf16, bf16 with SDPA
attention on a GPU, there also with every layer compiled or with gradient checkpointing. PEFT trains one adapter at a time, so
a step of several adapters is a step of each, one after another, on the base model that they share. A step feeds rows x length
random tokens to each adapter; all of them are targets. Reported are the median step and the process's peak memory. --seconds
adds steps until they have taken that long: a GPU that its power limits comes to its lasting speed after some. --work measures
several sizes of a batch on one model, a line each.
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
from turn import turn

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


def gemma4(**more) -> tuple:
    return ("Gemma4TextConfig", dict(vocab_size=262144, head_dim=256, global_head_dim=512, final_logit_softcapping=30.0, **more))


# Of LlamaConfig, or with the name of their configuration's class; src/plan/shapes.ts says where the numbers are from.
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
    "smollm3-3b": ("SmolLM3Config", {}),
    "phi4-14b": (
        "Phi3Config",
        dict(llama(40, 5120, 17920, 40, 10, 100352, 250000.0), max_position_embeddings=16384, pad_token_id=0),
    ),
    "qwen3.5-4b": (
        "Qwen3_5TextConfig",
        dict(hidden_size=2560, intermediate_size=9216, num_hidden_layers=32, num_attention_heads=16, tie_word_embeddings=True),
    ),
    "qwen3.5-27b": (
        "Qwen3_5TextConfig",
        dict(
            hidden_size=5120,
            intermediate_size=17408,
            num_hidden_layers=64,
            num_attention_heads=24,
            num_key_value_heads=4,
            linear_num_value_heads=48,
        ),
    ),
    "lfm2-1.2b": (
        "Lfm2Config",
        dict(
            hidden_size=2048,
            intermediate_size=12288,
            num_hidden_layers=16,
            num_attention_heads=32,
            full_attn_idxs=[2, 5, 8, 10, 12, 14],
        ),
    ),
    "granite4-h-micro": (
        "GraniteMoeHybridConfig",
        dict(
            hidden_size=2048,
            num_hidden_layers=40,
            layer_types=["attention" if layer % 10 == 5 else "mamba" for layer in range(40)],
            shared_intermediate_size=8192,
            num_local_experts=0,
            num_attention_heads=32,
            num_key_value_heads=8,
            mamba_n_heads=64,
            mamba_d_head=64,
            mamba_d_state=128,
            mamba_n_groups=1,
            vocab_size=100352,
            tie_word_embeddings=True,
        ),
    ),
    "gemma3-4b": (
        "Gemma3TextConfig",
        dict(
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=34,
            sliding_window=1024,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
                sliding_attention=dict(rope_type="default", rope_theta=1e4),
            ),
        ),
    ),
    "gemma4-e4b": gemma4(
        hidden_size=2560, intermediate_size=10240, num_hidden_layers=42, num_key_value_heads=2, num_kv_shared_layers=18
    ),
    "gemma4-12b": gemma4(
        hidden_size=3840,
        intermediate_size=15360,
        num_hidden_layers=48,
        num_attention_heads=16,
        num_key_value_heads=8,
        num_global_key_value_heads=1,
        attention_k_eq_v=True,
        sliding_window=1024,
        hidden_size_per_layer_input=0,
    ),
}
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
OTHERS = ["gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj", "per_layer_input_gate", "per_layer_projection"]
OTHERS += ["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "in_proj", "out_proj", "w1", "w2", "w3"]
OTHERS += ["input_linear", "output_linear"]
TARGETS = {"qkvo": QKVO, "all-linear": [*QKVO, *OTHERS]}  # those that the model has


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_model(args: argparse.Namespace) -> tuple[peft.PeftModel, dict[str, torch.optim.Optimizer]]:
    """A model with `args.adapters` adapters, and an optimizer for each."""
    found = SHAPES[args.shape]
    kind, values = found if isinstance(found, tuple) else ("LlamaConfig", found)
    if args.layers:
        shared = {"num_kv_shared_layers": args.layers // 3} if "num_kv_shared_layers" in values else {}
        values = values | dict(num_hidden_layers=args.layers) | shared
    config = getattr(transformers, kind)(**values, use_cache=False)
    config._attn_implementation = "sdpa"
    lora = peft.LoraConfig(
        r=args.rank,
        lora_alpha=args.rank,
        lora_dropout=args.dropout,
        target_modules=TARGETS[args.targets],
        task_type="CAUSAL_LM",
    )
    names = [f"bench-{i}" for i in range(args.adapters)]
    with torch.device(args.device):
        base = transformers.AutoModelForCausalLM.from_config(config)
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
        torch._dynamo.config.automatic_dynamic_shapes = False
        torch._dynamo.config.recompile_limit = 64  # layers of several kinds
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
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="fp32 on a CPU, bf16 on a GPU unless given")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--work", nargs="*", metavar="ROWSxLENGTH", help="in place of --rows and --length")
    parser.add_argument("--layers", type=int, help="fewer than the shape has: fills the compiler's cache")
    parser.add_argument("--warm-up", type=int, default=WARM_UP)
    parser.add_argument("--seconds", type=float, default=0.0, help="the least that the steps take together")
    for flag, default in dict(adapters=1, rows=4, length=64, rank=16, steps=10, threads=len(os.sched_getaffinity(0))).items():
        parser.add_argument(f"--{flag}", type=int, default=default)
    args = parser.parse_args()

    warnings.simplefilter("ignore", FutureWarning)  # transformers about itself
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    args.precision = args.precision or ("bf16" if args.device == "cuda" else "fp32")
    if args.precision == "bf16":
        torch.set_default_dtype(torch.bfloat16)
    imported = peak_bytes()
    model, optimizers = make_model(args)
    for size in args.work or [f"{args.rows}x{args.length}"]:
        args.rows, args.length = map(int, size.split("x"))
        measure(args, model, optimizers, imported)


def measure(args: argparse.Namespace, model: peft.PeftModel, optimizers: dict[str, torch.optim.Optimizer], imported: int) -> None:
    """Prints the line of one size of a batch."""
    vocab, cuda = model.config.vocab_size, args.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    batches = [torch.randint(0, vocab, (args.rows, args.length), device=args.device) for _ in range(args.adapters)]
    seconds, processor = [], []
    while len(seconds) < args.warm_up + args.steps or sum(seconds[args.warm_up:]) < args.seconds:
        if len(seconds) == args.warm_up:
            turn()
        start, worked = time.perf_counter(), time.process_time()
        loss = step(model, optimizers, batches)  # reads the loss, so that all of the step is done when it returns
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - worked)
    median = statistics.median(seconds[args.warm_up :])
    report = vars(args) | dict(
        ms=round(median * 1e3, 1),
        cpu_ms=round(statistics.median(processor[args.warm_up :]) * 1e3, 1),
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
