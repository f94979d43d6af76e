"""What all tests share: a cache of their own, no W&B, one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's is read or written; a reference is trained once a session.

    One thread makes results repeatable, and leaves the other cores to other tests; processes that a test
    starts inherit it.
    """
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    patch.setenv("JESTBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setenv("WANDB_MODE", "disabled")
    patch.setenv("OMP_NUM_THREADS", "1")
    yield
    patch.undo()
