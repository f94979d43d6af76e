"""A reference of another loss, with scale and bias fitted to the arm's: the fit, its cost, and what jest selects."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import kill_before, outcome, rows_of, summary_of

from jestbench.cost.tracing import FLOPS_PER_MAC
from jestbench.engine.calibration import LARGEST, batch_loss, fit
from jestbench.launch.command import main
from jestbench.select.losses import LOSSES, LossName

TINY = "gin/run/tiny.gin"
SMALL = (
    *("run.batch_size=8", "run.super_batch_size=24", "run.device=cpu", "log.progress=False", "log.every=1"),
    *("synthetic.pool=200", "synthetic.curated=100", "synthetic.holdout=64", "synthetic.eval=32", "evaluate.points=1"),
)
OTHER = ("gin/run/tiny_reference.gin", "run.loss=softmax", "run.budget=3e8", "run.batch_size=8", "log.progress=False")
OTHER_LARGE = (*OTHER, "run.super_batch_size=24", "run.device=cpu", "evaluate.points=1")


def arm(*bindings: str, policy: str = "jest", reference: object = OTHER_LARGE) -> list[str]:
    words = ["--gin_file", TINY, "--gin_file", f"gin/policy/{policy}.gin", *SMALL, f"run.reference={reference!r}"]
    return [*words, "run.loss=sigmoid", "run.reference_calibrate=True", "run.budget=4.5e9", *bindings]


def embeddings(count: int, width: int = 16, noise: float = 0.6) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    image = torch.randn(count, width, generator=random, dtype=torch.float64)
    text = image + noise * torch.randn(count, width, generator=random, dtype=torch.float64)
    return F.normalize(image, dim=1), F.normalize(text, dim=1)


# The fit


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_the_loss_of_a_whole_batch_is_the_training_loss(loss: LossName) -> None:
    image, text = embeddings(12)
    scale, bias = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    ours = batch_loss(image @ text.T, loss, scale, bias, 12)
    torch.testing.assert_close(ours, LOSSES[loss](image, text, scale, bias))


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_few_pairs_stand_for_a_larger_batch(loss: LossName) -> None:
    """The mean over many small batches of one large one is, but for the softmax's curvature, the large one's loss."""
    image, text = embeddings(1024)
    scale, bias = torch.tensor(8.0, dtype=torch.float64), torch.tensor(-6.0, dtype=torch.float64)
    parts = torch.randperm(1024, generator=torch.Generator().manual_seed(0)).split(128)
    small = torch.stack([batch_loss(image[part] @ text[part].T, loss, scale, bias, 1024) for part in parts]).mean()
    whole = LOSSES[loss](image, text, scale, bias)
    unweighted = torch.stack([batch_loss(image[part] @ text[part].T, loss, scale, bias, 128) for part in parts]).mean()
    assert abs(small - whole) < 0.03 * abs(unweighted - whole)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_no_other_scale_and_bias_have_less_loss(loss: LossName) -> None:
    image, text = embeddings(256)
    cosines = [image[part] @ text[part].T for part in torch.arange(256).split(64)]
    at = fit(cosines, loss, 64)
    assert at == fit(cosines, loss, 64)
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    best = torch.stack([batch_loss(part, loss, x[0], x[1], 64) for part in cosines]).mean()
    (gradient,) = torch.autograd.grad(best, x)
    assert gradient.abs().max() < 1e-6
    for scale in (0.5 * at[0], 0.9 * at[0], 1.1 * at[0], 2 * at[0]):
        for bias in (at[1] - 1, at[1], at[1] + 1):
            there = torch.tensor([scale, bias], dtype=torch.float64)
            assert torch.stack([batch_loss(part, loss, *there, 64) for part in cosines]).mean() > best


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_pairs_that_are_told_apart_at_any_scale_end_at_the_bound(loss: LossName) -> None:
    scale, bias = fit([torch.eye(8, dtype=torch.float64)], loss, 8)
    assert LARGEST[loss] * 0.02 < scale <= LARGEST[loss]
    if loss == "sigmoid":
        assert -scale < bias < 0


# In a run


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with a calibrated reference."""
    folder = tmp_path_factory.mktemp("calibrated")
    before = os.environ.get("JESTBENCH_CACHE")
    os.environ["JESTBENCH_CACHE"] = str(folder / "cache")
    try:
        assert main([*arm(), "--run_dir", str(folder / "run")]) == 0
    finally:
        os.environ.pop("JESTBENCH_CACHE") if before is None else os.environ.update(JESTBENCH_CACHE=before)
    return folder


def test_what_it_costs_is_charged_before_the_first_step(calibrated: Path, tmp_path: Path) -> None:
    """12 batches of 8 pairs: each image and each distinct caption once, and the logits."""
    rows, plain = rows_of(calibrated / "run"), tmp_path / "plain"
    assert main([*arm("run.loss=softmax", "run.reference_calibrate=False"), "--run_dir", str(plain)]) == 0
    first, without = rows[0], rows_of(plain)[0]
    assert without["flops/total"] == 0
    assert first["step"] == 0
    width = 64
    assert first["flops/pairwise"] == FLOPS_PER_MAC * 12 * 8 * 8 * width
    assert first["flops/reference_score"] > 0
    assert first["flops/total"] == first["flops/pairwise"] + first["flops/reference_score"]
    assert first["time/seconds"] > 0
    for row in rows:
        parts = [
            value for key, value in row.items() if key.startswith("flops/") and key not in ("flops/total", "flops/eval")
        ]
        assert sum(parts) == row["flops/total"]


@pytest.mark.parametrize(("accounting", "towers"), [("online", True), ("amortised", False)])
def test_the_accounting_holds_for_it(calibrated: Path, tmp_path: Path, accounting: str, towers: bool) -> None:
    assert main([*arm(f"run.reference_accounting={accounting}"), "--run_dir", str(tmp_path / "run")]) == 0
    first, sight = rows_of(tmp_path / "run")[0], rows_of(calibrated / "run")[0]
    assert first["flops/pairwise"] == sight["flops/pairwise"]
    assert (first["flops/reference_score"] >= sight["flops/reference_score"]) is towers
    assert (first["flops/reference_score"] > 0) is towers
    assert (summary_of(tmp_path / "run")["flops_amortised"] > 0) is not towers


def test_the_forecast_is_what_is_charged(calibrated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the captions that stand in it twice, which are charged once."""
    capsys.readouterr()
    assert main([*arm(), "--price"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("calibrating")]
    assert line.startswith("calibrating the reference on 96 pairs: ")
    foreseen = int(line.partition(": ")[2].partition(" FLOPs")[0].replace(",", ""))
    assert foreseen >= rows_of(calibrated / "run")[0]["flops/total"]
    assert main([*arm("run.loss=softmax", "run.reference_calibrate=False"), "--price"]) == 0
    assert "calibrating" not in capsys.readouterr().out


def test_summary_and_comparison_hold_the_fit(calibrated: Path) -> None:
    summary = summary_of(calibrated / "run")
    (entry,) = summary["references"]
    described = json.loads(
        (max(Path(entry["run_dir"], "checkpoints").glob("step-*")) / "model.json").read_text(encoding="utf-8")
    )
    assert described["loss"] == "softmax", "the reference itself is left as it was trained"
    assert entry["fitted_on"] == "curated"
    assert entry["fitted_bias"] < 0 < entry["fitted_scale"], "a softmax reference has a bias of 0"
    assert entry["kept"] == ["run.loss = 'softmax' (the arm's is 'sigmoid')"]
    fitted = "was trained on the softmax loss; its scale and bias are fitted to run.loss = 'sigmoid'"
    assert sum(fitted in warning for warning in summary["warnings"]) == 1


def test_a_killed_run_resumes_with_the_same_fit(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed among the 12 batches of the fit, it is made anew; later it is read from the checkpoint."""
    monkeypatch.setenv("JESTBENCH_CACHE", str(calibrated / "cache"))
    for step in (3, 14):
        words = [*arm(), "--run_dir", str(tmp_path / f"run{step}")]
        kill_before(step, words)
        with pytest.MonkeyPatch.context() as patched:
            if step > 12:
                patched.setattr("jestbench.engine.frozen.fit", lambda *_: pytest.fail("fitted again"))
            assert main([*words, "--resume"]) == 0
        assert outcome(tmp_path / f"run{step}") == outcome(calibrated / "run")


def test_a_folder_is_calibrated_and_cosines_need_no_fit(
    calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JESTBENCH_CACHE", str(calibrated / "cache"))
    folder = summary_of(calibrated / "run")["references"][0]["run_dir"]
    assert main([*arm(reference=folder), "--run_dir", str(tmp_path / "folder")]) == 0
    (entry,), (same,) = (summary_of(path)["references"] for path in (tmp_path / "folder", calibrated / "run"))
    assert entry["fitted_scale"] == same["fitted_scale"]
    assert main([*arm(policy="clip_score"), "--run_dir", str(tmp_path / "cosine")]) == 0
    assert summary_of(tmp_path / "cosine")["references"][0]["fitted_scale"] is None
    assert rows_of(tmp_path / "cosine")[0]["flops/total"] == 0


def test_two_halves_are_fitted_each_on_what_it_has_not_seen(tmp_path: Path) -> None:
    twins = ("gin/run/tiny_irreducible.gin", *OTHER_LARGE[1:], "run.split=pool")
    assert main([*arm(policy="rho_loss_twin", reference=twins), "--run_dir", str(tmp_path / "run")]) == 0
    first, second = summary_of(tmp_path / "run")["references"]
    assert first["fitted_on"] == second["fitted_on"] == "pool"
    assert first["fitted_scale"] != second["fitted_scale"]


def test_a_budget_that_the_fit_eats_up_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main([*arm("run.budget=2e8"), "--run_dir", str(tmp_path / "run")])
    assert status == 2
    assert "leaves nothing of run.budget" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# What jest selects


def noise(run_dir: Path) -> tuple[float, float]:
    """Share of wrong captions among the selected and in the super-batches, over the second half of a run."""
    rows = [row for row in rows_of(run_dir) if "select/share_noisy" in row]
    late = rows[len(rows) // 2 :]
    names = "select/share_noisy", "select/share_noisy_super_batch"
    chosen, offered = (sum(row[name] for row in late) / len(late) for name in names)
    return chosen, offered


def test_jest_avoids_noise_whichever_side_of_the_loss_is_overridden(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Handed over, refused with the other loss, and calibrated."""
    file = "gin/run/tiny_reference.gin"
    base = ["--gin_file", TINY, "--gin_file", "gin/policy/jest.gin", "run.device=cpu", "log.progress=False"]
    base += ["log.every=4", "evaluate.points=1", "log.examples=0", "run.budget=2.4e10"]
    sigmoid, other = "run.loss=sigmoid", f"run.reference={(file, 'run.loss=softmax')!r}"
    assert main([*base, other, sigmoid, "--check"]) == 2
    assert "run.reference_calibrate = True" in capsys.readouterr().err
    arms = {
        "softmax": [f"run.reference={file!r}"],
        "sigmoid": [f"run.reference={file!r}", sigmoid],
        "calibrated": [other, sigmoid, "run.reference_calibrate=True"],
    }
    shares = {}
    for name, bindings in arms.items():
        assert main([*base, *bindings, "--run_dir", str(tmp_path / name)]) == 0
        chosen, offered = noise(tmp_path / name)
        assert offered > 0.35
        shares[name] = chosen / offered
    assert shares["sigmoid"] < 0.8, shares  # four seeds: 0.28 to 0.70, around 1 where the reference is of no use
    assert shares["softmax"] < 0.4, shares
    assert shares["calibrated"] < shares["sigmoid"], shares
