"""The values that travel between the stages of a training step.

Shape suffixes, used everywhere in this project:

* ``B`` pairs of a super-batch,
* ``K`` pairs selected from it (the sub-batch, ``b`` in the papers),
* ``N`` pairs of a whole split, or of an evaluation set,
* ``L`` text tokens, ``D`` embedding width, ``C H W`` image channels, height, width.

Every value is frozen: a stage receives values and returns new ones, so a later stage cannot change
the input of an earlier one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from jestbench.disk import DataError as DataError

Purpose = Literal[
    "learner_train",
    "learner_score",
    "reference_score",
    "scorer_score",
    "scorer_train",
    "pairwise",
    "recompute",
    "eval",
]
"""The purpose that a pass is charged to. All but ``eval`` count towards the total."""
PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
COLUMN = "column:"
"""Begins the name of a number that came with the pairs, in a policy's ``needs``, in ``Scores.values`` and in gin."""


def index_slice(index_K: Tensor) -> slice | None:
    """The slice of these positions where each is the one before it plus 1, else ``None``."""
    count = len(index_K)
    if count == 0 or int(index_K[-1]) - int(index_K[0]) != count - 1 or bool((index_K.diff() != 1).any()):
        return None
    return slice(int(index_K[0]), int(index_K[-1]) + 1)


def rows_at(rows_BX: Tensor, index_K: Tensor, at: slice | None = None) -> Tensor:
    """Rows in the memory layout of their source: a view for a slice, else gathered.

    Rows of page-locked memory are gathered into page-locked memory (torch keeps such blocks for reuse).

    Args:
        rows_BX: any number of rows.
        index_K: positions.
        at: ``index_slice(index_K)``.
    """
    if at is not None:
        return rows_BX[at]
    index_K = index_K.to(rows_BX.device)
    # A gather of whole rows is a copy of memory only where each row lies in one piece, as images of channels last do.
    last = rows_BX.ndim == 4 and rows_BX.is_contiguous(memory_format=torch.channels_last)
    plain = rows_BX.permute(0, 2, 3, 1) if last else rows_BX
    if rows_BX.is_pinned():
        out = torch.empty((len(index_K), *plain.shape[1:]), dtype=rows_BX.dtype, pin_memory=True)
        torch.index_select(plain, 0, index_K, out=out)
    else:
        out = plain.index_select(0, index_K)
    return out.permute(0, 3, 1, 2) if last else out


@dataclass(frozen=True)
class Batch:
    """Pairs as a data set returns them, before any model has processed them.

    Attributes:
        images_BCHW: uint8 images; they stay uint8 until they reach the device.
        token_ids: tokenizer identity → int64 ids ``[B, L]``. A model looks up the ids of *its*
            tokenizer by identity, so it can never be fed ids of another tokenizer.
        image_key_B: int64 content hashes of the images, stable across runs and machines.
        text_key_B: int64 content hashes of the captions.
        marks: name → bool ``[B]``: known properties of a pair (``noisy``, ``curated``). Only diagnostics
            read them; they reach no policy and no model.
        captions: the captions themselves, for diagnostics and for training a pair scorer.
        columns: name → float32 ``[B]``: finite numbers that came with the pairs, and reach policies that need them.
        passes: the cost of choosing these pairs among more candidates (a cascade); empty otherwise.
        counts: events while these pairs were read, name → number (``read``, ``damaged``).
        image_rows_BD: remembered embeddings of the images, under a locked tower; ``None``: the images are to be
            embedded.
    """

    images_BCHW: Tensor
    token_ids: Mapping[str, Tensor]
    image_key_B: Tensor
    text_key_B: Tensor
    marks: Mapping[str, Tensor] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    passes: tuple[Pass, ...] = ()
    counts: Mapping[str, float] = field(default_factory=dict)
    image_rows_BD: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {len(self.images_BCHW), len(self.image_key_B), len(self.text_key_B)}
        sizes |= {len(ids) for ids in self.token_ids.values()} | {len(m) for m in self.marks.values()}
        sizes |= {len(column) for column in self.columns.values()}
        if self.captions:
            sizes.add(len(self.captions))
        if len(sizes) != 1:
            raise ValueError(f"the parts of a batch differ in length: {sorted(sizes)}")
        if self.images_BCHW.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 until they reach the device, got {self.images_BCHW.dtype}")

    def __len__(self) -> int:
        return len(self.images_BCHW)

    @property
    def keys(self) -> tuple[Tensor, Tensor]:
        """The keys of images and captions, of all pairs."""
        return self.image_key_B, self.text_key_B

    @property
    def own(self) -> Batch:
        """The pairs that this process holds: all of them, unless several processes share the batch."""
        return self

    @property
    def rows(self) -> Tensor:
        """Positions of the pairs that this process holds, ascending."""
        return torch.arange(len(self))

    @property
    def rank_B(self) -> Tensor:
        """Rank of the process that holds each pair."""
        return torch.zeros(len(self), dtype=torch.int64)

    def collect(self, own_PX: Tensor) -> Tensor:
        """The rows ``[B, …]`` of all pairs, gathered from the processes that hold the pairs; without gradient."""
        return own_PX

    def collect_all(self, own: Sequence[Tensor]) -> list[Tensor]:
        """As ``collect``, of some tensors on one device at once."""
        return list(own)

    def collect_with_gradient(self, *own: Tensor) -> tuple[Tensor, ...]:
        """As ``collect_all``, with a gradient: backward returns the gradient of this process's rows."""
        return own

    def everywhere(self, index_P: Tensor) -> Batch:
        """The pairs at a few positions, gathered on every process that shares the batch."""
        return self.take(index_P)

    def tokens(self, tokenizer: str) -> Tensor:
        """The token ids ``[B, L]`` made by the tokenizer with this identity.

        Raises:
            DataError: the batch holds no ids of this tokenizer.
        """
        try:
            return self.token_ids[tokenizer]
        except KeyError:
            raise DataError(
                f"a model trained on tokenizer {tokenizer} was offered token ids of "
                f"{', '.join(self.token_ids) or 'no tokenizer'}: train it on this data set, or give the data "
                "set the model's tokenizer"
            ) from None

    def take(self, index_K: Tensor, parts: Sequence[int] = ()) -> Batch:
        """The pairs at these positions of the super-batch, in this order.

        Args:
            index_K: the positions.
            parts: lengths of consecutive parts of these pairs, of which every process that shares the batch is to hold
                its share; empty: all are one part.
        """
        index_K = index_K.cpu()
        at = index_slice(index_K)
        return Batch(
            images_BCHW=rows_at(self.images_BCHW, index_K, at),
            captions=tuple(self.captions[i] for i in index_K.tolist()) if self.captions else (),
            **row_by_row(lambda rows_BX: rows_at(rows_BX, index_K, at), self),
        )

    def without_images(self) -> Batch:
        """The same pairs with images of no pixels, for a text tower: taking some of them copies no image."""
        return replace(self, images_BCHW=self.images_BCHW[..., :0, :0])


NAMED = ("token_ids", "marks", "columns")
"""The fields of a batch that hold tensors by name."""


def common(held: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names that all mappings have, in the order of the first one."""
    first, *others = held
    return [name for name in first if all(name in other for other in others)]


def row_by_row(work: Callable[..., Any], *batches: Batch, named: Sequence[str] = NAMED) -> dict[str, Any]:
    """What becomes of the rows of some batches, by the field of a batch: keys, and what all batches have by name.

    Args:
        work: takes the tensor of each batch (all but images), and returns the one in their place.
        batches: one or more.
        named: the fields whose tensors have names; keys come first.
    """
    found = {key: work(*(getattr(batch, key) for batch in batches)) for key in ("image_key_B", "text_key_B")}
    for field_name in named:
        held = [getattr(batch, field_name) for batch in batches]
        found[field_name] = {name: work(*(each[name] for each in held)) for name in common(held)}
    return found


def together(batches: Sequence[Batch]) -> Batch:
    """The pairs of several batches, with what all of them have."""
    images = [batch.images_BCHW for batch in batches]
    return Batch(
        images_BCHW=torch.cat(images) if len(images) > 1 else images[0],
        captions=tuple(caption for batch in batches for caption in batch.captions),
        **row_by_row(lambda *parts: torch.cat(parts), *batches),
    )


def with_rows(batch: Batch, slot_K: Tensor, rows: Batch) -> Batch:
    """A batch with the pairs at some places replaced by ``rows``; its images are changed in place."""
    batch.images_BCHW[slot_K] = rows.images_BCHW
    captions = dict(enumerate(batch.captions)) | dict(zip(slot_K.tolist(), rows.captions, strict=True))
    changed = row_by_row(lambda rows_BX, new_KX: rows_BX.index_copy(0, slot_K, new_KX), batch, rows)
    return replace(batch, captions=tuple(captions.values()), **changed)


@dataclass(frozen=True)
class Selection:
    """The pairs that a policy chose.

    Attributes:
        index_K: int64, distinct positions in the super-batch.
        statistics: ``select/…`` → float, for the metrics.
        weight_K: optional loss weight of each chosen pair, acting on the pair's row and column of
            the loss alike; ``None`` gives all pairs the same weight.
        state: the policy's next state, where it has one (an explicit value, checkpointed).
        score_B: optional score of each pair by itself, before any pair is chosen; shown beside the examples.
            It costs nothing: a policy returns a score that it has computed anyway.
        memory: what the policy remembers of the pairs of the super-batch from now on, name → ``[B]``; NaN leaves a
            number as it is. The names are those that the policy declares in ``remembers``.
    """

    index_K: Tensor
    statistics: Mapping[str, float] = field(default_factory=dict)
    weight_K: Tensor | None = None
    state: object = None
    score_B: Tensor | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """Work done by a model (or a similarity product), and its purpose.

    Attributes:
        purpose: the entry of the ledger that the pass is charged to.
        macs: multiply-adds, an exact integer. A training pass counts 3 forward passes
            (forward, gradient by activations, gradient by weights).
        what: a human-readable description: ``image tower, 640 images``.
    """

    purpose: Purpose
    macs: int
    what: str

    def __post_init__(self) -> None:
        if type(self.macs) is not int or self.macs < 0:
            raise ValueError(f"the multiply-adds of a pass are a non-negative int, got {self.macs!r}")


MIN_TEXT = 2
"""Length of the shortest text: one token and the end token."""


@dataclass(frozen=True)
class View:
    """How much of the two towers is run; the defaults run both towers whole.

    Attributes:
        patch_size: of the image tower, pixels; the patch embedding is resized by the pseudo-inverse,
            the position embeddings are interpolated. ``None`` is the tower's own patch size.
        resolution: side of the square that images are resized to on the device, pixels. ``None`` is
            the tower's own resolution.
        keep: share of an image's patches that are kept, ``round(keep·n)`` of n and at least one;
            the image's content key decides which. Class and register tokens are always kept.
        layers: share of the image tower's blocks, the first ``ceil(layers·depth)``.
        text_layers: share of the text tower's blocks, the first ``ceil(text_layers·depth)``.
        text_length: text tokens that are read, the end token included; a longer text is cut and keeps
            its end token. ``None`` reads all tokens.
    """

    patch_size: int | None = None
    resolution: int | None = None
    keep: float = 1.0
    layers: float = 1.0
    text_layers: float = 1.0
    text_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("keep", "layers", "text_layers"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"view.{name} is a share in (0, 1], got {getattr(self, name)}")
        for name, least in (("patch_size", 1), ("resolution", 1), ("text_length", MIN_TEXT)):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise ValueError(f"view.{name} is a whole number of at least {least}, got {value!r}")
        if self.patch_size is not None and self.resolution is not None:
            try:
                grid_of(self, (self.patch_size,) * 2, (self.resolution,) * 2)
            except ValueError as error:
                named = f"view.patch_size = {self.patch_size} with view.resolution = {self.resolution}"
                raise ValueError(f"{named}: {error}") from error

    @property
    def label(self) -> str:
        """A human-readable name: ``patch 16 px, 50 % of the patches``; ``full`` for the full view."""
        parts = [
            f"patch {self.patch_size} px" if self.patch_size is not None else "",
            f"image {self.resolution} px" if self.resolution is not None else "",
            f"{100 * self.keep:g} % of the patches" if self.keep < 1 else "",
            f"{100 * self.layers:g} % of the layers" if self.layers < 1 else "",
            f"{100 * self.text_layers:g} % of the text layers" if self.text_layers < 1 else "",
            f"{self.text_length} text tokens" if self.text_length is not None else "",
        ]
        return ", ".join(part for part in parts if part) or "full"

    @property
    def full_image(self) -> bool:
        """Whether the image tower is run whole."""
        return self.patch_size is None and self.resolution is None and self.keep == self.layers == 1

    @property
    def full_text(self) -> bool:
        """Whether the text tower is run whole."""
        return self.text_length is None and self.text_layers == 1


FULL = View()
Mix = tuple[tuple[float, View], ...]
"""Pairs of (share of a training batch, view that it is trained under); the shares sum to 1."""
FULL_MIX: Mix = ((1.0, FULL),)


def grid_of(view: View, patch: tuple[int, int], image: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches under a view, for a tower of the given patch and image size (pixels).

    Raises:
        ValueError: the image does not divide into patches.
    """
    rows, columns = patch if view.patch_size is None else (view.patch_size, view.patch_size)
    height, width = image if view.resolution is None else (view.resolution, view.resolution)
    if rows > height or columns > width:
        raise ValueError(f"a patch of {rows}×{columns} px is larger than the image of {height}×{width} px")
    if height % rows or width % columns:
        raise ValueError(f"an image of {height}×{width} px does not divide into patches of {rows}×{columns} px")
    return height // rows, width // columns


def mix_of(views: Sequence[Any] | None) -> Mix:
    """The mix in ``[(share, view), …]``; an empty list or ``None`` is the full view alone.

    Raises:
        ValueError: ``views`` is not such a list, a share is not positive, or the shares do not sum to 1.
    """
    if not views:
        return FULL_MIX
    mix: list[tuple[float, View]] = []
    for item in views:
        if not isinstance(item, list | tuple) or len(item) != 2 or not isinstance(item[1], View):
            raise ValueError(
                "run.train_views is a list of (share, view), such as [(0.5, @view()), (0.5, @cheap/view())]; "
                f"got {item!r}"
            )
        share = item[0]
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise ValueError(f"a share in run.train_views lies in (0, 1], got {share!r}")
        mix.append((float(share), item[1]))
    total = math.fsum(share for share, _ in mix)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"the shares in run.train_views must sum to 1, got {total:g}")
    return tuple(mix)


def split_counts(count: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Split ``count`` pairs in proportion to the shares, by largest remainder (the earlier share wins a tie).

    Computed in exact fractions: the parts sum to ``count``, and each is its quota rounded up or down.
    """
    exact = [Fraction(share).limit_denominator(10**6) for share in shares]
    quotas = [count * share / sum(exact) for share in exact]
    parts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(parts)), key=lambda part: parts[part] - quotas[part])
    for part in by_remainder[: count - sum(parts)]:
        parts[part] += 1
    return tuple(parts)
