"""Checkpoints prove themselves: what was changed after they were written is found, and an older one takes its place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import kill_before, own_surroundings, rows_of, summary_of, timeless

from jestbench.batch import DataError
from jestbench.disk import PROJECT
from jestbench.launch.command import main
from jestbench.runs.checkpoint import MANIFEST, damage, newest_whole
from jestbench.runs.folder import RunFolder
from jestbench.runs.saved_model import towers_of

TINY = [
    *("--gin_file", str(PROJECT / "gin/run/tiny.gin"), "run.batch_size=8", "run.super_batch_size=24"),
    *("synthetic.pool=100", "synthetic.curated=64", "synthetic.holdout=64", "synthetic.eval=32", "run.budget=None"),
    *("budget.steps=8", "run.checkpoints=8", "log.every=1", "log.progress=False", "wandb.mode=disabled"),
    *("run.device=cpu", "evaluate.points=2", "run.policy=hard_learner", "run.arm=hard"),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ended after step 6: checkpoints of steps 5 and 6. Beside it the same run, uninterrupted."""
    with own_surroundings(tmp_path_factory):
        folder = tmp_path_factory.mktemp("runs")
        assert main([*TINY, "--run_dir", str(folder / "whole")]) == 0
        kill_before(6, [*TINY, "--run_dir", str(folder / "killed")])
    return folder / "killed"


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def swap(file: Path) -> None:
    (older, newer) = sorted(file.parent.parent.iterdir())[-2:]
    shutil.copy2(older / file.name, newer / file.name)


FAULTS = {"is missing": Path.unlink, " of ": cut, "0 of": empty, "other bytes": flip, "other bytes ": swap}


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "model.json"])
@pytest.mark.parametrize("said", FAULTS)
def test_a_damaged_checkpoint_is_passed_over(
    killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str, name: str
) -> None:
    fault: Callable[[Path], object] = FAULTS[said]
    shutil.copytree(killed, tmp_path / "run")
    newest = RunFolder(tmp_path / "run").newest_checkpoint()
    assert newest is not None
    if (said, name) == ("other bytes ", "model.json"):
        pytest.skip("two checkpoints of a run describe one model")
    fault(newest / name)
    assert main([*TINY, "--run_dir", str(tmp_path / "run"), "--resume"]) == 0
    warned = capsys.readouterr().err
    assert f"checkpoint passed over: {newest.name}: {name} " in warned
    assert said.strip() in warned
    assert timeless(rows_of(tmp_path / "run")) == timeless(rows_of(killed.parent / "whole"))


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"files": {}}', '{"files": {"state.pt": 3}}'])
def test_a_checkpoint_without_a_manifest_is_not_whole(killed: Path, tmp_path: Path, content: str | None) -> None:
    shutil.copytree(killed, tmp_path / "run")
    older, newest = RunFolder(tmp_path / "run").whole_checkpoints()
    if content is None:
        (newest / MANIFEST).unlink()
    else:
        (newest / MANIFEST).write_text(content)
    assert damage(older) == ""
    assert damage(newest)
    found, passed = newest_whole(tmp_path / "run")
    assert found == older
    assert passed[0].startswith(f"{newest.name}: ")


def test_where_none_is_whole_nothing_is_touched(
    killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(killed, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    for checkpoint in folder.whole_checkpoints():
        flip(checkpoint / "state.pt")
    before = folder.metrics_jsonl.read_bytes()
    assert main([*TINY, "--run_dir", str(folder.path), "--resume"]) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "holds no whole checkpoint (step-0000000006: state.pt holds other bytes" in said[0]
    assert "step-0000000005: state.pt" in said[0]
    assert folder.metrics_jsonl.read_bytes() == before


def test_metrics_are_cut_only_after_the_checkpoint_was_loaded(killed: Path, tmp_path: Path) -> None:
    """A tokenizer of another size is refused when the checkpoint is read: until then all rows stand there."""
    shutil.copytree(killed, tmp_path / "run")
    metrics = RunFolder(tmp_path / "run").metrics_jsonl
    with metrics.open("a") as file:
        file.write('{"step": 7, "train/loss": 1.0}\n')
    before = metrics.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jestbench.runs.recorder.Recorder._data", lambda _: {"the data": "others"})
        assert main([*TINY, "--run_dir", str(tmp_path / "run"), "--resume"]) == 3
    assert metrics.read_bytes() == before


def test_what_a_run_has_written_beside_its_checkpoints_stops_no_resume(
    killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(killed, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.summary_json.write_text("{")
    lines = folder.metrics_jsonl.read_text().splitlines(keepends=True)
    folder.metrics_jsonl.write_bytes("".join([*lines[:2], "garbage\xff\n", *lines[2:]]).encode("latin-1"))
    newest = folder.newest_checkpoint()
    assert newest is not None
    shutil.copytree(newest, newest.with_name(f"{newest.name}.bak"))  # by hand, before something is tried
    assert main([*TINY, "--run_dir", str(folder.path), "--resume"]) == 0
    said = capsys.readouterr().err
    assert "summary.json" in said
    assert "line 3 is not a row and is left out" in said
    assert summary_of(folder.path)["status"] == "finished"
    assert timeless(rows_of(folder.path)) == timeless(rows_of(killed.parent / "whole"))


def test_a_reference_whose_weights_were_changed_is_refused(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed.parent / "whole", tmp_path / "run")
    towers_of(tmp_path / "run")
    newest = RunFolder(tmp_path / "run").newest_checkpoint()
    assert newest is not None
    flip(newest / "model.safetensors")
    with pytest.raises(DataError, match=r"model\.safetensors holds other bytes than were written"):
        towers_of(tmp_path / "run")
