"""Device and number format of a run."""

from __future__ import annotations

import pytest
import torch

from jestbench.parallel import distributed
from jestbench.parallel.arithmetic import Arithmetic, number_format
from jestbench.parallel.distributed import World


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two processes, each on a GPU of its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "world", lambda: World(1, 2))


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_process_has_its_own_gpu(device: str, two_gpus: None) -> None:
    assert Arithmetic.of(device, "auto").device == torch.device("cuda", 1)


def test_one_gpu_for_several_processes_is_refused(two_gpus: None) -> None:
    with pytest.raises(ValueError, match=r"'cuda:0' would put all 2 processes .* bind run.device = 'cuda'"):
        Arithmetic.of("cuda:0", "auto")
    assert Arithmetic.of("cpu", "auto").device == torch.device("cpu")


def test_more_processes_than_a_machine_has_gpus_are_refused(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"process 2 of .* finds 2 GPUs there: .*--nproc_per_node 2"):
        Arithmetic.of("auto", "auto")
    assert Arithmetic.of("cpu", "auto").device == torch.device("cpu")


def test_one_process_may_name_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Arithmetic.of("cuda:1", "auto") == Arithmetic(torch.device("cuda", 1), bf16=True)


@pytest.mark.parametrize("there", [False, True])
def test_the_number_format_is_that_of_the_arithmetic(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    for device in ("auto", "cpu", *("cuda", "cuda:0") * there):
        for precision in ("auto", "fp32", "bf16", "fp64"):
            found, used = Arithmetic.of(device, precision), number_format(device, precision)
            assert (found.bf16, found.fp64) == (used == "bf16", used == "fp64")


def test_a_model_is_float64_where_the_run_is_and_is_left_as_it_is_elsewhere() -> None:
    image, text = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).double()
    plain = Arithmetic.of("cpu", "fp32")
    assert [plain.placed(part).weight.dtype for part in (image, text)] == [torch.float32, torch.float64]
    assert Arithmetic.of("cpu", "fp64").placed(image).weight.dtype == torch.float64
