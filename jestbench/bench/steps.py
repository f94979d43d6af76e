"""The training steps that ``train`` compares: jestbench's and open_clip's, over two towers of one shape."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch import Tensor, nn

from jestbench.batch import FULL, Batch
from jestbench.cost.price import Price
from jestbench.cost.tracing import counted_macs, without_values
from jestbench.engine.contrastive import Contrastive
from jestbench.engine.learner import Learner
from jestbench.engine.optimizer import Optimizer
from jestbench.model.tokenizer import END, PAD, Tokenizer
from jestbench.model.towers import INITIAL, MAX_SCALE, Model
from jestbench.parallel.arithmetic import Arithmetic
from jestbench.select.losses import LossName

# A learning rate so low that tens of steps on one batch keep the loss and the gradients away from zero.
OPTIMIZER = Optimizer(learning_rate=1e-5)
SHARE = 0.5
"""Share of the budget spent, at every step: past the warm-up, where the learning rate is not 0."""


@dataclass(frozen=True)
class Shape:
    """Two towers and their inputs.

    Attributes:
        model: the towers.
        tokens: length of a text.
        vocabulary: number of the tokenizer's ids.
        batch: pairs of a step.
        cpu_batch: pairs of a step on a CPU.
    """

    model: Model
    tokens: int
    vocabulary: int
    batch: int
    cpu_batch: int


SHAPES: Mapping[str, Shape] = {
    # gin/model/tiny.gin, on the captions of gin/data/icons.gin.
    "tiny": Shape(
        Model(
            image_options={"embed_dim": 64, "depth": 3, "num_heads": 2},
            embed_dim=64,
            text_width=64,
            text_layers=1,
            text_heads=2,
        ),
        tokens=10,
        vocabulary=4096,
        batch=64,
        cpu_batch=64,
    ),
    # ViT-S/32 and half of the text tower of open_clip's ViT-S-32; 128 px, because 224 px take minutes on two cores.
    "vit_s32": Shape(
        Model(
            "vit_small_patch32_224",
            image_size=128,
            patch_size=32,
            embed_dim=384,
            text_width=384,
            text_layers=6,
            text_heads=6,
        ),
        tokens=32,
        vocabulary=16384,
        batch=256,
        cpu_batch=16,
    ),
    # For tests.
    "miniature": Shape(
        Model(
            image_size=16,
            image_options={"embed_dim": 16, "depth": 1, "num_heads": 2},
            embed_dim=16,
            text_width=16,
            text_layers=1,
            text_heads=2,
        ),
        tokens=4,
        vocabulary=64,
        batch=8,
        cpu_batch=8,
    ),
}


@dataclass(frozen=True)
class Contender:
    """A model, its training step on one fixed batch, and its multiply-adds a pair (``macs``)."""

    model: nn.Module
    step: Callable[[], object]
    macs: Mapping[str, int]


def make_tokenizer(shape: Shape) -> Tokenizer:
    """A tokenizer of whole words with the shape's number of ids."""
    words = [PAD, "<unk>", END, *(f"word{number}" for number in range(shape.vocabulary - 3))]
    backend = Backend(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(backend.to_str(), shape.tokens)


def random_batch(shape: Shape, tokenizer: Tokenizer, pairs: int, device: torch.device) -> Batch:
    """Random pairs in host memory, to be moved to a device.

    Returns:
        uint8 images of the model's size, in the memory layout that decoders produce (channels last); texts that fill
        from half to all of the shape's tokens.
    """
    random = torch.Generator().manual_seed(0)
    size = shape.model.image_size
    images_BCHW = torch.randint(256, (pairs, size, size, 3), generator=random, dtype=torch.uint8).permute(0, 3, 1, 2)
    words_BL = torch.randint(shape.vocabulary - 3, (pairs, shape.tokens), generator=random).tolist()
    counts_B = torch.randint(shape.tokens // 2, shape.tokens, (pairs,), generator=random).tolist()
    captions = [" ".join(f"word{w}" for w in words[:n]) for words, n in zip(words_BL, counts_B, strict=True)]
    ids_BL, key_B = _page_locked(tokenizer.encode(captions), device), torch.arange(pairs)
    return Batch(_page_locked(images_BCHW, device), {tokenizer.identity: ids_BL}, key_B, key_B)


def _page_locked(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor; for CUDA, in page-locked memory."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def macs(image: nn.Module, text: nn.Module, images_BCHW: Tensor, token_BL: Tensor) -> dict[str, int]:
    """Multiply-adds of one pair through two towers, forward, and forward and backward (``training``)."""
    counted = [
        counted_macs(without_values(tower), inputs[:1].to("meta"))
        for tower, inputs in ((image, images_BCHW), (text, token_BL))
    ]
    return {"forward": sum(c.forward for c in counted), "training": sum(c.training for c in counted)}


def learner_of(shape: Shape, loss: LossName, arithmetic: Arithmetic, microbatch: int | None = None) -> Learner:
    """The learner of a run."""
    tokenizer = make_tokenizer(shape)
    model = shape.model.build(tokenizer, loss, 0).to(arithmetic.device)
    price = Price.of(model, random_batch(shape, tokenizer, 1, arithmetic.device))
    return Learner(model, Contrastive(loss, microbatch=microbatch), OPTIMIZER, arithmetic, {FULL: price})


def update_of(learner: Learner, batch: Batch) -> Callable[[], object]:
    """A call that does a training step on the batch."""
    counter = itertools.count()
    return lambda: learner.update(batch, None, SHARE, next(counter))


def ours(shape: Shape, loss: LossName, pairs: int, arithmetic: Arithmetic) -> Contender:
    """The learner of a run, and its update on a batch of ``pairs`` pairs."""
    tokenizer, learner = make_tokenizer(shape), learner_of(shape, loss, arithmetic)
    batch, model = random_batch(shape, tokenizer, pairs, arithmetic.device), learner.model
    return Contender(
        model,
        update_of(learner, batch),
        macs(model.image, model.text, batch.images_BCHW, batch.tokens(tokenizer.identity)),
    )


def open_clip_model(shape: Shape, loss: LossName) -> nn.Module:
    """``CustomTextCLIP`` of a shape, with a logit bias under the sigmoid loss only.

    open_clip's configuration names a timm model but passes no shape on to it, so timm's model of the shape
    replaces the trunk.
    """
    from open_clip import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    ours, (scale, bias) = shape.model, INITIAL[loss]
    model = CustomTextCLIP(
        ours.embed_dim,
        CLIPVisionCfg(
            image_size=ours.image_size, timm_model_name=ours.image_tower, timm_model_pretrained=False, timm_pool=""
        ),
        CLIPTextCfg(
            context_length=shape.tokens,
            vocab_size=shape.vocabulary,
            width=ours.text_width,
            heads=ours.text_heads,
            layers=ours.text_layers,
            mlp_ratio=ours.text_mlp_ratio,
            no_causal_mask=not ours.text_causal,
            pool_type="last",
        ),
        init_logit_scale=math.log(scale),
        init_logit_bias=bias if loss == "sigmoid" else None,
        output_dict=True,
    )
    options = {"img_size": ours.image_size, "patch_size": ours.patch_size, **ours.image_options}
    trunk = timm.create_model(ours.image_tower, num_classes=0, **options)
    model.visual.trunk = trunk
    model.visual.head.proj = nn.Linear(trunk.num_features, ours.embed_dim, bias=False)
    made: nn.Module = model
    return made


def open_clip_optimizer(model: nn.Module) -> torch.optim.AdamW:
    """AdamW over the parameter groups of ``open_clip_train.main``, with jestbench's hyperparameters."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    free = {n for n, p in named if p.ndim < 2 or any(part in n for part in ("bn", "ln", "bias", "logit_scale"))}
    return torch.optim.AdamW(
        [
            {"params": [p for n, p in named if n in free], "weight_decay": 0.0},
            {"params": [p for n, p in named if n not in free], "weight_decay": OPTIMIZER.weight_decay},
        ],
        lr=OPTIMIZER.learning_rate,
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        eps=OPTIMIZER.epsilon,
    )


def open_clips(shape: Shape, loss: LossName, pairs: int, arithmetic: Arithmetic) -> Contender:
    """open_clip's model, and the step of its training loop on a batch of ``pairs`` pairs."""
    from open_clip.loss import ClipLoss, SigLipLoss

    tokenizer = make_tokenizer(shape)
    batch = random_batch(shape, tokenizer, pairs, arithmetic.device)
    images_BCHW = _page_locked((batch.images_BCHW / 127.5 - 1).contiguous(), arithmetic.device)
    token_BL = batch.tokens(tokenizer.identity)
    torch.manual_seed(0)
    model: Any = open_clip_model(shape, loss).to(arithmetic.device).train()
    criterion = SigLipLoss() if loss == "sigmoid" else ClipLoss(cache_labels=True)
    optimizer = open_clip_optimizer(model)

    def step() -> None:
        for group in optimizer.param_groups:
            group["lr"] = OPTIMIZER.rate(SHARE)
        images = images_BCHW.to(arithmetic.device, non_blocking=True)
        tokens = token_BL.to(arithmetic.device, non_blocking=True)
        optimizer.zero_grad()
        with arithmetic.autocast():
            total = sum(criterion(**model(images, tokens), output_dict=True).values())
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip, norm_type=2.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(MAX_SCALE))

    return Contender(model, step, macs(model.visual, model.text, images_BCHW, token_BL))
