"""The peer of scripts/bench/experts.py: LoRA training of a mixture of experts by transformers (grouped_mm) and PEFT. Prints a
line of JSON for each of its targets: attention is compiled once for all of them.

A base model with random weights in bf16, one adapter, AdamW. Targets are q, k, v and o, or these and the experts' parameters
(`target_parameters`, an own A and B in each expert). Where memory does not suffice, the same with gradient checkpointing; where
an attention cannot run, the next of the shape.
"""

import argparse
import gc
import json
import statistics
import sys
import time
import warnings

import peft
import torch
import transformers
from transformers.initialization import no_init_weights

WARM_UP = 2  # steps that are not counted
QWEN3 = dict(
    num_hidden_layers=48,
    hidden_size=2048,
    intermediate_size=6144,
    moe_intermediate_size=768,
    num_attention_heads=32,
    num_key_value_heads=4,
    head_dim=128,
    vocab_size=151936,
    num_experts=128,
    num_experts_per_tok=8,
    norm_topk_prob=True,
    tie_word_embeddings=False,
    rope_parameters=dict(rope_type="default", rope_theta=1e6),
)
GPT_OSS = dict(num_hidden_layers=24, num_local_experts=32)
GLM = dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))
# Attention that each has, the fastest first: gpt-oss' sinks are not for torch's own.
SHAPES = {
    "qwen3-30b-a3b": (transformers.Qwen3MoeConfig, QWEN3, ("sdpa",)),
    "glm4.7-flash": (transformers.Glm4MoeLiteConfig, GLM, ("sdpa",)),
    "gpt-oss-20b": (transformers.GptOssConfig, GPT_OSS, ("flex_attention", "eager")),
}
QKVO = ["q_proj", "k_proj", "v_proj", "o_proj"]
LATENT = {"glm4.7-flash": ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]}
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def make_model(args: argparse.Namespace) -> peft.PeftModel:
    make, sizes, _ = SHAPES[args.shape]
    config = make(**sizes, use_cache=False)
    lora = peft.LoraConfig(
        r=args.rank,
        lora_alpha=args.rank,
        target_modules=LATENT.get(args.shape, QKVO),
        target_parameters=EXPERTS if args.targets == "all-linear" else None,
        task_type="CAUSAL_LM",
    )
    with torch.device("cuda"), no_init_weights():
        base = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=args.attention, experts_implementation="grouped_mm", dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02)
            else:
                parameter.fill_(1.0 if "norm" in name else 0.0)
    with torch.device("cuda"):
        return peft.get_peft_model(base, lora).train()


def steps(model: peft.PeftModel, optimizer: torch.optim.Optimizer, args: argparse.Namespace) -> tuple[list[float], float]:
    ids = torch.randint(0, model.config.vocab_size, (args.rows, args.length), device="cuda")
    seconds = []
    for _ in range(WARM_UP + args.steps):
        start = time.perf_counter()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = loss.item()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:], loss


def fitting_steps(model: peft.PeftModel, optimizer: torch.optim.Optimizer, args: argparse.Namespace) -> tuple[list[float], float]:
    if not args.checkpointing:
        try:
            return steps(model, optimizer, args)
        except torch.OutOfMemoryError:
            args.checkpointing = True
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return steps(model, optimizer, args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-30b-a3b")
    parser.add_argument("--targets", choices=("qkvo", "all-linear"), nargs="+", default=["qkvo"])
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--attention", help="transformers' name of it")
    for flag, default in dict(rows=4, length=2048, rank=16, steps=4).items():
        parser.add_argument(f"--{flag}", type=int, default=default)
    args = parser.parse_args()

    warnings.simplefilter("ignore", FutureWarning)  # transformers about itself
    transformers.logging.set_verbosity_error()
    *faster, last = SHAPES[args.shape][2]
    args.attention = args.attention or (faster or [last])[0]
    for targets in args.targets:
        of = argparse.Namespace(**vars(args) | dict(targets=targets))
        report_of(of, last)
        args.attention = of.attention  # what has failed once is not tried again


def report_of(args: argparse.Namespace, last: str) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(0)
    model = make_model(args)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.01)
    try:
        seconds, loss = fitting_steps(model, optimizer, args)
    except Exception as error:
        if args.attention == last:
            raise
        print(f"{args.attention}: {str(error)[:300]}", file=sys.stderr, flush=True)
        args.attention = last
        model.set_attn_implementation(last)
        seconds, loss = fitting_steps(model, optimizer, args)
    median = statistics.median(seconds)
    report = vars(args) | dict(
        ms=round(median * 1e3, 1),
        tokens_per_s=round(args.rows * args.length / median, 1),
        device_bytes=torch.cuda.max_memory_allocated(),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        loss=round(loss, 4),
        torch=torch.__version__,
        transformers=transformers.__version__,
        peft=peft.__version__,
    )
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
