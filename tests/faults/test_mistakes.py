"""Mistakes in a command: refused in a plain sentence before anything is prepared or trained, by --check too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_rows import fault
from helpers import own_surroundings, small_world, summary_of
from hypothesis import given
from hypothesis import strategies as st

from jestbench.config.grammar import read_binding, read_file
from jestbench.config.run import ConfigError
from jestbench.data.icons.prepared_icons import PreparedIcons
from jestbench.launch import train_run
from jestbench.launch.command import main

TINY = ["--gin_file", "gin/run/tiny.gin", *small_world(8, 24), "run.budget=None", "budget.steps=2"]
JEST = ["--gin_file", "gin/policy/jest.gin"]
OTHER_WORLD = "run.data = @synthetic()\nsynthetic.seed = 5\nsynthetic.concepts = 32\n"
OTHER_LENGTH = "run.data = @synthetic()\nsynthetic.length = 9\n"


@pytest.fixture(scope="module", autouse=True)
def _alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with own_surroundings(tmp_path_factory, WANDB_MODE="disabled"):
        yield


def refused(words: list[str], capsys: pytest.CaptureFixture[str], *said: str, status: int = 2) -> None:
    """Both the run and its check end in one line that holds these words; the run leaves no folder."""
    for more in (["--check"], ["--run_dir", "out"]):
        capsys.readouterr()
        assert main([*words, *more]) == status
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert all(part in err for part in said), err
    assert not Path("out").exists()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


VALUES = [
    ("loader.workers=1000", "1000 processes"),
    ("run.seed=-1", "run.seed is a whole number from 0"),
    ("run.seed=9223372036854775808", "run.seed is a whole number from 0"),
    ("run.device=meta", "'meta': models run on 'cpu' or 'cuda'"),
    ("run.device=mps", "'mps': models run on 'cpu' or 'cuda'"),
    ("run.device=gpu", "'gpu': models run on 'cpu' or 'cuda'"),
    ("model.text_vocab_size=10", "model.text_vocab_size = 10 ids, and the tokenizer has"),
    ('model.image_options={"img_size": 64}', "model.image_options holds 'img_size': bind model.image_size"),
    ("run.arm=“tiny”", "it holds “ (U+201C, left double quotation mark): write"),
    ("run.seed=−3", "it holds − (U+2212, minus sign): write - instead"),
    ("\ufeffrun.seed=3", "an invisible character (U+FEFF, byte-order mark): remove it"),
]


@fault(
    "mistakes", "a value that no run can have (workers, seed, device, chunks)", "status 2: key, value, what is valid"
)
@pytest.mark.parametrize(("wrong", "said"), VALUES)
def test_a_value_that_no_run_can_have(wrong: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused([*TINY, wrong], capsys, said)


def test_more_chunks_than_a_batch_has_pairs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused([*TINY, *JEST, "jest.chunks=9"], capsys, "jest.chunks = 9", "at most 8")
    assert main([*TINY, *JEST, "jest.chunks=8", "--check"]) == 0
    assert main([*TINY, *JEST, "--check"]) == 0, "gin/policy/jest.gin binds the default"


GIN = [
    ("run.arm = “tiny”", "left double quotation mark"),
    ("run.arm = ‘tiny’", "left single quotation mark"),
    ("run.seed\u00a0= 3", "no-break space"),
    ("run.seed = −3", "minus sign"),
    ("\ufeffrun.seed = 3", "byte-order mark"),
]


@fault(
    "mistakes", "typographic quotes, a minus sign, a byte-order mark in a gin file", "status 2: file, line, character"
)
@pytest.mark.parametrize(("line", "said"), GIN)
def test_what_only_looks_like_gin(line: str, said: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.gin").write_text(f"# “a comment” – may hold them\nrun.seed = 2\n{line}\n", encoding="utf-8")
    refused([*TINY, "--gin_file", "mine.gin"], capsys, "mine.gin:3: it holds", said)


def test_a_byte_order_mark_at_the_start_and_typography_in_texts_are_fine(here: Path) -> None:
    Path("mine.gin").write_bytes(b'\xef\xbb\xbfrun.arm = "\xe2\x80\x9ctiny\xe2\x80\x9d"  # \xe2\x80\x93\n')
    assert [binding.value for binding in read_file(Path("mine.gin"))] == ["“tiny”"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="'\"()[]{}@%\n\r"), max_size=8))
def test_a_bare_word_is_read_or_refused_in_a_sentence(word: str) -> None:
    said = ""
    try:
        assert read_binding(f"run.arm={word}").key == "run.arm"
    except ConfigError as error:
        said = str(error)
    assert not said or said.startswith("command line: ")


@fault("mistakes", "~ in --run_dir, unexpanded by the shell", "the home folder is meant")
def test_a_tilde_is_the_home_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here / "home"))
    assert main([*TINY, "--run_dir", "~/run"]) == 0
    assert summary_of(here / "home" / "run")["steps"] == 2
    assert not Path("~").exists()


# A reference that cannot serve


@pytest.fixture
def nothing_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Icons are not prepared, no run is trained."""

    def begun(*_: object) -> None:
        pytest.fail("something was prepared or trained")

    monkeypatch.setattr(PreparedIcons, "prepare", begun)
    monkeypatch.setattr(train_run, "_trained", begun)


@fault("mistakes", "a reference whose own data have another tokenizer", "status 2, before it is trained")
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (OTHER_WORLD, "their tokenizers differ"),
        (OTHER_LENGTH, "their tokenizers differ"),
        ("run.data = @icons()\n", "trained on @icons(), this run on @synthetic(), and each has a tokenizer"),
    ],
    ids=["another world", "longer texts", "icons"],
)
def test_a_reference_of_another_tokenizer(
    data: str, said: str, here: Path, nothing_begins: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("own.gin").write_text(f'include "gin/run/tiny_reference.gin"\n{data}', encoding="utf-8")
    refused([*TINY, *JEST, "run.reference=own.gin"], capsys, "run.reference = 'own.gin' cannot score", said)


@fault(
    "mistakes",
    "the tiny run with the reference of the icons",
    "its data are taken over",
)
def test_a_shipped_reference_takes_over_the_arms_data(here: Path, nothing_begins: None) -> None:
    """gin/run/reference.gin includes the icons and binds none itself."""
    assert main([*TINY, *JEST, "--check"]) == 0


# A start that fails


@fault("mistakes", "a start that fails (reference, data, device)", "the folder is free for the mended command")
def test_a_failed_start_leaves_no_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.csv").write_text("filepath,title\n", encoding="utf-8")
    csv = ["--gin_file", "gin/run/csv.gin", "csv.pool=notes.csv", "csv.curated=notes.csv", "csv.eval=notes.csv"]
    assert main([*csv, "run.device=cpu", "--run_dir", "out"]) == 3
    assert not Path("out").exists()
    (here / "empty").mkdir()
    assert main([*TINY, *JEST, "run.reference=empty", "--run_dir", "out"]) == 3
    assert "holds no" in capsys.readouterr().err
    assert not Path("out").exists()
    assert main([*TINY, "--run_dir", "out"]) == 0


def test_a_first_step_that_fails_leaves_the_folder_to_the_mended_command(here: Path) -> None:
    words = [*TINY, *JEST, "run.reference=gin/run/tiny_reference.gin", "--run_dir", "out"]
    assert main([*words, "jest.gain=1e38"]) == 2
    assert summary_of("out")["status"] == "failed"
    assert main([*words, "jest.gain=2.0"]) == 0, "no step was done: nothing is lost"
    assert main([*words, "jest.gain=3.0"]) == 2, "what has been trained is not overwritten"
    assert summary_of("out")["steps"] == 2
