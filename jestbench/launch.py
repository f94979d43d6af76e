"""Runs a resolved configuration: train it, check it, or price it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from jestbench import checkpoint, seeds
from jestbench.batch import DataError
from jestbench.data.loader import SuperBatches
from jestbench.data.pairs import Dataset
from jestbench.data.prefetch import Loader
from jestbench.learner import NonFiniteLoss
from jestbench.ledger import Allowance
from jestbench.loop import Progress, Status, train
from jestbench.metrics import Jsonl, Metrics, WandBSink
from jestbench.model.towers import TwoTowers
from jestbench.model.views import FULL_MIX, Mix
from jestbench.paths import cache_root
from jestbench.precision import Arithmetic
from jestbench.record import Recorder, write_json
from jestbench.reference import MODEL_FORMAT, load_model, trained_mix
from jestbench.run import ConfigError, Resolved
from jestbench.scores import NonFiniteScore
from jestbench.selection import choose
from jestbench.stages import Stages, build_stages, update_seed, view_warnings

SUMMARY = "summary.json"


class RunFolderError(ConfigError):
    """The run folder cannot be used as asked; nothing in it was changed."""


def environment() -> dict[str, Any]:
    """Versions, commit, device, threads: what a figure depends on beside its configuration."""
    versions: dict[str, str | None] = {}
    for name in (
        "torch",
        "torchvision",
        "timm",
        "tokenizers",
        "fvcore",
        "gin-config",
        "wandb",
        "numpy",
        "jestbench",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    home = Path(__file__).parent
    git = subprocess.run(
        ["git", "-C", str(home), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions,
        "commit": git.stdout.strip() or None,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def read_summary(run_dir: Path) -> dict[str, Any] | None:
    """A run's summary, or ``None`` where there is none yet."""
    try:
        found: dict[str, Any] = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, OSError) as error:
        raise DataError(f"{run_dir / SUMMARY} cannot be read: {error}") from error
    return found


def open_folder(resolved: Resolved, run_dir: Path, resume: bool) -> bool:
    """Make the run folder, or check that it holds this very run.

    Returns:
        Whether there is a run to resume.

    Raises:
        RunFolderError: it holds a run and ``resume`` was not asked, or holds another one.
    """
    identity = run_dir / "environment.json"
    if identity.exists():
        if not resume:
            raise RunFolderError(f"{run_dir} already holds a run: choose another --run_dir, or go on with --resume")
        try:
            held = json.loads(identity.read_text(encoding="utf-8"))["run"]
        except (OSError, ValueError, KeyError) as error:
            raise RunFolderError(f"{identity} cannot be read: choose another --run_dir") from error
        if held != {"config_hash": resolved.config_hash, "seed": resolved.run.seed}:
            raise RunFolderError(
                f"{run_dir} holds another run (arm configuration {held['config_hash']}, seed {held['seed']}; this "
                f"is {resolved.config_hash}, seed {resolved.run.seed}): see its operative.gin"
            )
        return True
    try:
        if run_dir.exists() and any(run_dir.iterdir()):
            raise RunFolderError(f"{run_dir} is not empty and holds no run: choose another --run_dir")
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.gin").write_text(resolved.config, encoding="utf-8")
        (run_dir / "operative.gin").write_text(resolved.operative, encoding="utf-8")
        run = {"config_hash": resolved.config_hash, "seed": resolved.run.seed}
        write_json(identity, {"run": run, **environment()})
    except OSError as error:
        raise RunFolderError(f"{run_dir} cannot be a run folder: {error}: choose another --run_dir") from error
    return False


def reference_folder(resolved: Resolved) -> Path:
    """Where the reference's run lies: the folder that was given, or its place in the cache.

    The cache is addressed by content: the reference's operative configuration, its seed and its data.
    """
    if resolved.reference_dir is not None:
        return resolved.reference_dir
    assert resolved.reference is not None
    run = resolved.reference.run
    identity = f"{resolved.reference.config_hash}/{run.seed}/{run.data.split(run.split).fingerprint}/{MODEL_FORMAT}"
    digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    return cache_root() / "models" / f"{run.arm or 'reference'}-{digest}"


def ensure_reference(resolved: Resolved) -> Path | None:
    """The finished run of the reference, trained now if it is not in the cache.

    Two runs that need the same one wait for each other; a killed training goes on where it stopped.

    Raises:
        DataError: the given folder holds no finished run, or training did not finish.
    """
    if "reference" not in resolved.policy.needs:
        return None
    if resolved.reference is not None:
        resolved.reference.run.data.prepare()
    folder = reference_folder(resolved)
    if resolved.reference_dir is None and (read_summary(folder) or {}).get("status") != "finished":
        assert resolved.reference is not None
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if (read_summary(folder) or {}).get("status") != "finished":
                print(f"training the reference {resolved.reference.run.arm!r} into {folder}", file=sys.stderr)
                if train_run(resolved.reference, folder, resume=True) == "interrupted":
                    raise KeyboardInterrupt
    summary = read_summary(folder)
    if summary is None or summary["status"] != "finished":
        raise DataError(f"{folder} holds no finished run to take as a reference: give a run folder or a .gin file")
    return folder


def pretrain_flops(reference_dir: Path | None) -> dict[str, int]:
    """FLOPs of the pre-training that a run stands on, by model."""
    if reference_dir is None:
        return {}
    summary = read_summary(reference_dir)
    assert summary is not None
    return {"reference": int(summary["flops"]["total"]) + sum(summary["pretrain_flops"].values())}


@contextmanager
def building() -> Iterator[None]:
    """Whatever a constructor refuses (timm's, torch's, ours) is a wrong configuration."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, ArithmeticError, AssertionError, RuntimeError, MemoryError) as error:
        said = str(error) if isinstance(error, ValueError) else f"cannot be built: {type(error).__name__}: {error}"
        raise ConfigError(said) from error


def train_run(resolved: Resolved, run_dir: Path, resume: bool) -> Status:
    """Train one arm into a folder; its reference first, where it needs one.

    Raises:
        ConfigError: the folder cannot be used, or the configuration cannot be built.
        DataError: the data is wrong or missing.
        NonFiniteLoss: the loss of a step is not finite.
    """
    going_on = open_folder(resolved, run_dir, resume)
    if going_on and (read_summary(run_dir) or {}).get("status") == "finished":
        return "finished"
    data = resolved.run.data
    data.prepare()
    reference_dir = ensure_reference(resolved)
    pretrain = pretrain_flops(reference_dir)
    try:
        with building():
            allowance = resolved.run.allowance(pretrain)
            reference = load_model(reference_dir) if reference_dir is not None else None
            stages = build_stages(resolved, data, reference, run_dir / "cache")
            _affordable(resolved, stages, allowance)
    except ConfigError:
        if not going_on:  # nothing has begun: the folder is free for the mended configuration
            shutil.rmtree(run_dir)
        raise
    progress = Progress()
    newest = checkpoint.newest(run_dir) if going_on else None
    step = -1 if newest is None else int(newest.name.removeprefix("step-"))
    Jsonl.cut(run_dir / "metrics.jsonl", step)
    recorder = Recorder(resolved, stages, allowance, run_dir, _metrics(resolved, run_dir))
    if newest is not None:
        recorder.restore(progress, newest)
    more = {
        "references": _references(reference_dir, pretrain),
        "data": _facts(resolved, stages),
        "warnings": _warned(resolved, stages),
    }
    status, failed = "failed", True
    try:
        with recorder.signals():
            status = train(resolved, stages, progress, allowance, recorder)
        failed = False
    finally:
        summary = recorder.summary(progress, status, pretrain, more)
        write_json(run_dir / SUMMARY, summary)
        recorder.metrics.close(summary, failed)
        stages.super_batches.close()
        if stages.scorer.reference is not None:
            stages.scorer.reference.close(remove=status == "finished")
    return "finished" if status == "finished" else "interrupted"


def _metrics(resolved: Resolved, run_dir: Path) -> Metrics:
    run = resolved.run
    sink = None
    if run.wandb.resolved() != "disabled":
        flat = dict(resolved.flat) | {"config_hash": resolved.config_hash}
        sink = WandBSink(run.wandb, run_dir, f"{run.arm}-seed{run.seed}", resolved.policy_name, flat, "")
    return Metrics(run_dir, sink, run.log, f"{run.arm} seed {run.seed}")


def _references(reference_dir: Path | None, pretrain: Mapping[str, int]) -> list[dict[str, Any]]:
    if reference_dir is None:
        return []
    summary = read_summary(reference_dir) or {}
    return [
        {
            "name": summary.get("arm") or "reference",
            "run_dir": str(reference_dir.resolve()),
            "pretrain_flops": pretrain["reference"],
        }
    ]


def _facts(resolved: Resolved, stages: Stages) -> dict[str, Any]:
    data = resolved.run.data
    facts: dict[str, Any] = {"data": type(data).__name__.lower(), "split": resolved.run.split}
    facts["pairs"] = stages.super_batches.pool
    facts["eval_images"] = len(stages.evaluator.index_N)
    facts["eval_classes"] = len(stages.evaluator.example_C)
    if hasattr(data, "noise"):
        facts["noise"] = data.noise
    return facts | dict(getattr(stages.pairs, "facts", {}))


def _affordable(resolved: Resolved, stages: Stages, allowance: Allowance) -> None:
    """Refuse a budget that one training pass alone overspends."""
    if allowance.flops is None:
        return
    one = 2 * sum(item.macs for item in stages.learner.training_passes(resolved.run.batch_size))
    if allowance.flops < one:
        raise ValueError(
            f"run.budget leaves {allowance.flops:.3g} FLOPs, less than one training step of "
            f"{resolved.run.batch_size} pairs costs ({one:.3g}): raise run.budget or lower run.batch_size"
        )


def _warned(resolved: Resolved, stages: Stages) -> list[str]:
    """What is doubtful about a run, said on stderr too."""
    mix: Mix = FULL_MIX
    if resolved.reference is not None:
        mix = resolved.reference.run.mix
    elif resolved.reference_dir is not None:
        mix = trained_mix(resolved.reference_dir)
    found = view_warnings(resolved, stages, mix)
    for warning in found:
        print(f"warning: {warning}", file=sys.stderr)
    return found


def stand_ins(resolved: Resolved) -> tuple[Dataset, TwoTowers | None]:
    """Data and reference as they are, or stand-ins of the same shape: nothing is fetched or trained."""
    data = resolved.run.data
    if not data.is_prepared():
        data = data.stand_in()
    if "reference" not in resolved.policy.needs:
        return data, None
    if resolved.reference_dir is not None:
        return data, load_model(resolved.reference_dir)
    assert resolved.reference is not None
    run = resolved.reference.run
    return data, run.model.build(data.split(resolved.run.split).tokenizer, run.loss, run.seed)


def without_download(resolved: Resolved) -> Resolved:
    """The same run from random weights, which cost the same."""
    plain = replace(resolved, run=replace(resolved.run, model=replace(resolved.run.model, pretrained=False)))
    return plain if plain.reference is None else replace(plain, reference=without_download(plain.reference))


def check(resolved: Resolved) -> None:
    """Build everything, score and update one tiny batch, print the operative configuration.

    Raises:
        ConfigError: the configuration cannot be built, or cannot do a step.
        DataError: the data does not fit it.
    """
    resolved = without_download(resolved)
    drawn = min(32, resolved.draw_size)
    count = max(1, resolved.run.batch_size * drawn // resolved.draw_size)
    with tempfile.TemporaryDirectory() as folder:
        with building():
            Arithmetic.of(resolved.run.device, resolved.run.precision)
            run = replace(resolved.run, device="cpu", reference_accounting="online", loader=Loader(workers=0))
            data, reference = stand_ins(resolved)
            stages = build_stages(replace(resolved, run=run), data, reference, Path(folder), drawn)
            if resolved.run.data.is_prepared() and stages.super_batches.pool is not None:
                SuperBatches(stages.pairs, resolved.draw_size, run.seed)
            _affordable(resolved, stages, resolved.run.allowance({}))
        _warned(resolved, stages)
        batch = stages.super_batches.at(0)
        try:
            scores = stages.scorer(batch, resolved.policy.needs)
            selection = choose(resolved.policy, scores, count, seeds.generator(run.seed, "check"))
            stages.learner.update(batch.take(selection.index_K), selection.weight_K, 0.5, update_seed(run.seed, 0))
        except (NonFiniteScore, NonFiniteLoss) as error:
            raise ConfigError(f"the untrained model cannot do one step: {error}") from error
    if resolved.reference is not None:
        check(resolved.reference)
    print(f"# arm {resolved.run.arm!r}, configuration {resolved.config_hash}\n{resolved.operative}")
