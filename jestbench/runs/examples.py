"""What a policy chose and what it refused, with the pictures: tables for people, on disk and in W&B.

A run folder's ``examples/`` holds, for each table, ``step-….json`` (some pairs), ``step-….png`` (their images as one
sheet) and ``step-….npz`` (all pairs, without pictures), and ``index.html``, which shows all tables. Nothing here is
computed by a model: the score is the one that the policy drew by.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from jestbench.batch import Batch, Selection
from jestbench.disk import write_text
from jestbench.runs.choices import Choice
from jestbench.runs.folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

_COLUMNS = 8  # images side by side in a sheet
_GAP = 2  # pixels between two images
_SHOWN = 96  # pixels at least: smaller images are enlarged on the page
_TEMPLATE = "examples.html.j2"


@dataclass(frozen=True, eq=False)
class Example:
    """One pair of a super-batch.

    Attributes:
        image_CHW: uint8.
        caption: empty where the data set gives none.
        chosen: whether the policy chose it.
        score: the policy's score of the pair by itself; ``None`` where the policy returns no score or a non-finite one.
        marks: what is known about the pair (``noisy``, ``curated``).
        position: of the pair in the super-batch.
    """

    image_CHW: Tensor
    caption: str
    chosen: bool
    score: float | None
    marks: dict[str, bool]
    position: int

    def image(self) -> Image:
        """The image, for PIL."""
        from PIL import Image

        array = self.image_CHW.permute(1, 2, 0).contiguous().numpy()
        return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array).convert("RGB")


@dataclass(frozen=True, eq=False)
class ExampleTable:
    """Some pairs of the super-batch of one step.

    Attributes:
        step: steps done.
        examples: drawn evenly, the chosen ones before the others, each kind by falling score.
        first: the pairs that the policy chose first, in its order, and those that it refused with the lowest scores.
        choice: all pairs, without pictures.
    """

    step: int
    examples: tuple[Example, ...]
    first: tuple[Example, ...]
    choice: Choice

    @property
    def marks(self) -> tuple[str, ...]:
        """Names of what is known about the pairs."""
        return tuple(self.examples[0].marks) if self.examples else ()


def pick(step: int, batch: Batch, selection: Selection, count: int, generator: torch.Generator) -> ExampleTable:
    """At most ``count`` chosen and ``count`` refused pairs drawn evenly, and as many of those chosen and refused first.

    Args:
        step: steps done, the one that these pairs were chosen in included.
        generator: of these draws alone.
    """
    score_B = None if selection.score_B is None else selection.score_B.detach().double().cpu()
    choice = _choice(batch, selection, score_B)
    chosen_B = torch.from_numpy(choice.chosen_B)
    positions: list[Tensor] = []
    for is_chosen in (True, False):
        index_N = (chosen_B == is_chosen).nonzero().flatten()
        index_P = index_N[torch.randperm(len(index_N), generator=generator)[:count]]
        if score_B is not None:
            index_P = index_P[score_B[index_P].argsort(descending=True, stable=True)]
        positions.append(index_P)
    evenly = sum(map(len, positions))
    positions += [selection.index_K.cpu()[:count], torch.from_numpy(choice.refused_first(count))]
    index_P = torch.cat(positions)
    # One call for all: several processes gather the pairs together.
    pairs, score_P = batch.everywhere(index_P), None if score_B is None else score_B[index_P]
    examples = [_example(pairs, place, at, bool(chosen_B[at]), score_P) for place, at in enumerate(index_P.tolist())]
    return ExampleTable(step, tuple(examples[:evenly]), tuple(examples[evenly:]), choice)


_MIX = -7046029254386353131  # odd: image and caption in either order are two pairs


def _choice(batch: Batch, selection: Selection, score_B: Tensor | None) -> Choice:
    return Choice(
        key_B=(batch.image_key_B * _MIX ^ batch.text_key_B).cpu().numpy(),
        chosen_K=selection.index_K.cpu().numpy(),
        score_B=None if score_B is None else score_B.float().numpy(),
    )


def _example(pairs: Batch, place: int, position: int, chosen: bool, score_P: Tensor | None) -> Example:
    score = None if score_P is None else float(score_P[place])
    return Example(
        image_CHW=pairs.images_BCHW[place].cpu(),
        caption=pairs.captions[place] if pairs.captions else "",
        chosen=chosen,
        score=score if score is not None and math.isfinite(score) else None,
        marks={name: bool(mark_P[place]) for name, mark_P in pairs.marks.items()},
        position=position,
    )


def save(table: ExampleTable, run_dir: Path) -> None:
    """Write the table, its sheet of images and the whole choice, and the page of all tables anew."""
    if not table.examples:
        return
    folder = RunFolder(run_dir).examples
    folder.mkdir(exist_ok=True)
    stem = f"step-{table.step:010d}"
    examples = (*table.examples, *table.first)
    sheet, places = _sheet([example.image() for example in examples])
    sheet.save(folder / f"{stem}.png")
    table.choice.write(folder / f"{stem}.npz")
    pairs = []
    for example, place in zip(examples, places, strict=True):
        plain = {name: getattr(example, name) for name in ("caption", "chosen", "score", "marks", "position")}
        pairs.append(plain | {"left": place[0], "top": place[1]})
    size = {"width": table.examples[0].image_CHW.shape[2], "height": table.examples[0].image_CHW.shape[1]}
    files = {"sheet": f"{stem}.png", "sheet_size": sheet.size, "choice": f"{stem}.npz"}
    evenly = len(table.examples)
    document = {"step": table.step, **files, **size, "examples": pairs[:evenly], "first": pairs[evenly:]}
    # A caption may hold what UTF-8 cannot (half a surrogate pair); it must not cost the run.
    write_text(folder / f"{stem}.json", json.dumps(document, indent=1, ensure_ascii=False) + "\n", errors="replace")
    write_text(RunFolder(run_dir).examples_page, _page(folder), errors="replace")


def _sheet(images: Sequence[Image]) -> tuple[Image, list[tuple[int, int]]]:
    """One picture of all images, and where each one's upper left corner lies in it."""
    from PIL import Image

    width, height = images[0].width + _GAP, images[0].height + _GAP
    rows = -(-len(images) // _COLUMNS)
    sheet = Image.new("RGB", (min(len(images), _COLUMNS) * width - _GAP, rows * height - _GAP), "white")
    places = [(number % _COLUMNS * width, number // _COLUMNS * height) for number in range(len(images))]
    for image, place in zip(images, places, strict=True):
        sheet.paste(image, place)
    return sheet, places


def _page(folder: Path) -> str:
    from jestbench.runs.templates import templates

    tables: list[dict[str, Any]] = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("step-*.json"))
    ]
    environment = templates(Path(__file__).parent)
    for table in tables:
        table["zoom"] = max(1, -(-_SHOWN // table["width"]))
    return environment.get_template(_TEMPLATE).render(run=folder.resolve().parent.name, tables=tables[::-1])
