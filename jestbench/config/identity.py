"""The identity of an arm: a hash of what differs from the defaults, less what does not matter to the arm."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jestbench.config.arm_parameters import is_of_the_arm
from jestbench.config.operative import plain
from jestbench.config.registry import CONFIGURABLES, PRETRAINED
from jestbench.config.resolved import Resolved
from jestbench.config.run import ReadFolder
from jestbench.data.splits import roles_in
from jestbench.disk import digest
from jestbench.parallel.arithmetic import NumberFormat

VERSION = 4
"""Raised by one whenever a default, a parameter's meaning or the arithmetic changes, so that no run from before is
averaged with one from after, and no cached reference of before is taken. ``tests/golden/defaults.json`` holds the
defaults of a version: ``python tests/make_defaults.py``."""

_VIEWS = ("run.train_views", "run.score_view", "run.reference_view", "online_scorer.view")


@functools.cache
def defaults() -> Mapping[str, Any]:
    """``name.parameter`` → default, plain; of all that is part of an arm.

    Policies are left out, and their parameters always hashed: a policy may come from a package whose defaults change
    without ``VERSION``.
    """
    names: dict[object, str] = {cls: name for name, cls in CONFIGURABLES.items()}
    found = {}
    for name, cls in CONFIGURABLES.items():
        for field in dataclasses.fields(cls):
            key, factory = f"{name}.{field.name}", field.default_factory
            if not field.init or not is_of_the_arm(key):
                continue
            if factory is not dataclasses.MISSING:
                found[key] = f"@{names[factory]}()" if factory in names else plain(factory(), {})
            elif field.default is not dataclasses.MISSING:
                found[key] = plain(field.default, {})
    return found


def arm_hash(
    flat: Mapping[str, Any],
    needs: frozenset[str],
    pretrained: Mapping[str, str],
    number_format: NumberFormat = "fp32",
    without: tuple[str, ...] = (),
    whole: bool = False,
) -> str:
    """Hash of an arm: its operative configuration without defaults and without parameters that have no effect.

    The frozen models that the arm needs enter by their own identity. A policy that scores nothing uses neither
    super-batch size nor reference, so two uniform arms that differ only in those have the same hash. The number format
    enters as it is on this machine, not as it is bound: ``auto`` on a GPU and on a CPU are two arms. ``whole``: the
    policy takes all pairs of a super-batch.
    """
    usual = defaults()
    arm = {
        key: value
        for key, value in flat.items()
        if is_of_the_arm(key) and ((name := _unscoped(key)) not in usual or usual[name] != value)
    }
    arm.pop("run.precision", None)
    if number_format != "fp32":
        arm["run.precision"] = number_format
    bound = _view_scopes(arm)
    for key in list(_without_effect(arm, needs, whole, "init" in pretrained)):
        arm.pop(key, None)
    idle = bound - _view_scopes(arm)  # of views that only parameters without effect refer to
    arm = {key: value for key, value in arm.items() if _unscoped(key) not in without}
    none = not any(arm.get(name) for name in _VIEWS)
    views = [key for key in arm if _unscoped(key).startswith("view.")]
    for key in views:
        if none or key.rpartition("/")[0] in idle:
            del arm[key]
    return digest(json.dumps({"version": VERSION, "arm": arm, **pretrained}, sort_keys=True), 6)


def _view_scopes(arm: Mapping[str, Any]) -> set[str]:
    """The scopes of the views that parameters of an arm refer to: ``cheap`` of ``@cheap/view()``."""
    text = json.dumps([arm.get(name) for name in _VIEWS])
    return {scope.rstrip("/") for scope in re.findall(r"@((?:[\w.]+/)*)view\(\)", text)}


def _unscoped(key: str) -> str:
    return key.rpartition("/")[2]


def _without_effect(arm: Mapping[str, Any], needs: frozenset[str], whole: bool, begun: bool) -> Iterator[str]:
    """Parameters that are bound, and that a policy with these needs never reads."""
    cascaded, ranks = "run.cascade" in arm, roles_in(arm.get("run.split", "pool"))
    if not needs or whole:
        yield "run.super_batch_size"
    if not needs:
        yield "run.select_from"
    if begun:  # the towers are the start's, but for a new text tower beside a frozen image tower
        text = "model.text_" if "model.freeze" in arm else "model.freeze"
        yield from (key for key in arm if key.startswith("model.") and not key.startswith((text, "model.freeze")))
    if "memory" not in needs:
        yield "run.memory_bytes"
    if "learner" not in needs:
        yield "run.score_view"
    if "reference" not in needs | ranks and not cascaded:
        yield from ("run.reference_view", "run.reference_seed", "run.reference_calibrate", "run.twin")
    if not (needs | ranks) & PRETRAINED.keys() and not cascaded:
        yield "cache.dtype"
        if not arm.get("run.remember_images"):
            yield "run.reference_accounting"
    # A ladder's budget is its last rung; a cosine has no cool-down.
    ladder = any(_unscoped(key) == "optimizer.rungs" for key in arm)
    yield from (key for key in arm if _unscoped(key) == ("run.budget" if ladder else "optimizer.cooldown"))
    # Saving memory costs FLOPs and is part of the arm; a batch that fits into one part saves none.
    at_once = arm.get("run.train_microbatch", 0)
    if at_once != "auto" and at_once >= arm.get("run.batch_size", float("inf")):
        yield "run.train_microbatch"


def identity_of(stand: Resolved | Path, recorded: ReadFolder | None, seeded: bool = True) -> str:
    """Configuration and seed of a frozen model's run; the same wherever its folder lies.

    Args:
        stand: the run, or its folder.
        seeded: false where the run's seed is the arm's, which no arm's identity holds.
    """
    if isinstance(stand, Resolved):
        return f"{stand.config_hash}{stand.run.seed if seeded else ''}"
    assert recorded is not None, "a run folder is resolved with a reader of run folders"
    return recorded(stand).identity or str(stand)
