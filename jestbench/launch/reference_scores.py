"""The own scores of references that other libraries bring: no run folder holds them, so the run evaluates them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.metadata import version

from jestbench.config.resolved import Resolved
from jestbench.disk import cache_root, digest, read_object, write_json
from jestbench.engine.actor import EmbeddingModel
from jestbench.engine.cache import fingerprint
from jestbench.evals.evaluate import Evaluator
from jestbench.loop import Stages
from jestbench.runs.summary import ReferenceEntry


def entries(resolved: Resolved, stages: Stages) -> list[ReferenceEntry]:
    """Entries of the references that other libraries bring, each with its metrics on the run's evaluation split."""
    casting = resolved.run.castings.get("reference")
    if casting is None or "reference" not in resolved.stated_flops:
        return []
    actor = stages.scorer.actors["reference"]
    found = []
    for place, (part, subject) in enumerate(zip(casting.parts, actor.frozen, strict=True)):
        fit = (*actor.calibrated[place], resolved.calibrated_on) if actor.calibrated else ()
        metrics = scores(part.label, subject, stages.evaluator)
        entry = ReferenceEntry(part.label, "", part.stated_flops()["reference"], None, "shared", (), (), *fit)
        found.append(replace(entry, metrics=metrics))
    return found


def scores(label: str, subject: EmbeddingModel, evaluator: Evaluator) -> dict[str, float]:
    """A frozen model's metrics on the evaluation split; computed once for its weights, the split and the arithmetic.

    They are charged to nothing: they tell nothing to the run.
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
