"""Frozen models that do not fit an arm: a reference of another loss is refused, other data are warned of."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from helpers import summary_of

from jestbench.compare.analysis import analyse
from jestbench.config import resolve
from jestbench.launch.command import main
from jestbench.sweep import run_sweep

TINY = "gin/run/tiny.gin"
WORLD = (
    *("run.batch_size=8", "run.super_batch_size=24", "run.device=cpu", "log.progress=False", "log.every=1"),
    *("synthetic.pool=200", "synthetic.curated=64", "synthetic.holdout=64", "synthetic.eval=32", "evaluate.points=1"),
    "run.budget=3e8",  # of the arm, too: a reference of few steps beside a whole arm is warned of
)
REFERENCE = ("gin/run/tiny_reference.gin", *WORLD)
HOLDOUT = ("gin/run/tiny_irreducible.gin", *REFERENCE[1:])
SCALED = ("jest", "rho_loss", "learnability", "easy_reference", "active_clip", "cascade_uniform", "cascade_jest")
LOSSES = ("softmax", "sigmoid")
OTHER = "was trained on other data than this arm: "


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished reference of each loss; sigmoid's is bound, softmax's is the default."""
    folder = tmp_path_factory.mktemp("trained")
    for loss, bindings in {"softmax": (), "sigmoid": ("run.loss=sigmoid",)}.items():
        words = ["--gin_file", REFERENCE[0], *REFERENCE[1:], *bindings]
        assert main([*words, "--run_dir", str(folder / loss)]) == 0
    return {loss: folder / loss for loss in LOSSES}


Said = Callable[..., tuple[int, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """The exit status of a command, and its stderr."""

    def call(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        return main(words), capsys.readouterr().err

    return call


def arm(policy: str, reference: object = None, *bindings: str, file: str = TINY) -> list[str]:
    """An arm of the tiny world by its policy's file; in place of the reference of the icons this one."""
    bound = () if reference is None else (f"run.reference={reference!r}",)
    return ["--gin_file", file, "--gin_file", f"gin/policy/{policy}.gin", *WORLD, *bound, *bindings]


def with_loss(loss: str) -> tuple[str, ...]:
    return (*REFERENCE, f"run.loss={loss}")


def warnings_of(err: str) -> list[str]:
    return [line.removeprefix("warning: ") for line in err.splitlines() if line.startswith("warning: ")]


def expect_refused(status: int, err: str, *words: str) -> None:
    assert status == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert len(err) < 1500
    for word in (*words, "not comparable"):
        assert word in err


def way_out(message: str, role: str = "reference") -> tuple[str, ...]:
    """The value that a message proposes for ``run.reference``."""
    found = re.findall(rf"run\.{role} = (\(.*\))$", message.strip(), re.MULTILINE)
    assert len(found) == 1, message
    return ast.literal_eval(found[0])


# Another loss


@pytest.mark.parametrize("by", ["file", "folder"])
@pytest.mark.parametrize("theirs", LOSSES)
@pytest.mark.parametrize("policy", SCALED)
def test_a_reference_of_another_loss_is_refused(
    said: Said, trained: dict[str, Path], policy: str, theirs: str, by: str
) -> None:
    """Each way round, so that neither loss passes for being the default."""
    mine = LOSSES[1 - LOSSES.index(theirs)]
    reference = with_loss(theirs) if by == "file" else str(trained[theirs])
    status, err = said(*arm(policy, reference, f"run.loss={mine}"), "--check")
    name = "tiny_reference" if by == "file" else str(trained[theirs])
    who = "run.cascade" if policy == "cascade_uniform" else "the policy "
    expect_refused(status, err, f"{name!r} was trained on the {theirs} loss", f"run.loss = {mine!r}", who)
    same = with_loss(mine) if by == "file" else str(trained[mine])
    status, err = said(*arm(policy, same, f"run.loss={mine}"), "--check")
    doubts = [line for line in err.splitlines() if "left out of each epoch" not in line]
    assert (status, doubts) == (0, []), "a cascade's candidates do not divide this small pool"


def test_twins_of_another_loss_are_refused(said: Said) -> None:
    twins = (*HOLDOUT, "run.split=pool", "run.loss=softmax")
    status, err = said(*arm("rho_loss_twin", twins, "run.loss=sigmoid"), "--check")
    expect_refused(status, err, "softmax", "sigmoid", "RhoLoss")
    assert said(*arm("rho_loss_twin", way_out(err), "run.loss=sigmoid"), "--check") == (0, "")


@pytest.mark.parametrize("theirs", LOSSES)
def test_cosines_and_what_no_reference_scores_take_any_loss(said: Said, trained: dict[str, Path], theirs: str) -> None:
    mine = f"run.loss={LOSSES[1 - LOSSES.index(theirs)]}"
    for reference in (with_loss(theirs), str(trained[theirs])):
        assert said(*arm("clip_score", reference, mine), "--check") == (0, "")
        assert said(*arm("uniform", reference, mine), "--check") == (0, "")
    assert said(*arm("uniform_curated", with_loss(theirs), mine), "--check")[0] == 0


def test_a_cascade_scales_what_the_policy_does_not(said: Said) -> None:
    cascade = ("run.cascade=@cascade()", "cascade.candidates=2")
    status, err = said(*arm("clip_score", with_loss("softmax"), "run.loss=sigmoid", *cascade), "--check")
    expect_refused(status, err, "run.cascade scores with the reference's scale")


@pytest.mark.parametrize("policy", ["cappy", "cascade_uniform"])
def test_a_pair_scorer_has_no_loss_to_differ(said: Said, policy: str) -> None:
    scorer = ("gin/run/tiny_cappy.gin", *WORLD, "run.budget=3e8")
    cascade = ("cascade.score=scorer",) if policy == "cascade_uniform" else ()
    words = arm(policy, None, f"run.scorer={scorer!r}", "run.loss=sigmoid", *cascade)
    status, err = said(*words, "--check")
    assert (status, warnings_of(err)) == (0, []), err


def test_every_command_refuses_it_and_leaves_nothing(
    said: Said, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JESTBENCH_CACHE", str(tmp_path / "cache"))
    words = arm("jest", with_loss("softmax"), "run.loss=sigmoid")
    for more in (
        ["--check"],
        ["--price"],
        ["--fill_cache", "run.cache=@cache()"],
        ["--run_dir", str(tmp_path / "run")],
    ):
        expect_refused(*said(*words, *more), "Jest")
    file = tmp_path / "sweep.yaml"
    command = ["python", "${program}", "--gin_file", TINY, "--gin_file", "gin/policy/jest.gin", "${args_no_hyphens}"]
    reference = {"value": (REFERENCE[0], "run.loss='softmax'")}
    parameters = {"run.loss": {"values": ["softmax", "sigmoid"]}, "run.reference": reference}
    sweep_file = {"program": "tools/run.py", "method": "grid", "command": command, "parameters": parameters}
    file.write_text(json.dumps(sweep_file | {"metric": {"name": "eval/zero_shot_top5", "goal": "maximize"}}))
    capsys.readouterr()
    assert run_sweep.main([str(file), "--dry_run"]) == 2
    assert "not comparable" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


def test_the_message_gives_the_places(said: Said, tmp_path: Path) -> None:
    file = tmp_path / "mine.gin"
    lines = [f'include "{Path(TINY).resolve()}"', 'run.loss = "sigmoid"', f"run.reference = {with_loss('softmax')!r}"]
    file.write_text("\n".join([*lines, 'run.policy = "learnability"', 'run.arm = "mine"', ""]))
    expect_refused(*said("--gin_file", str(file), "--check"), f"{file}:3: run.reference", f"({file}:2)")
    status, err = said(*arm("jest", with_loss("sigmoid")), "--check")
    expect_refused(status, err, "command line: run.reference", "run.loss = 'softmax' (the default)")


@pytest.mark.parametrize("policy", ["jest", "flexi_jest"])
def test_the_way_out_of_a_file(said: Said, policy: str) -> None:
    """Bindings that the reference has already stay: flexi_jest trains it under views of its own."""
    views = ("run.train_views=[(0.5, @view()), (0.5, @cheap/view())]", "cheap/view.patch_size=8")
    own = (*(views if policy == "flexi_jest" else ()), "run.loss=softmax")
    mine = ("cheap/view.patch_size=8", "cheap/view.resolution=16") if policy == "flexi_jest" else ()
    status, err = said(*arm(policy, (*REFERENCE, *own), "run.loss=sigmoid", *mine), "--check")
    expect_refused(status, err, "set run.loss = 'softmax'")
    found = way_out(err)
    assert found[:-1] == (*REFERENCE, *own)
    assert said(*arm(policy, found, "run.loss=sigmoid", *mine), "--check") == (0, "")
    assert said(*arm(policy, (*REFERENCE, *own), "run.loss='softmax'", *mine), "--check") == (0, "")


def test_the_way_out_of_a_folder_trains_its_run_anew(said: Said, trained: dict[str, Path], tmp_path: Path) -> None:
    status, err = said(*arm("jest", str(trained["softmax"]), "run.loss=sigmoid"), "--check")
    expect_refused(status, err)
    file, *bindings = way_out(err)
    assert said(*arm("jest", (file, *bindings), "run.loss=sigmoid"), "--check") == (0, "")
    words = arm("jest", (file, *bindings), "run.loss=sigmoid", "run.budget=3e8", "--run_dir", str(tmp_path / "run"))
    assert main(words) == 0
    (reference,) = summary_of(tmp_path / "run")["references"]
    model = max(Path(reference["run_dir"], "checkpoints").glob("step-*")) / "model.json"
    assert json.loads(model.read_text())["loss"] == "sigmoid"


def test_a_folder_without_a_checkpoint_is_still_reported_as_one(said: Said, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    status, err = said(*arm("jest", str(tmp_path / "empty"), "run.loss=sigmoid"), "--check")
    assert status == 3
    assert "holds no checkpoint" in err


# Other data


@pytest.fixture
def warned(said: Said, tmp_path: Path) -> Callable[[Sequence[str]], list[str]]:
    """What an arm's check warns of; its run and a comparison of it must repeat it."""

    def call(words: Sequence[str]) -> list[str]:
        status, err = said(*words, "--check")
        assert status == 0, err
        found, run_dir = warnings_of(err), tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        assert main([*words, "run.budget=3e8", "--run_dir", str(run_dir)]) == 0
        assert summary_of(run_dir)["warnings"] == found
        compared = analyse([run_dir], "zero_shot_top5", summary_of(run_dir)["arm"], None, "again").warnings
        assert [note.partition("): ")[2] for note in compared if note.partition("): ")[2] in found] == found
        return found

    return call


Warned = Callable[[Sequence[str]], list[str]]


@pytest.mark.parametrize(
    ("bindings", "more", "there", "here"),
    [
        ((), ("synthetic.noise=0.2",), 0.2, 0.4),
        (("synthetic.noise=0.2",), ("synthetic.noise=0.4",), 0.4, 0.2),
    ],
    ids=["the reference's", "the arm's"],
)
def test_other_noise_is_warned_of(
    warned: Warned, bindings: tuple[str, ...], more: tuple[str, ...], there: float, here: float
) -> None:
    """Each side, so that neither the data file's value nor a binding passes for both."""
    (warning,) = warned(arm("learnability", (*HOLDOUT, *more), *bindings))
    assert warning.startswith(
        f"the reference 'tiny_irreducible' {OTHER}synthetic.noise is {there} there and {here} here"
    )
    assert warned(arm("learnability", way_out(warning), *bindings)) == []
    assert warned(arm("learnability", (*REFERENCE, *more), *bindings)) == [], "the curated pairs are the same"


def test_a_folder_of_other_data_is_warned_of(warned: Warned, trained: dict[str, Path]) -> None:
    folder = str(trained["softmax"])
    assert warned(arm("clip_score", folder)) == []
    assert warned(arm("clip_score", folder, "synthetic.noise=0.2", "synthetic.duplicates=0.3")) == []
    (warning,) = warned(arm("clip_score", folder, "synthetic.image_size=20", "synthetic.noise=0.2"))
    assert f"the reference {folder!r} {OTHER}synthetic.image_size is 16 there and 20 here; " in warning
    assert warned(arm("clip_score", way_out(warning), "synthetic.image_size=20")) == []


def test_every_frozen_model_that_scores_is_compared(warned: Warned, said: Said) -> None:
    scorer = ("gin/run/tiny_cappy.gin", *WORLD, "run.budget=3e8", "synthetic.image_size=20")
    (warning,) = warned(arm("cappy", None, f"run.scorer={scorer!r}"))
    assert warning.startswith(f"the scorer 'tiny_cappy' {OTHER}synthetic.image_size is 20 there and 16 here")
    assert way_out(warning, "scorer") == (*scorer, "synthetic.image_size=16")
    twins = (*HOLDOUT, "run.split=pool", "synthetic.noise=0.4")
    (warning,) = warnings_of(said(*arm("rho_loss_twin", twins, "synthetic.noise=0.2"), "--check")[1])
    assert "'tiny_irreducible'" in warning
    noisy = (*HOLDOUT, "synthetic.noise=0.4")
    (warning,) = warnings_of(said(*arm("cascade_uniform", noisy, "synthetic.noise=0.2"), "--check")[1])
    assert "'tiny_irreducible'" in warning
    for policy in ("uniform", "uniform_curated"):  # whose reference never scores
        assert said(*arm(policy, noisy, "synthetic.noise=0.2"), "--check") == (0, "")


@pytest.mark.parametrize(
    "bindings",
    [
        ("run.seed=3",),
        ("synthetic.curated=32", "run.split=curated"),
        ("synthetic.eval=64",),
        ("synthetic.noise=0.4",),
        ("synthetic.noise=0.2", "synthetic.easy=0.5"),
    ],
)
def test_what_leaves_the_arms_pairs_alone_is_not_warned_of(said: Said, bindings: tuple[str, ...]) -> None:
    assert said(*arm("jest", (*REFERENCE, *bindings)), "--check") == (0, "")


def test_where_data_are_cached_is_not_compared() -> None:
    files = ["gin/run/icons.gin", "gin/policy/jest.gin"]
    assert resolve.resolve(files, ["icons.cache_dir=/elsewhere"]).warnings == ()
    reference = ("gin/run/reference.gin", "run.split=holdout", "icons.noise=0.6", "icons.cache_dir=/here")
    bindings = ["icons.cache_dir=/elsewhere", "icons.noise=0.2", f"run.reference={reference!r}"]
    (warning,) = resolve.resolve(files, bindings).warnings
    assert warning.startswith(f"the reference 'reference' {OTHER}icons.noise is 0.6 there and 0.2 here; ")


def test_other_token_ids_are_refused_before_anything_is_trained(said: Said) -> None:
    status, error = said(*arm("jest", (*REFERENCE, "synthetic.length=12")), "--check")
    assert status == 2
    assert "cannot score this run's pairs" in error
    assert "tokenizers differ" in error


def test_what_a_common_split_holds_is_compared(said: Said) -> None:
    """Both draw from the pool; only one from the curated pairs."""
    pool = (*REFERENCE, "run.split=pool", "synthetic.pool=90", "synthetic.curated=32")
    (warning,) = warnings_of(said(*arm("jest", pool), "--check")[1])
    assert f"{OTHER}synthetic.pool is 90 there and 200 here; " in warning
    both = (*REFERENCE, "synthetic.pool=90", "synthetic.curated=32")
    (warning,) = warnings_of(said(*arm("jest", both, "run.split=pool+curated"), "--check")[1])
    assert f"{OTHER}synthetic.curated is 32 there and 64 here; " in warning


def test_another_data_set_and_a_part_of_one_are_named(said: Said, tmp_path: Path) -> None:
    icons = "run.reference=('gin/run/reference.gin', 'run.data=@icons()')"
    (warning,) = resolve.resolve([TINY, "gin/policy/jest.gin"], [icons]).warnings
    assert warning == f"the reference 'reference' {OTHER}run.data is 'icons' there and 'synthetic' here"
    files = ["gin/run/csv.gin", "gin/policy/jest.gin"]
    pairs = ["csv.pool=pool.csv", "csv.eval=eval.csv", "captions.lower=True"]
    plain = ("gin/run/csv.gin", "csv.curated=few.csv", "captions.lower=False", "run.split=curated", "run.arm=plain")
    (warning,) = resolve.resolve(files, [*pairs, f"run.reference={plain!r}"]).warnings
    assert f"the reference 'plain' {OTHER}captions.lower is False there and True here; " in warning


def test_a_reference_of_a_reference_is_its_own_affair() -> None:
    inner = "run.reference=('gin/run/tiny_irreducible.gin', 'synthetic.noise=0.2')"
    reference = (*REFERENCE, "run.policy='learnability'", inner)
    resolved = resolve.resolve([TINY, "gin/policy/jest.gin"], [*WORLD, f"run.reference={reference!r}"])
    assert resolved.warnings == ()
    (reference,) = resolved.stands_on["reference"]
    assert len(reference.warnings) == 1


def test_a_folder_is_read_as_far_as_it_goes(said: Said, trained: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(trained["softmax"], folder)
    same, other = arm("jest", str(folder)), arm("jest", str(folder), "synthetic.image_size=20")
    operative = folder / "operative.gin"
    text = operative.read_text().replace("run.policy = 'uniform'", "run.policy = 'jest'\nrun.reference = 'gone.gin'")
    assert "gone.gin" in text
    operative.write_text(text)
    assert said(*same, "--check") == (0, ""), "a reference that the reference needed may be gone"
    assert f"{OTHER}synthetic.image_size is 16" in said(*other, "--check")[1]
    operative.write_text(text.replace("synthetic.noise", "synthetic.nois"))
    assert said(*same, "--check") == (0, "")
    noisy = arm("jest", str(folder), "synthetic.noise=0.2")
    assert said(*noisy, "--check") == (0, ""), "the curated pairs are clean whatever the noise"
    recorded = (folder / "summary.json").read_text()
    (folder / "summary.json").write_text(recorded.replace('"split": "curated"', '"split": "holdout"'))
    status, err = said(*noisy, "--check")
    assert (status, warnings_of(err)) == (
        0,
        [f"the reference {str(folder)!r} {OTHER}synthetic.noise is 0.4 there and 0.2 here"],
    )
    status, err = said(*arm("jest", str(folder), "run.loss=sigmoid"), "--check")
    expect_refused(status, err, "softmax")  # the checkpoint holds the loss
    assert err.endswith("which fits its scale and bias to the arm's loss\n"), (
        "a file that describes no run is no way out"
    )
    for broken in ("{", '{"data": {}}', "[]"):
        (folder / "summary.json").write_text(broken)
        status, err = said(*same, "--check")
        assert status == 0
        assert err.startswith(f"warning: it is not known whether the reference {str(folder)!r} was trained on this")
