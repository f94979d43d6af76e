"""The interface of actors: models that fill a role of a run, frozen or in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from jestbench.batch import FULL, Batch, Pass, View
from jestbench.cost.price import Price
from jestbench.data.pairs import ReadPairs
from jestbench.engine.measured import Measured
from jestbench.engine.rows import KeyIndex
from jestbench.model.encoders import Encoders
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.given import Trained
from jestbench.select.losses import LossName
from jestbench.select.scores import Embeddings, Role, Scores

Read = Callable[[Tensor], ReadPairs]
"""Positions → those pairs, decoded, and the damage by its place among them."""


Met = dict[tuple[int, str], KeyIndex]
"""Keys of the rows that were charged, by the identity of the actor and the name of the rows."""


@dataclass(frozen=True)
class Update:
    """What one training step did.

    Attributes:
        measured: loss and gradient norm, which a GPU may still have to compute.
        learning_rate: of the step.
        passes: what it cost.
        trained: each pair's losses, where the policy learns from them.
    """

    measured: Measured
    learning_rate: float
    passes: tuple[Pass, ...]
    trained: Trained | None = None

    @property
    def loss(self) -> float:
        """The loss.

        Raises:
            NonFiniteLoss: loss or gradient of the step are NaN or infinite; it has changed no parameter.
        """
        return self.measured.read()[0]

    @property
    def gradient_norm(self) -> float:
        """The gradient's norm before clipping; raises as ``loss`` does."""
        return self.measured.read()[1]


class EmbeddingModel(Protocol):
    """A model, and what a pass through it costs: the learner's, or a frozen one."""

    @property
    def model(self) -> Encoders: ...  # noqa: D102
    @property
    def arithmetic(self) -> Arithmetic: ...  # noqa: D102
    @property
    def price(self) -> Price: ...  # noqa: D102


class Actor(ABC):
    """A model in a role: scores a batch, forecasts what that costs, and has a state.

    Attributes:
        role: of the actor in the run; a policy's ``needs`` name roles.
        width: of the actor's embeddings; 0 where it returns none.
        view: the view that the actor scores under.
        trained_under: the views that its model was trained under.
        remembers: whether the run's accounting decides what a pair is charged (by default its first scoring only).
        amortised_macs: multiply-adds that no ledger was charged.
        calibrated: t and b₀ of each of its models, where they were fitted to this run's loss.
        trained_on: the contrastive loss of a model that another library brings; ``None`` where it is not known.
    """

    role: Role
    width: int = 0
    view: View = FULL
    trained_under: frozenset[View] = frozenset({FULL})
    remembers: bool = False
    amortised_macs: int = 0
    calibrated: tuple[tuple[float, float], ...] = ()
    trained_on: LossName | None = None

    @abstractmethod
    def score(self, batch: Batch) -> Scores:
        """The scores of a super-batch as far as this actor gives them, with the passes that they cost."""

    @abstractmethod
    def forecast(self, count: int) -> tuple[Pass, ...]:
        """The passes that scoring ``count`` pairs costs, all of them new to the run."""

    def forecast_new(self, image_key_B: Tensor, text_key_B: Tensor, met: Met) -> tuple[Pass, ...]:
        """The passes that scoring pairs of these keys is charged under ``first_sight``; of an actor that remembers.

        Args:
            image_key_B: of the pairs.
            text_key_B: theirs.
            met: the rows that were charged before, of all actors; those of these pairs are added.
        """
        return self.forecast(len(image_key_B))

    def own_loss(
        self, loss: LossName, image_key_C: Tensor, text_key_C: Tensor, read: Read, own_P: Tensor | None = None
    ) -> Tensor:
        """The loss of each pair by itself, which a cascade draws by.

        Args:
            loss: whose pair loss.
            image_key_C: of C candidates.
            text_key_C: theirs.
            read: called only for pairs whose scores are nowhere to be found.
            own_P: positions of the pairs whose loss this process computes; ``None``: all.

        Returns:
            ``[P]``, float64 on the CPU; infinite where a pair is damaged.

        Raises:
            ValueError: this kind of actor scores no pair by its keys.
        """
        raise ValueError(f"run.cascade: the {self.role} scores whole batches, not single pairs by their keys")

    def own_loss_passes(self, image_key_C: Tensor, text_key_C: Tensor) -> tuple[Pass, ...]:
        """The passes that ``own_loss`` of whole pairs of these keys is charged now.

        Raises:
            ValueError: as ``own_loss``.
        """
        raise ValueError(f"run.split: the {self.role} scores whole batches, not single pairs by their keys")

    def forecast_own_loss(self, count: int) -> tuple[Pass, ...]:
        """The passes that the own losses of ``count`` pairs cost, all of them new to the run."""
        raise ValueError(f"run.cascade: the {self.role} scores whole batches, not single pairs by their keys")

    def calibrate(self, loss: LossName, batches: Iterable[Batch], batch_size: int) -> tuple[Pass, ...]:
        """Fit t and b₀ of a frozen model to a loss.

        Args:
            loss: the loss.
            batches: pairs to fit on.
            batch_size: b of the batches that the loss is meant for.

        Returns:
            The passes that it cost.

        Raises:
            ValueError: this kind of actor has no t and b₀ to fit.
        """
        raise ValueError(f"run.reference_calibrate: the {self.role} has no scale and bias that can be fitted")

    def update(self, batch: Batch, weight_K: Tensor | None, position: float, seed: int) -> Update | None:
        """One optimizer step on the chosen pairs; ``None`` for a frozen actor."""
        return None

    def forecast_update(self, count: int) -> tuple[Pass, ...]:
        """What an update on ``count`` pairs is charged."""
        return ()

    def imagined(self, count: int, divisor: int, random: torch.Generator) -> Scores:
        """Random scores of ``count`` pairs in the form of this actor's, at its width over ``divisor``."""
        return imagined_embeddings(self.role, count, self.width // divisor, random)

    @property
    def frozen(self) -> tuple[EmbeddingModel, ...]:
        """The frozen models that the actor scores by, each of which can be evaluated by itself."""
        return ()

    def counts(self) -> dict[str, int]:
        """``cache/…``: what was found instead of computed."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The state that a checkpoint keeps; a collective call, made by every process of a run at once."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        assert not state, "a state is read by the kind of actor that keeps one"

    def mark(self) -> Any:
        """This process's own state as far as scoring changes it; no collective call, and cheap: once a step."""
        return None

    def rewind(self, mark: Any) -> None:  # noqa: B027
        """Undo the scoring since a mark, so that a checkpoint is that of the step before."""

    def close(self, remove: bool) -> None:  # noqa: B027
        """Let go of files; ``remove`` where the run has finished."""


def imagined_embeddings(role: Role, count: int, width: int, random: torch.Generator) -> Scores:
    """Random embeddings of ``count`` pairs in a role, whose products are charged and not computed."""
    image_BD, text_BD = (torch.randn(count, width, generator=random) / 10 for _ in range(2))
    return Scores.of(role, Embeddings(image_BD, text_BD, imagined=True))
