"""Weak scaling: the same pairs a process, by one process and by several, on this machine, in one run.

Each round starts ``tools/run.py`` under torchrun, first with one process and then with all, for each arm, with one
thread a process; b and B grow with the number of processes. The world is the planted one at the quick start's shape.

* efficiency: median seconds of a step of one process ÷ those of all processes; 1 is ideal. A process computes as much,
  but for the similarities: each row is compared with the pairs of all processes.
* apart: the same for as many runs of one process side by side, which exchange nothing: what the machine's memory and
  cores lose by themselves.
* forecast: the efficiency by the cost model of docs/scale.md, from the step apart, the choice and the loss of one
  process, and a link measured here between as many processes.
* sent: bytes that a process sends a step, by purpose, counted; beside them what ``--price`` forecasts.
* waits: seconds a step that a process's host spends in collectives, which is also where it waits for a slower one.
  Gradients that torch reduces during the backward pass are not in it.
* memory: largest resident set of a process.
* reading: pairs/s that one core reads and decodes, JPEGs of 256 px to 224.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from jestbench.bench import data, scale_model, step_parts, timing
from jestbench.bench.arms import GIN, tiny_stands
from jestbench.config.resolve import resolve
from jestbench.disk import PROJECT
from jestbench.launch import forecast
from jestbench.launch.exchange_forecast import StepSizes
from jestbench.parallel.traffic import TRADED, Traded
from jestbench.runs.folder import RunFolder
from jestbench.select.losses import LOSSES

IN_STEPS: tuple[Traded, ...] = tuple(name for name in TRADED if name != "evaluation")
WARM = 3
"""First steps of a run that are not counted: they wake threads and touch memory."""
MIB = 2**20


@dataclass(frozen=True)
class ScalePlan(timing.Plan):
    """Rounds, steps and sizes of the runs."""

    rounds: int = timing.option(3, "of each arm and number of processes")
    steps: int = timing.option(20, "of a run that are timed")
    processes: int = timing.option(2, "beside one")
    arms: tuple[str, ...] = timing.option(("uniform", "jest"), "of gin/policy")
    batch: int = timing.option(64, "b of a process; B is five times as large")


@dataclass(frozen=True)
class Took:
    """What the steps of one run took.

    Attributes:
        seconds: of a step, median.
        waits: seconds of a step that a host spent in collectives, median.
        sent: bytes that a process sent a step, by purpose, mean.
        calls: collectives of a step, median.
        memory: bytes of the largest process.
    """

    seconds: float
    waits: float
    sent: Mapping[Traded, float]
    calls: float
    memory: int


@dataclass(frozen=True)
class Rounds:
    """An arm's runs, one a round.

    Attributes:
        alone: by one process.
        apart: seconds of a step, of runs of one process side by side.
        together: by all processes.
    """

    alone: list[Took] = field(default_factory=list)
    apart: list[float] = field(default_factory=list)
    together: list[Took] = field(default_factory=list)


def words(arm: str, processes: int, plan: ScalePlan) -> list[str]:
    """Words of ``tools/run.py`` that run an arm by so many processes: gin files, then bindings."""
    policy = GIN / "policy" / f"{arm}.gin"
    files = [f"--gin_file={path}" for path in (GIN / "run" / "tiny.gin", GIN / "model" / "tiny.gin", policy)]
    sizes = [f"run.batch_size={plan.batch * processes}", f"run.super_batch_size={5 * plan.batch * processes}"]
    steps = [f"budget.steps={WARM + plan.steps}", "run.budget=None", "run.checkpoints=1", "evaluate.points=1"]
    more = ["log.every=1", "log.examples=0", "log.progress=False", "run.device=cpu", "loader.workers=0"]
    stands = tiny_stands(policy, *step_parts.SHAPE, "run.budget=2e9")
    return [*files, *stands, *step_parts.SHAPE, *sizes, *steps, *more, "synthetic.pool=8000", "wandb.mode=disabled"]


def _started(processes: int, module: Sequence[str], folder: Path) -> tuple[str, int]:
    """What a module under torchrun printed, and its largest process's bytes; ``RuntimeError`` if it failed."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    path = os.pathsep.join([str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": path, "JESTBENCH_CACHE": str(folder / "cache")}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen([*torchrun, *module], env=os.environ | own, stdout=out, stderr=errors)
        _, status, usage = os.wait4(child.pid, 0)  # with the processes that it has waited for itself
        child.returncode = os.waitstatus_to_exitcode(status)
        for file in (out, errors):
            file.seek(0)
        printed, said = out.read(), errors.read()
    if child.returncode:
        raise RuntimeError(f"{' '.join(module)} by {processes} processes ended with {child.returncode}: {said[-2000:]}")
    return printed, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _run(arm: str, processes: int, plan: ScalePlan, folder: Path) -> Took:
    """Run an arm; what its steps took."""
    run_dir = Path(tempfile.mkdtemp(dir=folder)) / arm
    command = ["jestbench", "run", *words(arm, processes, plan), "--run_dir", str(run_dir)]
    _, memory = _started(processes, command, folder)
    rows = [row for row in RunFolder(run_dir).read_rows()[0] if row["step"] >= WARM]
    each = [after["time/seconds"] - before["time/seconds"] for before, after in itertools.pairwise(rows)]
    rows = rows[1:]
    sent: Mapping[Traded, float] = {
        name: statistics.mean(row.get(f"exchange/{name}", 0.0) for row in rows) for name in IN_STEPS
    }
    waits, calls = (
        statistics.median(row.get(f"exchange/{name}", 0.0) for row in rows) for name in ("seconds", "calls")
    )
    return Took(statistics.median(each), waits, sent, calls, memory)


def _apart(arm: str, plan: ScalePlan, folder: Path) -> float:
    """Seconds of a step of runs of one process, as many side by side as ``plan.processes``; their mean."""
    with ThreadPoolExecutor(plan.processes) as pool:
        runs = pool.map(lambda _: _run(arm, 1, plan, folder), range(plan.processes))
        return statistics.mean(run.seconds for run in runs)


def _sizes(arm: str, plan: ScalePlan) -> StepSizes:
    """Sizes of the run of all processes, as ``--price`` takes them."""
    split = [word.removeprefix("--") for word in words(arm, plan.processes, plan)]
    files = [word.partition("=")[2] for word in split if word.startswith("gin_file=")]
    return forecast.sizes(resolve(files, [word for word in split if not word.startswith("gin_file=")]))


def _loss(sizes: StepSizes, batch: int, repetitions: int = 30) -> float:
    """Seconds of the loss of a sub-batch and its gradients, by one process."""
    image_KD, text_KD = (torch.randn(batch, width // 4, requires_grad=True) for width in 2 * sizes.losses[:1])
    scale, bias = (torch.tensor(value, requires_grad=True) for value in (10.0, -10.0))

    def run() -> None:
        LOSSES[sizes.loss](image_KD, text_KD, scale, bias).backward()

    return statistics.median(timing.seconds(run, torch.device("cpu")) for _ in range(repetitions))


def _reading(folder: Path, pairs: int = 256, side: int = 256) -> float:
    """Pairs/s that one core reads and decodes."""
    plan = data.DataPlan(shards=1, per_shard=pairs)
    source = data.indexed(data.write_shards(folder, side, plan), side)
    return pairs / timing.seconds(lambda: source.batch(torch.arange(pairs)), torch.device("cpu"))


def measure(plan: ScalePlan) -> dict[str, Any]:
    """All numbers, ready for JSON."""
    load, found = timing.load(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as name, timing.threads(1):
        folder = Path(name)
        reading = _reading(folder)
        link = json.loads(_started(plan.processes, ["jestbench.bench.scale_link"], folder)[0])
        rounds = {arm: Rounds() for arm in plan.arms}
        for _ in range(plan.rounds):
            for arm, took in rounds.items():
                took.alone.append(_run(arm, 1, plan, folder))
                took.apart.append(_apart(arm, plan, folder))
                took.together.append(_run(arm, plan.processes, plan, folder))
        for arm, took in rounds.items():
            sizes = _sizes(arm, plan)
            choice = step_parts.parts(arm, plan.steps, plan.batch)["choice"] / 1e3
            pairwise = {"choice": choice, "loss": _loss(sizes, plan.batch)}
            found[arm] = _of_arm(plan, link, took, pairwise) | {"sent, forecast": sizes.sent(plan.processes)}
    facts = timing.machine(load, versions=timing.versions("torch"))
    return {"machine": facts, "plan": asdict(plan), "link": link, "reading": reading, "arms": found}


def _of_arm(plan: ScalePlan, link: Mapping[str, float], took: Rounds, pairwise: Mapping[str, float]) -> dict[str, Any]:
    """Numbers of an arm; ``pairwise`` are the seconds of the parts that compare each pair with all pairs."""
    one, several = ([run.seconds for run in runs] for runs in (took.alone, took.together))
    sent = {name: statistics.mean(run.sent[name] for run in took.together) for name in IN_STEPS}
    calls = statistics.median(run.calls for run in took.together)
    step = scale_model.step_seconds(
        statistics.median(took.apart),
        sum(pairwise.values()),
        plan.processes,
        calls=calls,
        sent=sum(sent.values()),
        link=link,
    )
    return {
        "seconds": {"one": one, "apart": took.apart, "together": several},
        "efficiency": timing.ratio_and_range(one, several),
        "apart": timing.ratio_and_range(one, took.apart),
        "efficiency, forecast": statistics.median(one) / step,
        "pairwise, seconds": dict(pairwise),
        "waits, seconds": [run.waits for run in took.together],
        "calls": calls,
        "sent": sent,
        "memory": {name: max(run.memory for run in getattr(took, name)) for name in ("alone", "together")},
    }


def table(report: Mapping[str, Any]) -> str:
    """The numbers of each arm."""
    plan, link = report["plan"], report["link"]
    processes, batch = plan["processes"], plan["batch"]
    lines = [
        f"weak scaling, 1 to {processes} processes: {plan['rounds']} rounds of {plan['steps']} steps, one thread a "
        f"process, b = {batch} and B = {5 * batch} a process",
        timing.machine_line(report["machine"]),
        f"link: {link['seconds of a call'] * 1e3:.2f} ms a collective, {link['bytes/s'] / MIB:,.0f} MiB/s a process; "
        f"reading: {report['reading']:,.0f} pairs/s a core",
    ]
    for arm, found in report["arms"].items():
        one, apart, many = (statistics.median(seconds) * 1e3 for seconds in found["seconds"].values())
        ratio, memory = found["efficiency"], [size / MIB for size in found["memory"].values()]
        lines += [
            "",
            f"{arm}",
            f"  step                 {one:.1f} ms by one process, {apart:.1f} ms by {processes} apart, "
            f"{many:.1f} ms by {processes} together",
            f"  efficiency           {ratio['value']:.2f}, rounds {timing.spread(ratio)} "
            f"(forecast {found['efficiency, forecast']:.2f}; apart {found['apart']['value']:.2f})",
            f"  waits of the host    {statistics.median(found['waits, seconds']) * 1e3:.1f} ms a step in "
            f"{found['calls']:.0f} collectives",
            f"  memory of a process  {memory[0]:,.0f} MiB by one, {memory[1]:,.0f} MiB by {processes}",
            *_sent_lines(found["sent"], found["sent, forecast"]),
        ]
    return "\n".join(lines)


def _sent_lines(sent: Mapping[str, float], expected: Mapping[str, int]) -> Iterator[str]:
    """A line on the bytes of each purpose, and one on all."""
    for name, bytes_ in [*sent.items(), ("in all", sum(sent.values()))]:
        forecast_ = expected.get(name, sum(expected.values()))
        if bytes_ or forecast_:
            title = f"sent, {name}".replace("_", " ")
            yield f"  {title:25s}{bytes_:>12,.0f} bytes a step (forecast {forecast_:,})"
