"""The Triton kernel of ``jestbench.select.kernels``; it imports triton, so it is itself imported at first use.

Triton interprets a kernel's annotations, so only the compile-time constants are annotated.
"""

# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, misc, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def sum_rows(
    products_RC, sums_R, R, C, scale, offset, SIGMOID: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Sum ROWS rows over all C columns in one program, reading each product once."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # row · C may exceed the int32 range.
    products_row = products_RC + row.to(tl.int64)[:, None] * C
    most = tl.full((ROWS,), -float("inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for start in range(0, C, COLUMNS):
        column = (start + tl.arange(0, COLUMNS))[None, :]
        logits = scale * tl.load(products_row + column, (row[:, None] < R) & (column < C), 0.0) + offset
        if SIGMOID:
            # log1p(e) as log(w)·e/(w − 1) with w = 1 + e (Kahan): log(1 + e) alone loses a small e.
            e = tl.exp(-tl.abs(logits))
            w = 1.0 + e
            log1p = tl.where(w == 1.0, e, tl.log(w) * e / tl.where(w == 1.0, 1.0, w - 1.0))
            terms = tl.maximum(logits, 0.0) + log1p
            total += tl.sum(tl.where(column < C, terms, 0.0), 1)
        else:
            logits = tl.where(column < C, logits, -float("inf"))
            higher = tl.maximum(most, tl.max(logits, 1))
            total = total * tl.exp(most - higher) + tl.sum(tl.exp(logits - higher[:, None]), 1)
            most = higher
    tl.store(sums_R + row, total if SIGMOID else most + tl.log(total), row < R)
