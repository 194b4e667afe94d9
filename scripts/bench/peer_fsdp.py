"""The peer of scripts/bench/pipeline.ts: one adapter trained by PEFT with the base model sharded over all GPUs of this machine
(FSDP 2).

The model of peer.py, each layer compiled and a shard group of its own; or that of peer_experts.py, not compiled. Every GPU has
`rows` rows of the mini-batch. Prints one line of JSON: tokens/s of all GPUs together, and the sum of their peak memories.
"""

import argparse
import json
import os
import statistics
import time

import peer
import peer_experts
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard

PORT = "29517"


def train(rank: int, gpus: int, args: argparse.Namespace) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=PORT)
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=gpus, device_id=torch.device("cuda", rank))
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    model = peer_experts.make_model(args) if args.shape in peer_experts.SHAPES else peer.make_model(args)[0]
    for layer in model.base_model.model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.01)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.manual_seed(rank)
    ids = torch.randint(0, model.config.vocab_size, (args.rows, args.length), device="cuda")
    seconds = []
    for _ in range(peer.WARM_UP + args.steps):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.tensor([torch.cuda.max_memory_allocated()], dtype=torch.float64, device="cuda")
    dist.all_reduce(peak)
    if rank == 0:
        median = statistics.median(seconds[peer.WARM_UP :])
        tokens = gpus * args.rows * args.length
        print(json.dumps(dict(gpus=gpus, ms=median * 1e3, tokens_per_s=tokens / median, device_bytes=int(peak.item()))), flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=[*peer.SHAPES, *peer_experts.SHAPES], default="llama2-7b")
    parser.add_argument("--targets", choices=peer.TARGETS, default="qkvo")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--layers", type=int, help="fewer than the shape has: fills the compiler's cache")
    for flag, default in dict(rows=8, length=512, rank=16, steps=8).items():
        parser.add_argument(f"--{flag}", type=int, default=default)
    args = parser.parse_args()
    args.device, args.adapters, args.checkpointing = "cuda", 1, False
    args.attention = peer_experts.SHAPES[args.shape][2][0] if args.shape in peer_experts.SHAPES else None
    gpus = torch.cuda.device_count()
    mp.spawn(train, args=(gpus, args), nprocs=gpus)


if __name__ == "__main__":
    main()
