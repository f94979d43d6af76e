"""What a run hands to the runs that it stands on: both sides of an override, in --check and in runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import summary_of

from jestbench.compare.analysis import analyse
from jestbench.config import resolve
from jestbench.config.resolved import Resolved
from jestbench.config.run import ConfigError
from jestbench.launch.command import main
from jestbench.runs.open_folder import recorded

TINY, ICONS = "gin/run/tiny.gin", "gin/run/icons.gin"
SMALL = (
    *("run.batch_size=8", "run.super_batch_size=24", "run.budget=3e8", "run.device=cpu", "log.progress=False"),
    *("log.every=1", "evaluate.points=1"),
)
WORLD = ("synthetic.pool=200", "synthetic.curated=64", "synthetic.holdout=64", "synthetic.eval=32")
REFERENCE = ("gin/run/tiny_reference.gin", *SMALL)


def resolved(policy: str, *bindings: str, file: str = TINY) -> Resolved:
    return resolve.resolve([file, f"gin/policy/{policy}.gin"], bindings, recorded=recorded)


def below(run: Resolved, role: str = "reference") -> Resolved:
    (stand, *_) = run.stands_on[role]  # type: ignore[index]
    assert isinstance(stand, Resolved)
    return stand


def tiny(policy: str, *bindings: str, reference: tuple[str, ...] = REFERENCE, role: str = "reference") -> list[str]:
    """The words of an arm of the tiny world."""
    words = ["--gin_file", TINY, "--gin_file", f"gin/policy/{policy}.gin", *SMALL, *WORLD]
    return [*words, f"run.{role}={reference!r}", *bindings]


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    """What --check prints of a run."""

    def call(words: list[str]) -> str:
        capsys.readouterr()
        assert main([*words, "--check", "--verbose"]) == 0
        return capsys.readouterr().out

    return call


Checked = Callable[[list[str]], str]


# One value, both sides


@pytest.mark.parametrize(
    ("key", "value", "other"),
    [
        ("run.loss", "'sigmoid'", "'softmax'"),
        ("synthetic.noise", "0.2", "0.4"),
        ("synthetic.length", "6", "8"),
        ("model.image_size", "24", "16"),
    ],
)
def test_check_prints_both_sides_of_an_override(checked: Checked, key: str, value: str, other: str) -> None:
    """The arm's value goes to a reference whose includes bind another, and not past a binding of its own."""
    taken = checked(tiny("clip_score", f"{key}={value}"))
    reference, arm = taken.split("# arm 'clip_score'")
    for side in (reference, arm):
        assert f"{key} = {value}\n" in side
    assert f"#   taken over: {key} = {value}\n" in reference
    assert "#   kept" not in taken
    if key == "synthetic.length":  # kept, the token ids would not fit
        return
    own = (*REFERENCE, f"{key}={other}")
    kept = checked(tiny("clip_score", f"{key}={value}", reference=own))
    reference, arm = kept.split("# arm 'clip_score'")
    assert f"#   kept, bound by its own file: {key} = {other} (the arm's is {value})\n" in reference
    assert f"taken over: {key}" not in kept
    assert f"{key} = {other}\n" in reference
    assert f"{key} = {value}\n" in arm


def test_a_run_folder_records_both_sides(tmp_path: Path) -> None:
    own = (*REFERENCE, "synthetic.noise=0.1")
    words = tiny("jest", "run.loss=sigmoid", "synthetic.noise=0.2", reference=own)
    assert main([*words, "--run_dir", str(tmp_path / "run")]) == 0
    (entry,) = summary_of(tmp_path / "run")["references"]
    assert "run.loss = 'sigmoid'" in entry["taken_over"]
    assert entry["kept"] == ["synthetic.noise = 0.1 (the arm's is 0.2)"]
    operative = (Path(entry["run_dir"]) / "operative.gin").read_text()
    assert "run.loss = 'sigmoid'" in operative
    assert "synthetic.noise = 0.1" in operative
    again = resolve.resolve([str(Path(entry["run_dir"]) / "operative.gin")])
    assert again.config_hash == summary_of(Path(entry["run_dir"]))["config_hash"]


# What the own file is


def test_an_include_gives_way_and_the_file_itself_does_not(tmp_path: Path) -> None:
    folder = Path.cwd()
    (tmp_path / "include.gin").write_text(f'include "{folder / "gin/run/reference.gin"}"\nrun.loss = "softmax"\n')
    file = tmp_path / "reference.gin"
    file.write_text('include "include.gin"\nicons.min_hands = 3\nrun.arm = "mine"\n')
    run = resolved("jest", "run.loss=sigmoid", "icons.min_hands=5", f"run.reference='{file}'", file=ICONS)
    reference = below(run)
    assert reference.run.loss == "sigmoid"
    assert reference.flat["icons.min_hands"] == 3
    assert reference.inherited.kept == {"icons.min_hands": (3, 5)}
    # An include that comes after the file's own line wins in gin, and then it is not the file that binds.
    file.write_text('icons.min_hands = 3\ninclude "include.gin"\nrun.arm = "mine"\n')
    late = resolved("jest", "icons.min_hands=5", f"run.reference='{file}'", file=ICONS)
    assert below(late).flat["icons.min_hands"] == 5


def test_a_macro_of_the_file_itself_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "include.gin").write_text(
        f'include "{Path.cwd() / "gin/run/reference.gin"}"\nNOISE = 0.1\nHANDS = 4\n'
        "icons.noise = %NOISE\nicons.min_hands = %HANDS\n"
    )
    file = tmp_path / "reference.gin"
    file.write_text('include "include.gin"\nNOISE = 0.2\n')
    reference = below(
        resolved("jest", "icons.noise=0.3", "N=7", "icons.min_hands=%N", f"run.reference='{file}'", file=ICONS)
    )
    assert (reference.flat["icons.noise"], reference.flat["icons.min_hands"]) == (0.2, 7)


def test_the_arms_defaults_win_over_an_include_too() -> None:
    """The arm binds no min_hands (a default of 2); the reference's include binds 8."""
    words = ["run.data=@icons()", "model.image_size=32", "model.patch_size=8", "run.reference='gin/run/reference.gin'"]
    run = resolve.resolve([TINY, "gin/policy/jest.gin"], [*words], ["synthetic.*"])
    reference = below(run)
    assert reference.flat["icons.min_hands"] == run.flat["icons.min_hands"] == 2
    assert reference.inherited.taken["icons.min_hands"] == 2


def test_what_is_not_handed_over() -> None:
    other = (
        *("run.seed=3", "run.split=pool+curated", "run.batch_size=16", "run.super_batch_size=48", "run.budget=5e9"),
        *("optimizer.learning_rate=1e-4", "evaluate.points=3", "log.every=7", "model.patch_size=8"),
        *("model.text_layers=2", "run.microbatch=64", "run.reference_accounting=online", "run.precision=fp32"),
    )
    plain, changed = (below(resolved("jest", *more, file=ICONS)) for more in ((), other))
    assert changed.config_hash == plain.config_hash
    assert changed.operative == plain.operative
    assert changed.inherited == plain.inherited
    assert (changed.inherited.taken, changed.inherited.kept) == ({}, {})


def test_an_image_size_that_the_references_patches_do_not_divide() -> None:
    own = ("gin/run/tiny_reference.gin", "model.patch_size=8")
    with pytest.raises(ConfigError, match=r"model.image_size = 20 is no multiple of model.patch_size = 8") as error:
        resolved("jest", "model.image_size=20", f"run.reference={own!r}")
    assert "in the reference gin/run/tiny_reference.gin" in str(error.value)
    assert "the arm hands over model.image_size = 20: bind the reference's own" in str(error.value)
    for way_out in ("model.image_size=24", "model.patch_size=5"):
        resolved("jest", "model.image_size=20", f"run.reference={(*own, way_out)!r}")


def test_an_image_size_reaches_a_model_under_a_scope_and_one_that_is_a_default(tmp_path: Path) -> None:
    file = tmp_path / "scoped.gin"
    text = f'include "{Path.cwd() / TINY}"\nrun.model = @own/model()\nrun.split = "curated"\n'
    file.write_text(text + "own/model.patch_size = 2\n")
    reference = below(resolved("jest", "model.image_size=24", f"run.reference='{file}'"))
    assert (reference.run.model.image_size, reference.run.model.patch_size) == (24, 2)
    file.write_text(text + "own/model.image_size = 8\n")
    assert below(resolved("jest", "model.image_size=24", f"run.reference='{file}'")).run.model.image_size == 8
    file.write_text(
        'run.policy = "uniform"\nrun.split = "curated"\nrun.batch_size = 8\nrun.super_batch_size = 8\n'
        "run.budget = 3e8\n"
    )
    bare = below(resolved("jest", "model.image_size=24", f"run.reference='{file}'"))
    assert (bare.run.model.image_size, type(bare.run.data).__name__) == (24, "Synthetic")


# Who is handed what


def test_each_run_below_is_handed_it() -> None:
    more = ("run.loss=sigmoid", "synthetic.noise=0.2", "synthetic.length=6", "model.image_size=24")
    twin = resolved("rho_loss_twin", *more, "run.reference=('gin/run/tiny_irreducible.gin', 'run.split=pool')")
    inner = "run.reference=('gin/run/tiny_irreducible.gin', 'synthetic.noise=0.3')"
    nested = ("gin/run/tiny_reference.gin", "run.policy=learnability", inner)
    nest = resolved("jest", *more, f"run.reference={nested!r}")
    scorer = resolved("cappy", *more, "run.scorer='gin/run/tiny_cappy.gin'")
    halves = twin.stands_on["reference"]
    assert len(halves) == 2
    for stand in (*halves, below(nest), below(below(nest)), below(scorer, "scorer")):
        assert isinstance(stand, Resolved)
        assert stand.run.model.image_size == 24
        assert stand.flat["synthetic.length"] == 6
        assert stand.flat["synthetic.noise"] == (0.3 if stand is below(below(nest)) else 0.2)
        expected = "softmax" if stand.run.objective else "sigmoid"  # a pair scorer is trained on no contrastive loss
        assert stand.run.loss == expected


POLICIES = sorted(path.stem for path in Path("gin/policy").glob("*.gin"))


@pytest.mark.parametrize("world", ["webdataset", "iconify_noise", "tiny"])
def test_every_policys_own_file_serves_every_world(world: str) -> None:
    """What the reference's includes bind of the icons is left out, and nothing is warned of."""
    data = ("tokenizer.length=20", "captions.lower=True", "webdataset.curated='few.tar'", "webdataset.pool='pool.tar'")
    stood_on = 0
    for policy in POLICIES:
        run = resolved(policy, *(data if world == "webdataset" else ()), file=f"gin/run/{world}.gin")
        assert run.warnings == ()
        for stand in run.below:
            stood_on += 1
            assert stand.run.data == run.run.data
            assert not any(key.startswith("icons.") for key in stand.flat)
    assert stood_on > 20


def test_shipped_references_of_the_shipped_worlds_take_nothing_over() -> None:
    """So that no arm whose results stand in the docs is another arm than before there was a hand-over."""
    for policy in POLICIES:
        for stand in resolved(policy, file=ICONS).below:
            assert (stand.inherited.taken, stand.inherited.kept) == ({}, {})
    for world, file in (
        ("tiny", "tiny_reference"),
        ("iconify", "iconify_reference"),
        ("iconify", "iconify_irreducible"),
        ("iconify_noise", "iconify_noise_reference"),
    ):
        stand = below(resolved("jest", f"run.reference='gin/run/{file}.gin'", file=f"gin/run/{world}.gin"))
        alone = resolve.resolve([f"gin/run/{file}.gin"])
        assert (stand.config_hash, stand.inherited.taken) == (alone.config_hash, {})


def test_data_of_its_own_stay_with_the_reference(tmp_path: Path) -> None:
    own = ("gin/run/reference.gin", "run.data=@icons()")
    run = resolved("jest", f"run.reference={own!r}")
    reference = below(run)
    assert reference.flat["icons.min_hands"] == 8, "its own data set keeps what its includes bind"
    assert reference.inherited.kept["run.data"] == ("@icons()", "@synthetic()")
    assert not any("synthetic" in key for key in (*reference.flat, *reference.inherited.kept))


def test_a_dead_binding_is_still_refused_in_a_reference() -> None:
    with pytest.raises(ConfigError, match=r"this run never uses icons.noise"):
        resolved("jest", "run.reference=('gin/run/reference.gin', 'icons.noise=0.2')")


# Seeds


def test_one_reference_a_seed(tmp_path: Path) -> None:
    runs = {}
    for seeding in ("shared", "own"):
        for seed in (1, 2):
            words = tiny("jest", f"run.seed={seed}", f"run.reference_seed={seeding}")
            assert main([*words, "--run_dir", str(tmp_path / f"{seeding}{seed}")]) == 0
            runs[seeding, seed] = summary_of(tmp_path / f"{seeding}{seed}")
    entries = {key: summary["references"][0] for key, summary in runs.items()}
    assert [entry["seed"] for entry in entries.values()] == [0, 0, 1, 2]
    assert [entry["seeding"] for entry in entries.values()] == ["shared", "shared", "own", "own"]
    folders = [entry["run_dir"] for entry in entries.values()]
    assert len(set(folders)) == 3
    hashes = [summary["config_hash"] for summary in runs.values()]
    assert hashes[0] == hashes[1] != hashes[2] == hashes[3], "the seeds of an arm are one arm"
    for seeding, note, absent in (
        ("shared", "one model tiny_reference (one seed) serves the seeds 1, 2", "of its own"),
        ("own", "arm jest: each seed (1, 2) has a reference of its own", "one model"),
    ):
        folders = [tmp_path / f"{seeding}{seed}" for seed in (1, 2)]
        warnings = "\n".join(analyse(folders, "zero_shot_top5", "jest", None, "again").warnings)
        assert note in warnings
        assert absent not in warnings


def test_a_seed_of_the_references_own_is_refused_with_one_a_seed(tmp_path: Path) -> None:
    own = ("gin/run/tiny_reference.gin", "run.seed=5")
    assert below(resolved("jest", f"run.reference={own!r}")).run.seed == 5
    with pytest.raises(ConfigError, match=r"binds run.seed = 5 \(run.reference at command line\): leave one"):
        resolved("jest", f"run.reference={own!r}", "run.reference_seed=own")
    with pytest.raises(ConfigError, match=r"bind run\.reference to a run file, not to the folder"):
        resolved("jest", f"run.reference='{tmp_path}'", "run.reference_seed=own")
