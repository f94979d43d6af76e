"""The scores of a super-batch that a policy reads: embeddings, and quantities computed from them in strips.

Notation (Evans et al. 2024, arXiv 2406.17711):

* u_ij = t·⟨x_i, y_j⟩ + b₀, each model with its own multiplier t and offset b₀;
* sigmoid pair losses: M_ii = softplus(−u_ii), M_ij = softplus(u_ij) for i ≠ j;
* softmax logits: a_ij = t·⟨x_i, y_j⟩.

A B×B matrix is never held in memory: a quantity of all pairs of pairs is computed in tiles
(``select/tiles.py``). Several processes share such a quantity out (``Scores.world``): each computes its share, and an
all-gather gives every process the same bits, so that all draw the same indices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from jestbench.batch import Pass
from jestbench.parallel.distributed import World
from jestbench.select.given import Moment
from jestbench.select.joined_rows import joined
from jestbench.select.losses import Equal, LossName
from jestbench.select.strips import Meter, own_logits, strip, unequal
from jestbench.select.tiles import exact_products, tiles

Side = Literal["learner", "reference", "online"]
"""A role whose scores are embeddings."""
Role = Literal["learner", "reference", "online", "scorer"]
"""A model's part in a run, named in a policy's ``needs``: the model in training, a frozen model, a small model trained
beside the learner, and a pretrained model that grades pairs (``values["g"]``)."""
SIDES: tuple[Side, ...] = get_args(Side)
ROLES: tuple[Role, ...] = get_args(Role)
PairLoss = Literal["own", "in_batch"]
_ROWS = ("key_B", "words_BL", "group_B")


class ScoreError(ValueError):
    """A score is not finite, or scores do not fit together; the message names the scores."""


class NoSuchScore(ScoreError):
    """A score that the run's settings leave undefined."""

    exit_status: ClassVar[int] = 2


class NonFiniteScore(ScoreError):
    """A model's embedding or a policy's logit is NaN or infinite."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Normalised embeddings of B pairs under one model.

    Half precision is raised to fp32; float64 stays. Tensors are detached: selection has no gradient.

    Attributes:
        image_BD: image embeddings.
        text_BD: text embeddings.
        scale: t, the multiplier on cosine similarities (not its logarithm).
        bias: b₀, the offset; not used by the softmax loss.
        imagined: the values stand for none: products over strips are charged and not computed, for the price of a
            selection.

    Raises:
        ScoreError: shapes differ, or a value is NaN or infinite.
    """

    image_BD: Tensor
    text_BD: Tensor
    scale: float = 1.0
    bias: float = 0.0
    imagined: bool = False

    def __post_init__(self) -> None:
        for name in ("scale", "bias"):
            value = getattr(self, name)
            object.__setattr__(self, name, float(value.detach() if isinstance(value, Tensor) else value))
        if self.image_BD.ndim != 2 or self.image_BD.shape != self.text_BD.shape:
            raise ScoreError(
                f"image and text embeddings are both [B, D]; got {tuple(self.image_BD.shape)} "
                f"and {tuple(self.text_BD.shape)}"
            )
        sums = []
        for name in ("image_BD", "text_BD"):
            value = getattr(self, name).detach()
            half = value.dtype in (torch.float16, torch.bfloat16)
            object.__setattr__(self, name, value.float() if half else value)
            sums.append(value.sum(dtype=torch.float32 if half else value.dtype).double())
        # One read of the device: a finite sum has only finite terms. Where it overflows, all terms are checked.
        if not bool(torch.isfinite(torch.stack(sums)).all()):
            self._check_every_row()
        if not torch.isfinite(torch.tensor([self.scale, self.bias])).all():
            raise NonFiniteScore(f"scale and bias must be finite, got {self.scale} and {self.bias}")

    def _check_every_row(self) -> None:
        for name, value in (("image_BD", self.image_BD), ("text_BD", self.text_BD)):
            rows = (~torch.isfinite(value)).any(dim=1).nonzero().flatten().tolist()
            if rows:
                raise NonFiniteScore(f"{name} is NaN or infinite in {len(rows)} rows, the first is {rows[0]}")

    def __len__(self) -> int:
        return len(self.image_BD)

    def take(self, index_P: Tensor) -> Embeddings:
        """The embeddings of these pairs."""
        return replace(self, image_BD=self.image_BD[index_P], text_BD=self.text_BD[index_P])


@dataclass(frozen=True, eq=False)
class Scores:
    """All inputs of a policy. Embeddings of roles that are not in its ``needs`` are ``None``.

    Attributes:
        learner: the learner's embeddings.
        reference: the reference's.
        online: those of a small model trained beside the learner.
        values: per-pair values by name, ``[B]`` each: a scorer's grades ``g``, columns (``column:similarity``).
        size: B; needed only without embeddings and values.
        loss: which pair losses the scores are differences of.
        model_passes: the models' passes for these scores.
        meter: counts the similarity products computed from the embeddings.
        unseen: in place of ``reference``, for two references trained on two halves of the data: for each half in
            the super-batch, its positions and its embeddings under the model *not* trained on it; see ``parts``.
        key_B: key of each pair, int64 (``keys`` in a policy's needs).
        words_BL: ids of each caption's words, int64, −1 where a caption has fewer (``captions``).
        progress: how far the run is (``progress``).
        memory: what the policy remembers of each pair, name → float32 ``[B]``, NaN where nothing (``memory``).
        group_B: pairs of equal numbers are equal (one image or one caption); two equal pairs are no negatives of each
            other in any score. ``None``: all pairs are negatives of each other.
        equal: what equal pairs are instead: ``masked``, in no sum and no denominator; or ``positive``, label +1 for
            sigmoid; the scores of softmax refuse it.
        world: the processes that hold these same scores and share their B×B work out: all of them ask for the same
            quantities, in the same order. By default this process alone.
    """

    learner: Embeddings | None = None
    reference: Embeddings | None = None
    online: Embeddings | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)
    size: int | None = None
    loss: LossName = "sigmoid"
    model_passes: tuple[Pass, ...] = ()
    meter: Meter = field(default_factory=Meter, repr=False)
    unseen: tuple[tuple[Tensor, Embeddings], ...] = ()
    key_B: Tensor | None = None
    words_BL: Tensor | None = None
    progress: Moment | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)
    group_B: Tensor | None = None
    equal: Equal = "masked"
    world: World = field(default_factory=World, repr=False)

    def __post_init__(self) -> None:
        if self.loss not in ("sigmoid", "softmax"):
            raise ScoreError(f"loss must be 'sigmoid' or 'softmax', got {self.loss!r}")
        parts: dict[str, int] = {side: len(part) for side, part in self.models().items()}
        if self.unseen:
            parts["unseen"] = sum(len(part) for _, part in self.unseen)
        parts |= {f"values[{name!r}]": len(value) for name, value in self.values.items()}
        parts |= {f"memory[{name!r}]": len(value) for name, value in self.memory.items()}
        parts |= {name: len(value) for name in _ROWS if (value := getattr(self, name)) is not None}
        if self.size is not None:
            parts["size"] = self.size
        if not parts:
            raise ScoreError("scores of nothing: give embeddings, values or a size")
        if len(set(parts.values())) > 1:
            raise ScoreError(f"the parts of the scores differ in length: {parts}")
        object.__setattr__(self, "size", next(iter(parts.values())))
        for name, value in self.values.items():
            if not bool(torch.isfinite(value).all()):
                raise NonFiniteScore(f"values[{name!r}] is NaN or infinite")

    def __len__(self) -> int:
        assert self.size is not None
        return self.size

    @property
    def passes(self) -> tuple[Pass, ...]:
        """The costs of these scores so far: the models' passes, and the similarity products."""
        return (*self.model_passes, Pass("pairwise", self.meter.macs, "similarity products of the selection"))

    @property
    def device(self) -> torch.device:
        """The device of the scores."""
        parts = (*self.models().values(), *(part for _, part in self.unseen))
        held = (*(part.image_BD for part in parts), *self.values.values())
        return next((tensor.device for tensor in held), torch.device("cpu"))

    def models(self) -> dict[Side, Embeddings]:
        """The embeddings that are not ``None``, by side."""
        held = {side: getattr(self, side) for side in SIDES}
        return {side: part for side, part in held.items() if part is not None}

    @classmethod
    def joined(cls, parts: Iterable[Scores], size: int, loss: LossName, world: World | None = None) -> Scores:
        """Join the scores of several models for one super-batch.

        Args:
            parts: the scores of each model alone, with their passes.
            size: B.
            loss: which pair losses the scores are differences of.
            world: the processes that score this super-batch together; ``None`` is this process alone.
        """
        found: dict[Side, Embeddings] = {}
        values: dict[str, Tensor] = {}
        passes: tuple[Pass, ...] = ()
        unseen: tuple[tuple[Tensor, Embeddings], ...] = ()
        for part in parts:
            found |= part.models()
            values |= part.values
            passes += part.model_passes
            unseen += part.unseen
        models = (found.get("learner"), found.get("reference"), found.get("online"))
        world = world or World()
        return cls(*models, values=values, size=size, loss=loss, model_passes=passes, unseen=unseen, world=world)

    @classmethod
    def of(cls, role: Role, model: Embeddings) -> Scores:
        """The scores of one model, in the given role."""
        learner, reference, online = (model if side == role else None for side in SIDES)
        return cls(learner, reference, online)

    def side(self, side: Side) -> Embeddings:
        """One model's embeddings.

        Raises:
            ScoreError: the scores hold none of this side.
        """
        part: Embeddings | None = getattr(self, side)
        if part is None and side == "reference" and self.unseen:
            raise ScoreError("two references have scored the pairs, each those that it has not seen: ask parts()")
        if part is None:
            raise ScoreError(f"the scores hold no {side}: name it in the policy's needs")
        return part

    def contrast(self) -> tuple[tuple[float, Embeddings], ...]:
        """The models in a learnability and their signs: +1 for the learner, −1 for the reference."""
        both = ((1.0, self.learner), (-1.0, self.reference))
        return tuple((sign, part) for sign, part in both if part is not None)

    def only(self, *sides: Side) -> Scores:
        """These scores with the other models left out (the meter stays shared)."""
        gone: dict[str, None] = {side: None for side in SIDES if side not in sides}
        return replace(self, **gone)  # type: ignore[arg-type]

    def take(self, index_P: Tensor) -> Scores:
        """The scores of these pairs alone, as if they were the whole super-batch (the meter stays shared).

        Raises:
            ScoreError: two references have scored the pairs; use ``parts``.
        """
        if self.unseen:
            raise ScoreError("pairs that two references have scored are taken by parts()")
        sides = (self.learner, self.reference, self.online)
        learner, reference, online = (None if model is None else model.take(index_P) for model in sides)
        rows: dict[str, Any] = {name: value[index_P] for name in _ROWS if (value := getattr(self, name)) is not None}
        values, memory = ({name: value[index_P] for name, value in held.items()} for held in (self.values, self.memory))
        rows |= {"learner": learner, "reference": reference, "online": online}
        return replace(self, **rows, values=values, memory=memory, size=len(index_P), model_passes=())

    def parts(self) -> Iterator[tuple[Tensor, Scores]]:
        """Yield the part of each reference: its positions, and their scores as a super-batch of their own.

        With one reference (or none) the only part is the whole super-batch. With two, each trained on one half of
        the data and scoring the other half, pairs are compared within a part, under the learner and the reference.
        """
        if not self.unseen:
            yield torch.arange(len(self), device=self.device), self
        for index_P, reference in self.unseen:
            yield index_P, replace(replace(self, unseen=()).take(index_P), reference=reference)

    def equal_of(self, index_R: Tensor, index_C: Tensor) -> Tensor | None:
        """Which pairs of two sets are equal, bool ``[R, C]``; ``None`` where all pairs are negatives of each other.

        Raises:
            NoSuchScore: equal pairs are positives of each other under the softmax loss.
        """
        if self.group_B is None:
            return None
        if self.equal == "positive" and self.loss == "softmax":
            raise NoSuchScore(
                "run.equal = 'positive' is a rule of the softmax loss alone: scores over several pairs (jest, joint "
                "draws, pair_loss = 'in_batch') have no such form; set run.equal to 'masked', or run.loss to 'sigmoid'"
            )
        return self.group_B[index_R, None] == self.group_B[index_C]

    def cosines(self, side: Side, index_R: Tensor | None = None, index_C: Tensor | None = None) -> Tensor:
        """Cosines of the images at R with the texts at C, ``[R, C]``, charged; ``None`` is every pair.

        This is the way for a policy to similarities of its own: a product of embeddings that it computes without the
        scores is charged to nobody, and the conformance suite refuses it. Several processes share the longer side out.
        """
        model = self.side(side)
        image_RD = model.image_BD if index_R is None else model.image_BD[index_R]
        text_CD = model.text_BD if index_C is None else model.text_BD[index_C]
        wide = len(text_CD) > len(image_RD)
        long, short = (len(text_CD), len(image_RD)) if wide else (len(image_RD), len(text_CD))
        share = self.world.share(long)
        self.meter.add(long, short, image_RD.shape[1], own=share.stop - share.start)
        with exact_products(image_RD.device):
            # One process multiplies in this order, too: the other one differs in the last bits.
            own_XY = (image_RD @ text_CD[share].T).T if wide else image_RD[share] @ text_CD.T
        (long_XY,), _ = joined(self.world, long, [own_XY])
        return long_XY.T if wide else long_XY

    def own_cosine_B(self, side: Side) -> Tensor:
        """c_ii: the cosine of each pair's image with its own text."""
        (own_P,) = self._own([replace(self.side(side), scale=1.0, bias=0.0)])
        return joined(self.world, len(self), [own_P])[0][0]

    def own_logit_B(self, side: Side) -> Tensor:
        """u_ii: the logit of each pair with itself."""
        return joined(self.world, len(self), self._own([self.side(side)]))[0][0]

    def pair_loss_B(self, side: Side, kind: PairLoss = "own") -> Tensor:
        """Each pair's loss under one model.

        ``own`` depends on the pair alone: softplus(−u_ii), or −a_ii for softmax (its numerator; JEST's
        diagonal score). ``in_batch`` is the pair's share of the loss of the whole super-batch, over its row
        and its column: M_ii + ½·Σ_{j≠i}(M_ij + M_ji), or −a_ii + ½(LSE_j a_ij + LSE_j a_ji). These
        shares sum to B times the batch loss.

        Returns:
            ``[B]``, at least fp32.
        """
        return self._pair_losses([self.side(side)], kind)[0]

    def _pair_losses(self, models: Sequence[Embeddings], kind: PairLoss) -> list[Tensor]:
        """``pair_loss_B`` of several models, by one all-gather."""
        own = self._own(models)
        if kind == "own":
            owns, _ = joined(self.world, len(self), own)
            return [F.softplus(-own_B) if self.loss == "sigmoid" else -own_B for own_B in owns]
        rows, columns = zip(*(self._reduce(model) for model in models), strict=True)
        found, rows_nB = joined(self.world, len(self), [*own, *columns], rows)
        parts = zip(found[: len(own)], found[len(own) :], map(self._sum, rows_nB), strict=True)
        return [(rows_B + columns_B) / 2 - own_B for own_B, columns_B, rows_B in parts]

    def learnability_B(self, kind: PairLoss = "own") -> Tensor:
        """ℓ(learner) − ℓ(reference) of each pair; with only one of the two models, its term alone."""
        both = self.contrast()
        if not both:
            raise ScoreError("the scores hold neither learner nor reference: name them in the policy's needs")
        losses = self._pair_losses([model for _, model in both], kind)
        return torch.stack([sign * loss_B for (sign, _), loss_B in zip(both, losses, strict=True)]).sum(0)

    def gradient_norm_B(self, side: Side) -> Tensor:
        """Norm of the gradient of the super-batch's loss with respect to each pair's two embeddings.

        √(‖∂L/∂x_i‖² + ‖∂L/∂y_i‖²) with ∂L/∂x = (t/B)·G·y and ∂L/∂y = (t/B)·Gᵀ·x, where G = B·∂L/∂u:
        σ(u) − I for sigmoid, ½(softmax over rows + softmax over columns) − I for softmax. L is the mean
        loss over the super-batch (``select/losses.py``), the embeddings are its normalised inputs. Three
        B×B×D products (four for softmax, whose denominators come first), computed in tiles and charged.

        Returns:
            ``[B]``, at least fp32.

        Raises:
            ScoreError: the scores hold no embeddings of this side.
        """
        model = self.side(side)
        image_BD, text_BD, size = model.image_BD, model.text_BD, len(model)
        share = self.world.share(size)
        lse_rows_B = lse_columns_P = None
        if self.loss == "softmax":
            rows_B, lse_columns_P = self._reduce(model)
            lse_rows_B = self._sum(joined(self.world, size, [], [rows_B])[1][0])
        self.meter.add(3 * size, size, image_BD.shape[1], own=3 * (share.stop - share.start))
        by_image_BD, by_text_PD = torch.zeros_like(image_BD), torch.ones_like(text_BD[share])
        for tile in () if model.imagined else tiles(share, size, image_BD):
            place = _within(tile, share)
            slope_BT, equal_BT = self._strip(model, tile)
            if lse_rows_B is None or lse_columns_P is None:
                slope_BT = slope_BT.sigmoid_()
                if equal_BT is not None and self.equal == "positive":
                    slope_BT = torch.where(equal_BT, -slope_BT, slope_BT)
            else:
                over_rows_BT = (slope_BT - lse_rows_B[:, None]).exp_()
                slope_BT = (slope_BT - lse_columns_P[place]).exp_().add_(over_rows_BT).div_(2)
            slope_BT[tile].diagonal().sub_(1)
            with exact_products(image_BD.device):
                by_image_BD.addmm_(slope_BT, text_BD[tile])
                by_text_PD[place] = slope_BT.T @ image_BD
        (by_image_BD,) = self.world.add(by_image_BD)
        square_P = by_image_BD[share].square().sum(1) + by_text_PD.square().sum(1)
        return joined(self.world, size, [abs(model.scale) / size * square_P.sqrt()])[0][0]

    def _own(self, models: Iterable[Embeddings]) -> list[Tensor]:
        """u_ii (sigmoid) or a_ii of this process's share of the pairs under each model, charged."""
        share = self.world.share(len(self))
        own = [own_logits(model.image_BD[share], model.text_BD[share], model, self.loss) for model in models]
        for model in models:
            self.meter.add(len(self), 1, model.image_BD.shape[1], own=share.stop - share.start)
        return own

    def _strip(self, model: Embeddings, tile: slice) -> tuple[Tensor, Tensor | None]:
        """The logits of all images against the texts of a tile, and which of them are of two equal pairs.

        Their logits are −∞, or change sign where equal pairs are positives of each other.
        """
        logits_BT = strip(model.image_BD, model.text_BD[tile], model, self.loss)
        everyone_B = torch.arange(len(self), device=logits_BT.device)
        equal_BT = self.equal_of(everyone_B, everyone_B[tile])
        if equal_BT is None:
            return logits_BT, None
        equal_BT[tile].fill_diagonal_(False)
        return unequal(logits_BT, equal_BT, self.equal), equal_BT

    def _reduce(self, model: Embeddings) -> tuple[Tensor, Tensor]:
        """Σ softplus(u) or LSE of a, tile by tile over this process's share of the columns, charged.

        Returns:
            The terms of every row over the share's columns, ``[B]``, and the sums of the share's columns, ``[P]``.
        """
        size, share = len(model), self.world.share(len(model))
        self.meter.add(size, size, model.image_BD.shape[1], own=share.stop - share.start)
        if model.imagined:
            return model.image_BD.new_zeros(size), model.image_BD.new_zeros(share.stop - share.start)
        columns_P = model.image_BD.new_empty(share.stop - share.start)
        rows_B = model.image_BD.new_full((size,), 0.0 if self.loss == "sigmoid" else -torch.inf)
        for tile in tiles(share, size, model.image_BD):
            logits, _ = self._strip(model, tile)
            if self.loss == "sigmoid":
                terms = F.softplus(logits)
                rows_B += terms.sum(1)
                columns_P[_within(tile, share)] = terms.sum(0)
            else:
                rows_B = torch.logaddexp(rows_B, logits.logsumexp(1))
                columns_P[_within(tile, share)] = logits.logsumexp(0)
        return rows_B, columns_P

    def _sum(self, terms_nB: Tensor) -> Tensor:
        """The sums of rows, or their LSE, over the terms of all processes."""
        if len(terms_nB) == 1:
            return terms_nB[0]
        return terms_nB.sum(0) if self.loss == "sigmoid" else terms_nB.logsumexp(0)


def _within(part: slice, whole: slice) -> slice:
    """A part of a slice, as positions in it."""
    return slice(part.start - whole.start, part.stop - whole.start)
