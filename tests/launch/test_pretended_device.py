"""Runs on a pretended CUDA device: nothing mixes devices, and the same work is charged as on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import rows_of
from pretended_device import CUDA, DeviceMixed, Pretended

from jestbench.launch.command import main

REFERENCE = "run.reference=('gin/run/tiny_reference.gin', 'run.budget=2e9')"
POLICIES = {"uniform": (), "jest": ("run.policy=jest", REFERENCE)}


def flops(run_dir: Path, policy: str, device: str) -> list[dict[str, Any]]:
    """Train for some steps; the FLOPs and pairs of each row."""
    words = ["--gin_file", "gin/run/tiny.gin", "run.budget=2e9", "log.every=1", "log.progress=False"]
    assert main([*words, *POLICIES[policy], f"run.device={device}", "--run_dir", str(run_dir)]) == 0
    return [{k: v for k, v in row.items() if k.startswith(("flops/", "pairs/"))} for row in rows_of(run_dir)]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_run_on_the_device_is_charged_what_it_is_charged_on_a_cpu(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JESTBENCH_FUSED", "0")
    on_cpu = flops(tmp_path / "cpu", policy, "cpu")
    with Pretended() as gpu:
        on_device = flops(tmp_path / "cuda", policy, "cuda")
    assert gpu.ops > 1000, "the models did not run on the device"
    assert len(on_cpu) >= 3
    assert on_device == on_cpu


def test_tensors_of_two_devices_are_refused() -> None:
    with Pretended():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == CUDA
        assert float((2 * there).sum()) == 6
        with pytest.raises(DeviceMixed):
            there + here
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()


def test_copies_and_blocking_reads_are_counted() -> None:
    with Pretended(watched=("/tests/",)) as gpu:
        there = torch.ones(4).to("cuda")
        float(there.sum())
        there.cpu()
        torch.ones(4).pin_memory().to("cuda", non_blocking=True)
    assert gpu.totals() == {
        "to device: pageable, blocking": 1,
        "to device: pinned, async": 1,
        "read item": 1,
        "to host: blocking": 1,
    }
    assert "tests/launch/test_pretended_device.py" in gpu.report()
