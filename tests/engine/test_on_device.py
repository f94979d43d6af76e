"""Compiled blocks, and micro-batches that come through a side stream: both change seconds alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import SHAPE

from jestbench.batch import FULL, Batch, View
from jestbench.cost.price import Price
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.feed import on_device
from jestbench.engine.learner import Learner
from jestbench.engine.optimizer import Optimizer
from jestbench.model.tokenizer import Tokenizer, train_bpe
from jestbench.parallel.arithmetic import Arithmetic

CUDA = pytest.param(
    "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]
)
CAPTIONS = ["a red cat", "a blue dog on a hill", "red", "two green fish and a red cat by the sea"] * 4
DEEPER = replace(SHAPE, image_options={"embed_dim": 16, "depth": 2, "num_heads": 2})
COARSE = View(layers=0.5)
MIX = ((0.5, FULL), (0.5, COARSE))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_bpe(CAPTIONS, 300).to_str(), 8)


def batch_of(tokenizer: Tokenizer, seed: int, count: int = len(CAPTIONS), size: int = 16) -> Batch:
    images = torch.randint(256, (count, 3, size, size), generator=torch.Generator().manual_seed(seed))
    captions = [CAPTIONS[position % len(CAPTIONS)] for position in range(count)]
    ids = {tokenizer.identity: tokenizer.encode(captions)}
    return Batch(images.to(torch.uint8), ids, torch.arange(count), torch.arange(count))


def trained(tokenizer: Tokenizer, device: str, backend: str | None, **options: Any) -> tuple[list[float], torch.Tensor]:
    """Losses of some steps under a mix of views, and the scores after them."""
    learner = Learner(
        DEEPER.build(tokenizer, "sigmoid", 0),
        Contrastive("sigmoid", MIX, **options),
        Optimizer(warmup=0.0),
        Arithmetic.of(device, "fp32"),
        {FULL: Price(1000, 10), COARSE: Price(600, 10)},
    )
    if backend is not None:
        learner.model.compile_blocks(backend)
    updates = [learner.update(batch_of(tokenizer, step), None, 0.1, step) for step in range(5)]
    scores = learner.score(batch_of(tokenizer, 9)).side("learner")
    return [update.loss for update in updates], scores.image_BD.cpu() @ scores.text_BD.cpu().T


@pytest.mark.parametrize("microbatch", [None, 6])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_compiled_blocks_train_and_score_as_eager_ones_do(tokenizer, device, microbatch):
    # Inductor takes half a minute on a CPU; what is captured, and its backward pass, are the same there.
    backend = "inductor" if device == "cuda" else "aot_eager"
    losses, cosine_BB = trained(tokenizer, device, None, microbatch=microbatch)
    compiled, compiled_BB = trained(tokenizer, device, backend, microbatch=microbatch)
    assert losses[0] > losses[-1]
    assert compiled == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(compiled_BB, cosine_BB, rtol=0, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("pinned", [False, True])
@pytest.mark.parametrize("slots", [2, 7])
def test_micro_batches_of_a_side_stream_arrive_whole(tokenizer, pinned, slots):
    """The device is kept busy, so that a copy into memory that is still read, or read too early, would show."""
    device, busy = torch.device("cuda"), torch.randn(4096, 4096, device="cuda")
    batch = batch_of(tokenizer, 0, count=7 * 64, size=224)
    pieces = [batch.take(index) for index in torch.arange(len(batch)).split(64)]
    if pinned:
        pieces = [Batch(p.images_BCHW.pin_memory(), p.token_ids, p.image_key_B, p.text_key_B) for p in pieces]
    sums, ids = [], []
    for piece in on_device(pieces, device, tokenizer.identity, slots=slots):
        for _ in range(5):
            busy = busy @ busy / 4096
        sums.append(piece.images_BCHW.long().sum((1, 2, 3)))
        ids.append(piece.tokens(tokenizer.identity).clone())
    assert torch.equal(torch.cat(sums).cpu(), batch.images_BCHW.long().sum((1, 2, 3)))
    assert torch.equal(torch.cat(ids).cpu(), batch.tokens(tokenizer.identity))
