"""Golden bytes of QLoRA's nf4 with double quantisation, by bitsandbytes itself: python3 tests/golden/nf4/make.py

Writes nf4.json next to it, bytes as base64: matrices in bf16, the packed codes, the 8-bit codes of the blocks' absolute maxima,
the scales of those, their mean, and what it stands for in f32. Needs torch and bitsandbytes, whose CPU implementation is
enough: its codes of absolute maxima are those of the nearest value but for some that lie half-way (to 1 %), which are taken as
the nearest here.
"""
import base64
import json
from pathlib import Path

import bitsandbytes
import bitsandbytes.functional as bnb
import torch

# rows and columns: a block that is not full (a single one has no scale to share: 0 / 0), blocks across rows, more blocks than
# share a scale (256)
SIZES = [(9, 8), (5, 40), (24, 64), (144, 136)]


def words(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.contiguous().view(torch.uint8).flatten().numpy().tobytes()).decode()


def nearest(absmax: torch.Tensor, codes: torch.Tensor, mean: torch.Tensor, nested: torch.Tensor) -> torch.Tensor:
    """The dynamic codes of the nearest values; `codes` are bitsandbytes's."""
    book = bnb.create_dynamic_map().double()
    values = (absmax.double() - mean.double()) / nested.double().repeat_interleave(256)[: absmax.numel()]
    distances = (book[None, :] - values[:, None]).abs()
    best = distances.argmin(dim=1)
    steps = (book[best] - book[codes.long()]).abs()
    behind = distances.gather(1, codes.long()[:, None])[:, 0] - distances.gather(1, best[:, None])[:, 0]
    assert bool((behind <= 0.01 * steps).all()), "bitsandbytes has another code that is not half-way"
    return best.to(torch.uint8)


def main() -> None:
    torch.manual_seed(11)
    cases = []
    for rows, columns in SIZES:
        weight = torch.randn(rows, columns) * torch.exp(torch.randn(rows, 1)) * 0.05  # rows of unlike sizes
        weight = weight.bfloat16().float()
        codes, state = bnb.quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
        nested = state.state2.absmax
        absmax = torch.stack([block.abs().max() for block in weight.flatten().split(64)])
        state.absmax = nearest(absmax, state.absmax, state.offset, nested)
        cases.append(
            dict(
                rows=rows,
                columns=columns,
                weight=words(weight.bfloat16()),
                codes=words(codes),
                absmax=words(state.absmax),
                nested=words(nested),
                mean=float(state.offset),
                back=words(bnb.dequantize_4bit(codes, state)[:12]),  # rows enough
            )
        )
    target = Path(__file__).with_name("nf4.json")
    target.write_text(json.dumps(dict(bitsandbytes=bitsandbytes.__version__, cases=cases), indent=1) + "\n")


if __name__ == "__main__":
    main()
