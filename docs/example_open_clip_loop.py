"""JEST in an open_clip-style training loop: the ten lines between the two rulers in ``main``.

Everything else is what such a loop has anyway. The towers are linear, so that this runs in a second;
their ``forward`` returns what ``open_clip.CLIP.forward`` returns for a SigLIP model, so an open_clip
model takes their place as it is. A third of the data is good: the rest has its captions shuffled.

    python docs/example_open_clip_loop.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jestbench import Embeddings, Scores, joint_sample

SUPER_BATCH, BATCH, STEPS = 320, 64, 60
CONCEPTS, WIDTH, CLEAN_SHARE = 512, 32, 1 / 3


class LinearTowers(nn.Module):
    """Two linear towers with open_clip's outputs: normalised features, multiplier, offset."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())
        self.logit_bias = nn.Parameter(torch.tensor(-10.0))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embed a batch of pairs."""
        image, text = F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)
        return image, text, self.logit_scale.exp(), self.logit_bias


def siglip_loss(image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """The sigmoid loss over a batch."""
    sign = 2 * torch.eye(len(image)) - 1
    return -F.logsigmoid(sign * (scale * image @ text.T + bias)).sum() / len(image)


class World:
    """Images and texts of the same concepts, seen through two random maps."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator
        self.concepts = torch.randn(CONCEPTS, WIDTH, generator=generator)
        self.to_image, self.to_text = torch.randn(2, WIDTH, WIDTH, generator=generator) / WIDTH**0.5

    def pairs(self, count: int, clean_share: float) -> tuple[Tensor, Tensor, Tensor]:
        """Images, texts, and which pairs truly match."""
        concept = torch.randint(CONCEPTS, (count,), generator=self.generator)
        clean = torch.rand(count, generator=self.generator) < clean_share
        told = torch.where(clean, concept, torch.randint(CONCEPTS, (count,), generator=self.generator))
        return self.concepts[concept] @ self.to_image, self.concepts[told] @ self.to_text, clean


def update(model: LinearTowers, optimizer: torch.optim.Optimizer, images: Tensor, texts: Tensor) -> float:
    """One training step; returns the loss."""
    optimizer.zero_grad()
    loss = siglip_loss(*model(images, texts))
    loss.backward()
    optimizer.step()
    return loss.item()


def train_reference(world: World) -> LinearTowers:
    """A reference: the same towers, trained on good pairs alone."""
    model = LinearTowers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(STEPS):
        images, texts, _ = world.pairs(BATCH, clean_share=1.0)
        update(model, optimizer, images, texts)
    return model.eval()


def main() -> tuple[list[float], float]:
    """Train under JEST; returns the losses and the share of good pairs among the chosen."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    world = World(generator)
    reference, model = train_reference(world), LinearTowers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses, chosen_clean = [], 0.0
    for _ in range(STEPS):
        images, texts, clean = world.pairs(SUPER_BATCH, CLEAN_SHARE)
        # ---- select -----------------------------------------------------------------------------
        model.eval()
        with torch.no_grad():
            scores = Scores(
                learner=Embeddings(*model(images, texts)),
                reference=Embeddings(*reference(images, texts)),
                loss="sigmoid",
            )
        model.train()
        chosen = joint_sample(scores, count=BATCH, chunks=4, generator=generator)
        images, texts = images[chosen], texts[chosen]
        # ---- train, as ever ---------------------------------------------------------------------
        losses.append(update(model, optimizer, images, texts))
        chosen_clean += clean[chosen].float().mean().item() / STEPS
    return losses, chosen_clean


if __name__ == "__main__":
    history, share = main()
    print(f"loss {history[0]:.2f} → {history[-1]:.2f}; good pairs: {CLEAN_SHARE:.0%} drawn, {share:.0%} trained on")
