"""What the documents show is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_policy_of_the_contributing_guide_trains(tmp_path: Path) -> None:
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (source,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (command,) = re.findall(r"python tools/run\.py (--gin_file gin/run/tiny\.gin .*)", guide)
    (tmp_path / "loss_band.py").write_text(source, encoding="utf-8")
    words = [*command.split(), "run.budget=2e9", "--run_dir", str(tmp_path / "run")]
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import loss_band\n"
        f"from jestbench.launch.command import main; sys.exit(main({words!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"policy": "loss_band"' in (tmp_path / "run" / "summary.json").read_text(encoding="utf-8")


def test_the_readme_names_every_policy_and_file_that_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:gin|docs|tools)/[\w/.]+\.\w+", readme))
    assert named
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    policies = {path.stem for path in (ROOT / "policies").glob("[a-z]*.py")} - {"registry"}
    assert {name for name in policies if f"`{name}`" not in readme} == set()
