"""W&B offline: what it records is what the run folder holds; who is grouped with whom; examples; no key anywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import rows_of, summary_of
from PIL import Image
from planted_runs import write_run

from jestbench.batch import Batch, Selection
from jestbench.compare import report as compare_command
from jestbench.config import log, resolve
from jestbench.launch.command import main
from jestbench.runs import examples, wandb_run
from jestbench.runs.recorder import Recorder
from jestbench.select.draws import independent_draw, joint_draw
from jestbench.select.scores import Embeddings, Scores

wandb = pytest.importorskip("wandb")

KEY = "0123456789abcdef0123456789abcdef01234567"
WORLD = ["synthetic.pool=100", "synthetic.curated=64", "synthetic.holdout=64", "synthetic.eval=32"]
SMALL = ["run.batch_size=8", "run.super_batch_size=24", *WORLD, "run.device=cpu", "log.progress=False", "log.every=1"]
STEPS = ["run.budget=None", "budget.steps=4", "evaluate.points=2"]
REFERENCE = ("gin/run/tiny_reference.gin", *SMALL, "run.budget=3e8", "evaluate.points=1", "log.examples=0")
SETTINGS = ["wandb.entity=us", "wandb.project=mine", "wandb.tags=('icons','night')", "wandb.notes=why"]


def arm(policy: str) -> list[str]:
    return ["--gin_file", "gin/run/tiny.gin", "--gin_file", f"gin/policy/{policy}.gin", *SMALL, *STEPS]


# Reading back


def raw_records(file: Path) -> Iterator[bytes]:
    """The records of a ``.wandb`` file: LevelDB's log format behind 7 bytes (what wandb's own DataStore read)."""
    data, position, parts = file.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield parts
            parts = b""


@dataclass
class Recorded:
    """A W&B run as its file tells it."""

    folder: Path
    run: Any = None
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)

    def tables(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.folder.glob(f"files/media/table/{name}_*.json"))]


def items_of(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def recorded(folder: Path) -> list[Recorded]:
    """All W&B runs of a folder, oldest first."""
    found = [_recorded(file) for file in (folder / "wandb").glob("offline-run-*/run-*.wandb")]
    return sorted(found, key=lambda each: each.run.start_time.ToNanoseconds())


def _recorded(file: Path) -> Recorded:
    record = pytest.importorskip("wandb.proto.wandb_internal_pb2").Record
    parsed: list[Any] = []
    for _ in range(600):  # wandb's service writes the file a little after the run has ended
        parsed = [record.FromString(data) for data in raw_records(file)]
        if any(each.WhichOneof("record_type") == "exit" for each in parsed):
            break
        time.sleep(0.1)
    found = Recorded(file.parent)
    for each in parsed:
        kind = each.WhichOneof("record_type")
        if kind == "run":
            found.run = each.run
            found.config |= items_of(each.run.config.update)
        elif kind == "history":
            found.history.append(items_of(each.history.item))
        elif kind == "summary":
            found.summary |= items_of(each.summary.update)
        elif kind == "metric":
            found.steps[each.metric.name or each.metric.glob_name] = each.metric.step_metric
        elif kind == "files":
            found.files |= {each.path for each in each.files.files}
    return found


# The runs that the tests look at


@dataclass
class Runs:
    jest: Path
    reference: Path
    uniform: Path
    comparison: Path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """A jest arm under W&B's agent that trains its reference; a uniform arm, stopped and resumed; both compared."""
    folder = tmp_path_factory.mktemp("runs")
    sweep_parameters = folder / "agent.yaml"
    sweep_parameters.write_text("wandb_version: 1\nrun.seed:\n  value: 0\n")
    wandb.teardown()  # it remembers the environment of its first run
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "JESTBENCH_CACHE": str(folder / "cache"),
            "HOME": str(folder / "home"),
            "WANDB_MODE": "offline",
            "WANDB_API_KEY": KEY,
            "WANDB_SWEEP_ID": "sweep123",
            "WANDB_RUN_ID": "arm12345",
            "WANDB_SWEEP_PARAM_PATH": str(sweep_parameters),
        }.items():
            patch.setenv(name, value)
        asked = [*arm("jest"), *SETTINGS, f"run.reference={REFERENCE}", "log.examples=2", "log.examples_count=3"]
        assert main([*asked, "--run_dir", str(folder / "jest")]) == 0
        wandb.teardown()
        for name in ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"):
            patch.delenv(name)
        patch.setenv("WANDB_RUN_ID", "mine1234")
        patch.setenv("WANDB_RUN_GROUP", "night")
        patch.setenv("WANDB_PROJECT", "from_environment")
        command = [*arm("uniform"), "log.examples=1", "--run_dir", str(folder / "uniform")]
        with pytest.MonkeyPatch.context() as stopping:
            start = Recorder.start
            stopping.setattr(Recorder, "start", lambda self, at: (start(self, at), setattr(self, "stop_asked", True)))
            assert main(command) == 130
        assert main([*command, "--resume"]) == 0
        both = [str(folder / "jest"), str(folder / "uniform"), "--metric", "zero_shot_top5"]
        assert compare_command.main([*both, "--out", str(folder / "compared"), "--wandb"]) == 0
        (reference,) = (path.parent for path in (folder / "cache" / "models").glob("*/summary.json"))
        yield Runs(folder / "jest", reference, folder / "uniform", folder / "compared")
    wandb.teardown()


def plain(items: Mapping[str, Any]) -> dict[str, Any]:
    """Without what W&B adds, and without the table."""
    return {key: value for key, value in items.items() if not key.startswith(("_", "examples"))}


# What W&B records is what the run folder holds


def test_the_history_is_the_jsonl(runs: Runs) -> None:
    for folder in (runs.jest, runs.reference):
        (found,) = recorded(folder)
        assert [plain(row) for row in found.history] == rows_of(folder)
        assert found.steps["*"] == "flops/total"
    stopped, resumed = recorded(runs.uniform)
    assert [plain(row) for row in stopped.history + resumed.history] == rows_of(runs.uniform)


def test_the_summary_is_the_jsonls_last_values_and_the_summary_file(runs: Runs) -> None:
    (found,) = recorded(runs.jest)
    last: dict[str, Any] = {}
    for row in rows_of(runs.jest):
        last |= row
    assert plain(found.summary) == last | summary_of(runs.jest)


def test_a_branch_is_its_evaluations_over_its_rung(tmp_path: Path) -> None:
    """So that flops/total never goes back, and a run's last value stays that of its end."""
    words = [*arm("uniform")[:-2], "optimizer.schedule=ladder", "optimizer.rungs=(5e8, 1e9)", "run.budget=None"]
    more = ["wandb.mode=offline", "evaluate.points=1", "--run_dir", str(tmp_path / "run")]
    assert main([*words, *more]) == 0
    (found,) = recorded(tmp_path / "run")
    assert found.steps["ladder/eval/zero_shot_top5"] == "ladder/rung"
    rows = rows_of(tmp_path / "run")
    spent = [row["flops/total"] for row in found.history if "flops/total" in row]
    assert spent == [row["flops/total"] for row in rows if "ladder/rung" not in row] == sorted(spent)
    (rung,) = [row for row in found.history if "flops/total" not in row]
    end = [row for row in rows if "ladder/rung" in row][-1]
    logged = {f"ladder/{name}": value for name, value in end.items() if name.startswith("eval/")}
    assert {key: value for key, value in rung.items() if not key.startswith("_")} == logged | {"ladder/rung": 5e8}
    assert found.summary["eval/zero_shot_top1"] == rows[-1]["eval/zero_shot_top1"]


def test_the_config_is_the_operative_one_under_gins_names(runs: Runs) -> None:
    (found,) = recorded(runs.jest)
    resolved = resolve.resolve([str(runs.jest / "operative.gin")])
    expected = dict(resolved.flat) | {"config_hash": summary_of(runs.jest)["config_hash"]}
    known = {key: value for key, value in found.config.items() if key != "_wandb"}
    assert known == expected
    assert {"jest.chunks", "run.seed", "optimizer.learning_rate", "wandb.tags"} <= known.keys()
    assert {"config.gin", "operative.gin"} <= found.files
    assert (found.folder / "files" / "operative.gin").read_text() == (runs.jest / "operative.gin").read_text()


def test_integers_that_no_browser_holds_are_floats() -> None:
    safe = wandb_run._safe({"flops": {"total": 2**60 + 1, "eval": 3}, "seeds": [1, 2**60], "yes": True})
    assert safe == {"flops": {"total": float(2**60), "eval": 3}, "seeds": [1, float(2**60)], "yes": True}
    assert isinstance(safe["flops"]["total"], float)
    assert isinstance(safe["flops"]["eval"], int)
    assert safe["yes"] is True


# Who is grouped with whom


def test_an_arm_keeps_the_agents_run_though_its_reference_runs_first(runs: Runs) -> None:
    (jest,), (reference,) = recorded(runs.jest), recorded(runs.reference)
    assert (jest.run.run_id, jest.run.sweep_id) == ("arm12345", "sweep123")
    assert reference.run.run_id != "arm12345"
    assert reference.run.sweep_id == ""
    assert jest.run.run_group == reference.run.run_group == "sweep123"
    assert (jest.run.job_type, reference.run.job_type) == ("jest", "reference")
    assert (jest.run.display_name, reference.run.display_name) == ("jest-seed0", "tiny_reference-seed0")
    assert reference.run.project == "mine"
    for run in (jest.run, reference.run):
        assert (list(run.tags), run.notes) == (["icons", "night"], "why")


def test_a_wrong_name_of_a_project_is_not_mended_by_a_login(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*arm("uniform"), "wandb.mode=offline", "wandb.project=a/b"]
    assert main([*words, "--run_dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "Invalid project name" in said
    assert "log in" not in said
    assert not (tmp_path / "run").exists()


def test_the_name_in_the_environment_is_the_arms_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(wandb, "init", lambda **given: names.append(given["name"]))
    monkeypatch.setenv("WANDB_NAME", "night run")
    for label in (wandb_run.Label("jest-seed0", "jest"), wandb_run.Label("r-seed0", "reference", in_sweep=False)):
        wandb_run.start_wandb(log.WandB(), tmp_path, label, {})
    assert names == ["night run", "r-seed0"]


def test_a_resumed_run_is_another_run_of_the_group(runs: Runs) -> None:
    stopped, resumed = recorded(runs.uniform)
    assert stopped.run.run_id == "mine1234"  # the user's own
    assert resumed.run.run_id != stopped.run.run_id
    assert stopped.run.run_group == resumed.run.run_group == "night"
    assert stopped.run.job_type == resumed.run.job_type == "uniform"
    assert (stopped.run.display_name, resumed.run.display_name) == ("uniform-seed0", "uniform-seed0-from0")
    assert stopped.run.project == "from_environment"


@pytest.mark.parametrize(
    ("mode", "environment", "expected"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_SWEEP_ID": "x"}, "online"),
        ("auto", {"WANDB_SWEEP_ID": "x", "WANDB_MODE": "offline"}, "offline"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("auto", {"WANDB_MODE": "run"}, "online"),
        ("auto", {"WANDB_MODE": ""}, "offline"),
        ("auto", {"WANDB_MODE": "disabled"}, "disabled"),
        ("online", {"WANDB_MODE": "disabled"}, "online"),
    ],
)
def test_modes(monkeypatch: pytest.MonkeyPatch, mode: Any, environment: dict[str, str], expected: str) -> None:
    for name in ("WANDB_MODE", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert log.WandB(mode=mode).resolved() == expected


def test_online_without_a_key_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", refuses)
    asked = [*arm("uniform"), "wandb.mode=online", "--run_dir", str(tmp_path / "run")]
    assert main(asked) == 2
    err = capsys.readouterr().err
    assert "No API key configured" in err
    assert "wandb.mode=offline" in err
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("binding", ["wandb.tags=('',)", "wandb.tags=abc", "log.examples=-1", "log.examples_count=0"])
def test_wrong_settings_are_refused(binding: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arm("uniform"), binding, "--check"]) == 2
    assert binding.split("=")[0] in capsys.readouterr().err


# The comparison


def test_the_comparison_is_one_summary_run(runs: Runs) -> None:
    (found,) = recorded(runs.comparison)
    assert (found.run.job_type, found.run.run_group) == ("comparison", "night")
    assert found.run.run_id != "mine1234"
    document = json.loads((runs.comparison / "comparison.json").read_text())
    (table,) = found.tables("comparison")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["label"] for row in rows] == [arm["label"] for arm in document["arms"]]
    for row, arm_found in zip(rows, document["arms"], strict=True):
        for key in ("mean", "difference", "verdict", "flops_total"):
            assert row[key] == arm_found[key]
        for axis, speedup in arm_found["speedup"].items():
            assert row[f"speedup/{axis}"] == speedup["value"]
            assert row[f"speedup/{axis}/kind"] == speedup["kind"]
        assert found.summary[f"{row['label']}/mean"] == arm_found["mean"]
    (frontier,) = (table for table in found.tables("frontier") if "seeds" in table["columns"])
    points = [dict(zip(frontier["columns"], row, strict=True)) for row in frontier["data"]]
    assert [(p["arm"], p["mean"], p["low"]) for p in points] == [
        (p["arm"], p["mean"], p["low"]) for p in document["frontier"]
    ]
    assert list(found.folder.rglob("frontier_panel*"))
    assert found.config["metric"] == "eval/zero_shot_top5"
    assert {f"plots/{name}/path" for name in ("metric_vs_flops", "overview")} <= found.summary.keys()
    (page,) = (found.folder / "files" / "media" / "html").glob("report_*.html")
    assert page.read_text() == (runs.comparison / "index.html").read_text()
    assert (found.folder / "files" / "comparison.json").exists()


def test_every_world_has_its_own_table_and_frontier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for noise, arms in ((0.2, ("uniform", "jest", "rho")), (0.6, ("uniform", "jest"))):
        for arm_name in arms:
            points = [(0, 0.0), (100, 0.4 + noise)]
            write_run(tmp_path / f"runs/{arm_name}{noise}", points, arm=arm_name, data={"noise": noise})
    command = [str(tmp_path / "runs"), "--metric", "top1", "--out", str(tmp_path / "out"), "--wandb"]
    # Names differ, or the second world's runs would repeat those of the first.
    for path in (tmp_path / "runs").glob("*0.6/summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"config_hash": path.parent.name}))
    assert compare_command.main(command) == 0
    (found,) = recorded(tmp_path / "out")
    sizes = {before: len(found.tables(f"{before}comparison")[0]["data"]) for before in ("", "world_2/")}
    assert sizes == {"": 3, "world_2/": 2}
    assert found.summary["uniform/mean"] == pytest.approx(0.6)
    assert found.summary["world_2/uniform/mean"] == 1.0
    assert found.summary["world_2/noise"] == "0.6"
    assert found.tables("world_2/frontier")


def test_a_comparison_that_is_disabled_leaves_nothing(runs: Runs, tmp_path: Path) -> None:
    both = [str(runs.jest), str(runs.uniform), "--metric", "zero_shot_top5", "--out", str(tmp_path / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        assert compare_command.main([*both, "--wandb"]) == 0
    assert not (tmp_path / "out" / "wandb").exists()
    assert (tmp_path / "out" / "comparison.json").exists()


# No key anywhere


def test_no_key_is_written_anywhere(runs: Runs) -> None:
    files = [path for path in runs.jest.parent.rglob("*") if path.is_file()]
    assert len([path for path in files if path.suffix == ".wandb"]) == 5
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert not (runs.jest.parent / "home" / ".netrc").exists()


def test_the_pictures_of_an_offline_run_lie_in_its_own_folder(runs: Runs) -> None:
    assert not list((runs.jest.parent / "home").rglob("staging"))
    (found,) = recorded(runs.jest)
    assert any((found.folder / "artifacts" / "staging").iterdir())


# Examples


def test_examples_lie_on_the_disk_and_in_wandb(runs: Runs) -> None:
    names = sorted(path.name for path in (runs.jest / "examples").iterdir())
    steps = (1, 2, 4)  # after the first step, then twice over the budget
    assert names == ["index.html", *(f"step-{step:010d}.{kind}" for step in steps for kind in ("json", "npz", "png"))]
    (found,) = recorded(runs.jest)
    tables = {table["data"][0][0]: table for table in found.tables("examples")}
    assert sorted(tables) == list(steps)
    for step in steps:
        document = json.loads((runs.jest / "examples" / f"step-{step:010d}.json").read_text())
        pairs = document["examples"]
        assert [pair["chosen"] for pair in pairs] == [True] * 3 + [False] * 3
        columns = tables[step]["columns"]
        assert columns[:5] == ["step", "image", "caption", "chosen", "score"]
        assert set(columns[5:]) == set(pairs[0]["marks"]) >= {"noisy", "curated"}
        for row, pair in zip(tables[step]["data"], pairs, strict=True):
            assert row[2:5] == [pair["caption"], pair["chosen"], pair["score"]]
            assert row[5:] == list(pair["marks"].values())
        page = (runs.jest / "examples" / "index.html").read_text()
        assert all(pair["caption"] in page for pair in pairs)
        assert f"step-{step:010d}.png" in page
    logged = [row["step"] for row in found.history if any(key.startswith("examples/") for key in row)]
    assert logged == list(steps)
    assert "examples/index.html" in (runs.comparison / "index.html").read_text()


def test_a_policy_that_scores_nothing_shows_what_it_trained_on(runs: Runs) -> None:
    document = json.loads((runs.uniform / "examples" / "step-0000000004.json").read_text())
    assert {pair["chosen"] for pair in document["examples"]} == {True}
    assert {pair["score"] for pair in document["examples"]} == {None}


def test_examples_change_nothing_else(runs: Runs, tmp_path: Path) -> None:
    (reference,) = [runs.reference]
    for name, count in (("with", 2), ("without", 0)):
        command = [*arm("jest"), f"run.reference={reference}", "wandb.mode=disabled", f"log.examples={count}"]
        assert main([*command, "--run_dir", str(tmp_path / name)]) == 0
    with_rows, without_rows = (
        [{key: value for key, value in row.items() if key != "time/seconds"} for row in rows_of(tmp_path / name)]
        for name in ("with", "without")
    )
    assert with_rows == without_rows  # the ledger, the choices and the losses
    assert summary_of(tmp_path / "with")["config_hash"] == summary_of(tmp_path / "without")["config_hash"]
    assert (tmp_path / "with" / "examples").is_dir()
    assert not (tmp_path / "without" / "examples").exists()


def batch_of(size: int, channels: int = 3, captions: tuple[str, ...] | None = None) -> Batch:
    """Image i is all i; pair i is noisy where i is odd."""
    images = torch.arange(size, dtype=torch.uint8)[:, None, None, None].expand(size, channels, 4, 6)
    keys = torch.arange(size)
    marks = {"noisy": keys % 2 == 1}
    return Batch(
        images, {}, keys, keys, marks, tuple(f"pair {i}" for i in range(size)) if captions is None else captions
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_picked_pairs_are_what_they_say(tmp_path: Path, channels: int) -> None:
    batch, score_B = batch_of(40, channels), torch.arange(40.0) % 7
    selection = Selection(torch.arange(0, 40, 3), score_B=score_B)
    table = examples.pick(9, batch, selection, 10, torch.Generator().manual_seed(0))
    assert len(table.examples) == 20
    positions = []
    for pair in table.examples:
        position = int(pair.caption.removeprefix("pair "))
        positions.append(position)
        assert int(pair.image_CHW[0, 0, 0]) == position
        assert pair.chosen == (position % 3 == 0)
        assert pair.score == position % 7
        assert pair.marks == {"noisy": position % 2 == 1}
    assert len(set(positions)) == 20
    for kind in (table.examples[:10], table.examples[10:]):
        scores = [pair.score for pair in kind]
        assert scores == sorted(scores, reverse=True)
    again = examples.pick(9, batch, selection, 10, torch.Generator().manual_seed(0))
    other = examples.pick(9, batch, selection, 10, torch.Generator().manual_seed(1))
    assert [pair.caption for pair in again.examples] == [pair.caption for pair in table.examples]
    assert [pair.caption for pair in other.examples] != [pair.caption for pair in table.examples]
    examples.save(table, tmp_path)
    document = json.loads((tmp_path / "examples" / "step-0000000009.json").read_text())
    with Image.open(tmp_path / "examples" / document["sheet"]) as sheet:
        for position, pair in zip(positions, document["examples"], strict=True):
            for corner in ((0, 0), (document["width"] - 1, document["height"] - 1)):
                at = (pair["left"] + corner[0], pair["top"] + corner[1])
                assert sheet.getpixel(at) == (position, position, position)


def test_few_pairs_and_odd_ones(tmp_path: Path) -> None:
    selection = Selection(torch.tensor([2, 0]), score_B=torch.tensor([0.0, -torch.inf, 1.0]))
    batch = batch_of(3, captions=("<b>", "ü\n", "\U0001f600"))
    table = examples.pick(1, batch, selection, 8, torch.Generator())
    assert [(pair.caption, pair.score) for pair in table.examples] == [("\U0001f600", 1.0), ("<b>", 0.0), ("ü\n", None)]
    examples.save(table, tmp_path)
    page = (tmp_path / "examples" / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    nameless = examples.pick(2, batch_of(3, captions=()), Selection(torch.tensor([1])), 8, torch.Generator())
    assert [pair.chosen for pair in nameless.examples] == [True, False, False]
    assert {(pair.caption, pair.score) for pair in nameless.examples} == {("", None)}
    examples.save(nameless, tmp_path)
    assert page != (tmp_path / "examples" / "index.html").read_text(encoding="utf-8")


def test_the_score_of_a_draw_costs_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    score_B = torch.randn(12, generator=random)
    assert independent_draw(score_B, 4, generator=random).score_B is score_B
    parts = [torch.nn.functional.normalize(torch.randn(12, 5, generator=random), dim=-1) for _ in range(4)]
    scores = Scores(Embeddings(*parts[:2], 10.0), Embeddings(*parts[2:], 8.0), loss="softmax")
    draw = joint_draw(scores, 4, chunks=2, generator=random)
    spent = scores.meter.macs
    assert draw.score_B is not None
    torch.testing.assert_close(draw.score_B, scores.learnability_B())
    assert scores.meter.macs > spent  # asking again would have cost
