"""Training by the contrastive loss: one loss over a batch, parts of which may be embedded under different views.

A batch larger than a micro-batch is embedded twice (GradCache, Gao et al. 2021, arXiv 2101.06983; open_clip's
``--accum-freq``): first without gradient, for the loss over all pairs and its gradient with respect to their
embeddings; then one micro-batch at a time with gradient, to backpropagate that gradient through the towers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import FULL, FULL_MIX, Batch, Mix, Pass, View, index_slice, split_counts
from jestbench.cost.price import Price
from jestbench.cost.tracing import TRAINING_PASSES
from jestbench.engine.casting import Setting, Training, check_training, fitted, shape_of
from jestbench.engine.embedding_rows import EmbeddingRows
from jestbench.engine.gradients import CarryOn
from jestbench.engine.learner import Learner, Objective
from jestbench.engine.libraries import library_towers
from jestbench.engine.locked_images import LockedImages
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import to_device
from jestbench.parallel.distributed import World
from jestbench.parallel.traffic import TRAFFIC
from jestbench.select.given import equal_groups
from jestbench.select.losses import LOSSES, Each, EqualPairs, EqualRule, LossName

if TYPE_CHECKING:
    from jestbench.config.run import Run


@dataclass(frozen=True)
class _Held:
    """What one process embeds of a sub-batch.

    Attributes:
        pieces: view, and positions among the process's rows, which are empty for a stand-in pair.
        parts: the pairs of each piece.
        views: under which some process embeds pairs of the sub-batch.
        row_P: positions of the process's rows in the sub-batch.
        cached: whether each piece is embedded twice (cached gradients).
    """

    pieces: list[tuple[View, Tensor]]
    parts: list[Batch]
    views: list[View]
    row_P: Tensor
    cached: bool

    @property
    def real(self) -> Tensor | None:
        """Positions of the process's rows among all that is embedded, stand-ins left out; ``None`` without any."""
        if all(len(index) for _, index in self.pieces):
            return None
        own = [torch.full((max(1, len(index)),), len(index) > 0) for _, index in self.pieces]
        return torch.cat(own).nonzero().flatten()


@dataclass(frozen=True)
class Contrastive(Objective):
    """The loss over the concatenated embeddings of a batch.

    With several processes each embeds its own rows of the batch, and every rank computes the same loss over all rows.

    Attributes:
        name: of the loss.
        mix: the views that a batch is trained under.
        reruns: activation checkpointing: what the backward pass runs again, by view of the mix; ``None`` is none.
        microbatch: pairs that hold activations at once, in all processes together (cached gradients); ``None`` is all.
        equal: what pairs of one image or one caption are to each other: ``run.equal``.
        listened: whether each pair's own losses are handed out (``trained_losses`` in the policy's needs).
    """

    name: LossName
    mix: Mix = FULL_MIX
    reruns: Mapping[View, Price] | None = None
    microbatch: int | None = None
    equal: EqualRule = "negative"
    listened: bool = False

    @property
    def views(self) -> frozenset[View]:
        """The views of the mix."""
        return frozenset(view for _, view in self.mix)

    def plain(self) -> Contrastive:
        """The same loss under the full view, nothing run twice."""
        return Contrastive(self.name, equal=self.equal)

    def limited(self, microbatch: int | None) -> Contrastive:
        """The same loss, with cached gradients over micro-batches of another size."""
        return replace(self, microbatch=microbatch)

    def settle(self, model: TwoTowers) -> None:
        """Clamp the scale of the softmax loss."""
        if self.name == "softmax":
            model.clamp_scale()

    def loss(
        self, learner: Learner, batch: Batch, weight_K: Tensor | None, seed: int, each: Each | None = None
    ) -> tuple[Tensor, CarryOn | None]:
        """The loss of a sub-batch; with cached gradients, what carries its gradient on into the towers."""
        model, world, count = learner.model, learner.world, len(batch)
        cached, held = self._cached(count), self._held(learner, batch)
        with torch.set_grad_enabled(not cached):
            own = learner.gradients.embed(partial(self._embed, learner, held, seed), held.views)
            image_KD, text_KD = batch.collect_with_gradient(*own)
        if cached:
            image_KD, text_KD = image_KD.requires_grad_(), text_KD.requires_grad_()
        weights = None if weight_K is None else to_device(weight_K, image_KD.device)
        equal = None
        if self.equal != "negative":
            group_K = to_device(equal_groups(batch.image_key_B, batch.text_key_B), image_KD.device)
            equal = EqualPairs(group_K, self.equal)
        each = each if self.listened else None
        with TRAFFIC.sending("loss_gradients"):
            loss = LOSSES[self.name](image_KD, text_KD, model.scale, model.bias, weights, equal, each, world)
        return loss, partial(self._carry_on, learner, held, image_KD, text_KD, seed) if cached else None

    def passes_through(self, count: int, processes: int) -> tuple[Sequence[View], bool]:
        """As in the base: of pairs that are dealt out in turns, each process has as many pieces as any other one."""
        pieces = self.pieces(torch.arange(count) % processes, World(0, processes), even=True)
        return [view for view, _ in pieces], self._cached(count)

    def _cached(self, count: int) -> bool:
        """Whether so many pairs are more than a micro-batch."""
        return self.microbatch is not None and count > self.microbatch

    def _held(self, learner: Learner, batch: Batch) -> _Held:
        """What this process embeds of a sub-batch."""
        pieces = self.pieces(batch.rank_B, learner.world, learner.gradients.even)
        own = batch.own
        parts = [  # a piece without a position is run on a stand-in pair (``pieces``)
            learner.prepared(own.take(index)) if len(index) else learner.model.stand_in(own.images_BCHW)
            for _, index in pieces
        ]
        views = [view for view, _ in self._parts(len(batch))]
        return _Held(pieces, parts, views, batch.rows, self._cached(len(batch)))

    def _embed(self, learner: Learner, held: _Held, seed: int) -> tuple[Tensor, Tensor]:
        """Embeddings of the own rows of a sub-batch, its pieces each under their view, concatenated in order."""
        # Without cached gradients the backward pass comes after the last piece.
        feed = learner.feed(held.parts, 2 if held.cached else len(held.parts))
        embedded = [self._embed_piece(learner, part, held, seed, position) for position, part in enumerate(feed)]
        if len(embedded) == 1 and held.real is None:
            return embedded[0]
        image_PD, text_PD = (torch.cat(parts) for parts in zip(*embedded, strict=True))
        if held.real is None:
            return image_PD, text_PD
        real = to_device(held.real, image_PD.device)
        return image_PD[real], text_PD[real]

    def _embed_piece(
        self, learner: Learner, piece: Batch, held: _Held, seed: int, position: int
    ) -> tuple[Tensor, Tensor]:
        """Embeddings of one piece. Each has a seed of its own: drop path drops the same in both passes."""
        world = learner.world
        if position == 0 or held.cached:
            place = position * world.size + world.rank
            torch.manual_seed(seeds.derive(seed, "update", place) if place else seed)
        checkpointed = self.reruns is not None and torch.is_grad_enabled()
        with learner.arithmetic.autocast(), learner.model.checkpointing(checkpointed):
            embedded: tuple[Tensor, Tensor] = learner.model(piece, held.pieces[position][0])
        return embedded

    def _carry_on(self, learner: Learner, held: _Held, image_KD: Tensor, text_KD: Tensor, seed: int) -> None:
        """Backpropagate the gradient of the embeddings through the towers, one micro-batch at a time."""
        assert image_KD.grad is not None
        assert text_KD.grad is not None
        for position, part in enumerate(learner.feed(held.parts)):
            run = partial(self._embed_piece, learner, part, held, seed, position)
            embedded: tuple[Tensor, ...] = learner.gradients.embed(run, held.views, position + 1 == len(held.parts))
            row_P = held.row_P[held.pieces[position][1]]
            at = index_slice(row_P) or to_device(row_P, image_KD.device)
            # Times the number of processes as in World.collect_with_gradient; a stand-in's gradient is 0.
            gradients: tuple[Tensor, ...] = tuple(
                gradient_KD[at] * learner.world.size if len(row_P) else torch.zeros_like(own)
                for gradient_KD, own in zip((image_KD.grad, text_KD.grad), embedded, strict=True)
            )
            if learner.model.locked:  # no gradient passes through its images
                embedded, gradients = embedded[1:], gradients[1:]
            torch.autograd.backward(embedded, gradients)

    def pieces(self, rank_K: Tensor, world: World, even: bool = False) -> list[tuple[View, Tensor]]:
        """The micro-batches that a process embeds: view, and positions among the process's rows.

        An empty index stands for one stand-in pair, so that a process takes part in collectives of a backward pass.

        Args:
            rank_K: which rank holds each pair of the sub-batch.
            world: the processes; its rank is the process whose pieces are returned.
            even: whether each process has as many pieces of each view as any other one.
        """
        count, position_K = len(rank_K), (rank_K == world.rank).cumsum(0) - 1
        limit = -(-self.microbatch // world.size) if self.microbatch is not None and self._cached(count) else count
        parts_of = self._parts(count)
        sizes, none = [size for _, size in parts_of], torch.empty(0, dtype=torch.int64)
        pieces = list[tuple[View, Tensor]]()
        for (view, _), position_S, rank_S in zip(parts_of, position_K.split(sizes), rank_K.split(sizes), strict=True):
            index = position_S[rank_S == world.rank]
            parts = [part for part in index.split(limit) if len(part)]
            most = -(-int(rank_S.bincount().max()) // limit) if even else 0
            pieces += [(view, part) for part in (*parts, *[none] * (most - len(parts)))]
        return pieces or [(parts_of[0][0], none)]

    def _parts(self, count: int) -> list[tuple[View, int]]:
        """The parts of the mix that hold pairs: view, and number of pairs."""
        sizes = split_counts(count, [share for share, _ in self.mix])
        return [(view, size) for (_, view), size in zip(self.mix, sizes, strict=True) if size]

    def passes(self, learner: Learner, count: int) -> tuple[Pass, ...]:
        """What training on ``count`` pairs is charged: the towers and the K×K logits, three times forward.

        A locked image tower has no backward pass, and is charged one forward pass.

        Beside them what the run's settings run again to save memory. The logits that a large softmax loss makes twice
        (``select/losses.py``) are not among it: like the attention products of a fused backward pass they belong to the
        three forward passes that a training pass is charged.
        """
        towers = tuple(
            Pass(
                learner.part.train,
                learner.training_macs(view, size),
                f"{learner.part.name}, training on {size} pairs" + (f" under {view.label}" if view != FULL else ""),
            )
            for view, size in self._parts(count)
        )
        logits = count * count * learner.width
        pairwise = Pass("pairwise", TRAINING_PASSES * logits, f"loss logits, {count}×{count}")
        return (*towers, pairwise, *self._recompute_passes(learner, count))

    def _recompute_passes(self, learner: Learner, count: int) -> Iterator[Pass]:
        """What the towers do beyond one forward and one backward pass over ``count`` pairs."""
        if self.reruns is None and not self._cached(count):
            return
        # As one process runs them: the charge depends on no number of processes.
        pieces = [(view, len(index)) for view, index in self.pieces(torch.zeros(count, dtype=torch.int64), World())]
        if self.reruns is not None:
            again = sum(self.reruns[view].pairs(size) for view, size in pieces)
            yield Pass("recompute", again, f"activation checkpointing, {count} pairs")
        if self._cached(count):
            forward = sum(learner.forward_macs(view, size) for view, size in pieces)
            trained = sum(learner.training_macs(view, size) for view, size in pieces)
            whole = sum(learner.training_macs(view, size) for view, size in self._parts(count))
            # Beside the forward pass: a view's patch embedding is resized for each micro-batch, not once.
            yield Pass(
                "recompute",
                forward + trained - whole,
                f"cached gradients, {count} pairs in {len(pieces)} micro-batches",
            )


class ContrastiveTraining(Training):
    """A run under the contrastive loss, ``run.loss``."""

    kind = "contrastive"
    content = EmbeddingRows
    taken_as = "run.reference takes a contrastive run (gin/run/reference.gin)"
    does = "trains no pair scorer (it has no run.objective)"

    def build(self, run: Run, tokenizer: Tokenizer) -> TwoTowers:
        """Two towers of the run's shape."""
        return run.model.build(tokenizer, run.loss, run.seed)

    def learner(self, setting: Setting) -> Learner:
        """The two towers in training."""
        run, example = setting.run, setting.example
        start, tokenizer = setting.start, setting.pairs.tokenizer
        with setting.arithmetic.building():
            if start is None:
                built = self.build(run, tokenizer)
            else:
                built = start.build(run.model, tokenizer, run.loss, run.seed)
        model = setting.arithmetic.placed(built)
        check_training(model, setting, setting.micro.train, run.grad_checkpointing)
        mix = tuple((share, fitted("run.train_views", view, model)) for share, view in run.mix)
        scored = fitted(*run.view_of("learner"), model)
        trained = {FULL, *(view for _, view in mix)}
        prices = {view: Price.of(model, example, view) for view in {scored, *trained}}
        reruns = {view: Price.of_rerun(model, example, view) for view in trained} if run.grad_checkpointing else None
        listened = "trained_losses" in run.built_policy.needs
        objective = Contrastive(run.loss, mix, reruns, setting.micro.train, run.equal, listened)
        if setting.compiled:
            model.compile_blocks()
        images = _remembered(setting, model, prices[FULL], {scored, *trained}) if run.remember_images else None
        return Learner(
            *(model, objective, run.optimizer, setting.arithmetic, prices, scored, setting.micro),
            shard=run.shard,
            images=images,
        )

    def loss(self, run: Run) -> LossName:
        """The run's loss, ``run.loss``."""
        return run.loss

    @classmethod
    def rebuilt(cls, described: Mapping[str, Any], tokenizer: Tokenizer) -> TwoTowers:
        """Two towers, with random weights."""
        if "library" in described:
            return library_towers(described["library"], tokenizer)
        return shape_of(described).build(tokenizer, described["loss"], seed=0)


def _remembered(setting: Setting, model: TwoTowers, price: Price, views: Collection[View]) -> LockedImages:
    """Embeds each image of a locked tower once; ``ValueError`` where a setting makes them vary from pass to pass."""
    run = setting.run
    reasons = {
        "model.freeze is not set, and a tower in training embeds an image anew in each pass": not model.locked,
        "run.augment makes another image of it in each step": run.augment is not None,
        "a view (run.train_views, run.score_view) embeds it otherwise": not all(view.full_image for view in views),
        "run.shard spreads the tower over processes": run.shard,
    }
    for reason, there in reasons.items():
        if there:
            raise ValueError(f"run.remember_images: {reason}: leave one of them out")
    block, store_dir = setting.micro.score, setting.store_dir
    return LockedImages(model, setting.arithmetic, price, run.reference_accounting, store_dir, block)
