"""The report of ``--check``: a page, or all lines with the whole configuration."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jestbench.config.resolved import Resolved
from jestbench.disk import shown
from jestbench.launch.data_report import eval_sets
from jestbench.launch.demonstration_warnings import Proportions
from jestbench.launch.step_price import StepPrice
from jestbench.loop import Stages
from jestbench.select.scores import Role

WIDTH = 100
"""Columns of the page."""
_LABEL = 11


@dataclass(frozen=True)
class Checked:
    """What ``--check`` found of one run.

    Attributes:
        resolved: the run.
        data: lines on the data that were opened, their damage, and what was not checked.
        data_line: a line on pairs and evaluation examples; empty where a stand-in takes the data's place.
        budget: lines on what the budget buys; empty where a stand-in takes the data's place.
        metrics: names of the evaluation's metrics.
        loader: how far ahead pairs are read; empty without worker processes.
        price: FLOPs of a step.
        ladder: the rungs of a ladder, as text.
        warnings: number of warnings, which were printed on stderr.
        steps: that its budget buys.
        proportions: what its frozen models are compared with.
        toys: the roles whose models are too small, or trained too little, beside it.
    """

    resolved: Resolved
    data: tuple[str, ...]
    data_line: str
    budget: tuple[str, ...]
    metrics: tuple[str, ...]
    loader: str
    price: StepPrice
    ladder: str
    warnings: int
    steps: int
    proportions: Proportions
    toys: frozenset[Role] = frozenset()


def data_line(resolved: Resolved, stages: Stages) -> str:
    """A line on the pairs of a run, and on what it is evaluated on."""
    pool, found = stages.super_batches.pool, stages.evaluator
    pairs = "a stream" if pool is None else f"{pool:,} pairs"
    text = f"{type(resolved.run.data).__name__.lower()}: {pairs} in {resolved.run.split}, "
    text += f"{len(found.index_N):,} evaluated in {len(found.example_C):,} classes"
    return text + "".join(f"; set {name}: {one['images']:,} images" for name, one in eval_sets(stages).items())


def whole_text(found: Checked) -> str:
    """All lines on a run, as comments, above its configuration as it would be used."""
    resolved = found.resolved
    taken, kept = resolved.inherited.described()
    lines = [
        *(f"taken over: {text}" for text in taken),
        *(f"kept, bound by its own file: {text}" for text in kept),
        *found.data,
        *found.budget,
        f"metrics: {', '.join(found.metrics)}",
        *([found.loader] if found.loader else []),
    ]
    head = f"# arm {resolved.run.arm!r}, configuration {resolved.config_hash}"
    comments = [f"#   {line}" for text in lines for line in text.splitlines()]
    return "\n".join([*found.ladder.splitlines(), head, *comments, resolved.operative])


def page(own: Checked, below: Sequence[Checked]) -> str:
    """A page on a run: at most 40 lines of ``WIDTH`` columns.

    Args:
        below: the runs that its frozen models stand on.
    """
    resolved = own.resolved
    run = resolved.run
    head = f"arm {run.arm!r}, configuration {resolved.config_hash}, seed {run.seed}: checked; nothing trained"
    lines = [*textwrap.wrap(head, WIDTH, break_on_hyphens=False)]
    lines += _section("policy", [_policy(resolved)], 2)
    lines += _section("data", [*([own.data_line] if own.data_line else []), *_split(own.data)], 13)
    lines += _section("budget", _split(own.budget), 4)
    lines += _section("price", [_price(own.price)], 2)
    lines += _section("ladder", own.ladder.splitlines()[-1:], 2)
    for role, stands in resolved.stands_on.items():
        texts = ["warning: a toy beside this arm (stderr)"] if role in own.toys else []
        texts += [_stand(stand, below) for stand in stands]
        lines += _section(role, [*dict.fromkeys(texts)], 7)
    for casting in run.castings.values():
        for name, flops in resolved.stated_flops.items():
            if name == casting.role:
                spent = "is not known (pretrain_flops)" if flops is None else f"was {flops:.4g} FLOPs"
                lines += _section(name, [f"{casting.label}; what its training took {spent}"], 2)
    lines += _section("loader", [own.loader] if own.loader else [], 1)
    lines += _section("metrics", [", ".join(own.metrics)], 4)
    lines += _section("warnings", [_warnings(own, below)], 1)
    return "\n".join([*lines, "whole configurations: --verbose; a step's cost by purpose: --price"])


def _split(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in text.splitlines()]


def _section(label: str, texts: Sequence[str], most: int) -> Iterator[str]:
    """The lines of a section behind its label, each text on lines of its own; cut behind ``most`` lines."""
    room = WIDTH - _LABEL - 2
    lines = [
        line for text in texts for line in textwrap.wrap(text, room, subsequent_indent="  ", break_on_hyphens=False)
    ]
    if len(lines) > most:
        lines[most - 1 :] = [f"… {len(lines) - most + 1} more lines: --verbose"]
    for number, line in enumerate(lines):
        yield f"  {'' if number else label:<{_LABEL}}{line}".rstrip()


def _policy(resolved: Resolved) -> str:
    prefix = f"{resolved.policy_name}."
    bound = {key.removeprefix(prefix): value for key, value in resolved.flat.items() if key.startswith(prefix)}
    call = f"{resolved.policy_name}({', '.join(f'{key}={value!r}' for key, value in bound.items())})"
    scored = ", ".join(sorted(resolved.policy.needs))
    draws = f"{resolved.run.batch_size:,} of {resolved.draw_size:,} pairs a step" if scored else "all pairs drawn"
    return f"{call}: {draws}, scored by {scored or 'nothing'}"


def _price(price: StepPrice) -> str:
    shares = ", ".join(f"{purpose} {flops / price.total:.0%}" for purpose, flops in price.flops.items() if flops)
    return f"{price.total:.4g} FLOPs a step, {price.total / price.uniform:.2f} x a uniform step: {shares}"


def _stand(stand: Resolved | Path, below: Sequence[Checked]) -> str:
    """A line on a run that a frozen model comes from, and on what was handed over to it."""
    if isinstance(stand, Path):
        return f"{shown(stand)}, a finished run"
    taken, kept = stand.inherited.described()
    budget = "" if stand.run.budget is None else f" with {stand.run.budget:.4g} FLOPs"
    text = f"{stand.run.arm!r}, configuration {stand.config_hash}, trained on demand, once{budget}"
    text += f"; taken over: {', '.join(taken)}" if taken else ""
    text += f"; kept, bound by its own file: {', '.join(kept)}" if kept else ""
    own = next((one for one in below if one.resolved.config_hash == stand.config_hash), None)
    return "; ".join([text, *(line for line in (own.budget if own else ()) if line.startswith("warning"))])


def _warnings(own: Checked, below: Sequence[Checked]) -> str:
    """How many warnings there are, and where they stand."""
    apart = own.warnings + sum(one.warnings for one in below)
    above = sum(line.startswith("warning") for one in (own, *below) for line in one.budget)
    parts = [f"{count} {where}" for count, where in ((apart, "on stderr"), (above, "above")) if count]
    return ", ".join(parts) or "none"
