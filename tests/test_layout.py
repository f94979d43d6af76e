"""The house: who may import whom, how long a function may be, what a wheel holds."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = sorted((ROOT / "jestbench").rglob("*.py"))
POLICIES = sorted((ROOT / "policies").glob("*.py"))
SHIPPED = [*sorted((ROOT / "gin").rglob("*.gin")), *sorted((ROOT / "gin").rglob("*.yaml"))]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: imports are absolute"
            yield node.module or ""


def roots(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imports(path)}


def test_the_layers_hold_and_a_wrong_import_breaks_them(tmp_path: Path) -> None:
    """``lint-imports`` runs in tools/test.sh; here, that its contracts would notice."""
    shutil.copytree(ROOT / "jestbench", tmp_path / "jestbench")
    shutil.copytree(ROOT / "policies", tmp_path / "policies")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def broken() -> set[str]:
        command = ["lint-imports", "--no-cache"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert "Contracts:" in done.stdout, done.stdout + done.stderr
        return {line.partition(" BROKEN")[0] for line in done.stdout.splitlines() if " BROKEN" in line}

    assert broken() == set()
    wrong = {
        "jestbench/cost/ledger.py": "import jestbench.launch.stages",
        "jestbench/evals/few_shot.py": "import gin",
        "jestbench/engine/rows.py": "import wandb",
        "policies/uniform.py": "import jestbench.model.towers",
    }
    for path, line in wrong.items():
        with (tmp_path / path).open("a") as file:
            file.write(f"\n{line}\n")
    names = {words.partition(" ")[0] for words in broken()}
    assert names == {"Each", "A", "Gin", "No", "W&B"}


def test_no_two_classes_and_no_two_files_have_one_name() -> None:
    files = [path for path in PACKAGE if path.name != "__init__.py"]
    classes = [
        node.name
        for path in files
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    counted = Counter([*classes, *(path.name for path in files)])
    assert [found for found, count in counted.items() if count > 1] == []


def test_the_folder_gin_does_not_hide_the_package() -> None:
    assert not list((ROOT / "gin").rglob("__init__.py"))
    code = "import gin; assert hasattr(gin, 'configurable'), gin"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("path", [*PACKAGE, *POLICIES, *sorted((ROOT / "tools").glob("*.py"))], ids=name)
def test_functions_fit_on_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{name(path)}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "gin").rglob("*.gin")) + sorted((ROOT / "gin").rglob("*.yaml")), ids=name
)
def test_a_configuration_file_opens_with_what_it_is(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert header, f"{name(path)} does not say what it is"
    if name(path) != "gin/policy/uniform.gin":  # it has nothing to change
        assert any("People change" in line for line in header), f"{name(path)} does not say what people change"


def test_the_wheel_holds_the_two_packages(tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(source)], check=True)
    subprocess.run(command, cwd=source, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    files = zipfile.ZipFile(wheel).namelist()
    tops = {file.split("/")[0] for file in files}
    read = {name(path) for path in (ROOT / "jestbench").rglob("*") if path.suffix in (".j2", ".css", ".js")}
    assert read <= set(files)
    assert {top for top in tops if not top.endswith(".dist-info")} == {"jestbench", "policies"}
