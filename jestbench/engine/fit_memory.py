"""Finds the micro-batches that a GPU has memory for: ``"auto"`` of ``run.microbatch`` and ``run.train_microbatch``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from jestbench.batch import Batch, View
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import TwoTowers
from jestbench.parallel.arithmetic import Arithmetic, to_device

if TYPE_CHECKING:
    from jestbench.config.run import Run

SCORED_ON_CPU = 4096
MOST = 65_536
"""Pairs; larger passes are no faster."""
FOR_ACTIVATIONS = 0.7
"""Share of the free memory; the rest is for embeddings, similarity strips, and what the allocator cannot use."""
COPIES = 4
"""A parameter, its gradient and AdamW's two moments."""


@dataclass(frozen=True)
class MicroBatches:
    """Pairs that are run through the towers at once.

    Attributes:
        score: when scoring.
        train: when training, in all processes together; ``None`` is the whole sub-batch.
        found: whether one of the two was measured, not bound.
    """

    score: int = SCORED_ON_CPU
    train: int | None = None
    found: bool = False

    @classmethod
    def of(cls, run: Run, tokenizer: Tokenizer, example: Batch, arithmetic: Arithmetic) -> MicroBatches:
        """The run's own numbers; for ``"auto"`` what rank 0 finds on its device, before anything else is built there.

        Raises:
            ValueError: the device has no memory for a single pair.
        """
        score, train = run.microbatch, run.train_microbatch
        if score != "auto" and train != "auto":
            return cls(score, train)
        found = arithmetic.world.first(lambda: measured(run, tokenizer, example, arithmetic))
        return cls(found.score if score == "auto" else score, found.train if train == "auto" else train, True)

    def described(self) -> dict[str, int | None]:
        """The two numbers, for the summary."""
        return {"score": self.score, "train": self.train}

    def state_dict(self) -> dict[str, int | bool | None]:
        """Plain values, for a checkpoint."""
        return asdict(self)


def measured(run: Run, tokenizer: Tokenizer, example: Batch, arithmetic: Arithmetic) -> MicroBatches:
    """The largest powers of two that fit; on a CPU, whose memory is not measured, 4,096 and the whole sub-batch.

    Raises:
        ValueError: the device has no memory for a single pair.
    """
    device = arithmetic.device
    if device.type != "cuda":
        return MicroBatches()
    model = arithmetic.placed(run.training.build(run, tokenizer))
    size = arithmetic.world.size
    # Of sharded towers a process has its part, and whole weights where it scores.
    copies = COPIES / size + 1 if run.shard and size > 1 else COPIES
    held = int(copies * sum(part.nbytes for part in model.parameters())) * (1 + len(run.needs))
    views = {*(view for _, view in run.mix), run.view_of("learner")[1], run.view_of("reference")[1]}

    def peak(train: bool, count: int) -> int:
        batch = example.take(torch.zeros(count, dtype=torch.long))
        return max(peak_bytes(partial(_passes, run, model, arithmetic, view, train, batch), device) for view in views)

    try:
        peak(True, 1)  # what libraries allocate once is no pair's
        room = int(FOR_ACTIVATIONS * free_bytes(device)) - held
        share = -(-run.batch_size // size)
        at_once = _largest(partial(peak, True), room, share)
        trained = None if at_once >= share else at_once * size
        return MicroBatches(_largest(partial(peak, False), room), trained)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            'run.microbatch or run.train_microbatch = "auto": the GPU has no memory for a single pair: take a smaller '
            "model or smaller images"
        ) from error


def _largest(peak: Callable[[int], int], room: int, enough: int = MOST) -> int:
    """The largest power of two of pairs that fits, or ``enough``; ``torch.OutOfMemoryError`` where not one does."""
    fitting, asked = 0, 1
    while asked <= enough:
        try:
            if peak(asked) > room:
                break
        except torch.OutOfMemoryError:
            break
        fitting, asked = asked, enough if asked < enough < 2 * asked else 2 * asked
    if not fitting:
        raise torch.OutOfMemoryError
    return fitting


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, with what torch holds and does not use."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Bytes by which a call raises the peak of allocated memory."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def _passes(run: Run, model: TwoTowers, arithmetic: Arithmetic, view: View, train: bool, batch: Batch) -> None:
    """A forward pass of both towers, in training with its backward pass."""
    model.train(train)
    with torch.set_grad_enabled(train), arithmetic.autocast(), model.checkpointing(train and run.grad_checkpointing):
        key_B = to_device(batch.image_key_B, arithmetic.device) if view.keep < 1 else None
        image_BD: Tensor = model.encode_image(to_device(batch.images_BCHW, arithmetic.device), view, key_B)
        text_BD: Tensor = model.encode_text(to_device(batch.tokens(model.tokenizer), arithmetic.device), view)
    if train:
        (normalize(image_BD.float(), dim=1) * normalize(text_BD.float(), dim=1)).sum().backward()
        model.zero_grad(set_to_none=True)
