"""What --describe prints of every name, and the page of --check."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import make_policy_table
import pytest
from helpers import ROOT, small_world

import policies
from jestbench.config import registry
from jestbench.launch.command import main
from jestbench.launch.describe import WIDTH, default_of, meanings

NAMES = sorted(registry.configurables())
SOURCE = r"^Source: .*(arXiv|Cappy|https://|none published)"


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(list(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_of_every_name_has_a_meaning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    cls = registry.configurables()[name]
    missing = [field for field in registry.fields_of(cls) if not meanings(cls).get(field)]
    assert missing == [], f"{cls.__module__}.{cls.__name__}: its docstring describes no {', '.join(missing)}"
    said = printed(capsys, "--describe", name)
    assert all(re.search(rf"^{name}\.{field}: ", said, re.MULTILINE) for field in registry.fields_of(cls))
    assert "describes no attribute" not in said
    assert max(map(len, said.splitlines())) <= WIDTH
    assert re.search(r"^File: (policies|jestbench)/[\w/]+\.py$", said, re.MULTILINE)
    if name in policies.available():
        assert "Needs: " in said
        assert name == "uniform" or re.search(SOURCE, said, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
def test_a_default_is_printed_as_text_that_says_it(name: str) -> None:
    """No object's address, no missing factory; what is built by name is printed as it would be bound."""
    cls = registry.configurables()[name]
    for field in registry.fields_of(cls):
        text = default_of(cls, field)
        if re.fullmatch(r"@(\w+)\(\)", text):
            assert text[1:-2] in NAMES
        assert not re.search(r"0x|<|MISSING", text), f"{name}.{field}"


def test_a_description_has_types_defaults_meanings_and_the_source(capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "--describe", "jest")
    assert "jest.chunks: int = 16\n    N, the number of chunks that the sub-batch is drawn in" in said
    assert "arXiv 2406.17711" in said
    assert "gin/policy/flexi_jest.gin" in said, "an arm of this policy under another label"
    assert "gin/policy/uniform" not in said
    inherited = printed(capsys, "--describe", "learnability")
    assert "learnability.pair_loss: 'own' | 'in_batch' = 'own'\n    own (the pair's own logit) or in_batch" in inherited
    scoped = printed(capsys, "--describe", "cheap/view")
    assert "cheap/view.patch_size: int | None = None\n" in scoped
    one = printed(capsys, "--describe", "run.loss")
    assert one.startswith("run.loss: 'sigmoid' | 'softmax' = 'softmax'\n    sigmoid (SigLIP) or softmax (CLIP).\n")
    assert "run.batch_size" not in one
    assert "run.policy: Policy | str = required" in printed(capsys, "--describe", "run")


def test_all_names_stand_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "--describe")
    heads = re.findall(r"^(?! )(?!--)(\S.*)$", said, re.MULTILINE)
    assert heads[0] == "policies"
    assert len(heads) >= 4
    assert sorted(re.findall(r"^  (\w+) ", said, re.MULTILINE)) == NAMES


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("jset", "'jest'"), ("optimiser", "'optimizer'"), ("jest.chunk", "'chunks'"), ("cheap/veiw", "'view'")],
)
def test_a_misspelt_name_is_answered_with_the_nearest(
    asked: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--describe", asked]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: --describe {asked}: ")
    assert f"did you mean {nearest}?" in said.err


OWN = '''"""Every other pair.

Source: this test.
"""

from dataclasses import dataclass

import torch

from jestbench.batch import Selection
from policies.registry import register


@register("every_other")
@dataclass(frozen=True)
class EveryOther:
    """Every other pair.

    Attributes:
        first: the position of the first.
    """

    first: int = 0
    needs = frozenset({"learner"})
    prefers = {}

    def select(self, scores, count, generator):
        return Selection((self.first + 2 * torch.arange(count)) % len(scores), {})
'''


def test_a_policy_in_a_file_beside_the_gin_file(tmp_path: Path) -> None:
    """In a process of its own: a registered policy stays. The run starts again from what its folder holds."""
    (tmp_path / "every_other_pair.py").write_text(OWN)
    (tmp_path / "mine.gin").write_text(
        'import every_other_pair\ninclude "gin/run/tiny.gin"\nrun.policy = "every_other"\nevery_other.first = 1\n'
    )

    def tools(*commands: list[str]) -> str:
        """What commands print, one after the other in one process."""
        calls = f"from jestbench import main\nassert not any(map(main, {list(commands)!r}))"
        script = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{calls}"
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    mine = ["--gin_file", "mine.gin"]
    run = [*mine, *small_world(8, 16), "run.budget=3e8", "--run_dir", "runs/own"]
    said = tools([*mine, "--describe", "every_other"], [*mine, "--list_policies"], run)
    assert re.search(r"^every_other +Every other pair\.$", said, re.MULTILINE)
    assert "every_other.first: int = 0\n    the position of the first." in said
    assert "Source: this test." in said
    assert f"File: {tmp_path / 'every_other_pair.py'}" in said
    again = (tmp_path / "runs" / "own" / "operative.gin").read_text()
    assert again.startswith("import every_other_pair\n")
    assert "every_other.first = 1" in again
    assert tools(["--run_dir", "runs/own", "--resume"]) == "finished: runs/own\n"


def test_a_reader_who_has_seen_enough_is_no_error() -> None:
    """As ``| head`` does; the reader is gone before anything is printed."""
    words = [sys.executable, str(ROOT / "tools" / "run.py"), "--describe", "jest"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


# The page of --check

ARM = ["--gin_file", "gin/run/tiny.gin", "--gin_file", "gin/policy/jest.gin"]


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("run.loss=sigmoid", "synthetic.noise=0.2", "synthetic.length=6", "model.image_size=24"),
        ("optimizer.schedule=ladder", "optimizer.rungs=(1e9, 2e9, 4e9)", "run.budget=None"),
        ("run.policy=rho_loss", "run.twin=True"),
    ],
)
def test_a_check_is_a_page(more: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, *ARM, "--check", "--allow_unused", "jest.*", *more)
    lines = said.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    text = " ".join(said.split())
    assert "nothing trained" in lines[0]
    for words in ("2,048 pairs in pool", "256 evaluated in 64 classes", "epochs of a pool of", "FLOPs a step"):
        assert words in text, words
    assert "x a uniform step: learner_train" in text
    assert "metrics eval/zero_shot_top1, " in text
    assert "; taken over: run.data = '@synthetic()', " in text
    if "run.loss=sigmoid" in more:
        assert "run.loss = 'sigmoid'" in text
        assert "model.image_size = 24" in text


def test_warnings_of_a_check_are_counted_and_the_long_form_has_the_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cheap = ("run.policy=hard_learner", "run.score_view=@cheap/view()", "cheap/view.patch_size=8")
    words = ["--gin_file", "gin/run/tiny.gin", *cheap, "--check"]
    assert "warnings   1 on stderr\n" in printed(capsys, *words)
    assert "warnings   none\n" in printed(capsys, *words[:2], "--check")
    long = printed(capsys, *words, "--verbose")
    assert "run.seed = 0\n" in long
    assert "#   metrics: eval/zero_shot_top1, " in long


def test_the_policies_of_the_contributing_guide_are_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder that stands for policies/: what is asked of each policy there, and its row in the table."""
    sources = re.findall(r"^```python\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)
    names = ("loss_band", "rising_loss")
    monkeypatch.setattr(policies, "__path__", [*policies.__path__, str(tmp_path)])
    monkeypatch.setattr(policies.registry, "_CLASSES", dict(policies.registry._CLASSES))
    for name, source in zip(names, sources, strict=True):
        (tmp_path / f"{name}.py").write_text(source)
        importlib.import_module(f"policies.{name}")
    table = make_policy_table.policy_table()
    for name, parameter in zip(names, ("sharpness", "gain"), strict=True):
        said = printed(capsys, "--describe", name)
        assert f"{name}.{parameter}: float = 1.0\n" in said
        assert "describes no attribute" not in said
        assert re.search(SOURCE, said, re.MULTILINE | re.DOTALL)
        assert re.search(rf"^\| `{name}` \| .* \| none published \|$", table, re.MULTILINE)
        del sys.modules[f"policies.{name}"]
