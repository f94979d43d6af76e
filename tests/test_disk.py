"""Files and names that outlive a process: whole or as they were; hashes that stay; no torch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jestbench import disk, seeds


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def torn(path: Path) -> None:
    with disk.whole(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError


def test_a_file_is_replaced_at_the_end_and_kept_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    disk.write_json(path, {"a": 1})
    disk.write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 2\n}\n'
    with pytest.raises(ZeroDivisionError):
        torn(path)
    with pytest.raises(ValueError, match="JSON"):
        disk.write_json(path, {"a": float("nan")})
    assert path.read_text() == '{\n  "a": 2\n}\n'
    assert names(tmp_path) == ["a.json"]


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    with disk.whole(folder) as partial:
        partial.mkdir()
        (partial / "half").touch()
        assert list(tmp_path.glob(disk.LEFTOVERS)) == [partial]
        assert not list(tmp_path.glob("step-*"))
    assert names(tmp_path) == ["step-1"]
    with pytest.raises(OSError), disk.whole(folder) as partial:  # noqa: PT011 (its number depends on the system)
        partial.mkdir()
    assert names(folder) == ["half"]
    assert names(tmp_path) == ["step-1"]


def test_what_a_killed_process_of_the_same_number_left_is_no_hindrance(tmp_path: Path) -> None:
    with disk.whole(tmp_path / "a") as partial:
        pass_on = partial
        partial.touch()
    pass_on.mkdir()
    (pass_on / "half").touch()
    disk.write_text(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert names(tmp_path) == ["a"]


def test_all_bytes_are_written_though_the_system_takes_some_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, content, offset: pwrite(file, content[:3], offset))
    with (tmp_path / "a").open("wb") as file:
        disk.write_all(file.fileno(), b"0123456789", 2)
    assert (tmp_path / "a").read_bytes() == b"\0\x000123456789"


def test_digests_are_those_of_blake2b() -> None:
    expected = hashlib.blake2b("añb".encode(), digest_size=5)
    assert disk.digest("añb", 5) == expected.hexdigest()
    assert disk.hashed([b"a", "ñ".encode(), b"b"], 5) == expected.digest()
    assert disk.content_key(b"a red cat") == -3037774535702438454


def test_hints() -> None:
    assert disk.nearest("uniformm", ["jest", "uniform"]) == "did you mean 'uniform'?"
    assert disk.nearest("zzz", ["jest"]) == ""
    assert disk.nearest("ab", ["abc", "abd"], "; it has {}", count=2) == "; it has abd, abc"
    assert disk.nearest_or_all("zzz", {"b", "a"}) == "there are: a, b"
    assert disk.nearest_or_all("zzz", ()) == "there is none"


def test_mixed_is_splitmix64() -> None:
    """The first numbers of the reference implementation from the state 1234567."""
    state = torch.tensor([1234567]) + seeds.GOLDEN * torch.arange(1, 4)
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert seeds.mixed(state).numpy().view(np.uint64).tolist() == known


def test_no_torch_is_imported() -> None:
    code = "import sys, jestbench.disk; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
