"""The identity of an arm: which configurations are one arm, and the defaults that its version stands for."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import make_defaults
import pytest
import torch
from gin import config as gin_state

from jestbench.config import identity, resolve
from jestbench.config.run import ConfigError
from jestbench.launch.command import main
from jestbench.runs.open_folder import recorded
from policies import registry

GIN = Path(__file__).resolve().parents[2] / "gin"
TINY = "gin/run/tiny.gin"
JEST = ("run.policy=jest", "run.reference=gin/run/tiny_reference.gin")


def digest(*bindings: str) -> str:
    return resolve.resolve([TINY], (*JEST, *bindings), recorded=recorded).config_hash


@pytest.mark.parametrize(
    "same",
    [
        "run.seed=5",
        "run.arm=other",
        "run.control=True",
        "log.every=3",
        "log.progress=False",
        "wandb.project=other",
        "wandb.mode=offline",
        "run.device=cpu",
        "run.microbatch=16",
        "run.checkpoints=2",
        "run.budget=60000000000",
        "optimizer.learning_rate=0.002",
        "jest.chunks=16",
        "run.reference=('gin/run/tiny_reference.gin','run.arm=x','log.every=1')",
    ],
)
def test_the_hash_leaves_out_what_is_not_the_arm(same: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert digest(same) == digest()


def test_the_hash_changes_with_the_number_format_that_auto_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu, bound = digest(), digest("run.precision=bf16")
    assert bound != on_cpu
    assert digest("run.precision=fp32") == on_cpu
    assert digest("run.precision=fp64") not in (on_cpu, bound)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert digest("run.device=cpu", "run.reference=('gin/run/tiny_reference.gin','run.device=cpu')") == on_cpu
    assert len({on_cpu, bound, digest()}) == 3, "the reference of the first two is trained on the CPU"
    assert digest("run.precision=bf16", "run.device=cpu") == digest()


@pytest.mark.parametrize(
    "other",
    [
        "jest.chunks=4",
        "jest.gain=2.0",
        "run.batch_size=16",
        "run.super_batch_size=64",
        "run.budget=5e10",
        "run.split=curated",
        "run.reference_accounting=online",
        "optimizer.clip=2.0",
        "model.text_layers=2",
        "synthetic.noise=0.3",
        "synthetic.seed=1",
        "evaluate.points=5",
        "run.reference=gin/run/tiny_irreducible.gin",
        "run.reference=('gin/run/tiny_reference.gin','run.budget=2e9')",
        "run.reference=('gin/run/tiny_reference.gin','run.seed=1')",
    ],
)
def test_the_hash_changes_with_the_arm(other: str) -> None:
    assert digest(other) != digest()


def test_the_hash_changes_with_the_loss_alone() -> None:
    """The reference's stays, which clip_score allows."""
    assert digest("run.policy=clip_score", "run.loss=sigmoid") != digest("run.policy=clip_score")


def test_the_hash_of_uniform_knows_no_super_batch_and_no_reference() -> None:
    plain = resolve.resolve([TINY]).config_hash
    for binding in (
        "run.super_batch_size=64",
        "run.reference=gin/run/tiny_reference.gin",
        "run.reference=nowhere.gin",
        "run.reference_accounting=online",
    ):
        assert resolve.resolve([TINY], [binding]).config_hash == plain
    assert resolve.resolve([TINY], ["run.batch_size=16"]).config_hash != plain


def test_the_hash_of_cache_folders() -> None:
    files = ["gin/run/icons.gin"]
    hashes = {resolve.resolve(files, [f"icons.cache_dir={place}"]).config_hash for place in ("/a", "/b")}
    assert hashes == {resolve.resolve(files).config_hash}


def test_a_reference_by_its_folder_is_the_same_arm_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bindings = ("run.budget=1e9", "run.device=cpu", "log.progress=False")
    assert main(["--gin_file", "gin/run/tiny_reference.gin", *bindings, "--run_dir", "first"]) == 0
    by_file = f"run.reference=('gin/run/tiny_reference.gin',{','.join(map(repr, bindings))})"
    by_folder = [digest(f"run.reference={place}") for place in ("first", "./first", str(tmp_path / "first"))]
    (tmp_path / "first").rename(tmp_path / "moved")
    assert {*by_folder, digest("run.reference=moved"), digest(by_file)} == {digest(by_file)}


def test_the_order_of_bindings_does_not_change_the_hash() -> None:
    reference = "run.reference=('gin/run/tiny_reference.gin','run.loss=sigmoid')"
    one, other = ("jest.gain=2.0", "run.loss=sigmoid", reference), (reference, "run.loss=sigmoid", "jest.gain=2.0")
    assert digest(*one) == digest(*other)


@pytest.mark.parametrize(
    "off",
    [
        "run.twin=False",
        "run.half=None",
        "run.augment=None",
        "run.cascade=None",
        "run.grad_checkpointing=False",
        "run.train_microbatch=None",
        "run.train_microbatch=32",
        "run.train_microbatch=100",
        "budget.adds=()",
        "run.cache=@cache()",
        "run.scorer=@online_scorer()",
    ],
)
def test_what_is_off_is_no_part_of_the_arm(off: str) -> None:
    assert digest(off) == digest()


@pytest.mark.parametrize("on", ["run.grad_checkpointing=True", "run.train_microbatch=16", "run.twin=True"])
def test_what_is_on_is_part_of_the_arm(on: str) -> None:
    jest = ("run.policy=rho_loss", "run.reference=gin/run/tiny_irreducible.gin")
    assert resolve.resolve([TINY], (*jest, on)).config_hash != resolve.resolve([TINY], jest).config_hash


def test_the_format_of_cached_rows_is_part_of_an_arm_that_a_frozen_model_scores() -> None:
    half = ("run.cache=@cache()", "cache.dtype=float16")
    assert digest(*half) != digest()
    assert resolve.resolve([TINY], half).config_hash == resolve.resolve([TINY]).config_hash


def test_a_view_that_nothing_is_scored_under_is_no_part_of_the_arm() -> None:
    """Uniform scores nothing; the learner of jest is scored."""
    view = ("run.score_view=@cheap/view()", "cheap/view.keep=0.5")
    assert resolve.resolve([TINY], view).config_hash == resolve.resolve([TINY]).config_hash
    assert digest(*view) != digest()
    mix = ("run.train_views=[(0.5, @view()), (0.5, @half/view())]", "half/view.keep=0.25")
    arm = resolve.resolve([TINY], mix).config_hash
    assert arm != resolve.resolve([TINY]).config_hash
    assert resolve.resolve([TINY], (*mix, *view)).config_hash == arm
    assert resolve.resolve([TINY], (*mix, "run.score_view=@half/view()")).config_hash == arm
    assert digest(*mix, *view) != digest(*mix)


def test_the_shipped_arms_are_told_apart() -> None:
    """Each file that ends in ``uniform`` is one arm with itself under gin/policy/uniform.gin, and with no other."""
    labels = defaultdict(set)
    for run_file in sorted((GIN / "run").glob("*.gin")):
        labels[resolve.resolve([str(run_file)]).config_hash].add(run_file.stem)
    for policy_file in sorted((GIN / "policy").glob("*.gin")):
        label = "tiny" if policy_file.stem == "uniform" else f"tiny under {policy_file.stem}"
        labels[resolve.resolve([TINY, str(policy_file)]).config_hash].add(label)
    assert [same for same in labels.values() if len(same) > 1] == []
    assert {"tiny"} in labels.values()


# Defaults and the version


def test_what_is_not_bound_is_at_its_default() -> None:
    """As the operative configuration writes a value, so does the table: ``[]`` for ``()``, 1 for 1.0."""
    resolved = resolve.resolve([TINY], ["run.cache=@cache()", "cache.mode='off'"])
    known = {line.split(" = ")[0] for line in resolved.config.splitlines()}
    usual = identity.defaults()
    unbound = {key: value for key, value in resolved.flat.items() if key in usual and key not in known}
    assert len(unbound) > 30
    assert {"budget.adds", "cache.dtype", "optimizer.final"} <= unbound.keys()
    assert unbound == {key: usual[key] for key in unbound}


def test_binding_a_default_changes_nothing() -> None:
    plain = resolve.resolve([TINY], JEST)
    usual = identity.defaults()
    words = [f"{key}={value!r}" for key, value in plain.flat.items() if usual.get(key, "") == value != ""]
    assert len(words) > 30
    assert digest(*(word.replace("'@", "@").replace(")'", ")") for word in words)) == plain.config_hash


def test_a_component_that_is_not_bound_is_one_at_its_defaults() -> None:
    bare = ("run.policy='uniform'", "run.data=@synthetic()", "run.batch_size=8", "run.super_batch_size=8")
    bare = (*bare, "run.budget=1e9")
    plain = resolve.resolve([], bare).config_hash
    assert resolve.resolve([], (*bare, "run.model=@model()")).config_hash == plain
    assert resolve.resolve([], (*bare, "run.model=@model()", "model.text_layers=1")).config_hash != plain


def test_a_default_of_a_policy_is_part_of_the_arm() -> None:
    """A policy may come from a package, whose defaults change without ``VERSION``."""
    needs = frozenset({"learner"})
    hashes = {identity.arm_hash(flat, needs, {}) for flat in ({}, {"jest.chunks": 16}, {"jest.chunks": 4})}
    assert len(hashes) == 3


def test_the_version_is_part_of_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """And of its frozen models."""
    uniform, jest = resolve.resolve([TINY]).config_hash, digest()
    monkeypatch.setattr(identity, "VERSION", identity.VERSION + 1)
    assert resolve.resolve([TINY]).config_hash != uniform
    assert digest() != jest


def test_the_defaults_are_those_of_the_version() -> None:
    stored = json.loads(make_defaults.FILE.read_text(encoding="utf-8"))
    assert make_defaults.fault(stored, make_defaults.current()) is None


def test_a_default_that_changed_asks_for_another_version() -> None:
    stored = {"version": 1, "defaults": {"run.split": "pool", "view.keep": 1}}
    changed, gone = {"run.split": "pool", "view.keep": 0.5}, {"run.split": "pool"}
    for defaults, key in ((changed, "view.keep"), (gone, "view.keep")):
        said = make_defaults.fault(stored, {"version": 1, "defaults": defaults})
        assert said is not None
        assert key in said
        assert "raise identity.VERSION and regenerate" in said
        assert "run.split" not in said
        said = make_defaults.fault(stored, {"version": 2, "defaults": defaults})
        assert said is not None
        assert said.startswith("regenerate")
    assert make_defaults.fault(stored, {"version": 1, "defaults": stored["defaults"] | {"run.new": 3}}) is not None
    assert make_defaults.fault(stored, dict(stored)) is None


# What resolve depends on in order


def test_gin_is_left_empty() -> None:
    resolve.resolve([TINY], JEST)
    assert not gin_state._CONFIG
    assert not gin_state._OPERATIVE_CONFIG
    with pytest.raises(ConfigError, match="chunks"):
        resolve.resolve([TINY], (*JEST, "jest.chunks=-1"))
    assert not gin_state._CONFIG


def test_a_frozen_model_leaves_the_texts_of_its_arm_alone() -> None:
    """It is bound and built between the two."""
    reference = "run.reference=('gin/run/tiny_reference.gin','optimizer.clip=7.0')"
    resolved = resolve.resolve([TINY], ("run.policy=jest", reference, "optimizer.clip=3.0"))
    (below,) = resolved.below
    for text in (resolved.config, resolved.operative):
        assert "optimizer.clip = 3.0" in text
        assert "optimizer.clip = 7.0" not in text
    assert (resolved.flat["optimizer.clip"], below.flat["optimizer.clip"]) == (3, 7)
    assert "optimizer.clip = 7.0" in below.operative


def test_a_policy_that_a_file_imports_can_be_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After configurables were asked for, and by a class of its own."""
    resolve.resolve([TINY])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    (tmp_path / "late_policy.py").write_text(
        "from policies import register\nfrom policies.uniform import Uniform\n\n\n"
        "@register('late')\nclass Late:\n    needs, select = frozenset(), Uniform.select\n\n"
        "    def __init__(self, share: float = 0.5) -> None:\n        self.share = share\n"
    )
    (tmp_path / "late.gin").write_text(f'import late_policy\ninclude "{GIN}/run/tiny.gin"\nrun.policy = "late"\n')
    resolved = resolve.resolve([str(tmp_path / "late.gin")], ["late.share=0.25"])
    assert resolved.policy_name == "late"
    assert resolved.flat["late.share"] == 0.25
    with pytest.raises(ConfigError, match="must be of type float"):
        resolve.resolve([str(tmp_path / "late.gin")], ["late.share='half'"])
