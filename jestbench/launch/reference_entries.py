"""The references that a run was scored with, for its summary. Those of other libraries are evaluated here.

No run folder holds the scores of a model that another library brings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from jestbench.config.resolved import Resolved
from jestbench.disk import cache_root, digest, read_object, write_json
from jestbench.engine.actor import EmbeddingModel
from jestbench.engine.cache import fingerprint
from jestbench.evals.evaluate import Evaluator
from jestbench.launch.stands import ended
from jestbench.loop import Stages
from jestbench.runs.summary import ReferenceEntry


def entries(resolved: Resolved, stages: Stages, folders: Sequence[Path]) -> list[ReferenceEntry]:
    """Entries of a run's references: of ``folders``, or of other libraries; a pair scorer has no score to show."""
    if folders:
        return list(_of_runs(resolved, stages, folders))
    if "reference" in resolved.run.castings and "reference" in resolved.stated_flops:
        return list(_of_libraries(resolved, stages))
    return []


def _of_runs(resolved: Resolved, stages: Stages, folders: Sequence[Path]) -> Iterator[ReferenceEntry]:
    seeding, fitted = resolved.run.reference_seed, stages.scorer.actors["reference"].calibrated
    for half, folder in enumerate(folders):
        summary, stand = ended(folder), resolved.stands_on["reference"][half]
        of = [f"half {half}"] * (len(folders) > 1) + [f"seed {summary.seed}"] * (seeding == "own")
        name = (summary.arm or "reference") + (f" ({', '.join(of)})" if of else "")
        taken, kept = stand.inherited.described() if isinstance(stand, Resolved) else ((), ())
        entry = ReferenceEntry(
            name,
            str(folder.resolve()),
            summary.flops_all_in,
            seed=summary.seed,
            seeding=seeding,
            taken_over=tuple(taken),
            kept=tuple(kept),
        )
        yield _fitted(entry, fitted[half], resolved) if fitted else entry


def _of_libraries(resolved: Resolved, stages: Stages) -> Iterator[ReferenceEntry]:
    actor = stages.scorer.actors["reference"]
    parts = resolved.run.castings["reference"].parts
    for place, (part, subject) in enumerate(zip(parts, actor.frozen, strict=True)):
        metrics = scores(part.label, subject, stages.evaluator)
        entry = ReferenceEntry(part.label, "", part.stated_flops()["reference"], metrics=metrics)
        yield _fitted(entry, actor.calibrated[place], resolved) if actor.calibrated else entry


def _fitted(entry: ReferenceEntry, scale_and_bias: tuple[float, float], resolved: Resolved) -> ReferenceEntry:
    """The entry of a reference whose t and b₀ were fitted to the arm's loss."""
    scale, bias = scale_and_bias
    return replace(entry, fitted_scale=scale, fitted_bias=bias, fitted_on=resolved.calibrated_on)


def scores(label: str, subject: EmbeddingModel, evaluator: Evaluator) -> dict[str, float]:
    """A frozen model's metrics on the evaluation split; computed once for its weights, the split and the arithmetic.

    They are charged to nothing, as no step of the run reads them.
    """
    arithmetic, world = subject.arithmetic, subject.arithmetic.world
    described = {
        "model": fingerprint(subject.model),
        "split": evaluator.pairs.fingerprint,
        "limit": len(evaluator.index_N),
        "unseen": digest(evaluator.unseen_N.tobytes()),
        "device": arithmetic.device.type,
        "bf16": arithmetic.bf16,
        **({"fp64": True} if arithmetic.fp64 else {}),
        "torch": version("torch"),
    }
    path = cache_root() / "evaluations" / f"{digest(json.dumps(described, sort_keys=True))}.json"
    known = world.first(lambda: read_object(path))
    if known is None:
        if world.first_of_all:
            print(f"evaluating {label} on {len(evaluator.index_N):,} images, once", file=sys.stderr)
        known = dict(evaluator.on_split(subject).metrics)
        if world.first_of_all:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, known)
    return {name: float(value) for name, value in known.items()}
