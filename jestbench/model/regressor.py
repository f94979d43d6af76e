"""A pair scorer: two towers and a small head, g(image, text) ∈ [0, 1].

After Cappy (Tan et al. 2023, tanyuqian/cappy): an encoder with one regression output, trained by mean squared
error. Departure: Cappy encodes both texts together; here image and text meet in the head alone, so that one pass
of the image tower serves every text that the image is paired with.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jestbench import seeds
from jestbench.batch import Batch
from jestbench.cost.tracing import forward_macs
from jestbench.model.encoders import at_least_fp32
from jestbench.model.image_tower import ImageTower
from jestbench.model.text_tower import TextTower
from jestbench.model.tokenizer import Tokenizer
from jestbench.model.towers import Model, TwoTowers


class PairHead(nn.Module):
    """Embeddings of pairs → logits: t·⟨x, y⟩ + b₀ plus an MLP on x⊙y and |x − y|.

    The MLP's output starts at zero, so training starts from the cosine.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(2 * width, hidden)
        self.out = nn.Linear(hidden, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, image_BD: Tensor, text_BD: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """Logits ``[B]`` of pairs of normalised embeddings."""
        features = torch.cat([image_BD * text_BD, (image_BD - text_BD).abs()], dim=1)
        correction_B = self.out(F.gelu(self.hidden(features))).squeeze(1)
        logit_B: Tensor = scale * torch.einsum("bd,bd->b", image_BD, text_BD) + bias + correction_B
        return logit_B


class Regressor(TwoTowers):
    """Two towers and a head that grades pairs."""

    def __init__(self, image: ImageTower, text: TextTower, tokenizer: Tokenizer, hidden: int) -> None:
        super().__init__(image, text, tokenizer, "sigmoid")
        # SigLIP's offset of −10 suits one match among many pairs; here about a third of the pairs match, and a
        # saturated sigmoid has no gradient under the squared error.
        nn.init.zeros_(self.bias)
        self.head = PairHead(self.width, hidden)

    @classmethod
    def build(cls, model: Model, tokenizer: Tokenizer, hidden: int, seed: int) -> Regressor:
        """Towers of the model's shape and a head, initialised from ``seed`` alone.

        Raises:
            ValueError: the towers cannot be built.
        """
        towers = model.build(tokenizer, "sigmoid", seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(seed, "init", 1))
            return cls(towers.image, towers.text, tokenizer, hidden)

    def grade(self, image_BD: Tensor, text_BD: Tensor) -> Tensor:
        """Grades g ``[B]`` of pairs of normalised embeddings, in fp32 (or fp64) whatever autocast the caller is in."""
        with torch.autocast(image_BD.device.type, enabled=False):
            return torch.sigmoid(self.head(at_least_fp32(image_BD), at_least_fp32(text_BD), self.scale, self.bias))

    def score(self, batch: Batch) -> Tensor:
        """Grades g ``[B]`` of the pairs of a batch.

        Raises:
            DataError: the batch holds no ids of this model's own tokenizer.
        """
        return self.grade(*self(batch))

    def head_macs(self) -> int:
        """Multiply-adds of grading one pair."""
        one = self.log_scale.new_zeros(1, self.width)
        return forward_macs(self.head, one, one, self.scale.detach(), self.bias.detach())
