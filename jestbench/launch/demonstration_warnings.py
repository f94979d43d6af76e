"""Warnings of parts made for the icon-sized demonstration beside a model that is not: frozen models, and views.

Most files of ``gin/policy`` bind a reference of the demonstration's size and budget, some a view in its pixels. Both
run beside any model, and what they choose by is then worth nothing.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jestbench.batch import FULL, View, grid_of
from jestbench.config.resolved import Resolved
from jestbench.cost.budget import Pretrained
from jestbench.cost.ledger import flops_of
from jestbench.cost.price import Price
from jestbench.engine.learner import Learner
from jestbench.launch.stands import ended
from jestbench.loop import Stages
from jestbench.model.image_tower import ImageTower
from jestbench.model.views import patches_kept
from jestbench.parallel import distributed
from jestbench.select.scores import Role

FEW_STEPS = 100
"""Steps of a frozen model's training below which a run is warned of: the warm-up of CLIP's recipes alone takes more."""
A_TRIAL = 10
"""By which factor the arm's own steps must be more for that: a trial of a few steps has a reference of a few."""
LEAST_COST = 0.3
"""Of a reference's forward pass over the learner's. The references that are shipped cost 0.5 to 2.8 of their learners';
a smaller one is a choice that people make (JEST's own cheap scoring, by a view of one model, costs 0.28)."""
LEAST_COST_ONLINE = 0.01
"""Of an online scorer's forward pass over the learner's: it is meant to be small, the demonstration's costs 0.2."""
LEAST_PATCHES = 0.125
"""Share of an image's patches that a view keeps: half of what JEST's coarse view does (64 of 256, arXiv 2406.17711)."""
LEAST_SIDE = 0.25
"""Share of the model's image side that a view keeps: JEST's coarse view keeps all of it."""
_LITTLE = "too little to train or to score by (JEST's coarse view keeps a quarter of the patches, at all pixels)"


@dataclass(frozen=True)
class Proportions:
    """What the frozen models of a run are compared with.

    Attributes:
        most_steps: steps that the run's own budget buys at most, by its training passes alone.
        costs: by role, a forward pass of the smallest model over one of the learner's, both under the full view.
    """

    most_steps: int
    costs: Mapping[Role, float]

    @classmethod
    def of(cls, resolved: Resolved, stages: Stages) -> Proportions:
        """Compare the models of a run's stages, which may be stand-ins of their shapes."""
        run, learner, example = resolved.run, stages.learner, stages.learner.model.tokenized(stages.pairs.example())
        costs = dict[Role, float]()
        for role, actor in stages.scorer.actors.items():
            if isinstance(actor, Learner) and role != "learner":
                costs[role] = actor.price.pair / learner.price.pair
            elif actor.frozen and role not in run.castings:
                whole = actor.view == FULL
                prices = [one.price if whole else Price.of(one.model, example) for one in actor.frozen]
                costs[role] = min(price.pair for price in prices) / learner.price.pair
        if run.budget is None:
            steps = run.limit.steps or -(-(run.limit.pairs or 0) // resolved.draw_size)
        else:
            one = flops_of(learner.forecast_update(run.batch_size))
            steps = (int(run.budget) + resolved.added_flops) // max(1, one)
        return cls(steps, costs)


def steps_taken(resolved: Resolved, folders: Mapping[Pretrained, Sequence[Path]]) -> dict[Pretrained, int]:
    """Steps of the frozen models that were trained on demand, by role; of two the fewer."""
    return {
        role: min(ended(folder).steps for folder in folders[role])
        for role, stands in resolved.scored_by.items()
        if all(isinstance(stand, Resolved) for stand in stands)
    }


def toy_warnings(resolved: Resolved, found: Proportions, steps: Mapping[Pretrained, int]) -> dict[Role, str]:
    """Warnings of models that are trained on demand and far too little, or far too small, beside a run, by role.

    Args:
        found: of the run.
        steps: of the training of those models.
    """
    warnings: dict[Role, str] = {}
    for role, taken in steps.items():
        reasons = []
        if taken < FEW_STEPS and A_TRIAL * taken < found.most_steps:
            reasons.append(f"it is trained for {taken:,} steps (below {FEW_STEPS})")
        if role == "reference" and (cost := found.costs[role]) < LEAST_COST:
            reasons.append(f"a forward pass of it costs {cost:.2g} of the learner's (below {LEAST_COST})")
        if reasons:
            stand = resolved.scored_by[role][0]
            name = stand.run.arm if isinstance(stand, Resolved) else stand.name
            like = "gin/run/cc3m_reference.gin" if role == "reference" else "gin/run/cappy.gin"
            warnings[role] = (
                f"the {role} {name!r} is a toy beside this arm: {', and '.join(reasons)}; bind run.{role} to a run "
                f"file of your own (copy {like}) with the learner's model.* and a run.budget of several epochs of "
                "its split (docs/your_data.md)"
            )
    if (cost := found.costs.get("online", 1.0)) < LEAST_COST_ONLINE:
        warnings["online"] = (
            f"the online scorer is a toy beside this arm: a forward pass of it costs {cost:.2g} of the learner's "
            f"(below {LEAST_COST_ONLINE}): bind larger towers where online_scorer.model has its own "
            "(gin/policy/active_clip.gin: scorer/model.image_options, .text_width, .text_heads)"
        )
    return warnings


def view_size_warnings(resolved: Resolved, stages: Stages) -> list[str]:
    """Warnings of views that leave too little of an image, each with the parameters that bind it."""
    names, said = defaultdict[View, list[str]](list), dict[View, str]()
    for who, name, view, image in _views(resolved, stages):
        if view == FULL or not isinstance(image, ImageTower) or not image.transformer:
            continue
        patch, (side, _) = image.backbone.patch_embed.patch_size, image.resolution
        whole = math.prod(grid_of(FULL, patch, (side, side)))
        kept, pixels = patches_kept(view, math.prod(grid_of(view, patch, (side, side)))), view.resolution or side
        if kept < LEAST_PATCHES * whole or pixels < LEAST_SIDE * side:
            names[view].append(name)
            left = f"leaves the {who} {kept} of its {whole} patches, of an image of {pixels} instead of {side} px"
            said.setdefault(view, f"{left}: {_LITTLE}; {_mend(resolved, view, patch[0], side)}")
    return [f"{' and '.join(names[view])}: a view of {view.label} {text}" for view, text in said.items()]


def _views(resolved: Resolved, stages: Stages) -> Iterator[tuple[str, str, View, object]]:
    """The views of a run: who is run under it, the parameter that binds it, the view, the image tower."""
    learner = stages.learner
    for view in sorted(learner.trained_under, key=lambda view: view.label):  # a set's order is no order
        yield "learner", "run.train_views", view, learner.model.image
    for role, actor in stages.scorer.actors.items():
        if role in resolved.run.needs:
            models = [actor.model] if isinstance(actor, Learner) else [one.model for one in actor.frozen]
            for model in models:
                yield role, resolved.run.view_of(role)[0], actor.view, model.image


def _mend(resolved: Resolved, view: View, patch: int, side: int) -> str:
    """The bindings of a view that keeps about a quarter of the patches."""
    key = next(
        (
            scoped.rpartition(".")[0]
            for scoped, value in resolved.flat.items()
            if scoped.endswith("view.resolution")
            and value == view.resolution
            and resolved.flat[f"{scoped.rpartition('.')[0]}.patch_size"] == view.patch_size
        ),
        "view",
    )
    coarser = [size for size in range(patch + 1, side) if side % size == 0]
    coarser = [size for size in coarser if (patch / size) ** 2 >= LEAST_PATCHES]
    if not coarser or view.keep < 1:
        return f"raise {key}.resolution or {key}.keep"
    best = min(coarser, key=lambda size: abs((patch / size) ** 2 - 0.25))
    there = "" if resolved.run.reference is None else ", here and in run.reference"
    return f"bind {key}.patch_size = {best} and {key}.resolution = {side}{there} (docs/your_model.md)"


def printed(warnings: Iterable[str]) -> list[str]:
    """Warnings, which rank 0 has printed on stderr."""
    found = list(warnings)
    for warning in found if distributed.world().first_of_all else ():
        print(f"warning: {warning}", file=sys.stderr)
    return found
