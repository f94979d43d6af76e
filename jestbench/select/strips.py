"""Strips of similarity products: the logits of all rows against some columns, and their sums over a row."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jestbench.select import kernels
from jestbench.select.losses import Equal, LossName
from jestbench.select.tiles import exact_products, tiles

if TYPE_CHECKING:
    from jestbench.select.scores import Embeddings

BLOCK_ROWS = 512
"""Rows of one product in a strip. A strip is thin, and threads with a block each are faster than
threads that share one thin product (``tools/bench.py selection`` times both)."""

FOLDS = 3
"""Halvings of a strip before its logarithms are taken: 8 to 15 terms of a sum share one."""

MILD_OFFSET = 60.0
"""Largest |b₀| for which exp(b₀) and exp(a) may be computed separately in fp32."""

LOG2_E = math.log2(math.e)
"""Strips use powers of 2: torch's exp2 takes half the time of its exp on CPUs."""


class Meter:
    """Counts the multiply-adds of similarity products, so that selection is charged like any pass.

    Attributes:
        macs: of all processes together, which are charged: the same for any number of processes.
        own_macs: those that this process has computed.
    """

    def __init__(self) -> None:
        self.macs = self.own_macs = 0

    def add(self, rows: int, columns: int, width: int, own: int) -> None:
        """Charge a ``rows × columns`` product over ``width`` dimensions.

        Args:
            rows: rows of the whole product.
            columns: its columns.
            width: D.
            own: rows that this process computes.
        """
        self.macs += rows * columns * width
        self.own_macs += own * columns * width


def strip(left_BD: Tensor, right_CD: Tensor, model: Embeddings, loss: LossName) -> Tensor:
    """Logits ``[B, C]`` of all rows against some columns, under the model's multiplier and offset.

    Computed in the embeddings' own precision, whatever autocast the caller is in. The caller charges it.
    """
    offset = left_BD.new_full((), model.bias if loss == "sigmoid" else 0.0)
    with exact_products(left_BD.device):
        return torch.addmm(offset, left_BD, right_CD.T, alpha=model.scale)


def own_logits(image_PD: Tensor, text_PD: Tensor, model: Embeddings, loss: LossName) -> Tensor:
    """The logit of each pair with itself, ``[P]``; the caller charges it."""
    own_P = image_PD.new_empty(len(image_PD))
    # A quarter of a tile: a whole one returns to the system once freed, and its page faults outlast the sums (CPU).
    for rows in tiles(len(own_P), 4 * image_PD.shape[1], image_PD):
        own_P[rows] = (image_PD[rows] * text_PD[rows]).sum(1)
    own_P *= model.scale
    return own_P + model.bias if loss == "sigmoid" else own_P


def unequal(logits_RC: Tensor, equal_RC: Tensor, equal: Equal) -> Tensor:
    """Logits whose equal pairs are masked, −∞; or, as positives of the sigmoid loss, of the other sign."""
    if equal == "masked":
        return logits_RC.masked_fill(equal_RC, -torch.inf)
    return torch.where(equal_RC, -logits_RC, logits_RC)


def strip_sums(left_BD: Tensor, right_CD: Tensor, model: Embeddings, loss: LossName) -> Tensor:
    """Σ softplus(u) (sigmoid) or the LSE of a (softmax) over each row of a strip, ``[B]``; the caller charges it.

    Computed in tiles of whole rows, so that the strip is never in memory, in the embeddings' own precision. On a GPU
    the host never waits for it.
    """
    if model.imagined:
        return left_BD.new_zeros(len(left_BD))
    if kernels.usable(left_BD):
        offset = model.bias if loss == "sigmoid" else 0.0
        return kernels.row_sums(left_BD, right_CD, model.scale, offset, loss)
    sums_B = left_BD.new_empty(len(left_BD))
    with exact_products(left_BD.device):
        for rows in tiles(len(left_BD), len(right_CD), left_BD):
            if left_BD.is_cuda:
                sums_B[rows] = _row_sums(strip(left_BD[rows], right_CD, model, loss), loss)
                continue
            start = rows.start
            for blocks in _blocks(left_BD[rows]):
                stop = start + blocks.shape[0] * blocks.shape[1]
                sums_B[start:stop] = _block_sums(blocks, right_CD, model, loss).flatten()
                start = stop
    return sums_B


def _row_sums(logits_RC: Tensor, loss: LossName) -> Tensor:
    """Sums ``[R]`` over C; overwrites the logits where the loss is sigmoid."""
    if loss == "softmax":
        return logits_RC.logsumexp(1)
    return torch.ops.aten.softplus.out(logits_RC, out=logits_RC).sum(1)  # type: ignore[no-any-return]


def _blocks(left_BD: Tensor) -> Iterator[Tensor]:
    """Yield the rows as ``[n, BLOCK_ROWS, D]``, then the remaining ones as ``[1, rest, D]``; no empty parts."""
    whole = len(left_BD) - len(left_BD) % BLOCK_ROWS
    if whole:
        yield left_BD[:whole].unflatten(0, (-1, BLOCK_ROWS))
    if whole < len(left_BD):
        yield left_BD[whole:].unsqueeze(0)


def _block_sums(left_nRD: Tensor, right_CD: Tensor, model: Embeddings, loss: LossName) -> Tensor:
    """Sums ``[n, R]`` over C, in place where possible: a second tile would double the peak memory."""
    if loss == "softmax":
        logits_nCR = _products(left_nRD, right_CD, model.scale * LOG2_E)
        most_n1R = logits_nCR.amax(1, keepdim=True)
        return (logits_nCR.sub_(most_n1R).exp2_().sum(1).log2_() + most_n1R.squeeze(1)) / LOG2_E
    if abs(model.bias) <= MILD_OFFSET:
        sums_nR = _softplus_sums(_products(left_nRD, right_CD, model.scale * LOG2_E), math.exp(model.bias))
        if math.isfinite(float(sums_nR.sum())):  # no term is negative: an overflow cannot cancel
            return sums_nR
    return _row_sums(_products(left_nRD, right_CD, model.scale).add_(model.bias), loss)


class _Kept(threading.local):
    """Memory of a thread's tiles on the CPU. A freed tile may return to the system, and page faults would follow."""

    tile_X = torch.empty(0)


_kept = _Kept()


def _products(left_nRD: Tensor, right_CD: Tensor, factor: float) -> Tensor:
    """The products times a factor, ``[n, C, R]``, in memory that the thread's next call overwrites."""
    shape = len(left_nRD), len(right_CD), left_nRD.shape[1]
    count = math.prod(shape)
    kind = left_nRD.device, left_nRD.dtype
    if len(_kept.tile_X) < count or (_kept.tile_X.device, _kept.tile_X.dtype) != kind:
        with torch.inference_mode(False):  # else the next call outside of inference mode could not write into it
            _kept.tile_X = left_nRD.new_empty(count)
    right_nCD = (right_CD * factor).expand(len(left_nRD), -1, -1)
    return torch.bmm(right_nCD, left_nRD.transpose(1, 2), out=_kept.tile_X[:count].view(shape))


def _softplus_sums(logits_nCR: Tensor, factor: float) -> Tensor:
    """Σ_C log(1 + k·e_j) with e = 2^logits and k = exp(b₀), ``[n, R]``; overwrites the logits.

    A sum of logarithms is the logarithm of a product, so some ten terms share one logarithm. The product is kept as
    k·s = Π(1 + k·e_j) − 1, so that small terms are not lost beside the 1; two such products join to s + s' + k·s·s'.
    A product overflows where its terms sum to 88 or more (fp32): the result is then not finite, and the caller
    falls back to softplus.
    """
    sums_nCR = logits_nCR.exp2_()
    for _ in range(FOLDS):
        half = sums_nCR.shape[1] // 2
        if not half:
            break
        left, right = sums_nCR.narrow(1, 0, half), sums_nCR.narrow(1, -half, half)
        # In place, since a temporary tile would push the strip out of the cache; of an odd number the middle term is
        # joined in a later fold.
        left.addcmul_(left, right, value=factor).add_(right)
        sums_nCR = sums_nCR.narrow(1, 0, sums_nCR.shape[1] - half)
    return sums_nCR.mul_(factor).log1p_().sum(1)
