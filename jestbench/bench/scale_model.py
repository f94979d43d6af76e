"""The cost model of a run by n processes (docs/scale.md), carried on to the paper's scale on 8 and 64 GPUs.

At the paper's scale each figure follows from measurements on one H100 (docs/gpu.md), from sizes, and from assumptions
that are printed with it. Nothing is taken to overlap, but for reading, which goes on beside the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from jestbench.bench.paper import LEARNER, PaperPlan
from jestbench.launch.exchange_forecast import StepSizes
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.parallel.traffic import TRADED, Joined, Traded

GB = 1e9
PARTS = ("scoring", "choice", "training", "loss", "exchange")
"""Of a step's seconds."""


def step_seconds(
    alone: float, pairwise: float, processes: int, *, calls: float, sent: float, link: Mapping[str, float]
) -> float:
    """Seconds of a step under weak scaling: each process has as many pairs as one process has alone.

    t_n = t_1 + (n − 1)·c + calls·latency + bytes/rate: the models do the same work; a process compares its share of
    the rows, B/n in the choice and b/n in the loss, with b pairs, whose number grows with n.

    Args:
        alone: t_1, seconds of a step of one process.
        pairwise: c, those of them in which the policy chooses and the loss compares.
        processes: n.
        calls: collectives of a step.
        sent: bytes that a process sends a step.
        link: ``seconds of a call`` and ``bytes/s``, measured between as many processes.
    """
    return alone + (processes - 1) * pairwise + calls * link["seconds of a call"] + sent / link["bytes/s"]


@dataclass(frozen=True)
class Gpu:
    """What one GPU does, measured there (docs/gpu.md), and what is assumed of its surroundings.

    Attributes:
        name: of the device.
        train: pairs/s of a training step.
        retrain: pairs/s of a training step with cached gradients.
        whole: pairs that a training step holds at once; more are trained with cached gradients.
        score: pairs/s of scoring.
        draw: seconds of the joint draw at B = 163,840, b = 32,768.
        loss: seconds of the loss and its gradients over 32,768 pairs.
        near: bytes/s that a GPU sends to others of its machine; assumed.
        far: bytes/s that a GPU sends to other machines; assumed.
        machine: GPUs of a machine; assumed.
        decode: images/s that a core decodes, 256 px.
        activations: bytes that a pair in training holds.
    """

    name: str = "H100 80GB HBM3"
    train: float = 1634.0
    retrain: float = 1206.0
    whole: int = 512
    score: float = 5416.0
    draw: float = 0.68
    loss: float = 0.113
    near: float = 200e9
    far: float = 25e9
    machine: int = 8
    decode: float = 400.0
    activations: float = 46.3e9 / 512 * 256 / 196


@dataclass(frozen=True)
class Forecast:
    """A step of one arm by n GPUs.

    Attributes:
        seconds: of the parts of a step, by name.
        sent: bytes that a process sends, by purpose.
        memory: bytes of GPU memory of a process, by what they hold.
        host: bytes of main memory that a process's own images of one super-batch take.
        read: pairs/s that each process reads and decodes, so that the step never waits.
    """

    seconds: Mapping[str, float]
    sent: Mapping[Traded, int]
    memory: Mapping[str, float]
    host: float
    read: float

    @property
    def step(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())


def paper_sizes(selects: bool) -> StepSizes:
    """The sizes of the paper's run: jest with a reference of the learner's width, or uniform."""
    plan = PaperPlan()
    tokenizer = Tokenizer(train_bpe(["a pair of words"], 64).to_str(), plan.tokens)
    with torch.device("meta"):
        model = LEARNER.build(tokenizer, "sigmoid", 0)
    weights = sum(weight.numel() for weight in model.parameters()) + VOCABULARY * plan.width
    side = LEARNER.image_size
    return StepSizes(
        super_batch=plan.size if selects else plan.count,
        parts=(plan.count,),
        score=2 * 2 * 4 * plan.width if selects else 0,
        losses=(4 * plan.width,),
        loss="sigmoid",
        pair=3 * side * side + 8 * plan.tokens,
        description=16,
        weights=4 * weights,
        # One gather of both models' diagonals, and one of rows and columns of both after each chunk but the last.
        joined=Joined({plan.size: 4 * (2 + 4 * (plan.chunks - 1))}) if selects else Joined(),
    )


VOCABULARY = 32_000
"""Words of SigLIP's text tower, beside the few of the tokenizer that the shapes are built with."""


def forecast(sizes: StepSizes, processes: int, gpu: Gpu, scored: float) -> Forecast:
    """A step by ``processes`` GPUs.

    Args:
        sizes: of the run.
        processes: n.
        gpu: what one of them does.
        scored: forward passes of a pair of the super-batch: 1 with a reference whose rows are known, 0 for uniform.
    """
    batch = sum(sizes.parts)
    own_B, own_K = sizes.super_batch / processes, batch / processes
    sent, rate = sizes.sent(processes), gpu.near if processes <= gpu.machine else gpu.far
    plan = PaperPlan()
    seconds = {
        "scoring": scored * own_B / gpu.score,
        "choice": gpu.draw * (sizes.super_batch * batch) / (plan.size * plan.count) / processes if scored else 0.0,
        "training": own_K / (gpu.train if own_K <= gpu.whole else gpu.retrain),
        "loss": gpu.loss * (batch / plan.count) ** 2 / processes,
        "exchange": sum(sent.values()) / rate,
    }
    memory = {
        "weights": 4.0 * sizes.weights,  # with the gradient and Adam's two moments
        "embeddings": float(sizes.super_batch * sizes.score + 2 * batch * 2 * sum(sizes.losses)),
        "activations": min(own_K, gpu.whole) * gpu.activations,
    }
    return Forecast(seconds, sent, memory, own_B * sizes.pair, own_B / sum(seconds.values()))


def table(processes: tuple[int, ...] = (8, 64)) -> str:
    """The paper's scale on several GPUs, as text."""
    gpu, plan = Gpu(), PaperPlan()
    found = {
        f"{arm}, {n}": forecast(paper_sizes(passes > 0), n, gpu, passes)
        for arm, passes in (("uniform", 0), ("jest", 1), ("new", 2))
        for n in processes
    }
    each = list(found.values())
    rows: dict[str, list[str]] = {"": list(found)}

    def add(name: str, values: Iterable[float], digits: int = 0) -> None:
        rows[name.replace("_", " ")] = [f"{value:,.{digits}f}" for value in values]

    for part in PARTS:
        add(f"{part}, ms", (1e3 * one.seconds[part] for one in each))
    add("step, ms", (1e3 * one.step for one in each))
    add("pairs trained on, a second", (plan.count / one.step for one in each))
    add("share of exchange, %", (100 * one.seconds["exchange"] / one.step for one in each), 1)
    for purpose in TRADED:
        if any(one.sent[purpose] for one in each):
            add(f"sent: {purpose}, MB", (one.sent[purpose] / 1e6 for one in each), 1)
    for part in each[0].memory:
        add(f"memory: {part}, GB", (one.memory[part] / GB for one in each), 1)
    add("host memory: images, GB", (one.host / GB for one in each), 1)
    add("pairs read a GPU, a second", (one.read for one in each))
    add("cores that read, a GPU", (one.read / gpu.decode for one in each), 1)
    return "\n".join(
        [
            f"b = {plan.count:,}, B = {plan.size:,} (uniform: b), ViT-B/16 at 256 px, {gpu.name}, n = 8 and 64",
            f"assumed: a GPU sends {gpu.near / GB:,.0f} GB/s within its machine of {gpu.machine}, "
            f"{gpu.far / GB:,.0f} GB/s beyond it; {gpu.decode:,.0f} pairs/s a core",
            "jest: each row of the reference is known; new: each pair is new to the reference, which scores it",
            "",
            *(f"{name:30s}" + "".join(f"{value:>13s}" for value in values) for name, values in rows.items()),
        ]
    )
