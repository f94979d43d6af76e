"""Zero-shot and retrieval metrics as pure functions of embeddings and classes.

Classes are captions: equal captions are one class, and every equal caption is a hit. Any score that is not strictly
lower than the own score counts against it (``~(score < own)``), so that NaN embeddings rank last, not first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jestbench.evals.measure import RANKS

_ROWS = 4096  # similarities held at once: 4096 × classes


def zero_shot_ranks(image_ND: Tensor, class_CD: Tensor, class_N: Tensor) -> Tensor:
    """Rank of each image's own class among all classes, 1 is best ``[N]``; ties count against it."""
    ranks = []
    for image_PD, class_P in zip(image_ND.split(_ROWS), class_N.split(_ROWS), strict=True):
        score_PC = image_PD @ class_CD.T
        own_P1 = score_PC.gather(1, class_P[:, None])
        ranks.append((~(score_PC < own_P1)).sum(1))
    return torch.cat(ranks)


def image_to_text_ranks(image_ND: Tensor, class_CD: Tensor, class_N: Tensor) -> Tensor:
    """Rank of the first right caption among the N captions, equal ones counted as often as they stand."""
    count_C = torch.bincount(class_N, minlength=len(class_CD))
    ranks = []
    for image_PD, class_P in zip(image_ND.split(_ROWS), class_N.split(_ROWS), strict=True):
        score_PC = image_PD @ class_CD.T
        own_P1 = score_PC.gather(1, class_P[:, None])
        better_PC = (~(score_PC < own_P1)).scatter(1, class_P[:, None], False)
        ranks.append(1 + (better_PC * count_C).sum(1))
    return torch.cat(ranks)


def text_to_image_ranks(image_ND: Tensor, class_CD: Tensor, class_N: Tensor) -> Tensor:
    """Rank of the first right image for each class that has one, among the N images."""
    present = class_N.unique()
    return group_ranks(class_CD[present], image_ND, present, class_N)


def group_ranks(query_QD: Tensor, gallery_GD: Tensor, group_Q: Tensor, group_G: Tensor) -> Tensor:
    """Rank of each query's first right gallery item ``[Q]``; an item is right if it has the query's group.

    Ties with wrong items worsen the rank. Several captions per image, or several images per caption, give recall@k
    as usual for COCO and Flickr30k.
    """
    ranks = []
    for query_PD, group_P in zip(query_QD.split(_ROWS), group_Q.split(_ROWS), strict=True):
        score_PG = query_PD @ gallery_GD.T
        right_PG = group_P[:, None] == group_G[None, :]
        best_P1 = score_PG.masked_fill(~right_PG, -torch.inf).amax(1, keepdim=True)
        ranks.append(1 + (~(score_PG < best_P1) & ~right_PG).sum(1))
    return torch.cat(ranks)


def evaluate_embeddings(image_ND: Tensor, class_CD: Tensor, class_N: Tensor) -> dict[str, float]:
    """All metrics, as shares in [0, 1].

    Args:
        image_ND: normalised image embeddings.
        class_CD: normalised embeddings of the distinct captions.
        class_N: which caption each image has.
    """
    zero_shot = zero_shot_ranks(image_ND, class_CD, class_N)
    to_text = image_to_text_ranks(image_ND, class_CD, class_N)
    to_image = text_to_image_ranks(image_ND, class_CD, class_N)
    found = {f"eval/zero_shot_top{k}": zero_shot <= k for k in (1, 5)}
    found |= {f"eval/image_to_text_recall{k}": to_text <= k for k in RANKS}
    found |= {f"eval/text_to_image_recall{k}": to_image <= k for k in RANKS}
    return {name: float(hit.double().mean()) for name, hit in found.items()}
