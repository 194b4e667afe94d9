"""Makes blocks.json: values, and what ggml makes of them in each type that mlora writes, as base64.

    python tests/golden/gguf/make.py      # with the packages of scripts/golden/index.ts

ggml is that of llama-cpp-python, which PyPI has as sources: pip compiles it. f16 and bf16 are by gguf.
"""

import base64
import ctypes
import json
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from gguf import GGMLQuantizationType as Q

HERE = Path(__file__).resolve().parent
TYPES = (Q.F16, Q.BF16, Q.Q8_0, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K)


def text_of(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def values() -> np.ndarray:
    """Blocks of 256: as weights have them, with outliers, of one sign, sparse, tiny, whole numbers, all the same, zeros."""
    rng = np.random.default_rng(7)
    some = rng.normal(0, 0.02, 256)
    parts = [some, rng.standard_t(2, 256) * 0.02, np.abs(some) + 0.1, some * (rng.random(256) < 0.1), some * 1e-6]
    parts += [rng.integers(-3, 4, 256), np.full(256, 0.3), np.zeros(256)]
    return np.concatenate(parts).astype(np.float32)


def encoded(x: np.ndarray, kind: Q) -> np.ndarray:
    if kind in (Q.F16, Q.BF16):
        return np.ascontiguousarray(gguf.quantize(x[None], kind)).view(np.uint8)
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    size, width = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros(len(x) // size * width, np.uint8)
    rows = ctypes.c_int64(len(x) // 256)
    library.ggml_quantize_chunk(
        int(kind), x.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(0), rows, ctypes.c_int64(256), None
    )
    return out


def main() -> None:
    x = values()
    blocks = {kind.name: text_of(encoded(x, kind)) for kind in TYPES}
    (HERE / "blocks.json").write_text(json.dumps(dict(values=text_of(x), blocks=blocks), indent=1) + "\n")


main()
