"""What is made for the icon-sized demonstration is warned of beside another model, and there alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers import small_world, summary_of

from jestbench.config import grammar, resolve
from jestbench.launch import demonstration_warnings
from jestbench.launch.command import main
from jestbench.launch.demonstration_warnings import Proportions, toy_warnings, view_size_warnings
from jestbench.launch.forecast import RunForecast

POLICY_FILES = sorted(Path("gin/policy").glob("*.gin"))
LARGER = ("model.image_options={'depth': 1}", "model.text_layers=1", "run.batch_size=64", "run.super_batch_size=320")
"""Beside gin/run/cc3m.gin: one block of each of its towers, which is far more than the demonstration's still."""


def bound(policy: Path) -> dict[str, object]:
    return {binding.key: binding.value for binding in grammar.read_file(policy)}


def one_of_each() -> list[Path]:
    """A policy file for each reference, scorer and view that the files bind."""
    kinds: dict[str, Path] = {}
    for path in POLICY_FILES:
        parts = {key: value for key, value in bound(path).items() if "view" in key or key.endswith((".scorer", "ence"))}
        if parts:
            kinds.setdefault(repr(parts), path)
    return list(kinds.values())


def found(files: list[str], *bindings: str) -> tuple[set[str], list[str]]:
    """Roles and views that are warned of."""
    forecast = RunForecast.of(resolve.resolve(files, ["run.device=cpu", *bindings]))
    resolved, stages = forecast.resolved, forecast.stages
    steps = {role: below.steps for role, below in forecast.below.items() if role in resolved.scored_by}
    toys = toy_warnings(resolved, Proportions.of(resolved, stages), steps)
    return set(toys), view_size_warnings(resolved, stages)


EACH_KIND = ("flexi_jest", "cappy", "active_clip", "rho_loss")
"""A reference, a scorer, an online scorer and a view that are warned of; the slow tests have every file."""


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=() if path.stem in EACH_KIND else pytest.mark.slow)
        for path in one_of_each()
    ],
)
def test_the_files_of_the_demonstration_are_warned_of_beside_a_larger_model_alone(path: Path) -> None:
    small = ["run.super_batch_size=320"] if path.stem.startswith("cascade") else []
    assert found(["gin/run/icons.gin", str(path)], *small) == (set(), [])
    whole = ["cheap/view.resolution=32"] if path.stem == "jest_lowres" else []  # 24 px are refused: no whole patches
    toys, views = found(["gin/run/cc3m.gin", str(path)], *LARGER, *whole)
    keys = bound(path)
    scored = {"reference": "run.reference" in keys and path.stem != "uniform_curated", "scorer": path.stem == "cappy"}
    assert toys == {role for role, is_there in scored.items() if is_there} | (
        {"online"} if path.stem == "active_clip" else set()
    )
    assert len(views) == ("cheap/view.resolution" in keys)


def test_one_of_each_is_many() -> None:
    names = {path.stem for path in one_of_each()}
    assert len(names) < 20
    assert {*EACH_KIND, "uniform_flexi", "rho_loss_twin"} <= names


def test_a_reference_of_ones_own_and_views_of_the_model_are_not_warned_of() -> None:
    views = ("[(0.5, @view()), (0.5, @cheap/view())]", "cheap/view.patch_size=32", "cheap/view.resolution=224")
    small = ("model.image_options={'depth': 1}", "model.text_layers=1")
    own = ("gin/run/cc3m_reference.gin", f"run.train_views={views[0]}", *views[1:], *small)
    files = ["gin/run/cc3m.gin", "gin/policy/flexi_jest.gin"]
    assert found(files, *LARGER, *views[1:], f"run.reference={own!r}") == (set(), [])
    (said,) = found(files, *LARGER, f"run.reference={own!r}")[1]
    assert said.startswith("run.train_views and run.score_view and run.reference_view: a view of patch 12 px")
    assert "leaves the learner 9 of its 196 patches, of an image of 36 instead of 224 px" in said
    assert "bind cheap/view.patch_size = 32 and cheap/view.resolution = 224, here and in run.reference" in said


@pytest.mark.parametrize("page", ["your_data", "your_model"])
def test_what_the_pages_bind_instead_is_not_warned_of(page: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```gin\n(.*?)```", Path(f"docs/{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    (shown,) = [block for block in blocks if "gin/run/cc3m.gin" in block]
    (tmp_path / "mine.gin").write_text(shown)
    unbound = [f"webdataset.{split}=None" for split in ("pool", "eval", "curated") if f".{split} =" in shown]
    assert found([str(tmp_path / "mine.gin")], *LARGER, *unbound) == (set(), [])


def test_a_check_a_price_and_a_run_say_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    sizes = ("run.batch_size=8", "run.super_batch_size=24", "run.device=cpu", "log.progress=False", "evaluate.points=1")
    below = ("gin/run/tiny_reference.gin", *sizes, "run.budget=None", "budget.steps=2")
    arm = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/easy_reference.gin", *sizes]
    arm += [*small_world(8, 24), "run.budget=None", f"run.reference={below!r}", "wandb.mode=disabled"]
    words = "the reference 'tiny_reference' is a toy beside this arm: it is trained for 2 steps (below 100); bind run.r"
    assert main([*arm, "budget.steps=24", "--check"]) == 0
    said = capsys.readouterr()
    assert f"warning: {words}" in said.err
    assert "  reference  warning: a toy beside this arm (stderr)\n" in said.out
    assert "warnings   1 on stderr\n" in said.out
    assert main([*arm, "budget.steps=24", "--price"]) == 0
    assert f"\nwarning: {words}" in capsys.readouterr().out
    assert main([*arm, "budget.steps=24", "--run_dir", str(tmp_path / "run")]) == 0
    assert f"warning: {words}" in capsys.readouterr().err
    (warning,) = summary_of(tmp_path / "run")["warnings"]
    assert warning.startswith(words)
    # A trial of few steps has a reference of few steps.
    assert main([*arm, "budget.steps=20", "--check"]) == 0
    assert "toy" not in capsys.readouterr().err
    smaller = (*below, "model.image_options={'embed_dim': 16, 'depth': 1, 'num_heads': 2}")
    assert main([*arm, "budget.steps=20", f"run.reference={smaller!r}", "--check"]) == 0
    said_of = capsys.readouterr().err
    assert "is a toy beside this arm: a forward pass of it costs 0." in said_of
    assert f"(below {demonstration_warnings.LEAST_COST})" in said_of
