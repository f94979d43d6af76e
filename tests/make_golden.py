"""Records the golden losses: ``python tests/make_golden.py``, and say in the commit why they moved."""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "tiny_losses.json"
STEPS = 10
ARMS = {
    "uniform": [],
    "jest": ["--gin_file", "gin/policy/jest.gin", 'run.reference=("gin/run/tiny_reference.gin", "run.budget=4e9")'],
}


def machine() -> dict[str, str]:
    """What losses depend on, to the last bit, beside the code."""
    from jestbench.runs.environment import processor

    return {
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def tiny_losses(arm: str, folder: Path) -> list[float]:
    """The first training losses of a tiny arm, on one thread."""
    from jestbench.launch.command import main

    run_dir = folder / f"golden-{arm}"
    quick = ["run.budget=None", f"budget.steps={STEPS}", "run.device=cpu", "log.every=1", "log.progress=False"]
    command = ["--gin_file", "gin/run/tiny.gin", *ARMS[arm], *quick, "wandb.mode=disabled", "--run_dir", str(run_dir)]
    if main(command) != 0:
        raise RuntimeError(f"the tiny {arm} run failed")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def main() -> None:
    """Write the golden file."""
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JESTBENCH_CACHE"] = folder
        losses = {arm: tiny_losses(arm, Path(folder)) for arm in ARMS}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps({"machine": machine(), "losses": losses}, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {GOLDEN}")


if __name__ == "__main__":
    main()
