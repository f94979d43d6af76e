"""The Triton kernel of ``jestbench.select.kernels``; it imports triton, so it is itself imported at first use.

Triton interprets a kernel's annotations, so only the compile-time constants are annotated.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def strip_sums(
    left_BD,
    right_CD,
    sums_B,
    B,
    C,
    D,
    scale,
    offset,
    SIGMOID: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Sum ROWS rows over all C columns in one program; the running maximum and sum stay in registers."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    depth = tl.arange(0, DEPTH)
    # row · D may exceed the int32 range.
    left_row = left_BD + row.to(tl.int64)[:, None] * D
    most = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, C, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        right_column = right_CD + column.to(tl.int64)[None, :] * D
        product = tl.zeros((ROWS, COLUMNS), tl.float32)
        for d in range(0, D, DEPTH):
            left = tl.load(left_row + (d + depth)[None, :], (row[:, None] < B) & (d + depth < D)[None, :], 0.0)
            right = tl.load(right_column + (d + depth)[:, None], (column[None, :] < C) & (d + depth < D)[:, None], 0.0)
            product = tl.dot(left, right, product, input_precision="ieee")
        logits = scale * product + offset
        if SIGMOID:
            # log1p(e) as log(w)·e/(w − 1) with w = 1 + e (Kahan): log(1 + e) alone loses a small e.
            e = tl.exp(-tl.abs(logits))
            w = 1.0 + e
            log1p = tl.where(w == 1.0, e, tl.log(w) * e / tl.where(w == 1.0, 1.0, w - 1.0))
            terms = tl.maximum(logits, 0.0) + log1p
            total += tl.sum(tl.where(column[None, :] < C, terms, 0.0), 1)
        else:
            logits = tl.where(column[None, :] < C, logits, -float("inf"))
            higher = tl.maximum(most, tl.max(logits, 1))
            total = total * tl.exp(most - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
            most = higher
    tl.store(sums_B + row, total if SIGMOID else most + tl.log(total), row < B)
