"""A model in training: the optimizer step on a loss that is handed in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from jestbench import seeds
from jestbench.batch import FULL, Batch, Pass, Purpose, View
from jestbench.cost.price import Price
from jestbench.cost.tracing import TRAINING_PASSES
from jestbench.engine.actor import Actor, Update
from jestbench.engine.feed import on_device
from jestbench.engine.fit_memory import MicroBatches
from jestbench.engine.gradients import AveragedGradients, CarryOn, Gradients
from jestbench.engine.locked_images import LockedImages
from jestbench.engine.measured import Measured
from jestbench.engine.measured import NonFiniteLoss as NonFiniteLoss
from jestbench.engine.optimizer import Optimizer
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.parallel.traffic import TRAFFIC
from jestbench.select.given import Trained
from jestbench.select.losses import Each
from jestbench.select.scores import Embeddings, Role, Scores


@dataclass(frozen=True)
class RolePurposes:
    """What a model in training is to the run: how its passes are charged and its random numbers drawn.

    Attributes:
        role: of the actor.
        name: for people.
        score: what scoring is charged to.
        train: what training is charged to.
        stream: position of its seeds among those of a step; 0 takes the step's own.
    """

    role: Role
    name: str
    score: Purpose
    train: Purpose
    stream: int = 0


LEARNER = RolePurposes("learner", "learner", "learner_score", "learner_train")
ONLINE = RolePurposes("online", "online scorer", "scorer_score", "scorer_train", 1)


class Objective(ABC):
    """What a model is trained for: the loss of a batch, and what a step on it costs."""

    @property
    def views(self) -> frozenset[View]:
        """The views that the model is trained under."""
        return frozenset({FULL})

    @abstractmethod
    def loss(
        self, learner: Learner, batch: Batch, weight_K: Tensor | None, seed: int, each: Each | None = None
    ) -> tuple[Tensor, CarryOn | None]:
        """The loss of a sub-batch, and what is left to do after its ``backward()``; ``None`` for nothing.

        Args:
            learner: the model, in train mode.
            batch: the sub-batch.
            weight_K: loss weight of each pair, or ``None``.
            seed: for all randomness of this step.
            each: takes up each pair's own losses, where the objective has them and the policy learns from them.
        """

    @abstractmethod
    def passes(self, learner: Learner, count: int) -> tuple[Pass, ...]:
        """What a step on ``count`` pairs is charged."""

    def passes_through(self, count: int, processes: int) -> tuple[Sequence[View], bool]:
        """The passes of each of several processes through the towers, trained on ``count`` pairs in all.

        Returns:
            The view of each pass with gradient, and whether there is a pass without gradient before each of them.
        """
        return [FULL], False

    def plain(self) -> Objective:
        """The same objective under the full view, where nothing is run twice to save memory."""
        return self

    def limited(self, microbatch: int | None) -> Objective:
        """The same objective, trained over micro-batches of another size."""
        return self

    def settle(self, model: TwoTowers) -> None:  # noqa: B027
        """Bring the model's parameters within their bounds after a step."""


class Learner(Actor):
    """A model in training: the learner, or a scorer trained beside it."""

    def __init__(
        self,
        model: TwoTowers,
        objective: Objective,
        optimizer: Optimizer,
        arithmetic: Arithmetic,
        prices: Mapping[View, Price],
        view: View = FULL,
        micro: MicroBatches | None = None,
        part: RolePurposes = LEARNER,
        shard: bool = False,
        images: LockedImages | None = None,
    ) -> None:
        """Set a model up for training.

        Args:
            model: the two towers.
            objective: what the model is trained for.
            optimizer: the optimizer's parameters and its schedule.
            arithmetic: device and precision.
            prices: by the views that the model runs under, the full view among them.
            view: the view that the model scores under.
            micro: pairs in one forward pass; ``None`` is 4,096 when scoring, and the whole sub-batch in training.
            part: the part that the model plays in the run.
            shard: whether several processes hold a part of the towers and of the optimizer's state each.
            images: remembered embeddings under a locked image tower; ``None``: each pass embeds its images anew.

        Raises:
            ValueError: the towers cannot be sharded here.
        """
        self.model = arithmetic.placed(model)
        self.objective, self.part, self.role, self.width = objective, part, part.role, model.width
        self.view, self.trained_under = view, objective.views
        self.arithmetic, self.world, self.prices = arithmetic, arithmetic.world, prices
        self.micro, self.images = micro or MicroBatches(), images
        self.schedule = optimizer
        with self.world.waiting("a broadcast of weights"):
            self.gradients = self._gradients(shard)
        self.optimizer: Any = optimizer.build(self.model)
        self._pending: Measured | None = None
        self._updates = 0

    def _gradients(self, shard: bool) -> Gradients:
        """How the gradients of all processes come together."""
        if self.world.size == 1:
            return Gradients(self.model)
        if not shard:
            return AveragedGradients(self.model, self.world, self.trained_under)
        from jestbench.engine.sharded_gradients import ShardedGradients  # a second of imports

        return ShardedGradients(self.model, self.arithmetic, self.schedule)

    @property
    def price(self) -> Price:
        """The price of the full view."""
        return self.prices[FULL]

    def score(self, batch: Batch) -> Scores:
        """Scores of a super-batch, in eval mode, without gradient, under training's autocast."""
        model, own = self.model.eval(), batch.own
        image, text = [], []
        with self.gradients.whole(), torch.no_grad(), self.arithmetic.autocast():
            pieces = [self.prepared(own.take(index)) for index in torch.arange(len(own)).split(self.micro.score)]
            for part in self.feed(pieces):
                image_PD, text_PD = model(part, self.view)
                image.append(image_PD)
                text.append(text_PD)
        with TRAFFIC.sending("embeddings"):
            image_BD, text_BD = batch.collect_all([torch.cat(parts) for parts in (image, text)])
        scores = Scores.of(self.role, Embeddings(image_BD, text_BD, *model.scale_and_bias()))
        return replace(scores, model_passes=(*self._images_of(batch, self.part.score), *self.forecast(len(batch))))

    def prepared(self, own: Batch) -> Batch:
        """Pairs of this process as they are fed to the model: with their images, or with what is remembered of them."""
        return own if self.images is None else self.images.embedded(own)

    def _images_of(self, batch: Batch, purpose: Purpose) -> tuple[Pass, ...]:
        """What the remembered images of a batch are charged now."""
        if self.images is None:
            return ()
        passes = self.images.charge(batch.image_key_B, purpose)
        self.amortised_macs = self.images.amortised_macs
        return passes

    def tokenized(self, batch: Batch) -> Batch:
        """The batch with ids of the model's own tokenizer: they go with a pair to the process that trains on it."""
        return self.model.tokenized(batch)

    def feed(self, pieces: Sequence[Batch], slots: int = 2) -> Iterator[Batch]:
        """Pieces of a batch on the device, one after the other (``on_device``)."""
        keys = any(view.keep < 1 for view in (self.view, *self.trained_under))
        pieces = [self.model.tokenized(piece) for piece in pieces]
        return on_device(pieces, self.arithmetic.device, self.model.tokenizer, keys=keys, slots=slots)

    def training_macs(self, view: View, count: int) -> int:
        """Multiply-adds of training both towers on pairs: three forward passes, of a locked image tower one.

        Images that are remembered are charged apart.
        """
        passes = TRAINING_PASSES if not self.model.locked else int(self.images is None)
        return passes * self.prices[view].images(count) + TRAINING_PASSES * count * self.prices[view].text

    def forward_macs(self, view: View, count: int, microbatch: int | None = None) -> int:
        """Multiply-adds of one forward pass over pairs; images that are remembered are charged apart."""
        price = self.prices[view]
        return count * price.text + (price.images(count, microbatch) if self.images is None else 0)

    def forecast(self, count: int) -> tuple[Pass, ...]:
        """What scoring ``count`` pairs is charged, but for images that are remembered (``LockedImages``)."""
        under = "" if self.view == FULL else f" under {self.view.label}"
        macs = self.forward_macs(self.view, count, self.micro.score)
        return (Pass(self.part.score, macs, f"{self.part.name}, scoring {count} pairs{under}"),)

    def update(self, batch: Batch, weight_K: Tensor | None, position: float, seed: int) -> Update:
        """One optimizer step on the chosen pairs.

        Args:
            batch: the sub-batch.
            weight_K: loss weight of each pair, or ``None``.
            position: where the schedule stands before this step (the share of the budget spent).
            seed: for all randomness of this step.

        Raises:
            NonFiniteLoss: the loss or its gradient is NaN or infinite; raised before any parameter is changed. On a
                GPU, where the host does not wait for a step, such a step changes no parameter, and the next one
                (or ``Update.loss``, or ``state_dict``) raises.
        """
        if self.part.stream:
            seed = seeds.derive(seed, "update", self.part.stream)
        self._settled()
        self.model.train()
        each: Each = []
        loss, carry_on = self.objective.loss(self, batch, weight_K, seed, each)
        measured, rate = self._descend(loss, position, carry_on)
        self.objective.settle(self.model)
        self._updates += 1
        passes = (*self._images_of(batch, self.part.train), *self.forecast_update(len(batch)))
        return Update(measured, rate, passes, Trained(*each[0]) if each else None)

    def forecast_update(self, count: int) -> tuple[Pass, ...]:
        """What training on ``count`` pairs is charged, but for images that are remembered (``LockedImages``)."""
        return self.objective.passes(self, count)

    def mark(self) -> tuple[int, Any]:
        """How many updates there were, and the mark of the images that are remembered."""
        return self._updates, None if self.images is None else self.images.mark()

    def rewind(self, mark: tuple[int, Any]) -> None:
        """Undo the scoring since a mark: images that were remembered since are not any more."""
        if self.images is not None:
            self.images.rewind(mark[1])
            self.amortised_macs = self.images.amortised_macs

    def counts(self) -> dict[str, int]:
        """``cache/…`` of the images that are remembered."""
        return {} if self.images is None else self.images.counts()

    def close(self, remove: bool) -> None:
        """Close the rows of remembered images."""
        if self.images is not None:
            self.images.close(remove)

    def _settled(self) -> None:
        """Wait until the last step is known to be finite; ``NonFiniteLoss`` where it is not."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.read()
        except NonFiniteLoss as error:
            if not self.part.stream:
                raise
            raise NonFiniteLoss(f"the {self.part.name}: {error}", error.late) from error

    def _descend(self, loss: Tensor, position: float, carry_on: CarryOn | None) -> tuple[Measured, float]:
        """Take one optimizer step on a loss.

        Args:
            loss: the loss, with its graph.
            position: where the schedule stands before this step (the share of the budget spent).
            carry_on: what is left to do after ``loss.backward()``.

        Returns:
            The loss and the gradient's norm before clipping, and the learning rate.

        Raises:
            NonFiniteLoss: on a CPU, the loss or its gradient is NaN or infinite; no parameter is changed.
        """
        if self.arithmetic.device.type == "cpu":  # nobody waits for the loss: no need to begin a backward pass of NaN
            self._pending = Measured(loss, loss)
            self._settled()
        self.optimizer.zero_grad(set_to_none=True)
        self.gradients.backward(loss, carry_on)
        measured = Measured(loss, self.gradients.clip(self.schedule.clip or math.inf))
        self._pending = measured
        if measured.deferred:
            self.optimizer.found_inf = measured.unusable  # the fused kernel changes nothing where it is 1
        else:
            self._settled()
        rate = self.schedule.rate(position)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return measured, rate

    def state_dict(self) -> dict[str, Any]:
        """Weights and the optimizer's state; what is kept of images that are remembered.

        Raises:
            NonFiniteLoss: of the last step.
        """
        self._settled()
        found: dict[str, Any] = {"micro": self.micro.state_dict()} if self.micro.found else {}
        if self.images is not None:
            found["images"] = self.images.state_dict()
        return self.gradients.state_dict(self.optimizer) | found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._pending = None
        self.gradients.load_state_dict(state, self.optimizer)
        if self.images is not None:
            self.images.load_state_dict(state["images"])
            self.amortised_macs = self.images.amortised_macs
        if self.micro.found:  # the numbers of the run's start: on another GPU, too, a resumed run charges the same
            self.micro = MicroBatches(**state["micro"])
            self.objective = self.objective.limited(self.micro.train)
