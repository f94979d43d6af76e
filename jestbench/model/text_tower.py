"""A text tower: a transformer over token ids, with the masks, poolings and activations of CLIP and SigLIP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jestbench.batch import FULL, View
from jestbench.model.views import cut_text, layers_run

if TYPE_CHECKING:
    from jestbench.model.towers import Model

TextPool = Literal["mean", "end", "last", "attention"]
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    """x·σ(1.702·x), the activation of OpenAI's CLIP."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


def activation_named(act: Any) -> Activation | None:
    """The name of an activation, found by its values; ``None`` where it is none of ``ACTIVATIONS``."""
    grid = torch.linspace(-4, 4, 101, device="cpu")
    names: tuple[Activation, ...] = get_args(Activation)
    return next((name for name in names if torch.allclose(act(grid.clone()), ACTIVATIONS[name](grid), atol=1e-6)), None)


class TextBlock(nn.Module):
    """A pre-norm transformer block over ``[B, L, width]``."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: Activation, norm_eps: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads, self.activation = heads, ACTIVATIONS[activation]
        self.norm_attention = nn.LayerNorm(width, norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, norm_eps)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def initialise(self, width: int, layers: int) -> None:
        """As CLIP: residual branches shrink with depth."""
        residual = (2 * layers) ** -0.5
        for linear, std in (
            (self.qkv, width**-0.5),
            (self.out, width**-0.5 * residual),
            (self.fc1, (2 * width) ** -0.5),
            (self.fc2, width**-0.5 * residual),
        ):
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BLW: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Attention and MLP, each with its residual."""
        batch, length, width = x_BLW.shape
        qkv = self.qkv(self.norm_attention(x_BLW)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        x_BLW = x_BLW + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = x_BLW + self.fc2(self.activation(self.fc1(self.norm_mlp(x_BLW))))
        return out


class AttentionPool(nn.Module):
    """One learned query that attends to all tokens, and an MLP with its residual: ``[B, L, width]`` → ``[B, width]``.

    The pooling of SigLIP's image tower ("MAP head", Zhai et al. 2022, arXiv 2106.04560, section 3.3).
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, activation: Activation, norm_eps: float) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.heads, self.activation = heads, ACTIVATIONS[activation]
        self.query = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.query, std=width**-0.5)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out, self.norm = nn.Linear(width, width), nn.LayerNorm(width, norm_eps)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x_BLW: Tensor, mask: Tensor | None) -> Tensor:
        """Attention by the query under the mask ``[B, 1, 1, L]``, then the MLP."""
        batch, length, width = x_BLW.shape
        q = self.q(self.query.expand(batch, 1, width)).view(batch, 1, self.heads, width // self.heads).transpose(1, 2)
        kv = self.kv(x_BLW).view(batch, length, 2, self.heads, width // self.heads)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x_BW = self.out(attended.reshape(batch, width))
        out: Tensor = x_BW + self.fc2(self.activation(self.fc1(self.norm(x_BW))))
        return out


class TextTower(nn.Module):
    """A text transformer: int64 ids ``[B, L]`` → ``[B, D]``, not normalised.

    Without ``causal``, padding is masked out of attention unless ``attend_padding``; with ``causal``, no text token
    attends to the padding after the end token. The tower always runs, and is priced, at the full length L, or at the
    view's text length. A text ends at its first token ``end_id``, where that is given, and else before the padding:
    CLIP's own tokenizers pad with a token that occurs in texts, or with the end token.

    Args:
        shape: of the model that the tower is half of.
        vocab_size: ids that have an embedding.
        length: L.
        pad_id: the id of padding.
        end_id: the id of the end token; ``None``: a text ends before the padding.
    """

    def __init__(self, shape: Model, vocab_size: int, length: int, pad_id: int, end_id: int | None = None) -> None:
        super().__init__()
        width, layers, norm_eps = shape.text_width, shape.text_layers, shape.text_norm_eps
        self.pad_id, self.end_id = pad_id, end_id
        self.causal, self.pool, self.attend_padding = shape.text_causal, shape.text_pool, shape.text_attend_padding
        self.activation = shape.text_activation
        self.grad_checkpointing = False
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.empty(length, width))
        block = width, shape.text_heads, shape.text_mlp_ratio, shape.text_activation, norm_eps
        self.blocks = nn.ModuleList(TextBlock(*block) for _ in range(layers))
        self.norm = nn.LayerNorm(width, norm_eps)
        self.attention_pool = AttentionPool(*block) if shape.text_pool == "attention" else None
        self.projection = nn.Linear(width, shape.embed_dim, bias=shape.text_projection_bias)
        self._initialise(width, layers)

    def _initialise(self, width: int, layers: int) -> None:
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions, std=0.01)
        nn.init.normal_(self.projection.weight, std=width**-0.5)
        if self.projection.bias is not None:
            nn.init.zeros_(self.projection.bias)
        for block in self.blocks:
            assert isinstance(block, TextBlock)
            block.initialise(width, layers)

    def forward(self, token_BL: Tensor, view: View = FULL) -> Tensor:
        """Run the blocks (only the first ones under a view), pool over the text, project."""
        positions: Tensor = self.positions
        if view.text_length is not None and view.text_length < len(positions):
            token_BL = cut_text(token_BL, view.text_length, self._end(token_BL))
            positions = positions[: view.text_length]
        real_BL = token_BL != self.pad_id
        x_BLW = self.tokens(token_BL) + positions
        padding = None if self.attend_padding else real_BL[:, None, None, :]
        mask = None if self.causal else padding
        for block in self.blocks[: layers_run(view.text_layers, len(self.blocks))]:
            if self.grad_checkpointing:
                x_BLW = checkpoint(block, x_BLW, mask, self.causal, use_reentrant=False)
            else:
                x_BLW = block(x_BLW, mask, self.causal)
        out: Tensor = self.projection(self._pooled(x_BLW, token_BL, real_BL, padding))
        return out

    def _end(self, token_BL: Tensor) -> Tensor:
        """Position ``[B]`` of each text's last token, its end token."""
        if self.end_id is None:
            return (token_BL != self.pad_id).sum(1) - 1
        return (token_BL == self.end_id).int().argmax(1)

    def _pooled(self, x_BLW: Tensor, token_BL: Tensor, real_BL: Tensor, padding: Tensor | None) -> Tensor:
        """One vector ``[B, width]`` a text."""
        if self.pool == "mean":
            share_BL1 = real_BL.unsqueeze(-1).to(x_BLW.dtype)
            pooled: Tensor = (self.norm(x_BLW) * share_BL1).sum(1) / share_BL1.sum(1)
        elif self.attention_pool is not None:
            pooled = self.attention_pool(self.norm(x_BLW), padding)
        elif self.pool == "last":
            pooled = self.norm(x_BLW[:, -1])
        else:
            pooled = self.norm(x_BLW[torch.arange(len(x_BLW), device=x_BLW.device), self._end(token_BL)])
        return pooled
