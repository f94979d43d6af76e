"""Draws of b pairs from B: independently by a score, or jointly as in JEST.

The joint draw (Evans et al. 2024, section 2.2 and listing in the appendix): the sub-batch is drawn
in N chunks; each chunk without replacement, with p ∝ exp(logit), where the logit of a pair is
*conditional on the pairs already drawn*. Only strips of the B×B matrix are ever computed: once a chunk C
is drawn, the running sums of all B rows are extended by its columns (except after the last chunk).
O(B·b·D) time, and memory for one tile of a strip.

A draw without replacement is a Gumbel top-k (Efraimidis & Spirakis 2006; Kool et al. 2019): the same
distribution as drawing one pair after the other, without an exponential that could overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.select.joined_rows import joined
from jestbench.select.scores import Embeddings, NonFiniteScore, ScoreError, Scores
from jestbench.select.strips import strip, strip_sums, unequal
from jestbench.select.tiles import tiles

NOISE_BYTES = 64 * 2**20
"""Upper bound on the page-locked memory of a draw's noise (or one chunk's)."""


@dataclass(frozen=True, eq=False)
class Draw:
    """Distinct indices in the order in which they were drawn, statistics of the draw, and the scores behind it.

    ``score_B`` is each pair's own score; for a joint draw its logit in the first chunk, before any pair is drawn.
    """

    index_K: Tensor
    statistics: Mapping[str, float] = field(default_factory=dict)
    score_B: Tensor | None = None


def chunk_sizes(count: int, chunks: int) -> tuple[int, ...]:
    """Split ``count`` into at most ``chunks`` integer parts that differ by at most one."""
    size, rest = divmod(count, chunks)
    return tuple(size + (i < rest) for i in range(chunks) if size + (i < rest))


def gumbel_top_k(logit_B: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw ``count`` positions without replacement, p ∝ exp(logit); returned in the order of the draws.

    Args:
        logit_B: logits; −inf excludes a pair.
        count: number of positions.
        generator: a CPU generator; noise is drawn in float64 on the CPU, so that every device and
            every world size makes the same choice.

    Raises:
        ScoreError: a logit is NaN or +inf, or fewer than ``count`` can be drawn.
    """
    return top_k(logit_B.double() + next(_noise(logit_B, 1, generator)), count)


def _noise(like_B: Tensor, draws: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Gumbel noise of each of so many draws, ``[B]``, float64; copied to a GPU without waiting for the copy."""
    size, cuda = len(like_B), like_B.is_cuda
    # One piece of page-locked memory for many draws: the host runs ahead of the GPU, which still reads the last draw's,
    # and to lock more takes longer than a draw.
    group = max(1, min(draws, NOISE_BYTES // (8 * size))) if cuda else 1
    for start in range(0, draws, group):
        for noise_B in torch.empty(min(group, draws - start), size, dtype=torch.float64, pin_memory=cuda):
            yield noise_B.exponential_(generator=generator).log_().neg_().to(like_B.device, non_blocking=True)


def top_k(logit_B: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` largest logits, in falling order; the lower index wins a tie.

    Raises:
        ScoreError: a logit is NaN or +inf, or fewer than ``count`` can be drawn.
    """
    bad, free = _drawable(logit_B).tolist()
    _refuse(bad, free, len(logit_B), count)
    return _best(logit_B, count)


def _best(logit_B: Tensor, count: int) -> Tensor:
    """``top_k`` without its checks; on a GPU the host does not wait for it."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=logit_B.device)
    # torch.topk may order and choose equal values in any way: only where there are some is a stable sort needed. On a
    # GPU, to look for some takes longer than the sort.
    if not logit_B.is_cuda:
        best = torch.topk(logit_B, count)
        distinct = (best.values[1:] < best.values[:-1]).all()
        if bool(distinct & ((logit_B >= best.values[-1]).sum() == count)):
            return best.indices
    return torch.sort(logit_B, descending=True, stable=True).indices[:count]


def _drawable(logit_B: Tensor) -> Tensor:
    """How many logits are NaN or +inf, and how many can be drawn, ``[2]``, float64."""
    return torch.stack([(~(logit_B < math.inf)).sum(), (logit_B > -math.inf).sum()]).double()


def _refuse(bad: float, free: float, size: int, count: int) -> None:
    """Raise ``ScoreError`` for a logit that is NaN or +inf, or fewer than ``count`` that can be drawn."""
    if bad:
        raise NonFiniteScore("a selection logit is NaN or +inf")
    if not 0 <= count <= free:
        raise ScoreError(f"cannot draw {count} distinct pairs: {free:.0f} of {size} can be drawn")


def _refuse_gain(logit_B: Tensor, gain: float) -> None:
    """Raise ``ScoreError`` where logits are infinite under the gain alone; the message names the gain."""
    finite_B = logit_B[torch.isfinite(logit_B)]
    if bool((logit_B < math.inf).all()) and len(finite_B):
        raise ScoreError(
            f"gain = {gain:g} makes selection logits infinite, the largest of which is "
            f"{float(finite_B.abs().max()):.3g} without it: lower gain"
        )


class _Running:
    """Running sums of one model over the pairs drawn so far, the set S (rows and columns)."""

    def __init__(self, sign: float, model: Embeddings, scores: Scores) -> None:
        self.sign, self.model, self.scores = sign, model, scores
        empty = 0.0 if scores.loss == "sigmoid" else -math.inf
        # Row i: the image of i against the texts of S; column i: its text against the images of S.
        self.row_B = model.image_BD.new_full((len(model),), empty)
        self.column_B = model.image_BD.new_full((len(model),), empty)

    def strips(self, index_C: Tensor, share: slice) -> Iterator[Tensor]:
        """The sums of a chunk's two strips over a share of the rows, ``[P]`` each: of the images, then of the texts."""
        model, scores = self.model, self.scores
        for left_BD, right_BD in ((model.image_BD, model.text_BD), (model.text_BD, model.image_BD)):
            sums_P = strip_sums(left_BD[share], right_BD.index_select(0, index_C), model, scores.loss)
            scores.meter.add(len(left_BD), len(index_C), left_BD.shape[1], own=len(sums_P))
            self._without_equal(sums_P, left_BD, right_BD, index_C, share)
            yield sums_P

    def extend(self, rows_B: Tensor, columns_B: Tensor) -> None:
        """Add the sums of a chunk."""
        join = torch.add if self.scores.loss == "sigmoid" else torch.logaddexp
        self.row_B, self.column_B = join(self.row_B, rows_B), join(self.column_B, columns_B)

    def _without_equal(self, sums_P: Tensor, left_BD: Tensor, right_BD: Tensor, index_C: Tensor, share: slice) -> None:
        """Compute the sums anew of the rows that have an equal pair in the chunk: its terms are masked, or positives.

        Not charged: these rows' products are among those of the whole strip.
        """
        model, scores = self.model, self.scores
        if scores.group_B is None:
            return
        has_B = torch.isin(scores.group_B, scores.group_B[index_C]).index_fill_(0, index_C, False)
        place_R = has_B[share].nonzero().flatten()
        for rows in tiles(len(place_R), len(index_C), left_BD):
            index_R = place_R[rows] + share.start
            logits_RC = strip(left_BD[index_R], right_BD[index_C], model, scores.loss)
            equal_RC = scores.equal_of(index_R, index_C)
            assert equal_RC is not None
            logits_RC = unequal(logits_RC, equal_RC, scores.equal)
            sigmoid = scores.loss == "sigmoid"
            sums_P[place_R[rows]] = F.softplus(logits_RC).sum(1) if sigmoid else logits_RC.logsumexp(1)

    def term_B(self) -> Tensor:
        """The summand of each pair's logit that comes from S; none where all of S is masked, as for an empty S."""
        if self.scores.loss == "sigmoid":
            return self.sign * (self.row_B + self.column_B)
        term_B = self.sign * (self.row_B + self.column_B) / 2
        return term_B if self.scores.group_B is None else term_B.masked_fill(torch.isinf(term_B), 0.0)


class JointLogits:
    """Conditional logits that are extended chunk by chunk.

    For i not in S (as in the paper's listing):

    * sigmoid: s_ii + Σ_{j∈S}(s_ij + s_ji) with s = M(learner) − M(reference): exactly the increase of
      the summed loss difference when i joins S;
    * softmax: −a_ii + ½(LSE_{j∈S} a_ij + LSE_{j∈S} a_ji) of the learner minus the same of the
      reference. This is *not* the increase of the batch loss: the change that i makes in the denominators of
      S's pairs is left out, and a_ii is not inside its own denominators, as in the paper's listing.
      For an empty S the LSE terms are dropped.

    Args:
        scores: with a learner, a reference or both (with one model, its term alone: joint hard
            learner, joint easy reference).

    Raises:
        ScoreError: the scores hold neither learner nor reference; or equal pairs are positives under the softmax loss.

    Two equal pairs (``Scores.group_B``) are no negatives of each other: their terms are masked, or have the label +1.

    Several processes (``Scores.world``) each sum a share of the rows; one all-gather a chunk joins all models' sums.
    """

    def __init__(self, scores: Scores) -> None:
        scores.equal_of(*torch.zeros(2, 0, dtype=torch.int64))
        self.diagonal_B = scores.learnability_B("own")
        self._world = scores.world
        self._running = [_Running(sign, model, scores) for sign, model in scores.contrast()]
        self._drawn_B = torch.zeros(len(scores), dtype=torch.bool, device=self.diagonal_B.device)
        self._empty = True

    def extend(self, index_C: Tensor) -> None:
        """Add these pairs to S, which the logits are conditioned on."""
        if not len(index_C):
            return
        size = len(self.diagonal_B)
        share = self._world.share(size)
        own = [sums_P for running in self._running for sums_P in running.strips(index_C, share)]
        sums, _ = joined(self._world, size, own)
        for running, rows_B, columns_B in zip(self._running, sums[::2], sums[1::2], strict=True):
            running.extend(rows_B, columns_B)
        self._empty = False

    def exclude(self, index_C: Tensor) -> None:
        """Exclude these pairs from further draws."""
        self._drawn_B.index_fill_(0, index_C, True)

    def logit_B(self) -> Tensor:
        """Logits of all B pairs, −inf for excluded ones."""
        logit_B = self.diagonal_B
        if not self._empty:
            logit_B = logit_B + torch.stack([running.term_B() for running in self._running]).sum(0)
        return logit_B.masked_fill(self._drawn_B, -math.inf)


def conditional_logits(scores: Scores, index_S: Tensor) -> Tensor:
    """Logits ``[B]`` of every pair given the pairs of S; −inf at S; see ``JointLogits``.

    Raises:
        ScoreError: the scores hold neither learner nor reference.
    """
    joint = JointLogits(scores)
    index_S = index_S.to(joint.diagonal_B.device)
    joint.extend(index_S)
    joint.exclude(index_S)
    return joint.logit_B()


def _checked(size: int, count: int, chunks: int, gain: float) -> None:
    if not 1 <= count <= size:
        raise ValueError(f"count must lie between 1 and the super-batch's {size} pairs, got {count}")
    if chunks < 1:
        raise ValueError(f"chunks must be at least 1, got {chunks}")
    if not (math.isfinite(gain) and gain >= 0):
        raise ValueError(f"gain must be finite and not negative, got {gain}")


def draw_statistics(logit_B: Tensor) -> dict[str, float]:
    """Entropy (nats; also as a share of the largest possible) and effective size of p ∝ exp(logit)."""
    return _entropy_statistics(*_entropy_terms(logit_B).tolist())


def _entropy_terms(logit_B: Tensor) -> Tensor:
    """How many pairs have p > 0, Σ p·log p and Σ p², ``[3]``, float64."""
    # One row, so that log_softmax runs in the caller's thread: waking more threads costs more than it saves.
    log_p_B = F.log_softmax(logit_B.double().clamp(min=-1e300), dim=0)  # an excluded pair has p = 0 and p·log p = 0
    p_B = log_p_B.exp()
    return torch.stack([(~torch.isneginf(logit_B)).sum().double(), p_B @ log_p_B, p_B @ p_B])


def _entropy_statistics(free: float, p_log_p: float, p_square: float) -> dict[str, float]:
    return {
        "select/entropy": -p_log_p,
        "select/entropy_share": -p_log_p / math.log(free) if free > 1 else 1.0,
        "select/effective_size": 1 / p_square,
    }


def choice_statistics(score_B: Tensor, index_K: Tensor) -> dict[str, float]:
    """Mean score of the chosen pairs and of all pairs, and the share of the chosen ones that are in the top k."""
    return dict(zip(_CHOICE, _choice_terms(score_B, index_K).tolist(), strict=True))


_CHOICE = ("select/score_chosen", "select/score_super_batch", "select/overlap_top")


def _choice_terms(score_B: Tensor, index_K: Tensor) -> Tensor:
    """The values of ``choice_statistics``, ``[3]``, float64."""
    best_K = _best(score_B, len(index_K))
    top_B = torch.zeros(len(score_B), dtype=torch.float64, device=score_B.device).index_fill_(0, best_K, 1.0)
    return torch.stack([score_B[index_K].mean().double(), score_B.mean().double(), top_B[index_K].mean()])


def joint_draw(
    scores: Scores,
    count: int,
    chunks: int = 16,
    gain: float = 1.0,
    deterministic: bool = False,
    generator: torch.Generator | None = None,
    offset_B: Tensor | None = None,
) -> Draw:
    """Draw ``count`` pairs jointly in ``chunks`` chunks, as JEST does.

    Args:
        scores: learner, reference or both.
        count: b, the number of distinct indices.
        chunks: N; it need not divide b, and any N above b gives the same draw as N = b.
        gain: factor on the logits (the paper's value is unknown; 1 is the formula as printed).
        deterministic: take the best of each chunk instead of drawing (gain → ∞).
        generator: a CPU generator.
        offset_B: added to each pair's logits once the gain has acted on them.

    Returns:
        Indices ``[K]`` in order of the draw, and statistics (averages over the chunks).

    Raises:
        ValueError: ``count``, ``chunks`` or ``gain`` is out of range.
        ScoreError: a score is not finite, or the scores hold neither learner nor reference.
    """
    _checked(len(scores), count, chunks, gain)
    joint = JointLogits(scores)
    drawn: list[Tensor] = []
    terms: list[Tensor] = []
    sizes = chunk_sizes(count, chunks)
    noise = None if deterministic else _noise(joint.diagonal_B, len(sizes), generator)
    for number, size in enumerate(sizes):
        logit_B = joint.logit_B()
        gained_B = _gained(logit_B, gain, offset_B)
        key_B = _key_B(logit_B, gained_B, offset_B, noise)
        index_C = _best(key_B, size)
        terms += [_drawable(key_B), _entropy_terms(gained_B), logit_B[index_C].mean().double()[None]]  # a _Chunk
        drawn.append(index_C)
        joint.exclude(index_C)
        if number + 1 < len(sizes):
            joint.extend(index_C)
    index_K = torch.cat(drawn)
    # One read of the device for the whole draw: the host runs ahead of a GPU.
    *read, chosen, mean, overlap = torch.cat([*terms, _choice_terms(joint.diagonal_B, index_K)]).tolist()
    width = len(_Chunk._fields)
    chunks_read = [_Chunk(*read[start : start + width]) for start in range(0, len(read), width)]
    if any(chunk.bad for chunk in chunks_read):
        _refuse_gain(joint.logit_B(), gain)
    per_chunk: list[dict[str, float]] = []
    for size, chunk in zip(sizes, chunks_read, strict=True):
        _refuse(chunk.bad, chunk.free, len(scores), size)
        entropy = _entropy_statistics(chunk.possible, chunk.p_log_p, chunk.p_square)
        per_chunk.append(entropy | {"select/logit_chosen": chunk.logit_chosen})
    means = {name: sum(row[name] for row in per_chunk) / len(per_chunk) for name in per_chunk[0]}
    return Draw(index_K, means | dict(zip(_CHOICE, (chosen, mean, overlap), strict=True)), joint.diagonal_B)


class _Chunk(NamedTuple):
    """What is read of the device of one chunk: ``_drawable``, ``_entropy_terms``, the mean logit of the chosen."""

    bad: float
    free: float
    possible: float
    p_log_p: float
    p_square: float
    logit_chosen: float


def _gained(logit_B: Tensor, gain: float, offset_B: Tensor | None = None) -> Tensor:
    # 0 · −inf would be NaN: an excluded pair stays excluded under any gain.
    gained_B = torch.where(torch.isneginf(logit_B), logit_B, gain * logit_B)
    return gained_B if offset_B is None else gained_B + offset_B.to(gained_B)


def _key_B(logit_B: Tensor, gained_B: Tensor, offset_B: Tensor | None, noise: Iterator[Tensor] | None) -> Tensor:
    """What the largest are taken by: logits times the gain, with noise; without noise the gain weighs but an offset."""
    if noise is None:
        return logit_B if offset_B is None else gained_B
    return gained_B.double() + next(noise)


def joint_sample(
    scores: Scores,
    count: int,
    chunks: int = 16,
    gain: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The indices of ``joint_draw`` alone, for use outside of this framework."""
    return joint_draw(scores, count, chunks, gain, generator=generator).index_K


def uniform_draw(size: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Positions of ``count`` pairs drawn uniformly without replacement; all in their order where there are no more."""
    if size == count:
        return torch.arange(count)
    return independent_draw(torch.zeros(size), count, generator=generator).index_K


def independent_draw(
    score_B: Tensor,
    count: int,
    gain: float = 1.0,
    deterministic: bool = False,
    generator: torch.Generator | None = None,
    offset_B: Tensor | None = None,
) -> Draw:
    """Draw ``count`` pairs by their own scores: p ∝ exp(gain · score) without replacement, or the largest scores.

    ``offset_B`` is added to gain · score, of each pair.

    Raises:
        ValueError: ``count`` or ``gain`` is out of range.
        ScoreError: a score is not finite.
    """
    _checked(len(score_B), count, 1, gain)
    gained_B = _gained(score_B, gain, offset_B)
    key_B = _key_B(score_B, gained_B, offset_B, None if deterministic else _noise(score_B, 1, generator))
    index_K = _best(key_B, count)
    finite = torch.isfinite(score_B).all().double()[None]
    terms = [finite, _drawable(key_B), _entropy_terms(gained_B), _choice_terms(score_B, index_K)]
    is_finite, bad, free, *entropy, chosen, mean, overlap = torch.cat(terms).tolist()
    if not is_finite:
        raise NonFiniteScore("a score to draw by is NaN or infinite")
    if bad:
        _refuse_gain(score_B, gain)
    _refuse(bad, free, len(score_B), count)
    choice = dict(zip(_CHOICE, (chosen, mean, overlap), strict=True))
    return Draw(index_K, _entropy_statistics(*entropy) | choice, score_B)
