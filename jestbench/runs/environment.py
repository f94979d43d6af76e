"""What a figure depends on beside its configuration: versions, commit, device, threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from jestbench.parallel import distributed


def environment() -> dict[str, Any]:
    """Versions, commit, device, threads: what a figure depends on beside its configuration."""
    versions: dict[str, str | None] = {}
    for name in (
        "torch",
        "torchvision",
        "timm",
        "tokenizers",
        "fvcore",
        "gin-config",
        "wandb",
        "numpy",
        "jestbench",
    ):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    home = Path(__file__).parent
    git = subprocess.run(
        ["git", "-C", str(home), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": distributed.world().size,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": versions,
        "commit": git.stdout.strip() or None,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
