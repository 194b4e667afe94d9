"""The dropout mask of base/rng.ts on the GPU: the same bits from the same words, so that a mask never has to be stored.

Helpers only, no kernel. Everything is uint32 arithmetic. A row's key is computed once a row, the bits once an element; a mask
depends on (seed, step, module, own row number, column) and never on a place in the batch.
"""
import triton
import triton.language as tl


@triton.jit
def mix(x):
    """The 32-bit finaliser "lowbias32"; x: uint32 of any shape."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def dropout_settings(dropout, adapter):
    """seed, step, threshold (uint32) and 1 / (1 - p) (f32) of an adapter; dropout: i32[L, 4]."""
    at = dropout + adapter * 4
    seed = tl.load(at).to(tl.uint32, bitcast=True)
    step = tl.load(at + 1).to(tl.uint32, bitcast=True)
    threshold = tl.load(at + 2).to(tl.uint32, bitcast=True)
    inverse = tl.load(at + 3).to(tl.float32, bitcast=True)
    return seed, step, threshold, inverse


@triton.jit
def dropout_row_key(seed, step, module, row):
    """The two words of a row's key; row: i32[rows], the row's own number in its adapter's micro-batch."""
    k0 = mix(mix(mix(mix(seed) ^ step) ^ module.to(tl.uint32)) ^ row.to(tl.uint32, bitcast=True))
    return k0, mix(k0 ^ 0x9E3779B9)


@triton.jit
def dropout_keep(k0, k1, column, threshold):
    """bool[rows, columns]: whether an element is kept; k0, k1: uint32[rows, 1]; column: i32[1, columns]."""
    x = column.to(tl.uint32, bitcast=True) + k0
    x = ((x ^ (x >> 16)) * 0x7FEB352D) ^ k1
    x = (x ^ (x >> 15)) * 0x846CA68B
    return (x ^ (x >> 16)) >= threshold
