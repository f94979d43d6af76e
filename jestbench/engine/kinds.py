"""The kinds of models that a run trains, and another run can be scored by: a new one is a line here."""

from __future__ import annotations

from collections.abc import Mapping

from jestbench.engine.casting import Training
from jestbench.engine.contrastive import ContrastiveTraining
from jestbench.engine.regression import Regression

KINDS: Mapping[str, type[Training]] = {training.kind: training for training in (ContrastiveTraining, Regression)}
