"""What the documents show is run, what they link to is there, what they tell people to type is understood."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import make_policy_table
import pytest
from photos import caption, jpeg
from planted_runs import write_run

import policies
from jestbench.config import grammar, resolve
from jestbench.launch import console
from jestbench.launch.forecast import RunForecast

ROOT = Path(__file__).resolve().parent.parent
README, GUIDE = ROOT / "README.md", ROOT / "CONTRIBUTING.md"
PAGES = [README, GUIDE, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in _FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Links


def slug(heading: str) -> str:
    """The anchor that a heading has on GitHub and in most renderers."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    return {slug(heading) for heading in re.findall(r"^#{1,6} +(.*)$", text, re.MULTILINE)}


def broken_links(page: Path) -> list[str]:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text(
        "# Ä heading, `with` code\n[a](#ä-heading-with-code) [b](b.md) [c](#no) [d](https://x.org) `[e](e.md)`\n"
    )
    assert broken_links(page) == ["b.md", "#no"]


def test_every_page_stands_in_the_index_once() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or index.count(f"]({page.name})") == 1, page.name


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if page.name == "CHANGELOG.md":
        return  # it names what was
    named = set(
        re.findall(r"(?<![\w/.-])(?:gin|docs|tools|jestbench|tests)/[\w/.]+\.(?:gin|yaml|py|md|sh|png|json)\b", text)
    )
    theirs = {"tools/NAME.py", "gin/policy/loss_band.gin"}
    assert [path for path in sorted(named - theirs) if not (ROOT / path).exists()] == []


def test_the_readme_is_a_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 125
    assert max(len(line) for line in README.read_text(encoding="utf-8").splitlines()) <= 150


def test_every_policy_stands_in_the_list_of_policies() -> None:
    listed = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    ours = {name for name in policies.available() if policies.get(name).__module__.startswith("policies.")}
    assert {name for name in ours if f"| `{name}` |" not in listed} == set()


def test_the_table_of_policies_is_the_codes() -> None:
    page = make_policy_table.PAGE.read_text(encoding="utf-8")
    assert make_policy_table.with_table(page) == page, "python tests/make_policy_table.py"


@pytest.mark.parametrize("name", ["uniform", "infobatch", "hard_learner", "easy_reference", "jest"])
def test_the_cost_in_the_table_is_what_a_step_is_priced_at(name: str) -> None:
    """Of a reference of the learner's shape, towers only, all pairs new to the run."""
    files = [str(ROOT / "gin" / "run" / "tiny.gin"), str(ROOT / "gin" / "policy" / f"{name}.gin")]
    found = resolve.resolve(files, [f"run.reference='{ROOT}/gin/run/tiny_reference.gin'", "run.device=cpu"])
    formula = make_policy_table.closed_form(found.policy).split(",")[0].replace("2r", "2*r")
    r = found.run.super_batch_size / found.run.batch_size
    assert RunForecast.of(found).price.closed_form == pytest.approx(eval(formula, {"r": r}), rel=1e-3)


# Commands

OWN = ("mine", "runs/", "mine_reference.gin")
"""Names of files that are the reader's."""


def commands(page: Path) -> Iterator[str]:
    """Each command of the project in a block of a page, fenced or indented, without its comment."""
    text = page.read_text(encoding="utf-8")
    indented = "\n".join(re.findall(r"^(?: {4}\S.*\n)+", _FENCE.sub("", text), re.MULTILINE))
    lines = "\n".join([*blocks(page, "sh"), indented]).replace("\\\n", " ").splitlines()
    for line in lines:
        for part in re.split(r" && |; ", line.split("   #")[0].split("  # ")[0]):
            if re.search(r"\btools/\w+\.py\b|\bjestbench [a-z]+\b", part):
                yield part.strip()


COMMANDS = [(page, command) for page in PAGES for command in commands(page)]


class Parsed(Exception):
    """The arguments were understood."""


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[f"{name(page)}: {words}" for page, words in COMMANDS])
def test_every_command_is_understood(page: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(command.replace("[--json FILE] [--full]", "--json FILE --full"))
    at = next(place for place, word in enumerate(words) if re.search(r"tools/\w+\.py$|^jestbench$", word))
    tool, arguments = Path(words[at]).stem, words[at + 1 :]
    assert (ROOT / "tools" / f"{tool}.py").is_file()
    for parse in ("parse_args", "parse_intermixed_args", "parse_known_intermixed_args"):
        plain = getattr(argparse.ArgumentParser, parse)

        def understood(self: argparse.ArgumentParser, args=None, namespace=None, plain=plain, parse=parse) -> None:
            options = plain(self, args, namespace)
            if parse == "parse_known_intermixed_args":
                options, unknown = options
                assert not unknown
            raise Parsed(options)

        monkeypatch.setattr(argparse.ArgumentParser, parse, understood)
    with pytest.raises(Parsed) as found:
        console.main([tool, *arguments])
    options = found.value.args[0]
    theirs = [word for word in (*getattr(options, "gin_file", ()), str(getattr(options, "sweep", "")))]
    assert [path for path in theirs if path and not path.startswith(OWN) and grammar.locate(path) is None] == []
    if tool == "run" and not re.search("loss_band|rising_loss", command):  # which the guide's reader has just written
        grammar.check_names([grammar.read_binding(text) for text in options.bindings])


def test_there_are_commands_of_every_kind() -> None:
    assert {tool for _, command in COMMANDS for tool in re.findall(r"tools/(\w+)\.py", command)} == set(
        console.COMMANDS
    )
    assert len([page for page, _ in COMMANDS if page == README]) > 10


def printed(page: Path) -> Iterator[tuple[str, str]]:
    """Each block that a page shows as output, with the command of a run above it."""
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(r"^```\n(arm .*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield re.findall(r"^ {4}python tools/run\.py (.*)$", text[: block.start()], re.MULTILINE)[-1], block[1]


PRINTED = [
    pytest.param(
        *found, id=f"{name(page)}: {found[0]}", marks=[pytest.mark.slow] if "siglip2" in found[0] else []
    )  # a teacher of 1.1 G parameters: a minute
    for page in PAGES
    for found in printed(page)
]


@pytest.mark.parametrize(("command", "block"), PRINTED)
def test_what_a_page_shows_is_what_is_printed(
    command: str, block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert console.main(["run", *shlex.split(command)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in block.splitlines() if line not in said] == []


def test_pages_show_output() -> None:
    assert len(PRINTED) >= 2


# Examples


def test_the_policies_of_the_contributing_guide_train(tmp_path: Path) -> None:
    """One that forgets and one that remembers, by the guide's own commands; tests/policies runs its suite over them."""
    guide, names = GUIDE.read_text(encoding="utf-8"), ("loss_band", "rising_loss")
    calls = re.findall(r"python tools/run\.py (--gin_file gin/run/tiny\.gin .*)", guide)
    for name, source in zip(names, blocks(GUIDE, "python"), strict=True):
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
    words = [
        [*call.split(), "run.budget=2e9", "--run_dir", str(tmp_path / name)]
        for name, call in zip(names, calls, strict=True)
    ]
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import {', '.join(names)}\n"
        f"from jestbench.launch.command import main; sys.exit(max(main(words) for words in {words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in names:
        assert f'"policy": "{name}"' in (tmp_path / name / "summary.json").read_text(encoding="utf-8")


def test_the_policy_of_the_readme_trains_and_has_its_row(tmp_path: Path) -> None:
    """The README's files and commands, in an empty folder; and the sweep of docs/commands.md over both arms."""
    (source,), gin = blocks(README, "python"), blocks(README, "gin")[-1]
    assert len([line for line in source.splitlines() if line.strip()]) <= 15
    (sweep,) = blocks(ROOT / "docs" / "commands.md", "yaml")
    for file, text in (("mine.py", source), ("mine.gin", gin), ("mine.yaml", sweep)):
        (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    lines = [shlex.split(line) for line in commands(README) if re.search("runs/(mine|uniform)", line)]
    small = ["run.budget=1e9", "run.device=cpu", "wandb.mode=disabled"]
    calls = [[Path(words[1]).stem, *words[2:], *(small if words[1] == "tools/run.py" else [])] for words in lines]
    assert [call[0] for call in calls] == ["run", "run", "compare"]
    calls.append(["sweep", "mine.yaml", "--dry_run"])
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom jestbench.launch.console import main\n"
        f"for call in {calls!r}:\n    status = main(call)\n    assert status == 0, (call, status)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "median_loss" in (tmp_path / "comparison" / "index.html").read_text(encoding="utf-8")
    assert done.stdout.count("gin_file=mine.gin") == 2, "the sweep's arms"


def test_the_sweep_over_ones_own_data_runs_as_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The section's three files and its commands, with few pairs and FLOPs; of three seeds two."""
    section = (ROOT / "docs" / "your_data.md").read_text(encoding="utf-8").split("## Does it pay on your data?")[1]
    pasted = [text for _, text in _FENCE.findall(section.split("\n## ")[0])]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    for split, numbers in (("pool", range(40)), ("eval", range(40, 50)), ("curated", range(50, 70))):
        for number in numbers:
            Path(f"{number}.jpg").write_bytes(jpeg(number))
        rows = "".join(f"{number}.jpg,{caption(number)}\n" for number in numbers)
        Path(f"{split}.csv").write_text(f"filepath,title\n{rows}")
    small = "run.budget = 1e9\nrun.batch_size = 8\nrun.super_batch_size = 16\nrun.device = 'cpu'\nevaluate.points = 1\n"
    Path("mine.gin").write_text(pasted[0] + small)
    assert pasted[1].count("run.budget = 1e12") == 1
    Path("mine_reference.gin").write_text(pasted[1].replace("1e12", "1e9"))
    Path("mine.yaml").write_text(pasted[2])
    said = [shlex.split(line.split("   #")[0]) for line in pasted[3].splitlines()]
    assert [Path(words[1]).stem for words in said] == ["sweep", "sweep", "compare"]
    assert console.main(["sweep", *said[0][2:]]) == 0
    arms = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if "tools/run.py" in line]
    assert len(arms) == 9
    for number, words in enumerate(words for words in arms if "run.seed=2" not in words):
        (at,) = (place for place, word in enumerate(words) if word.endswith("tools/run.py"))
        assert console.main(["run", *words[at + 1 :], "--run_dir", f"runs/mine/{number}"]) == 0
    assert console.main(["compare", *said[2][2:]]) == 0
    compared = json.loads(next(Path().rglob("comparison.json")).read_text(encoding="utf-8"))
    assert {arm["arm"] for arm in compared["arms"]} == {"uniform", "jest", "curated_alone"}
    two = [text for text in compared["warnings"] if text.startswith("two seeds leave wide intervals: take three or ")]
    untold = {arm["arm"] for arm in compared["arms"] if arm["verdict"] == "not told apart"}
    assert len(two) == bool(untold)


def test_the_notebook_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pandas")
    (source,) = blocks(ROOT / "docs" / "commands.md", "python")
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        for arm, end in (("uniform", 0.4), ("jest", 0.6)):
            points = [(0, 0.0), (50, 0.1), (100, end + 0.01 * seed)]
            write_run(tmp_path / f"runs/tiny/{arm}{seed}", points, arm=arm, seed=seed, metric="eval/zero_shot_top5")
    exec(compile(source, "docs/commands.md", "exec"), {})
    said = capsys.readouterr().out
    assert "jest is better than uniform" in said
    assert "speedup_flops_all_in" in said
    assert re.search(r"^ +50\.0 +0\.1", said, re.MULTILINE), "the curves' table"


def test_the_model_of_a_run_is_loaded_as_in_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source,) = blocks(ROOT / "docs" / "your_model.md", "python")
    assert len([line for line in source.splitlines() if line.strip()]) <= 10
    small = ["run.budget=None", "budget.steps=1", "evaluate.points=1", "run.device=cpu"]
    words = ["run", "--gin_file", str(ROOT / "gin/run/tiny.gin"), *small, "--run_dir", str(tmp_path / "runs/mine")]
    assert console.main(words) == 0
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(source, "docs/your_model.md", "exec"), found)
    assert found["image_BD"].shape == (4, found["text_CD"].shape[1])
