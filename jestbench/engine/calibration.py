"""Calibration of a frozen model: the t and b₀ under which its embeddings have the least loss, of a kind of loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from scipy import optimize
from torch import Tensor

from jestbench.model.towers import INITIAL, MAX_SCALE
from jestbench.select.losses import LossName

Vector = npt.NDArray[np.float64]
LARGEST: dict[LossName, float] = {"softmax": MAX_SCALE, "sigmoid": 10 * MAX_SCALE}
"""Largest t: of the softmax loss as in training; the sigmoid loss has no bound there (SigLIP's t ends at 112)."""


def batch_loss(cosine_KK: Tensor, loss: LossName, scale: Tensor, bias: Tensor, batch_size: int) -> Tensor:
    """The loss of K pairs as in a batch of ``batch_size``: each of their negatives counts (b − 1)/(K − 1) times.

    Args:
        cosine_KK: cosines of their images and texts, K ≥ 2.
        loss: which.
        scale: t.
        bias: b₀.
        batch_size: b.
    """
    count, own_KK = len(cosine_KK), torch.eye(len(cosine_KK), dtype=torch.bool)
    weight = (batch_size - 1) / (count - 1)
    logits_KK = scale * cosine_KK + bias
    if loss == "sigmoid":
        terms_KK = F.softplus(torch.where(own_KK, -logits_KK, logits_KK))
        return (torch.where(own_KK, 1.0, weight) * terms_KK).sum() / count
    logits_KK = logits_KK + torch.where(own_KK, 0.0, math.log(weight))
    target_K = torch.arange(count)
    return (F.cross_entropy(logits_KK, target_K) + F.cross_entropy(logits_KK.T, target_K)) / 2


def fit(cosines: Sequence[Tensor], loss: LossName, batch_size: int) -> tuple[float, float]:
    """The t in (0, ``LARGEST``] and b₀ of the least mean loss of some batches; convex in both.

    Args:
        cosines: ``[K, K]`` of each batch, images by texts.
        loss: the loss.
        batch_size: b of the batches that the loss is meant for.

    Raises:
        ValueError: there is no batch.
    """
    held = [cosine_KK.double().cpu() for cosine_KK in cosines]

    if not held:
        raise ValueError("run.reference_calibrate: no batch holds two pairs to fit the reference's scale and bias on")

    def value_and_gradient(at: Vector) -> tuple[float, Vector]:
        x = torch.tensor(at, requires_grad=True)
        losses = [batch_loss(cosine_KK, loss, x[0], x[1], batch_size) for cosine_KK in held]
        mean = torch.stack(losses).mean()
        (gradient,) = torch.autograd.grad(mean, x)
        return mean.item(), gradient.numpy()

    limits = [(1e-3, LARGEST[loss]), (None, None)]
    options = {"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9}
    found = optimize.minimize(
        value_and_gradient, np.array(INITIAL[loss]), jac=True, method="L-BFGS-B", bounds=limits, options=options
    )
    return float(found.x[0]), float(found.x[1])
