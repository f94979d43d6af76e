"""The files of a run folder: named in one place, and read back as far as they go."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import PIL
import pytest
from pretended_device import Pretended

from jestbench.disk import DataError
from jestbench.evals.measure import Measure
from jestbench.runs import checkpoint
from jestbench.runs.checkpoint import Place
from jestbench.runs.environment import environment
from jestbench.runs.folder import RUNG, RunFolder
from jestbench.runs.summary import ReferenceEntry, ScheduleRecord, Summary
from jestbench.select import kernels

PACKAGE = Path(__file__).resolve().parents[2] / "jestbench"
NAMES = re.compile(
    r'"(?:[^"\s]*/)?(?:config\.gin|operative\.gin|environment\.json|metrics\.jsonl|summary\.json)"'
    r'|"examples/index\.html"|/ "(?:checkpoints|examples)"|"model\.(?:json|safetensors)"'
)

SUMMARY = Summary(
    arm="jest",
    policy="jest",
    config_hash="c0ffee",
    frontier_hash="decaf",
    schedule=ScheduleRecord("ladder", (5, 7), 0.2),
    seed=3,
    status="finished",
    steps=2,
    pairs_seen=20,
    pairs_trained=4,
    budget=None,
    overshoot=None,
    flops={"total": 2**60 + 1},
    macs_total=2**59,
    flops_amortised=0,
    pretrain_flops={"reference": 5, "scorer": 2},
    pretrain_in_budget=5,
    added_to_budget=0,
    seconds=1.5,
    learning_rate=1e-3,
    measures={"eval/mse": Measure(0.0, None), "eval/top1": Measure(0.0, 1.0, 32)},
    metrics={"eval/mse": 0.5},
    references=(ReferenceEntry("base", "refs/base", 5),),
    data={"noise": 0.4, "pairs": None},
    warnings=("of the data",),
    control=False,
    fingerprints={"training": "t", "evaluation": "e"},
)


def test_names_of_files_stand_in_one_place() -> None:
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if NAMES.search(path.read_text())}
    assert found == {"runs/folder.py", "runs/saved_model.py"}


def test_without_git_a_run_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jestbench.runs.environment.IS_CHECKOUT", True)
    (tmp_path / "git").write_text("#!/bin/sh\necho 1234abc-dirty\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment("cpu", "fp32")["commit"] == "1234abc-dirty"
    (tmp_path / "git").unlink()
    assert environment("cpu", "fp32")["commit"] is None


# The summary


def test_a_summary_comes_back_as_it_was_written(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.summary() is None
    assert not folder.has_finished()
    folder.write_summary(SUMMARY)
    assert folder.summary() == SUMMARY
    assert folder.has_finished()
    assert "cache" not in json.loads(folder.summary_json.read_text())
    assert (SUMMARY.pretrain_total, SUMMARY.flops_all_in) == (7, 2**60 + 8)


def test_other_keys_of_a_summary_are_left_out() -> None:
    assert Summary.from_json(plain() | {"later": 1}) == SUMMARY


def plain() -> dict[str, Any]:
    return json.loads(json.dumps(SUMMARY.to_json()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": None}, "'seed' is None, not a whole number"),
        ({"seed": True}, "'seed' is True, not a whole number"),
        ({"steps": 1.5}, "'steps' is 1.5, not a whole number"),
        ({"budget": "1e9"}, "'budget' is '1e9', not a whole number"),
        ({"seconds": "1"}, "'seconds' is '1', not a number"),
        ({"arm": 1}, "'arm' is 1, not a text"),
        ({"status": "done"}, "'status' is 'done', not one of ('finished', 'interrupted', 'failed')"),
        ({"flops": 7}, "'flops' is 7, not an object"),
        ({"flops": {"total": "7"}}, "'flops.total' is '7', not a whole number"),
        ({"warnings": "w"}, "'warnings' is 'w', not a list"),
        ({"warnings": ["w", 1]}, "'warnings[1]' is 1, not a text"),
        ({"measures": {"eval/mse": {"low": "0"}}}, "'measures.eval/mse.low' is '0', not a number"),
        ({"references": [7]}, "'references[0]' is 7, not an object"),
        ({"references": [{"name": "base", "run_dir": "refs"}]}, "'references[0].pretrain_flops' is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_field_that_does_not_fit_is_named(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    folder = RunFolder(tmp_path)
    folder.summary_json.write_text(json.dumps(plain() | fields))
    with pytest.raises(DataError) as caught:
        folder.summary()
    assert str(caught.value) == f"{folder.summary_json.as_posix()}: {message}"


@pytest.mark.parametrize("field", sorted(plain()))
def test_no_field_of_a_summary_has_a_default(field: str) -> None:
    document = plain()
    del document[field]
    with pytest.raises(ValueError, match=f"^'{field}' is missing$"):
        Summary.from_json(document)


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "not a JSON object"), ("null", "not a JSON")])
def test_a_file_that_is_no_summary_is_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = RunFolder(tmp_path)
    folder.summary_json.write_text(text)
    with pytest.raises(DataError, match=message):
        folder.summary()
    folder.summary_json.unlink()
    folder.summary_json.mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        folder.has_finished()


# Rows, environment, checkpoints


def test_rows_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_rows() == ((), ("metrics.jsonl is missing",))
    assert not folder.is_run_folder()
    lines = [
        '{"step": 0, "eval/top1": 0.1, "text": "left out", "flag": true}',
        "[1]",
        '{"step": 2, "loss": 3.5}',
        '{"step": 4, "loss": 2.5, "eval/top1": 0.9}',
        '{"step": 3, "loss": 3.0}',  # taken again after a resume at step 2
        '{"step": 3, "eval/top1": 0.2}',
        '{"step": 4, "lo',
    ]
    folder.metrics_jsonl.write_text("\n".join(lines))
    rows, problems = folder.read_rows()
    assert rows == ({"step": 0, "eval/top1": 0.1}, {"step": 2, "loss": 3.5}, {"step": 3, "loss": 3.0, "eval/top1": 0.2})
    assert [problem.partition(": ")[2] for problem in problems] == [
        "line 2 is not a row and is left out",
        "the last line is torn and is left out",
    ]
    assert folder.is_run_folder()
    assert (folder.final_value("eval/top1"), folder.final_value("loss"), folder.final_value("none")) == (0.2, 3.0, None)


def test_rows_of_branches_stand_where_they_were_run(tmp_path: Path) -> None:
    """A branch runs ahead of the trunk; a resume repeats what follows its checkpoint, on the trunk and in branches."""
    folder = RunFolder(tmp_path)

    def read(*rows: tuple[int, int]) -> list[tuple[int, int]]:
        lines = [
            json.dumps({"step": step, "n": n} | ({RUNG: rung} if rung else {})) for n, (rung, step) in enumerate(rows)
        ]
        folder.metrics_jsonl.write_text("\n".join(lines) + "\n")
        return [(int(row.get(RUNG, 0)), int(row["step"])) for row in folder.read_rows()[0]]

    straight = [(0, 1), (0, 2), (5, 3), (5, 4), (0, 3), (9, 4), (0, 4), (0, 5)]
    assert read(*straight) == straight
    assert folder.final_value("n") == 7
    assert read(*straight[:6]) == straight[:6]
    assert folder.final_value("n") == 4, "of the trunk"
    for cut in range(2, len(straight) + 1):
        assert read(*straight[:cut], *straight[1:]) == straight, "from a checkpoint on the trunk"
        if cut > 3:
            assert read(*straight[:cut], *straight[2:]) == straight, "as a branch was entered"
            assert read(*straight[:cut], *straight[3:]) == straight, "in a branch"


def test_an_environment_that_cannot_be_read_is_empty(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.environment() == {}
    for text in ("{", "[]"):
        folder.environment_json.write_text(text)
        assert folder.environment() == {}
    folder.environment_json.write_text('{"threads": 2}')
    assert folder.environment() == {"threads": 2}


def test_the_environment_has_the_runs_number_format_and_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    found = environment("cpu", "auto")
    assert found["attention"] == {"fused": True, "kernels": ["flash", "memory_efficient", "cudnn", "math"]}
    assert {"open_clip_torch", "transformers", "tokenizers", "pillow"} <= set(found["versions"])
    assert found["versions"]["pillow"] == PIL.__version__
    assert (found["device"], found["number_format"], found["kernels"]) == ("cpu", "fp32", {"strips": "torch"})
    monkeypatch.setenv("JESTBENCH_FUSED", "0")
    with Pretended():
        assert environment("cpu", "auto")["device"] == "cpu", "the run's device, not the machine's best one"
        there = environment("auto", "auto")
        assert (there["device"], there["number_format"], there["kernels"]) == ("Pretended", "bf16", {"strips": "torch"})
        monkeypatch.setattr(kernels, "usable", lambda embeddings_BD: embeddings_BD.is_cuda)
        assert environment("cuda:0", "fp32")["kernels"] == {"strips": "triton"}
        assert environment("cuda:0", "fp32")["number_format"] == "fp32"


def test_only_whole_checkpoints_count(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.newest_checkpoint() is None
    for name in ("step-0000000009", "step-0000000010", ".partial-1"):
        (folder.checkpoints / name).mkdir(parents=True)
    assert folder.newest_checkpoint() == folder.checkpoints / "step-0000000010"


def test_checkpoints_stand_in_the_order_of_the_run(tmp_path: Path) -> None:
    """Two rungs that leave the trunk at one step, and the trunk after each of them."""
    order = [Place(9), Place(40), Place(41, 0, 40), Place(147, 0, 40), Place(40, 1), Place(47, 1, 40), Place(40, 2)]
    order += [Place(41, 2), Place(112, 2, 100), Place(100, 3)]
    assert [Place.of(tmp_path / place.name) for place in order] == order
    for place in order[::-1]:
        (tmp_path / "checkpoints" / place.name).mkdir(parents=True)
    assert [Place.of(path) for path in RunFolder(tmp_path).whole_checkpoints()] == order


def test_only_the_newest_checkpoints_are_kept_and_what_their_branches_left(tmp_path: Path) -> None:
    kept = []
    for place in (Place(0), Place(8), Place(9, 0, 8), Place(10, 0, 8), Place(8, 1), Place(9, 1), Place(10, 1)):
        checkpoint.write(tmp_path, place, lambda folder: None)
        kept.append({Place.of(path) for path in RunFolder(tmp_path).whole_checkpoints()})
    assert kept[1] == {Place(0), Place(8)}
    assert kept[3] == {Place(8), Place(9, 0, 8), Place(10, 0, 8)}
    assert kept[4] == {Place(8), Place(10, 0, 8), Place(8, 1)}
    assert kept[6] == {Place(9, 1), Place(10, 1)}


def test_of_a_long_file_every_evaluation_and_the_last_row_are_read(tmp_path: Path) -> None:
    """What is not parsed is whole, and holds nothing that a comparison is made of."""
    rows = [{"step": step, "flops/total": 7 * step, "select/entropy": 1 / step} for step in range(1, 1001)]
    for row in rows[99::100]:
        row["eval/top1"] = row["step"] / 1000
    rows.insert(450, {"step": 451, RUNG: 3000, "flops/total": 3157, "eval/top1": 0.7})
    lines = [json.dumps(row) for row in rows]
    lines[300] = lines[300][:20]  # torn, and gone on with
    folder = RunFolder(tmp_path)
    folder.metrics_jsonl.write_text("\n".join(lines) + '\n{"step": 1001, "eva')
    (plain, problems), (few, said) = folder.read_rows(), folder.read_rows(most=50)
    assert said == problems
    assert len(problems) == 2
    assert len(few) < 90 < len(plain) == 1000
    evaluated = [row for row in plain if "eval/top1" in row]
    assert [row for row in few if "eval/top1" in row] == evaluated
    assert len(evaluated) == 11
    assert few[-1] == plain[-1]
    assert [row for row in few if row in plain] == list(few)
    gaps = [later["step"] - row["step"] for row, later in pairwise(few)]
    assert max(gaps) <= 2 * -(-1002 // 50)
    assert folder.read_rows(most=5000) == (plain, problems)
