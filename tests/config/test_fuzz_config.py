"""Damaged gin files: each is either checked cleanly, or refused in one paragraph; never a traceback."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jestbench.config import grammar, resolve
from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError
from jestbench.launch import command

GIN = Path(__file__).resolve().parents[2] / "gin"
POLICY_FILES = sorted((GIN / "policy").glob("*.gin"))
CHARACTERS = " \t\n=.,:/#@%'\"()[]{}\\-+_*0123456789abexyzABEX\0\féß…𝛉"
WORDS = (
    "run model view cheap optimizer evaluate budget log wandb icons synthetic jest uniform seed policy data clip noise "
    "include import from None True False inf SEED x"
).split()
VALUES = (
    "0 -1 1 2 7 32.0 0.5 -0.5 1e30 1e400 1_000 1000000 99999999999999999999 0x10 1j None True '' 'jest' \"uniform\" "
    "b'x' '''a''' () (,) (1,) ('a','b') [1,2] [[]] {} {'depth':1} {1:{}} @model() @model @uniform @jest() @run() "
    "@nothing() @x/optimizer() @view() @cheap/view() "
    "[(1.0,@view())] [(0.5,@view()),(0.5,@cheap/view())] [@view()] "
    "%SEED %run.seed @ % [ ( { ' \" \\ … 3 4 'pool+curated' 'pol' 'softmax' 'cpu' jest"
).split()


def flattened(path: Path) -> list[str]:
    """The lines of a gin file with its includes in place, less comments."""
    lines = []
    for line in path.read_text().splitlines():
        included = re.match(r'include "(.*)"', line)
        code = line.split("#")[0].rstrip()
        lines += flattened(path.parent / included[1]) if included else [code] if code else []
    return lines


TINY = flattened(GIN / "run" / "tiny.gin")
NEEDED = {"column": ("synthetic.columns = ('similarity',)",)}
"""What an arm needs of the tiny world."""
TEXTS = {
    path.stem: "\n".join((*TINY, "run.device = 'cpu'", *flattened(path), *NEEDED.get(path.stem, ()), "")).replace(
        '"gin/run/', '"gin/run/tiny_'
    )
    for path in POLICY_FILES
}


@dataclass(frozen=True)
class Mutation:
    """One damage; positions are taken modulo what there is."""

    kind: str
    at: int
    other: int
    length: int

    def of(self, text: str) -> str:
        if not text:
            return text
        start, end = self.at % len(text), min(len(text), self.at % len(text) + self.length)
        match self.kind:
            case "delete":
                return text[:start] + text[end:]
            case "duplicate":
                return text[:end] + text[start:]
            case "swap":
                return text[:start] + text[start + 1 : start + 2] + text[start] + text[start + 2 :]
            case "replace":
                return text[:start] + CHARACTERS[self.other % len(CHARACTERS)] + text[start + 1 :]
            case "insert":
                return text[:start] + CHARACTERS[self.other % len(CHARACTERS)] + text[start:]
            case "truncate":
                return text[:start]
            case "rename":
                return self._token(text, r"[A-Za-z_]\w*", [*WORDS, *re.findall(r"[A-Za-z_]\w*", text)])
            case "value":
                return self._token(text, r"(?<== ).+", list(VALUES))
            case _:
                return self._line(text)

    def _token(self, text: str, pattern: str, new: list[str]) -> str:
        found = list(re.finditer(pattern, text))
        if not found:
            return text
        old = found[self.at % len(found)]
        return text[: old.start()] + new[self.other % len(new)] + text[old.end() :]

    def _line(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        here, there = self.at % len(lines), self.other % len(lines)
        match self.kind:
            case "line twice":
                lines.insert(there, lines[here])
            case "line away":
                del lines[here]
            case "lines swapped":
                lines[here], lines[there] = lines[there], lines[here]
        return "".join(lines)


KINDS = "value rename value rename delete duplicate swap replace insert truncate".split()
KINDS += ["line twice", "line away", "lines swapped"]
mutations = st.builds(Mutation, st.sampled_from(KINDS), st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 12))
damaged = st.builds(
    lambda name, damage: _damage(TEXTS[name], damage),
    st.sampled_from(sorted(TEXTS)),
    st.lists(mutations, min_size=1, max_size=3),
)


def _damage(text: str, damage: list[Mutation]) -> str:
    for mutation in damage:
        text = mutation.of(text)
    return text


def is_large(resolved: Resolved) -> bool:
    """Whether building it would try this machine rather than the code."""
    run, model = resolved.run, resolved.run.model
    options = [value for value in model.image_options.values() if isinstance(value, int | float)]
    sizes = [value for value in vars(run.data).values() if isinstance(value, int)]
    views = [*(view for _, view in run.mix), *(run.view_of(role)[1] for role in ("learner", "reference"))]
    tokens = [(view.resolution or model.image_size) // (view.patch_size or model.patch_size) for view in views]
    return (
        max(tokens) > 20
        or any(map(is_large, resolved.below))
        or not model.image_tower.startswith("vit_tiny")
        or (model.image_size // model.patch_size) ** 2 > 400
        or max(model.image_size, model.embed_dim, model.text_width, *options, 0) > 512
        or model.text_layers > 8
        or model.text_mlp_ratio > 16
        or run.super_batch_size > 20_000
        or max(sizes, default=0) > 20_000
    )


def status_of(text: str, path: Path) -> int:
    """Check a damaged file; whatever is raised fails the test."""
    path.write_text(text, encoding="utf-8")
    try:
        resolved = resolve.resolve([str(path)])
    except ConfigError:
        resolved = None
    if resolved is not None:
        if is_large(resolved):
            return 0
        _starts_the_same_run(resolved, path.with_name("operative.gin"))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = command.main(["--gin_file", str(path), "--check"])
    said = err.getvalue()
    warned = re.match(r"(warning: .*\n)*", said)
    assert warned is not None
    said = said[warned.end() :]
    if status == 0:
        assert said == ""
        assert resolved is not None
        assert f"arm {resolved.run.arm!r}, configuration {resolved.config_hash}" in " ".join(out.getvalue().split())
    else:
        assert status in (2, 3)
        assert re.fullmatch(r"error: \S.*\n", said), said
        assert len(said) < 1500
        assert "Traceback" not in said
        assert " object at 0x" not in said
        assert out.getvalue() == ""
    return status


def _starts_the_same_run(resolved: Resolved, path: Path) -> None:
    path.write_text(resolved.operative, encoding="utf-8")
    again = resolve.resolve([str(path)])
    assert again.flat == resolved.flat
    assert again.config_hash == resolved.config_hash


def _profile(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("name", sorted(TEXTS))
def test_the_undamaged_files_are_clean(name: str, tmp_path: Path) -> None:
    assert status_of(TEXTS[name], tmp_path / "fuzz.gin") == 0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@_profile(100)
@given(text=damaged)
def test_damaged_files(text: str, tmp_path: Path) -> None:
    assert status_of(text, tmp_path / "fuzz.gin") in (0, 2, 3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@_profile(2000)
@given(text=damaged)
def test_many_damaged_files(text: str, tmp_path: Path) -> None:
    assert status_of(text, tmp_path / "fuzz.gin") in (0, 2, 3)


@_profile(200)
@given(text=st.text(CHARACTERS + "run.seed", max_size=40))
def test_any_binding_on_the_command_line(text: str) -> None:
    for word in (text, f"run.seed={text}", f"run.arm={text}"):
        with contextlib.suppress(ConfigError):
            assert grammar.read_binding(word).where == "command line"


@_profile(100)
@given(text=st.text(CHARACTERS, max_size=60))
def test_any_text_as_a_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "any.gin"
    path.write_text(text, encoding="utf-8")
    with contextlib.suppress(ConfigError):
        assert all("any.gin" in binding.where for binding in grammar.read_file(path))
