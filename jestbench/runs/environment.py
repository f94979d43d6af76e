"""What a figure depends on beside its configuration: versions, commit, device, threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jestbench.disk import IS_CHECKOUT, PROJECT
from jestbench.masking import masked

if TYPE_CHECKING:
    from jestbench.parallel.arithmetic import Precision

PACKAGES = (
    *("torch", "torchvision", "timm", "tokenizers", "transformers", "open_clip_torch", "pillow"),
    *("fvcore", "gin-config", "wandb", "numpy", "jestbench"),
)
GIT_SECONDS = 10.0


def environment(device: str, precision: Precision) -> dict[str, Any]:
    """Versions, commit, device, number format, kernels, threads: what a figure depends on beside its configuration.

    Device and precision are given as the run binds them.
    """
    import torch  # here alone: the comparison names its processor without torch

    from jestbench.parallel import distributed
    from jestbench.parallel.arithmetic import number_format
    from jestbench.select import kernels

    cuda = torch.cuda.is_available() and (device == "auto" or device.startswith("cuda"))

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world().size,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "number_format": number_format(device, precision),
        "kernels": {"strips": "triton" if cuda and kernels.usable(torch.zeros(1, 1, device="cuda")) else "torch"},
        "attention": attention(),
        "versions": versions(*PACKAGES),
        "commit": _commit(),
        "command": masked(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def attention() -> dict[str, Any]:
    """Whether timm's blocks call torch's fused attention (text towers always do), and its kernels that CUDA may use."""
    import torch
    from timm.layers import use_fused_attn

    asked: dict[str, Any] = {
        "flash": torch.backends.cuda.flash_sdp_enabled,
        "memory_efficient": torch.backends.cuda.mem_efficient_sdp_enabled,
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled,
        "math": torch.backends.cuda.math_sdp_enabled,
    }
    return {"fused": use_fused_attn(), "kernels": [name for name, enabled in asked.items() if enabled()]}


def _commit() -> str | None:
    """The commit of this checkout; ``None`` without one, without git, and where git is slow to answer."""
    if not IS_CHECKOUT:  # git would describe whatever repository the package is installed in
        return None
    words = ["git", "-C", str(PROJECT), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def versions(*packages: str) -> dict[str, str | None]:
    """Versions of distributions, by name; ``None`` for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def processor() -> str:
    """Name of the processor, as far as the system gives one."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
