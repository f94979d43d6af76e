"""Zero-shot and retrieval ranks as pure functions of embeddings and classes.

Classes are captions: equal captions are one class, and every equal caption is a hit. Any score that is not strictly
lower than the own score counts against it (``~(score < own)``), so that NaN embeddings rank last, not first.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from jestbench.evals import shares
from jestbench.evals.results import Ranking, Results
from jestbench.parallel.distributed import World


def group_ranks(
    query_QD: Tensor, gallery_GD: Tensor, group_Q: Tensor, group_G: Tensor, count_G: Tensor | None = None
) -> Tensor:
    """Rank of each query's first right gallery item ``[Q]``; an item is right if it has the query's group.

    Ties with wrong items worsen the rank. Several captions per image, or several images per caption, give recall@k
    as usual for COCO and Flickr30k; classes, of which each is a group, give the rank of the own class. Each item stands
    for ``count_G`` equal ones: itself alone where that is ``None``.
    """
    score_QG = query_QD @ gallery_GD.T
    right_QG = group_Q[:, None] == group_G[None, :]
    best_Q1 = score_QG.masked_fill(~right_QG, -torch.inf).amax(1, keepdim=True)
    ahead_QG = ~(score_QG < best_Q1) & ~right_QG
    return 1 + (ahead_QG if count_G is None else ahead_QG * count_G).sum(1)


def log_probabilities(image_ND: Tensor, class_CD: Tensor, class_N: Tensor, scale: float) -> Tensor:
    """Log-probability of each image's own class in nats ``[N]``, under a softmax over all classes at the model's scale.

    A bias on the logits cancels. NaN embeddings count as certain of a wrong class: −1e4.
    """
    log_NC = (scale * image_ND.float() @ class_CD.float().T).log_softmax(1)
    return log_NC.gather(1, class_N[:, None])[:, 0].nan_to_num(nan=-1e4, neginf=-1e4)


def evaluate_embeddings(
    image_ND: Tensor,
    class_CD: Tensor,
    class_N: Tensor,
    scale: float,
    class_key_C: Tensor,
    image_key_N: Tensor,
    world: World | None = None,
) -> Results:
    """All rankings of the evaluation split.

    Args:
        image_ND: normalised image embeddings.
        class_CD: normalised embeddings of the distinct captions.
        class_N: which caption each image has.
        scale: the model's multiplier of cosines.
        class_key_C: int64 content key of each caption.
        image_key_N: int64 content key of each image.
        world: the processes that share the rows out, each of which has all embeddings; ``None`` is this one alone.
    """
    by_rows = partial(shares.by_rows, world or World())
    unit_N, key_N = array_of(class_key_C.to(class_N.device)[class_N]), array_of(image_key_N)
    present = class_N.unique()
    unit_T = array_of(class_key_C.to(class_N.device)[present])
    count_C = torch.bincount(class_N, minlength=len(class_CD))
    class_C = torch.arange(len(class_CD), device=class_N.device)
    zero_shot = by_rows(lambda image_PD, class_P: group_ranks(image_PD, class_CD, class_P, class_C), image_ND, class_N)
    log_N = by_rows(lambda image_PD, class_P: log_probabilities(image_PD, class_CD, class_P, scale), image_ND, class_N)
    to_text = by_rows(
        lambda image_PD, class_P: group_ranks(image_PD, class_CD, class_P, class_C, count_C), image_ND, class_N
    )
    to_image = by_rows(
        lambda class_PD, class_P: group_ranks(class_PD, image_ND, class_P, class_N), class_CD[present], present
    )
    return Results(
        {
            "zero_shot": Ranking(array_of(zero_shot), unit_N, key_N, array_of(log_N.double())),
            "image_to_text": Ranking(array_of(to_text), unit_N, key_N),
            "text_to_image": Ranking(array_of(to_image), unit_T, unit_T),
        }
    )


def array_of(values: Tensor) -> npt.NDArray[Any]:
    """The values as a numpy array on the host."""
    found: npt.NDArray[Any] = values.cpu().numpy()
    return found
