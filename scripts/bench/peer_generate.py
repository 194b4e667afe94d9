"""The peer of scripts/bench/generation.py: transformers' generate on a GPU, bf16, SDPA. Prints one line of JSON.

A base model with random weights extends random prompts of one length, all in one batch; PEFT adds adapters where some are
asked for, each row its own (`adapter_names`). tokens/s are new tokens by the time of a whole call, prompts among it: the best
of the calls after the first.
"""
import argparse
import json
import time
import warnings

import torch
import transformers
from peer import SHAPES, TARGETS
from turn import turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--targets", choices=TARGETS, default="qkvo")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    for flag, default in {"adapters": 0, "rank": 16, "sequences": 8, "prompt-tokens": 64, "new-tokens": 128, "rounds": 1}.items():
        parser.add_argument(f"--{flag}", type=int, default=default)
    args = parser.parse_args()

    warnings.simplefilter("ignore", FutureWarning)
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = transformers.LlamaConfig(**SHAPES[args.shape])
    config._attn_implementation = "sdpa"
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    more = {}
    if args.adapters:
        import peft

        lora = peft.LoraConfig(r=args.rank, lora_alpha=args.rank, target_modules=TARGETS[args.targets], task_type="CAUSAL_LM")
        model = peft.get_peft_model(model, lora, adapter_name="bench-0")
        for i in range(1, args.adapters):
            model.add_adapter(f"bench-{i}", lora)
        more = dict(adapter_names=[f"bench-{i % args.adapters}" for i in range(args.sequences)])
    model.eval()
    ids = torch.randint(0, config.vocab_size, (args.sequences, args.prompt_tokens), device="cuda")
    drawn = dict(do_sample=True, temperature=args.temperature, top_p=args.top_p, top_k=0) if args.temperature else dict(do_sample=False)

    def call(tokens: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0, **drawn, **more
            )
        torch.cuda.synchronize()
        assert out.shape[1] == args.prompt_tokens + tokens
        return time.perf_counter() - began

    call(4)
    turn()
    seconds = [call(args.new_tokens) for _ in range(args.rounds)]
    report = vars(args) | dict(
        tokens_per_s=round(args.sequences * args.new_tokens / min(seconds)),
        seconds=[round(of, 3) for of in seconds],
        device_bytes=torch.cuda.max_memory_allocated(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
