"""What fills a role of a run: castings build actors, a training builds the learner."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from jestbench.batch import FULL_MIX, Batch, Mix, View
from jestbench.data.pairs import Pairs
from jestbench.engine.actor import Actor
from jestbench.engine.fit_memory import MicroBatches
from jestbench.engine.frozen import FrozenActor, RowContent
from jestbench.engine.learner import Learner, Objective
from jestbench.engine.start import Start
from jestbench.engine.twin import TwinActor
from jestbench.model.encoders import Encoders
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LossName
from jestbench.select.scores import Role

if TYPE_CHECKING:
    from jestbench.config.run import Run


COMPILING_PAYS = 1e17
"""FLOPs of a run from which ``auto`` compiles on a GPU: some five minutes of an H200, where a training step of a
ViT-B/16 is a quarter faster and compiling takes 8 s for each kind of pass (``tools/bench.py gpu``)."""


@dataclass(frozen=True)
class Setting:
    """What the actors of a run have in common.

    Attributes:
        run: its parameters.
        pairs: the split that super-batches are drawn from.
        example: one pair of it; prices are traced on its shapes.
        arithmetic: device and precision.
        store_dir: where the rows of this run lie.
        micro: pairs that are run through the towers at once.
        start: what the learner's training begins from; ``None``: random weights.
    """

    run: Run
    pairs: Pairs
    example: Batch
    arithmetic: Arithmetic
    store_dir: Path
    micro: MicroBatches
    start: Start | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the models in training: that of the data set, or the start's own."""
        data = self.pairs.tokenizer
        return data if self.start is None else self.start.tokenizer(self.run.model, data)

    @property
    def compiled(self) -> bool:
        """Whether the models in training run compiled blocks; a frozen model's stored rows never depend on it."""
        run, compiling = self.run, self.run.compile
        if compiling != "auto":
            return compiling
        return self.arithmetic.device.type == "cuda" and run.budget is not None and run.budget >= COMPILING_PAYS


class Casting(ABC):
    """Builds the actor of a role. A casting that is configurable is bound as an object: ``@online_scorer()``.

    Attributes:
        role: the role that the actor fills.
    """

    role: Role

    @abstractmethod
    def cast(self, setting: Setting, learner: Learner) -> Actor:
        """The actor.

        Raises:
            ValueError: it cannot be built in this run.
        """

    def frozen(self, setting: Setting) -> FrozenActor | None:
        """The actor, where it is one frozen model that needs no learner beside it; else ``None``."""
        return None

    @property
    def label(self) -> str:
        """A name for messages and tables."""
        return type(self).__name__

    @property
    def parts(self) -> tuple[Casting, ...]:
        """The castings of its models, one each."""
        return (self,)

    @property
    def remote(self) -> str:
        """What would have to be fetched, for messages; empty where all files are here."""
        return ""

    @property
    def identity(self) -> str:
        """What distinguishes the actor from another of its kind, wherever its files lie."""
        return repr(self)

    def start(self) -> Start:
        """The model that a run's training begins from.

        Raises:
            ValueError: there is none, or our towers do not compute the same.
        """
        raise ValueError(f"run.init: {self.label} is no trained model to begin from")

    def stand_in(self, device: str = "cpu") -> Casting:
        """A casting whose actor has the same shapes, for which nothing is fetched.

        Args:
            device: on ``meta`` a model in the place of another need not have any values.
        """
        return self

    def stated_flops(self) -> dict[str, int | None]:
        """FLOPs of training that was done before the run and outside of this project, by role.

        ``None`` where they are not known; empty where there was none.
        """
        return {}


@dataclass(frozen=True)
class FrozenCasting(Casting):
    """A model that another run has trained.

    Attributes:
        role: the role that the model fills.
        model: the model.
        content: what its rows hold.
        mix: the views that the model was trained under.
    """

    role: Role
    model: Encoders
    content: type[RowContent]
    mix: Mix = FULL_MIX

    def cast(self, setting: Setting, learner: Learner | None = None) -> FrozenActor:
        """As ``frozen``."""
        return self.frozen(setting)

    def frozen(self, setting: Setting) -> FrozenActor:
        """The frozen actor, under the run's view for its role."""
        run, arithmetic = setting.run, setting.arithmetic
        view = fitted(*run.view_of(self.role), self.model)
        bound = (
            None
            if run.cache is None
            else run.cache.bind(self.model, view, arithmetic, setting.pairs, setting.micro.score)
        )
        content = self.content(self.model, arithmetic, setting.example, view)
        options = run.reference_accounting, setting.store_dir, setting.micro.score
        return FrozenActor(self.role, content, *options, bound, self.mix)


@dataclass(frozen=True)
class TwinCasting(Casting):
    """Two models of a role, each trained on one half of the data.

    Attributes:
        role: the role that the two models fill.
        halves: the two models, by the half that each was trained on.
    """

    role: Role
    halves: tuple[Casting, ...]

    @property
    def parts(self) -> tuple[Casting, ...]:
        """Both."""
        return self.halves

    @property
    def label(self) -> str:
        """Those of both."""
        return " and ".join(half.label for half in self.halves)

    @property
    def identity(self) -> str:
        """Those of both."""
        return "/".join(half.identity for half in self.halves)

    def stand_in(self, device: str = "cpu") -> Casting:
        """Stand-ins of both."""
        return TwinCasting(self.role, tuple(half.stand_in(device) for half in self.halves))

    def stated_flops(self) -> dict[str, int | None]:
        """The sum of both, where both are known."""
        found = [one for half in self.halves for one in half.stated_flops().values()]
        return {self.role: None if None in found else sum(one or 0 for one in found)} if found else {}

    def cast(self, setting: Setting, learner: Learner) -> TwinActor:
        """An actor of both, each with a store of its own."""
        first, second = (
            half.cast(replace(setting, store_dir=setting.store_dir / f"half{number}"), learner)
            for number, half in enumerate(self.halves)
        )
        return TwinActor((first, second), setting.store_dir)


class Training(ABC):
    """What a run trains its model for: builds the model, its learner, and reads it back from a checkpoint.

    Attributes:
        kind: of the model, as ``model.json`` holds it.
        content: what the model's rows hold where it scores, frozen.
        taken_as: the role of a finished run, for messages.
        does: what distinguishes such a run, for messages.
        together: several processes can share the run.
        selects: a policy may choose what the model is trained on.
        refuses: parameters of the run that do not go with it, and why.
    """

    kind: ClassVar[str]
    content: ClassVar[type[RowContent]]
    taken_as: ClassVar[str]
    does: ClassVar[str]
    together: ClassVar[bool] = True
    selects: ClassVar[bool] = True
    refuses: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def build(self, run: Run, tokenizer: Tokenizer) -> TwoTowers:
        """The untrained model.

        Raises:
            ValueError: the towers cannot be built.
        """

    @abstractmethod
    def learner(self, setting: Setting) -> Learner:
        """The model in training.

        Raises:
            ValueError: it cannot be built.
        """

    def loss(self, run: Run) -> LossName | None:
        """The contrastive loss; ``None`` for another objective."""
        return None

    def objective(self, model: TwoTowers, tokenizer: Tokenizer) -> Objective | None:
        """What a trained model is evaluated by, beside its embeddings; ``None``: by these alone."""
        return None

    def described(self) -> dict[str, Any]:
        """What ``model.json`` holds of the model beside its towers."""
        return {"kind": self.kind}

    @classmethod
    @abstractmethod
    def rebuilt(cls, described: Mapping[str, Any], tokenizer: Tokenizer) -> TwoTowers:
        """The model that ``model.json`` describes, with random weights."""


def shape_of(described: Mapping[str, Any]) -> Model:
    """The towers that ``model.json`` describes, from random weights."""
    return Model(**described["model"]).without_weights()


def check_training(model: TwoTowers, setting: Setting, microbatch: int | None = None, rerun: bool = False) -> None:
    """Refuse what an image tower cannot be trained with.

    Batch normalisation averages over the images of one pass, and is exact only where the batch passes once and whole.

    Args:
        model: to be trained.
        setting: what the actors of the run have in common.
        microbatch: pairs that hold activations at once.
        rerun: activation checkpointing is on.

    Raises:
        ValueError: naming the setting and the reason.
    """
    name = type(model.image.backbone).__name__
    parts = {
        f"run.train_microbatch = {microbatch}": microbatch is not None,
        "run.grad_checkpointing": rerun,
        f"a run of {setting.arithmetic.world.size} processes": setting.arithmetic.world.size > 1,
    }
    for what, asked in parts.items():
        if asked and model.image.averages:
            raise ValueError(
                f"{what}: the image tower ({name}) has batch normalisation, which averages over the images of one "
                "pass, and here the batch does not pass once and whole: leave it off, or take a model.image_tower "
                "without (ConvNeXt)"
            )
    try:
        with model.checkpointing(rerun):
            pass
    except (AssertionError, AttributeError) as error:
        raise ValueError(
            f"run.grad_checkpointing: the image tower ({name}) cannot checkpoint its activations"
        ) from error


def fitted(name: str, view: View, model: Encoders) -> View:
    """A view in the model's own terms.

    Raises:
        ValueError: the model cannot run it; the message names the parameter and the reason.
    """
    try:
        return model.checked(view)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
