"""Every arm of ``gin/policy`` in the tiny world on a device: each ends well, and is charged as on a CPU."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jestbench.config import grammar
from jestbench.disk import PROJECT
from jestbench.launch.command import main
from jestbench.runs.folder import RunFolder

GIN = PROJECT / "gin"


@dataclass(frozen=True)
class Ended:
    """How a run has ended.

    Attributes:
        status: exit status.
        flops: by purpose, of the summary; empty where there is none.
        said: the end of what it printed.
        seconds: of the whole command.
    """

    status: int
    flops: dict[str, int]
    said: str
    seconds: float


def arms() -> list[str]:
    """Names of the arms, where this is a checkout."""
    return [path.stem for path in sorted((GIN / "policy").glob("*.gin"))]


def tiny_stands(policy_file: Path, *bindings: str) -> list[str]:
    """The reference or scorer that a policy's file binds, of the tiny runs and with these bindings, as a binding."""
    bound = {binding.key: binding.value for binding in grammar.read_file(policy_file)}
    words = []
    for key in ("run.reference", "run.scorer"):
        value = bound.get(key)
        if isinstance(value, str | list | tuple):
            file, *more = [value] if isinstance(value, str) else value
            words.append(f"{key}={(file.replace('run/', 'run/tiny_'), *bindings, *more)!r}")
    return words


def tiny(arm: str, budget: float = 2e9) -> list[str]:
    """Words of ``tools/run.py`` that run an arm in the tiny world, on tiny references of this budget (FLOPs)."""
    path = GIN / "policy" / f"{arm}.gin"
    files = ["--gin_file", str(GIN / "run" / "tiny.gin"), "--gin_file", str(path)]
    return [*files, *tiny_stands(path, f"run.budget={budget}")]


def ended(words: Sequence[str], run_dir: Path) -> Ended:
    """Run a command in this process."""
    begin, printed = time.monotonic(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        status = main([*words, "--run_dir", str(run_dir), "log.progress=False", "wandb.mode=disabled"])
    summary = RunFolder(run_dir).summary()
    flops = {} if summary is None else dict(summary.flops)
    return Ended(status, flops, printed.getvalue()[-400:], time.monotonic() - begin)


@contextlib.contextmanager
def own_cache() -> Iterator[Path]:
    """A folder for runs, with a cache of its own inside."""
    before = os.environ.get("JESTBENCH_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JESTBENCH_CACHE"] = f"{folder}/cache"
        try:
            yield Path(folder)
        finally:
            del os.environ["JESTBENCH_CACHE"]
            if before is not None:
                os.environ["JESTBENCH_CACHE"] = before


def compared(names: Sequence[str], device: str, budget: float = 3e9) -> dict[str, str | float]:
    """By arm, the seconds that it took on the device; or what was wrong with it."""
    found: dict[str, str | float] = {}
    with own_cache() as folder:
        for name in names:
            words = [*tiny(name), f"run.budget={budget}", "evaluate.points=1", "loader.workers=0"]
            one, other = (ended([*words, f"run.device={place}"], folder / name / place) for place in (device, "cpu"))
            if one.status:
                found[name] = f"status {one.status}: {one.said}"
            elif one.flops != other.flops:
                found[name] = f"charged {one.flops}, on a CPU {other.flops}"
            else:
                found[name] = round(one.seconds, 2)
    return found
