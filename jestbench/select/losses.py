"""Contrastive losses over a batch of K pairs.

Both losses take normalised embeddings, and the multiplier t and offset b₀ that act on cosine similarities.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["sigmoid", "softmax"]


def sigmoid_loss(
    image_KD: Tensor, text_KD: Tensor, scale: Tensor, bias: Tensor, weight_K: Tensor | None = None
) -> Tensor:
    """SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343): (1/K)·Σ_ij M_ij.

    M_ii = softplus(−u_ii), M_ij = softplus(u_ij) for i ≠ j, with u_ij = t·⟨x_i, y_j⟩ + b₀.
    A weight acts on the pair's row and column: M_ij counts ½(w_i + w_j) times.
    """
    logits_KK = scale * (image_KD @ text_KD.T) + bias
    sign_KK = 1 - 2 * torch.eye(len(logits_KK), device=logits_KK.device)
    terms_KK = F.softplus(sign_KK * logits_KK)
    if weight_K is not None:
        terms_KK = terms_KK * (weight_K[:, None] + weight_K[None, :]) / 2
    return terms_KK.sum() / len(logits_KK)


def softmax_loss(
    image_KD: Tensor, text_KD: Tensor, scale: Tensor, bias: Tensor, weight_K: Tensor | None = None
) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, arXiv 2103.00020).

    The offset cancels in a softmax and is not used. A weight multiplies the two cross-entropies of
    its pair (its row and its column); the denominators stay unweighted.
    """
    del bias
    logits_KK = scale * (image_KD @ text_KD.T)
    target_K = torch.arange(len(logits_KK), device=logits_KK.device)
    loss_K = (
        F.cross_entropy(logits_KK, target_K, reduction="none")
        + F.cross_entropy(logits_KK.T, target_K, reduction="none")
    ) / 2
    if weight_K is not None:
        loss_K = loss_K * weight_K
    return loss_K.mean()


LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
