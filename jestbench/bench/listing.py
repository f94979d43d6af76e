"""The joint draw of the paper's listing, in torch: the peer that the package's draw is timed against.

After Evans et al. 2024 (arXiv 2406.17711, appendix): B×B matrices of learner and reference, and at each
chunk a masked sum over whole matrices. Kept as plain as in the paper; only the benchmark and its test
use it. Departures, none of which changes the distribution: the chunk sizes are integers that sum to b, p is a
softmax (a bare exponential overflows), and pairs already drawn have p = 0.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.select.draws import chunk_sizes
from jestbench.select.scores import Embeddings, Scores


def listing_draw(scores: Scores, count: int, chunks: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw ``count`` pairs by learnability, in ``chunks`` chunks; return their indices ``[K]``."""
    draw = _sigmoid_draw if scores.loss == "sigmoid" else _softmax_draw
    return draw(scores.side("learner"), scores.side("reference"), chunk_sizes(count, chunks), generator)


def _choice(logit_B: Tensor, is_sampled_B: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    p_B = logit_B.masked_fill(is_sampled_B > 0, -math.inf).softmax(0)
    return torch.multinomial(p_B, size, replacement=False, generator=generator)


def _mask(index_K: Tensor, size: int) -> Tensor:
    # A B×B identity matrix, as in the listing and in published implementations of it.
    return torch.eye(size)[index_K].sum(0)


def _sigmoid_losses(model: Embeddings) -> Tensor:
    logits_BB = model.scale * (model.image_BD @ model.text_BD.T) + model.bias
    losses_BB = F.softplus(logits_BB)
    losses_BB.diagonal().copy_(F.softplus(-logits_BB.diagonal()))
    return losses_BB


def _sigmoid_draw(
    learner: Embeddings, reference: Embeddings, sizes: tuple[int, ...], generator: torch.Generator | None
) -> Tensor:
    scores_BB = _sigmoid_losses(learner) - _sigmoid_losses(reference)
    size = len(scores_BB)
    logits_ii = scores_BB.diagonal()
    index_K = _choice(logits_ii, torch.zeros(size), sizes[0], generator)
    for more in sizes[1:]:
        is_sampled = _mask(index_K, size)
        logits_ij = (scores_BB * is_sampled.reshape(size, 1)).sum(0)
        logits_ji = (scores_BB * is_sampled.reshape(1, size)).sum(1)
        index_K = torch.cat((index_K, _choice(logits_ii + logits_ij + logits_ji, is_sampled, more, generator)))
    return index_K


def _softmax_draw(
    learner: Embeddings, reference: Embeddings, sizes: tuple[int, ...], generator: torch.Generator | None
) -> Tensor:
    matrices = [(sign, m.scale * (m.image_BD @ m.text_BD.T)) for sign, m in ((1.0, learner), (-1.0, reference))]
    size = len(learner)
    logits_ii = sum((-sign * a_BB.diagonal() for sign, a_BB in matrices), torch.zeros(size))
    index_K = _choice(logits_ii, torch.zeros(size), sizes[0], generator)
    for more in sizes[1:]:
        is_sampled = _mask(index_K, size)
        logits = logits_ii
        for sign, a_BB in matrices:
            rows = a_BB.masked_fill(is_sampled.reshape(1, size) == 0, -math.inf).logsumexp(1)
            columns = a_BB.masked_fill(is_sampled.reshape(size, 1) == 0, -math.inf).logsumexp(0)
            logits = logits + sign * (rows + columns) / 2
        index_K = torch.cat((index_K, _choice(logits, is_sampled, more, generator)))
    return index_K
