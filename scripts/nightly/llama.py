"""What llama.cpp makes of the files that scripts/nightly/gguf.ts wrote: reads cases on standard input, writes answers.

A case is {"kind": ...} with further keys, as the functions below have them.
"""

import ctypes
import json
import sys

import gguf
import llama_cpp
import numpy as np

F32 = 0


def opened(path: str, lora: str | None = None, context: int = 0, **more) -> llama_cpp.Llama:
    """With keys and values in f32, and YaRN as the file has it, which the class would otherwise replace."""
    file = dict(yarn_attn_factor=-1.0, yarn_beta_fast=-1.0, yarn_beta_slow=-1.0)
    cache = dict(type_k=F32, type_v=F32, swa_full=True)
    return llama_cpp.Llama(path, n_ctx=context, n_threads=2, verbose=False, lora_path=lora, **file, **cache, **more)


def logits(path: str, ids: list[int], lora: str | None = None, context: int = 64) -> list[float]:
    """Of all positions of a row of tokens."""
    model = opened(path, lora, context, logits_all=True)
    model.eval(ids)
    return np.asarray(model.scores[: len(ids)], np.float32).reshape(-1).tolist()


def greedy(path: str, rows: list[list[int]], new: int) -> list[list[int]]:
    """The likeliest tokens after each row."""
    model = opened(path, context=512)
    answers = []
    for ids in rows:
        model.reset()
        model.eval(ids)
        answer = []
        for _ in range(new):
            last = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(model.ctx, -1), (model.n_vocab(),))
            answer.append(int(last.argmax()))
            model.eval([answer[-1]])
        answers.append(answer)
    return answers


def tokens(path: str, texts: list[str]) -> list[list[int]]:
    model = opened(path, context=64)
    return [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]


def metadata(path: str) -> dict:
    return opened(path, context=64).metadata


def quantised(source: str, path: str, file_type: int, work: str) -> list[str]:
    """The tensors of `path` that llama-quantize makes otherwise of `source`."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = file_type
    settings.nthread = 2
    if llama_cpp.llama_model_quantize(source.encode(), work.encode(), ctypes.byref(settings)) != 0:
        return ["llama-quantize failed"]
    own, theirs = [{tensor.name: tensor for tensor in gguf.GGUFReader(name).tensors} for name in (path, work)]
    if own.keys() != theirs.keys():
        return sorted(own.keys() ^ theirs.keys())
    return [
        f"{name}: {tensor.tensor_type.name}, llama-quantize has {theirs[name].tensor_type.name}"
        for name, tensor in own.items()
        if tensor.tensor_type != theirs[name].tensor_type or not np.array_equal(tensor.data, theirs[name].data)
    ]


def main() -> None:
    functions = dict(logits=logits, greedy=greedy, tokens=tokens, metadata=metadata, quantised=quantised)
    for line in sys.stdin:
        case = json.loads(line)
        try:
            answer = dict(answer=functions[case.pop("kind")](**case))
        except Exception as error:  # of one case, which the others outlive
            answer = dict(error=f"{type(error).__name__}: {error}")
        print(json.dumps(answer), flush=True)


main()
