"""Columns that lie by groups of four parts, sorted by part, and back.

    columns_regroup   to[m, i] = from[m, j], j the column of group g and part p that i is among the p-th parts of all groups;
                      back: to[m, j] = from[m, i]

Shapes: from_rows, to_rows c[M, groups (a + b + c + d)], a to d the widths of the parts, multiples of UNIT.

Launch: grid (M, ceil(columns / BLOCK)), no scratch.
"""
import triton
import triton.language as tl


@triton.jit
def columns_regroup(from_rows, to_rows, groups, a, b, c, d, back, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK columns of one row. See the top of the file."""
    # As they are: tells the compiler that parts are aligned to UNIT columns.
    a, b, c, d = a // UNIT * UNIT, b // UNIT * UNIT, c // UNIT * UNIT, d // UNIT * UNIT
    u_U, lane = tl.program_id(1) * (BLOCK // UNIT) + tl.arange(0, BLOCK // UNIT), tl.arange(0, UNIT)
    each = a + b + c + d
    i_U = u_U * UNIT
    before_U = tl.where(i_U < groups * a, 0, tl.where(i_U < groups * (a + b), a, tl.where(i_U < groups * (a + b + c), a + b, a + b + c)))
    size_U = tl.where(i_U < groups * a, a, tl.where(i_U < groups * (a + b), b, tl.where(i_U < groups * (a + b + c), c, d)))
    size_U = tl.maximum(size_U, 1)  # beyond the last column
    among_U = i_U - groups * before_U
    j_U = among_U // size_U * each + before_U + among_U % size_U
    row = tl.program_id(0).to(tl.int64) * groups * each
    at_U = (tl.where(back != 0, j_U, i_U) // UNIT * UNIT)[:, None] + lane[None, :]
    of_U = (tl.where(back != 0, i_U, j_U) // UNIT * UNIT)[:, None] + lane[None, :]
    seen = (i_U < groups * each)[:, None]
    tl.store(to_rows + row + at_U, tl.load(from_rows + row + of_U, mask=seen), mask=seen)


# What is compiled.

from variants import row


def variants():
    for kind in ("ptr", "f32"):
        for unit in (1, 8):
            parameters = "from_rows:c to_rows:c groups:i32 a:i32 b:i32 c:i32 d:i32 back:i32"
            yield row("regroup", "columns_regroup", kind, parameters, UNIT=unit, BLOCK=2048)
