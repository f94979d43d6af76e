"""The learner and its update: the only optimizer step of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import FULL, FULL_MIX, Batch, Mix, Pass, View, split_counts
from jestbench.cost.price import Price
from jestbench.cost.tracing import TRAINING_PASSES
from jestbench.engine.optimizer import Optimizer
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LOSSES, LossName


class NonFiniteLoss(Exception):
    """The training loss, or a score that it rests on, is NaN or infinite."""

    exit_status: ClassVar[int] = 4


@dataclass(frozen=True)
class Update:
    """What one training step did."""

    loss: float
    learning_rate: float
    gradient_norm: float
    passes: tuple[Pass, ...]


class Learner:
    """The model in training."""

    def __init__(
        self,
        model: TwoTowers,
        loss: LossName,
        optimizer: Optimizer,
        arithmetic: Arithmetic,
        price: Price,
        mix: Mix = FULL_MIX,
        prices: Mapping[View, Price] | None = None,
        reruns: Mapping[View, Price] | None = None,
        microbatch: int | None = None,
    ) -> None:
        """Take a model.

        Args:
            model: the two towers.
            loss: over the concatenated embeddings of a batch.
            optimizer: and its schedule.
            arithmetic: device and precision.
            price: of the full view.
            mix: the views that a batch is trained under.
            prices: of the other views that the model is run under.
            reruns: activation checkpointing: what the backward pass runs again, by view of the mix;
                ``None`` is none.
            microbatch: pairs that hold activations at once (cached gradients); ``None`` is all.
        """
        self.model = model.to(arithmetic.device)
        self.loss: LossName = loss
        self.arithmetic, self.price, self.world = arithmetic, price, arithmetic.world
        self.mix, self.prices = mix, {**(prices or {}), FULL: price}
        self.reruns, self.microbatch = reruns, microbatch
        self.schedule = optimizer
        self.optimizer = optimizer.build(self.model)

    def update(self, batch: Batch, weight_K: Tensor | None, share: float, seed: int) -> Update:
        """One optimizer step on the chosen pairs.

        Several processes embed their own rows of them, and compute the one loss over all alike.

        More pairs than a micro-batch are embedded twice (GradCache, Gao et al. 2021, arXiv 2101.06983;
        open_clip's ``--accum-freq``): without gradient, for the loss over all of them and its gradient by
        their embeddings; then a micro-batch at a time, to carry that gradient on into the towers.

        Args:
            batch: the sub-batch.
            weight_K: loss weight of each pair, or ``None``.
            share: of the budget spent before this step.
            seed: for the model's own randomness (drop path and the like) in this step.

        Raises:
            NonFiniteLoss: before anything is changed.
        """
        self.model.train()
        cached, count = self._cached(len(batch)), len(batch)
        with torch.set_grad_enabled(not cached):
            own = self._embed(batch.own, count, seed)
            image_KD, text_KD = (self.world.collect_with_gradient(part_PD, count) for part_PD in own)
        if cached:
            image_KD, text_KD = image_KD.requires_grad_(), text_KD.requires_grad_()
        weights = None if weight_K is None else weight_K.to(image_KD.device)
        loss = LOSSES[self.loss](image_KD, text_KD, self.model.scale, self.model.bias, weights)
        carry_on = partial(self._carry_on, batch.own, image_KD, text_KD, seed) if cached else None
        value, rate, norm = self._descend(loss, share, carry_on)
        if self.loss == "softmax":
            self.model.clamp_scale()
        return Update(value, rate, norm, self.training_passes(count))

    def _descend(
        self, loss: Tensor, share: float, carry_on: Callable[[], None] | None = None
    ) -> tuple[float, float, float]:
        """One optimizer step down a loss.

        Args:
            loss: to be made smaller.
            share: of the budget spent before this step.
            carry_on: brings the gradient from where the loss's graph ends on to the parameters.

        Returns:
            The loss, the learning rate, and the gradient's norm before clipping.

        Raises:
            NonFiniteLoss: before anything is changed.
        """
        value = float(loss.detach())
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the loss is {value}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if carry_on is not None:
            carry_on()
        self.world.share_gradients(self.model.parameters(), (self.model.log_scale, self.model.bias))
        clip = self.schedule.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip))
        if not math.isfinite(norm):
            raise NonFiniteLoss(f"the loss is {value}, but its gradient's norm is {norm}")
        rate = self.schedule.rate(share)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return value, rate, norm

    def _cached(self, count: int) -> bool:
        """Whether a process's share of so many pairs is more than a micro-batch."""
        return self.microbatch is not None and -(-count // self.world.size) > self.microbatch

    def _embed(self, own: Batch, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Embeddings of the own rows of a sub-batch, its pieces each under their view, concatenated in order."""
        pieces = self._pieces(self.mix, count)
        embedded = [self._embed_piece(own, count, seed, position, *piece) for position, piece in enumerate(pieces)]
        if len(embedded) == 1:
            return embedded[0]
        return torch.cat([image for image, _ in embedded]), torch.cat([text for _, text in embedded])

    def _embed_piece(
        self, own: Batch, count: int, seed: int, position: int, view: View, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of one piece. Each has a seed of its own: drop path drops the same in both passes."""
        if position == 0 or self._cached(count):
            place = position * self.world.size + self.world.rank
            torch.manual_seed(seeds.derive(seed, "update", place) if place else seed)
        piece = own if len(index) == len(own) else own.take(index)
        checkpointed = self.reruns is not None and torch.is_grad_enabled()
        with self.arithmetic.autocast(), self.model.checkpointing(checkpointed):
            embedded: tuple[Tensor, Tensor] = self.model(piece, view)
        return embedded

    def _carry_on(self, own: Batch, image_KD: Tensor, text_KD: Tensor, seed: int) -> None:
        """The gradient by the embeddings, already there, on into the towers: one micro-batch at a time."""
        assert image_KD.grad is not None
        assert text_KD.grad is not None
        count = len(image_KD)
        for position, (view, index) in enumerate(self._pieces(self.mix, count)):
            embedded = self._embed_piece(own, count, seed, position, view, index)
            rows = self.world.rows(count)[index].to(image_KD.device)
            torch.autograd.backward(embedded, (image_KD.grad[rows], text_KD.grad[rows]))

    def _pieces(self, mix: Mix, count: int, rank: int | None = None) -> list[tuple[View, Tensor]]:
        """The parts of a mix that a process embeds, none empty, in micro-batches: view, and positions among its rows.

        Args:
            mix: shares of ``count`` pairs, in order; every process has its share of each.
            count: pairs of the whole sub-batch.
            rank: of the process; ``None`` is this one.
        """
        own = (self.world if rank is None else replace(self.world, rank=rank)).rows(count)
        limit = self.microbatch if self.microbatch is not None and self._cached(count) else count
        ends = list(accumulate(split_counts(count, [share for share, _ in mix])))
        pieces = []
        for (_, view), start, end in zip(mix, (0, *ends), ends, strict=False):
            index = ((own >= start) & (own < end)).nonzero().flatten()
            pieces += [(view, part) for part in index.split(limit) if len(part)]
        return pieces

    def training_passes(self, count: int, mix: Mix | None = None) -> tuple[Pass, ...]:
        """What training on ``count`` pairs is charged: the towers and the K×K logits, three times forward.

        Beside them what is run again to save memory.

        Args:
            count: pairs.
            mix: other views than the learner's own, to compare with.
        """
        mix = self.mix if mix is None else mix
        sizes = split_counts(count, [share for share, _ in mix])
        towers = tuple(
            Pass(
                "learner_train",
                TRAINING_PASSES * self.prices[view].pairs(size),
                f"learner, training on {size} pairs" + (f" under {view.label}" if view != FULL else ""),
            )
            for size, (_, view) in zip(sizes, mix, strict=True)
            if size
        )
        logits = count * count * self.model.width
        pairwise = Pass("pairwise", TRAINING_PASSES * logits, f"loss logits, {count}×{count}")
        return (*towers, pairwise, *self._recompute_passes(count, mix))

    def _recompute_passes(self, count: int, mix: Mix) -> Iterator[Pass]:
        """What the towers do beyond one forward and one backward pass over ``count`` pairs."""
        if self.reruns is None and not self._cached(count):
            return
        ranks = range(self.world.size)
        pieces = [(view, len(index)) for rank in ranks for view, index in self._pieces(mix, count, rank)]
        if self.reruns is not None:
            again = sum(self.reruns[view].pairs(size) for view, size in pieces)
            yield Pass("recompute", again, f"activation checkpointing, {count} pairs")
        if self._cached(count):
            forward = sum(self.prices[view].pairs(size) for view, size in pieces)
            sizes = split_counts(count, [share for share, _ in mix])
            whole = sum(self.prices[view].pairs(size) for size, (_, view) in zip(sizes, mix, strict=True))
            # Beside the forward pass: a view's patch embedding is resized for each micro-batch, not once.
            yield Pass(
                "recompute",
                forward + TRAINING_PASSES * (forward - whole),
                f"cached gradients, {count} pairs in {len(pieces)} micro-batches",
            )

    def state(self) -> dict[str, Any]:
        """The optimizer's state."""
        return self.optimizer.state_dict()
