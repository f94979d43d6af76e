"""Contrastive losses over a batch of K pairs.

Both losses take normalised embeddings, and the multiplier t and offset b₀ that act on cosine similarities.

The dense form of a loss holds five to eight K×K matrices. Above ``DENSE_BYTES`` a loss is computed in blocks of rows,
together with its gradients, in memory linear in K: the same values and gradients up to rounding. The form depends on
the shape alone, never on the device or on free memory. The block form of the softmax loss makes its logits twice, since
no row's gradient can be computed before the denominators of all columns are; it is charged what the dense form is
(``Contrastive.passes``).

Several processes that hold the same embeddings share a loss out, in blocks whatever its size: each computes the rows of
its share against all columns, and value, gradients and each pair's own losses are summed over the processes, so that
every process ends with the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jestbench.parallel.distributed import World
from jestbench.select.joined_rows import joined
from jestbench.select.tiles import tile_bytes

LossName = Literal["sigmoid", "softmax"]
Equal = Literal["masked", "positive"]
"""What two equal pairs (one image or one caption) are to each other, where they are not negatives."""
EqualRule = Literal["negative", "masked", "positive"]

# The AVX-512 form of torch's log1p, which softplus calls, loads a constant only into lanes that hold −0. As long as the
# constant's page is not in memory, each of these masked loads is slow, and log1p takes ten times as long; one −0 brings
# the page in (docs/selection.md).
torch.full((64,), -0.0, dtype=torch.float32, device="cpu").log1p_()


@dataclass(frozen=True, eq=False)
class EqualPairs:
    """Which pairs of a batch are equal, and what two equal pairs are to each other.

    Attributes:
        group_K: pairs of equal numbers are equal.
        rule: ``masked``: their terms leave the sum of the sigmoid loss and the denominators of the softmax loss.
            ``positive``: they have the label +1 in the sigmoid loss; in the softmax loss a pair's −log p is the mean
            over the positives of its row and column, outside the logarithm (SupCon, arXiv 2004.11362).
    """

    group_K: Tensor
    rule: Equal

    def of(self, rows: slice) -> Tensor:
        """Which pairs are equal to those of some rows, bool ``[R, K]``; none to itself."""
        equal_RK = _aims(self, rows)
        equal_RK[:, rows].fill_diagonal_(False)
        return equal_RK

    def size_K(self) -> Tensor:
        """Number of pairs in each pair's group."""
        _, place_K, size_G = torch.unique(self.group_K, return_inverse=True, return_counts=True)
        size_K: Tensor = size_G[place_K]
        return size_K


Each = list[tuple[Tensor, Tensor]]
"""Takes up each pair's own losses, unweighted: those of the images (rows) and of the texts (columns), ``[K]`` each."""

DENSE_BYTES = 64 * 2**20
"""Largest matrix of logits of which the dense form is computed: 4096 pairs in fp32."""

BLOCKS = 16
"""Least number of blocks, so that a block and its temporary copies stay far below one matrix of logits; blocks of less
than ``DENSE_BYTES / BLOCKS`` are not cut further."""

_ALONE = World()


def sigmoid_loss(
    image_KD: Tensor,
    text_KD: Tensor,
    scale: Tensor,
    bias: Tensor,
    weight_K: Tensor | None = None,
    equal: EqualPairs | None = None,
    each: Each | None = None,
    world: World = _ALONE,
) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343): (1/K)·Σ_ij M_ij.

    M_ii = softplus(−u_ii), M_ij = softplus(u_ij) for i ≠ j, with u_ij = t·⟨x_i, y_j⟩ + b₀.
    A weight acts on the pair's row and column: M_ij counts ½(w_i + w_j) times. ``world`` shares the loss out.
    """
    if world.size > 1 or _in_blocks(image_KD):
        return _block_loss("sigmoid", (image_KD, text_KD, scale, bias), _Terms(weight_K, equal, each, world))
    logits_KK = scale * (image_KD @ text_KD.T) + bias
    sign_KK = 1 - 2 * torch.eye(len(logits_KK), device=logits_KK.device)
    if equal is not None and equal.rule == "positive":
        sign_KK = sign_KK.masked_fill(equal.of(slice(None)), -1.0)
    terms_KK = F.softplus(sign_KK * logits_KK)
    if equal is not None and equal.rule == "masked":
        terms_KK = terms_KK.masked_fill(equal.of(slice(None)), 0.0)
    if each is not None:
        each.append((terms_KK.detach().sum(1), terms_KK.detach().sum(0)))
    if weight_K is not None:
        terms_KK = terms_KK * (weight_K[:, None] + weight_K[None, :]) / 2
    return terms_KK.sum() / len(logits_KK)


def softmax_loss(
    image_KD: Tensor,
    text_KD: Tensor,
    scale: Tensor,
    bias: Tensor,
    weight_K: Tensor | None = None,
    equal: EqualPairs | None = None,
    each: Each | None = None,
    world: World = _ALONE,
) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, arXiv 2103.00020).

    The offset cancels in a softmax and is not used. A weight multiplies the two cross-entropies of
    its pair (its row and its column); the denominators stay unweighted. ``world`` shares the loss out.
    """
    if world.size > 1 or _in_blocks(image_KD):
        return _block_loss("softmax", (image_KD, text_KD, scale, bias), _Terms(weight_K, equal, each, world))
    del bias
    logits_KK = scale * (image_KD @ text_KD.T)
    target_K = torch.arange(len(logits_KK), device=logits_KK.device)
    if equal is not None and equal.rule == "positive":
        target_KK = equal.of(slice(None)).fill_diagonal_(True) / equal.size_K()[:, None].to(logits_KK.dtype)
        sides = [-(F.log_softmax(side_KK, 1) * target_KK).sum(1) for side_KK in (logits_KK, logits_KK.T)]
    else:
        if equal is not None:
            logits_KK = logits_KK.masked_fill(equal.of(slice(None)), -torch.inf)
        sides = [F.cross_entropy(side_KK, target_K, reduction="none") for side_KK in (logits_KK, logits_KK.T)]
    if each is not None:
        each.append((sides[0].detach(), sides[1].detach()))
    loss_K = (sides[0] + sides[1]) / 2
    if weight_K is not None:
        loss_K = loss_K * weight_K
    return loss_K.mean()


def _in_blocks(image_KD: Tensor) -> bool:
    return len(image_KD) ** 2 * image_KD.element_size() > DENSE_BYTES


class _Terms(NamedTuple):
    """The arguments of a loss beside its inputs; they have no gradient."""

    weight_K: Tensor | None
    equal: EqualPairs | None
    each: Each | None
    world: World


def _block_loss(name: LossName, inputs: tuple[Tensor, ...], terms: _Terms) -> Tensor:
    """A loss in blocks; weights are constants."""
    sloped = torch.is_grad_enabled() and any(part.requires_grad for part in inputs)
    loss: Tensor = _BlockLoss.apply(*inputs, terms, name, sloped)
    return loss


class _BlockLoss(torch.autograd.Function):
    """A loss whose gradients are computed with it: backward only multiplies them by the gradient that comes in."""

    @staticmethod
    def forward(ctx: Any, image_KD: Tensor, text_KD: Tensor, scale: Tensor, bias: Tensor, *more: Any) -> Tensor:
        terms, name, sloped = more
        world, scaled_KD, count = terms.world, scale * image_KD, len(image_KD)
        share, total = world.share(count), scaled_KD.new_zeros(())
        by_image_KD, by_text_KD, by_scale, by_bias = [
            torch.zeros_like(part, dtype=image_KD.dtype) for part in (image_KD, text_KD, scale, bias)
        ]
        for rows, value, slope_RK in BLOCK_FORMS[name](scaled_KD, text_KD, bias, sloped, terms):
            total += value
            if slope_RK is None:
                continue
            by_bias += slope_RK.sum()
            torch.mm(slope_RK, text_KD, out=by_image_KD[rows])
            by_text_KD.addmm_(slope_RK.T, scaled_KD[rows])
            del slope_RK  # else it lives on beside the next one
        if sloped:
            by_scale += (image_KD[share] * by_image_KD[share]).sum()
            by_image_KD *= scale
            total, by_text_KD, by_scale, by_bias = world.add(total, by_text_KD, by_scale, by_bias)
            by_image_KD = joined(world, count, [by_image_KD[share]])[0][0]
            ctx.save_for_backward(*(part.div_(count) for part in (by_image_KD, by_text_KD, by_scale, by_bias)))
            ctx.offset = name == "sigmoid"
        else:
            (total,) = world.add(total)
        loss: Tensor = total / count
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *parts, by_bias = (gradient * part for part in ctx.saved_tensors)
        return (*parts, by_bias if ctx.offset else None, None, None, None)


Block = tuple[slice, Tensor, Tensor | None]
"""Rows, their part of the summed loss, and the derivative of the sum by their logits ``[R, K]`` where asked for."""


def _row_blocks(scaled_KD: Tensor, share: slice) -> Iterator[slice]:
    """Blocks of a share of the rows: their number depends on the shape and on the type of device alone."""
    row_bytes = len(scaled_KD) * scaled_KD.element_size()
    least = max(-(-(share.stop - share.start) // BLOCKS), DENSE_BYTES // BLOCKS // row_bytes)
    height = max(1, min(tile_bytes(scaled_KD.device) // row_bytes, least))
    return (slice(start, min(share.stop, start + height)) for start in range(share.start, share.stop, height))


def _sigmoid_blocks(scaled_KD: Tensor, text_KD: Tensor, bias: Tensor, sloped: bool, terms: _Terms) -> Iterator[Block]:
    weight_K, equal, each, world = terms
    row_K, column_K = (scaled_KD.new_zeros(len(scaled_KD)) for _ in range(2))
    for rows in _row_blocks(scaled_KD, world.share(len(scaled_KD))):
        signed_RK = torch.addmm(bias.to(scaled_KD.dtype), scaled_KD[rows], text_KD.T)
        own_R = signed_RK[:, rows].diagonal()
        own_R.neg_()
        factor_RK = None if weight_K is None else (weight_K[rows, None] + weight_K) / 2
        equal_RK = None if equal is None else equal.of(rows)
        if equal is not None and equal_RK is not None:
            if equal.rule == "masked":
                signed_RK.masked_fill_(equal_RK, -torch.inf)
            else:
                signed_RK = torch.where(equal_RK, -signed_RK, signed_RK)
        terms_RK = F.softplus(signed_RK)
        if each is not None:
            row_K[rows] = terms_RK.sum(1)
            column_K += terms_RK.sum(0)
        value = (terms_RK if factor_RK is None else terms_RK.mul_(factor_RK)).sum()
        del terms_RK
        if not sloped:
            yield rows, value, None
            continue
        signed_RK.sigmoid_()
        signed_RK[:, rows].diagonal().neg_()
        if equal is not None and equal_RK is not None and equal.rule == "positive":
            signed_RK = torch.where(equal_RK, -signed_RK, signed_RK)
        yield rows, value, signed_RK if factor_RK is None else signed_RK.mul_(factor_RK)
        del signed_RK, own_R
    if each is not None:
        row_K, column_K = world.add(row_K, column_K)
        each.append((row_K, column_K))


def _softmax_blocks(scaled_KD: Tensor, text_KD: Tensor, bias: Tensor, sloped: bool, terms: _Terms) -> Iterator[Block]:
    weight_K, equal, each, world = terms
    masked = equal if equal is not None and equal.rule == "masked" else None
    positive = equal if equal is not None and equal.rule == "positive" else None

    def logits(rows: slice) -> Tensor:
        logits_RK = scaled_KD[rows] @ text_KD.T
        return logits_RK if masked is None else logits_RK.masked_fill_(masked.of(rows), -torch.inf)

    count, share = len(scaled_KD), world.share(len(scaled_KD))
    lse_row_K, lse_column_K = (scaled_KD.new_full((count,), -torch.inf) for _ in range(2))
    own_K = (scaled_KD * text_KD).sum(1)
    # Each pair's mean logit over its positives, in its row and in its column.
    aim_row_K, aim_column_K = (own_K, own_K) if positive is None else (torch.zeros_like(own_K) for _ in range(2))
    size_K = None if positive is None else positive.size_K()
    for rows in _row_blocks(scaled_KD, share):
        logits_RK = logits(rows)
        lse_row_K[rows] = logits_RK.logsumexp(1)
        lse_column_K = torch.logaddexp(lse_column_K, logits_RK.logsumexp(0))
        if positive is not None and size_K is not None:
            logits_RK.mul_(_aims(positive, rows)).div_(size_K)  # equal pairs are in groups of one size
            aim_row_K[rows] = logits_RK.sum(1)
            aim_column_K += logits_RK.sum(0)
        del logits_RK
    if world.size > 1:
        own, partial = [lse_row_K[share], aim_row_K[share]], [lse_column_K, aim_column_K]
        (lse_row_K, aim_row_K), (lse_nK, aim_nK) = joined(world, count, own, partial)
        lse_column_K, aim_column_K = lse_nK.logsumexp(0), aim_row_K if positive is None else aim_nK.sum(0)
    if each is not None:
        each.append((lse_row_K - aim_row_K, lse_column_K - aim_column_K))
    weight_K = torch.ones_like(lse_row_K) if weight_K is None else weight_K
    loss_K = weight_K * (lse_row_K - aim_row_K + lse_column_K - aim_column_K) / 2
    for rows in _row_blocks(scaled_KD, share):
        value = loss_K[rows].sum()
        if not sloped:
            yield rows, value, None
            continue
        logits_RK = logits(rows)
        slope_RK = (logits_RK - lse_row_K[rows, None]).exp_().mul_(weight_K[rows, None])
        slope_RK.addcmul_(logits_RK.sub_(lse_column_K).exp_(), weight_K).div_(2)
        del logits_RK
        if positive is None or size_K is None:
            slope_RK[:, rows].diagonal().sub_(weight_K[rows])
        else:
            slope_RK -= _aims(positive, rows) * (weight_K[rows, None] + weight_K) / (2 * size_K)
        yield rows, value, slope_RK
        del slope_RK


def _aims(positive: EqualPairs, rows: slice) -> Tensor:
    """Which pairs are positives of those of some rows, bool ``[R, K]``; each of itself, too."""
    return positive.group_K[rows, None] == positive.group_K


BLOCK_FORMS = {"sigmoid": _sigmoid_blocks, "softmax": _softmax_blocks}
LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
