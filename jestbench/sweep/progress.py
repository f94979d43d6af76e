"""How far a sweep is: a bar of its own below those of its arms, or lines where there is no terminal."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from jestbench.runs.folder import RunFolder
from jestbench.sweep.sweep_arms import SweepArm

_TOTAL = "flops/total"
_IN_THE_LABEL = ("gin_file", "run.policy", "run.arm", "run.seed")
_TELLING = 0.1
"""Share of their budgets from which the speed of arms that run is taken: before it they were starting."""
_BETWEEN = 60
"""Least seconds between two lines in a log while nothing ends; a twentieth of what has passed, where that is more."""


@dataclass
class _Running:
    """An arm that runs.

    Attributes:
        arm: the arm.
        folder: its run folder.
        begun: FLOPs that a resumed run had spent before.
        since: when it was started, by ``time.monotonic``.
    """

    arm: SweepArm
    folder: Path
    begun: float
    since: float

    @property
    def spent(self) -> float:
        """FLOPs since it was started, as far as they are logged."""
        return max(0.0, _spent(self.folder) - self.begun)


def _spent(folder: Path) -> float:
    return float(RunFolder(folder).last_row().get(_TOTAL, 0))


def _asked(arm: SweepArm) -> float | None:
    """FLOPs that an arm may spend; ``None`` where its budget is in steps or pairs."""
    budget = arm.resolved.run.budget
    return None if budget is None else budget + arm.resolved.added_flops


class SweepProgress:
    """Counts the arms of a sweep that have ended, and estimates the time that is left.

    Args:
        name: of the sweep.
        metric: what it is about.
        total: number of arms; ``None`` where a search goes on until it finds nothing new.
        at_once: arms that run side by side, each with a bar of its own above this one.
        waiting: the arms of a grid, none of which has begun.
    """

    def __init__(self, name: str, metric: str, total: int | None, at_once: int, waiting: list[SweepArm]) -> None:
        self.name, self.metric, self.total, self.at_once = name, metric, total, at_once
        self.ended = 0
        values: dict[str, set[str]] = {}
        for arm in waiting:
            for key, value in arm.parameters.items():
                values.setdefault(key, set()).add(str(value))
        self._differing = [key for key, found in values.items() if len(found) > 1 and key not in _IN_THE_LABEL]
        self._waiting = list(waiting)
        self._running: dict[tuple[str, int], _Running] = {}
        # Of arms that have finished here, added up over arms side by side.
        self._finished, self._flops, self._seconds = 0, 0.0, 0.0
        self._begun = self._said = time.monotonic()
        self._live = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            desc=f"sweep {name}",
            position=at_once,
            disable=not self._live,
            ascii=" =",  # the arms' bars are blocks
            bar_format="{desc} {n_fmt}/{total_fmt} [{bar:20}]{postfix}" if total else "{desc} {n_fmt}{postfix}",
            file=sys.stderr,
        )

    def passed(self, arm: SweepArm) -> None:
        """Count an arm that had finished before."""
        self._drop(arm)
        self.ended += 1
        self._bar.update()

    def begins(self, arm: SweepArm, folder: Path) -> None:
        """Note an arm that is started."""
        self._drop(arm)
        self._running[arm.key] = _Running(arm, folder, _spent(folder), time.monotonic())

    def ends(self, arm: SweepArm, status: int, value: float | None) -> None:
        """Count an arm that has ended, and print its value of the metric."""
        running = self._running.pop(arm.key)
        self.ended += 1
        took = time.monotonic() - running.since
        if status == 0:
            self._finished += 1
            self._flops, self._seconds = self._flops + running.spent, self._seconds + took
        found = f"{self.metric} {value:.4g}" if value is not None else f"no {self.metric}"
        self._say(f"{self._name(arm)}: {found if status == 0 else f'status {status}'}, {clock(took)}; {self.line()}")
        self._bar.update()

    def tick(self) -> None:
        """Refresh the bar each second; in a log, print a line now and then."""
        now = time.monotonic()
        if self._live and now - self._said >= 1:
            self._bar.set_postfix_str(self._details())
            self._said = now
        elif not self._live and now - self._said >= max(_BETWEEN, (now - self._begun) / 20):
            self._say(self.line())

    def line(self) -> str:
        """How far the sweep is, in one line."""
        details = self._details()
        return (
            f"sweep {self.name} {self.ended}{f'/{self.total}' if self.total else ''}{f', {details}' if details else ''}"
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()

    def _say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()
        self._said = time.monotonic()

    def _drop(self, arm: SweepArm) -> None:
        self._waiting = [other for other in self._waiting if other.key != arm.key]

    def _details(self) -> str:
        left = self.seconds_left()
        parts = [f"running: {', '.join(map(self._standing, self._running.values()))}"] if self._running else []
        parts += [f"about {clock(left)} left"] if left is not None else []
        return "; ".join([*parts, f"about {self.metric}"] if self._live else parts)

    def _standing(self, running: _Running) -> str:
        asked = _asked(running.arm)
        share = f" ({min(1.0, _spent(running.folder) / asked):.0%})" if asked else ""
        return self._name(running.arm) + share

    def _name(self, arm: SweepArm) -> str:
        """An arm's label and seed, and the parameters in which it differs from the other arms of its sweep."""
        more = [f"{key}={arm.parameters[key]}" for key in self._differing if key in arm.parameters]
        return " ".join([arm.resolved.run.arm or arm.resolved.policy_name, *more, f"seed {arm.resolved.run.seed}"])

    def seconds_left(self) -> float | None:
        """Seconds until all arms have ended, from the FLOPs of those that have; ``None`` while nothing is known.

        FLOPs that are left, over the FLOPs a second that an arm has made here; places work side by side, but no sooner
        than the longest arm ends. Where a budget is in steps or pairs, each arm counts as one.
        """
        if self.total is None or not (self._running or self._waiting):
            return None
        asked = [_asked(arm) for arm in (*self._waiting, *(one.arm for one in self._running.values()))]
        by_flops = all(asked)
        done, seconds = (self._flops, self._seconds) if by_flops else (float(self._finished), self._seconds)
        if by_flops and not done:  # nothing has finished yet: go by what runs
            done = sum(one.spent for one in self._running.values())
            if done < _TELLING * sum(_asked(one.arm) or 0 for one in self._running.values()):
                return None
            seconds = sum(time.monotonic() - one.since for one in self._running.values())
        if not done or not seconds:
            return None
        waiting = [_asked(arm) or 1.0 for arm in self._waiting] if by_flops else [1.0] * len(self._waiting)
        going_on = [
            max(0.0, (_asked(one.arm) or 0.0) - _spent(one.folder)) if by_flops else 0.5
            for one in self._running.values()
        ]
        rest = [*waiting, *going_on]
        places = min(self.at_once, len(rest))
        return max(sum(rest) / places, *rest) * seconds / done


def clock(seconds: float) -> str:
    """A duration for people: ``0:42``, ``12:05``, ``3:07:00``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, second = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"
