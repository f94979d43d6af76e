"""Few-shot classification: closed-form ridge regression on frozen embeddings.

After big_vision's ``fewshot_lsr`` (the 10-shot metric that the JEST paper reports): a bias feature, targets
of ±1, an L2 penalty, solved in closed form. Departures: features are the normalised image embeddings, in
which the model is evaluated elsewhere too; the penalty is the one with the lowest leave-one-out error on the
shots themselves, so that no test label is used.
"""

from __future__ import annotations

import torch
from torch import Tensor

PENALTIES = tuple(2.0**power for power in range(-10, 11, 2))
"""L2 penalties tried, relative to the mean squared norm of a centred feature."""


def shots_of(class_N: Tensor, shots: int) -> Tensor:
    """Positions of the first ``shots`` examples of each class, in order of position.

    Args:
        class_N: int64 class of each example.
        shots: examples a class; a class with fewer gives all it has.
    """
    order_N = torch.argsort(class_N, stable=True)
    sorted_N = class_N[order_N]
    counts = sorted_N.unique_consecutive(return_counts=True)[1]
    starts_N = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank_N = torch.arange(len(class_N), device=class_N.device) - starts_N
    return order_N[rank_N < shots].sort().values


def ridge_scores(shot_SD: Tensor, class_S: Tensor, test_ND: Tensor, classes: int) -> Tensor:
    """Scores ``[N, classes]`` of test embeddings, float64; all NaN where an embedding of a shot is not finite.

    With the singular value decomposition X = U·diag(s)·Vᵀ of the centred shots, the fit at penalty λ is
    U·diag(s²/(s² + λ))·Uᵀ·Y, and the leave-one-out residual of shot i is its residual over 1 − h_i, h the diagonal of
    that matrix plus 1/S for the mean (Hastie et al., The Elements of Statistical Learning, section 7.10).

    Args:
        shot_SD: embeddings of the labelled examples.
        class_S: int64 class of each.
        test_ND: embeddings to classify.
        classes: how many classes there are.
    """
    if not bool(shot_SD.isfinite().all()):  # as LAPACK has no decomposition of it
        return shot_SD.new_full((len(test_ND), classes), torch.nan, dtype=torch.float64)
    mean_D = shot_SD.double().mean(0)
    x_SD = shot_SD.double() - mean_D
    y_SC = 2 * torch.nn.functional.one_hot(class_S, classes).double() - 1
    offset_C = y_SC.mean(0)
    y_SC = y_SC - offset_C
    u_SR, s_R, v_RD = torch.linalg.svd(x_SD, full_matrices=False)
    target_RC = u_SR.T @ y_SC
    unit = float((x_SD * x_SD).sum(1).mean()) or 1.0
    errors = []
    for penalty in PENALTIES:
        shrink_R = s_R**2 / (s_R**2 + penalty * unit)
        residual_SC = y_SC - u_SR @ (shrink_R[:, None] * target_RC)
        leverage_S = (u_SR**2) @ shrink_R + 1 / len(x_SD)
        errors.append(float((residual_SC / (1 - leverage_S).clamp_min(1e-9)[:, None]).square().mean()))
    best = PENALTIES[min(range(len(errors)), key=errors.__getitem__)] * unit
    weight_DC = v_RD.T @ ((s_R / (s_R**2 + best))[:, None] * target_RC)
    scores_NC: Tensor = (test_ND.double() - mean_D) @ weight_DC + offset_C
    return scores_NC
