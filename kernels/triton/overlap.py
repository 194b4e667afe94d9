"""Launches of a record that overlap: a kernel begins while the one before it still runs (programmatic dependent launch, from
Hopper on). Helpers only, no kernel.

What the device may let overlap follows these rules, which tests/pure/kernel-sources.test.ts reads from the sources:

- A kernel with OVERLAPS = 1 calls `begin_next` first, and every program of it calls `wait_for_previous` before it reads or
  writes anything that another launch of the record writes, and before it ends. So all earlier launches have ended, not the one
  before alone: that one has waited, too.
- Before it, a kernel reads parameters, tables and weights, which nothing within such a record writes (Device.replay); a launch
  outside of one begins when the one before has ended, as all do.

Without that attribute of a launch both do nothing.
"""
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def begin_next(OVERLAPS: tl.constexpr):
    """Lets the next launch begin as soon as there is room for it: when each program of this one has come here."""
    if OVERLAPS:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAPS: tl.constexpr):
    """Waits until all launches before have ended and what they wrote is seen."""
    if OVERLAPS:
        gdc_wait()


@triton.jit
def prefetch(address, there):
    """
    Brings the lines of 128 bytes at addresses (i64) to L2, without waiting, where `there`. L2 is what all programs see, so this
    may come before what is there is written.
    """
    tl.inline_asm_elementwise(
        "{ .reg .pred there; setp.ne.s32 there, $2, 0; @there prefetch.global.L2 [$1]; mov.u32 $0, 0; }",
        "=r,l,r", [address, there.to(tl.int32)], dtype=tl.int32, is_pure=False, pack=1)
