"""One conformance suite over all policies, whoever wrote them; the registry; the check of what they return.

A new policy is picked up by itself, with its default parameters and each alternative of a boolean or
literal one.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import random
import re
import subprocess
import sys
import types
import typing
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from numpy.random import mtrand
from scipy.stats import chi2
from thread_world import by_threads
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import policies
from jestbench import Embeddings, Scores, Selection
from jestbench.batch import COLUMN
from jestbench.parallel.distributed import World
from jestbench.select import NO_WORD, LearningPolicy, LeavingPolicy, Moment, Remembered, Side, Trained
from jestbench.select.memory import Memory
from jestbench.select.policy import Policy, PolicyError, StatefulPolicy, choose, initial_state
from jestbench.select.remembering import check_needs, learn, leave_out, remembered_names, takes_all
from jestbench.select.strips import Meter
from policies import registry

ROOT = Path(__file__).resolve().parents[2]
SIDES = typing.get_args(Side)
SIZE, COUNT = 32, 9
NAMES = policies.available()
COLUMNS = sorted({need for name in NAMES for need in policies.create(name).needs if need.startswith(COLUMN)})
VALUES = tuple(dict.fromkeys(("g", "column:similarity", "column:other", *COLUMNS)))
REMEMBERED = sorted({number for name in NAMES for number in policies.get(name).remembers})
EPOCHS = 7

each_policy = pytest.mark.parametrize("name", NAMES)
each_loss = pytest.mark.parametrize("loss", ["sigmoid", "softmax"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_embeddings(size: int, generator: torch.Generator, scale: float, bias: float) -> Embeddings:
    image_BD, text_BD = torch.nn.functional.normalize(torch.randn(2, size, 8, generator=generator), dim=2)
    return Embeddings(image_BD, text_BD, scale, bias)


def all_scores(loss: str, size: int = SIZE, seed: int = 0) -> Scores:
    """Everything that a policy could ask for."""
    generator = seeded(seed)
    models = {side: random_embeddings(size, generator, 5.0 + i, -4.0 - i) for i, side in enumerate(SIDES)}
    values, memory = ({name: torch.rand(size, generator=generator) for name in names} for names in (VALUES, REMEMBERED))
    first_B1 = torch.randint(12, (size, 1), generator=generator)
    words_BL = (first_B1 + torch.tensor([0, 1, 5])) % 12
    words_BL[torch.rand(size, generator=generator) < 0.3, 2] = NO_WORD
    return Scores(
        **models,
        values=values,
        loss=loss,
        key_B=torch.randperm(size, generator=generator) << 40,
        words_BL=words_BL,
        progress=Moment(0.5, 6, 3),
        memory=memory,
    )


def asked_for(scores: Scores, policy: Policy) -> Scores:
    """What the policy's ``needs`` name, and nothing else."""
    models = {side: getattr(scores, side) for side in policy.needs if side in SIDES}
    wanted = {*policy.needs, *({"g"} if "scorer" in policy.needs else ())}
    values = {name: value for name, value in scores.values.items() if name in wanted}
    memory = {name: scores.memory[name] for name in remembered_names(policy)}
    given = {"keys": "key_B", "captions": "words_BL", "progress": "progress"}
    more = {field: getattr(scores, field) for need, field in given.items() if need in policy.needs}
    return Scores(**models, **more, values=values, memory=memory, size=len(scores), loss=scores.loss)


def in_float64(scores: Scores) -> Scores:
    models = {
        side: dataclasses.replace(model, image_BD=model.image_BD.double(), text_BD=model.text_BD.double())
        for side, model in models_of(scores).items()
    }
    return dataclasses.replace(scores, **models)


def parameter_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def alternatives(cls: type) -> Iterator[tuple[str, object]]:
    """Parameter and value: what a boolean or literal parameter can be beside its default."""
    for field in dataclasses.fields(cls):
        kind = parameter_types(cls).get(field.name)
        values = (False, True) if kind is bool else typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
        yield from ((field.name, value) for value in values if value != field.default)


def variants() -> Iterator[tuple[str, dict[str, object]]]:
    for name in NAMES:
        yield name, {}
        yield from ((name, {parameter: value}) for parameter, value in alternatives(policies.get(name)))


VARIANTS = list(variants())
each_variant = pytest.mark.parametrize(
    ("name", "parameters"),
    VARIANTS,
    ids=["-".join([name, *(f"{key}={value}" for key, value in chosen.items())]) for name, chosen in VARIANTS],
)


@each_variant
@each_loss
class TestEveryVariant:
    def test_exactly_count_distinct_pairs(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        policy = policies.create(name, **parameters)
        for size, count in ((SIZE, COUNT), (SIZE, 1), (7, 7), (SIZE, SIZE), (1, 1)):
            chosen = select(policy, asked_for(all_scores(loss, size), policy), count=count).index_K
            assert chosen.dtype == torch.int64
            assert chosen.shape == (count,)
            assert len(set(chosen.tolist())) == count
            assert set(chosen.tolist()) <= set(range(size))

    def test_statistics_are_finite_and_named(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        policy = policies.create(name, **parameters)
        for key, value in select(policy, asked_for(all_scores(loss), policy)).statistics.items():
            assert key.startswith("select/")
            assert isinstance(value, float)
            assert math.isfinite(value)

    def test_the_generator_alone_decides(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        policy = policies.create(name, **parameters)
        scores = asked_for(all_scores(loss), policy)
        assert_same(select(policy, scores, 3), select(policies.create(name, **parameters), scores, 3))
        choices = {tuple(select(policy, scores, seed).index_K.tolist()) for seed in range(12)}
        assert (len(choices) > 1) == uses_generator(policy, scores)

    def test_global_randomness_is_left_alone(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        policy = policies.create(name, **parameters)
        scores = asked_for(all_scores(loss), policy)
        before = global_randomness()
        select(policy, scores)
        assert global_randomness() == before

    def test_inputs_are_left_alone(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        policy = policies.create(name, **parameters)
        scores = asked_for(all_scores(loss), policy)
        copies = [tensor.clone() for tensor in tensors_of(scores)]
        select(policy, scores)
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors_of(scores), copies, strict=True))

    def test_what_it_remembers_goes_in_and_comes_out(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        policy = policies.create(name, **parameters)
        state = initial_state(policy)
        assert (state is not None) == isinstance(policy, StatefulPolicy)
        for step in range(3):
            scores = asked_for(all_scores(loss, seed=step), policy)
            before = saved(state)
            first = choose(policy, scores, COUNT, seeded(step), state)
            again = choose(policies.create(name, **parameters), scores, COUNT, seeded(step), state)
            assert_same(first, again)
            assert saved(state) == before, "the state that went in was changed"
            assert saved(first.state) == saved(again.state)
            state = first.state
        assert (state is not None) == isinstance(policy, StatefulPolicy)
        assert policy == policies.create(name, **parameters)

    def test_a_life_cut_in_two_is_the_life_uncut(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        """Over several epochs, with all that a policy remembers; read back from a checkpoint between any two."""
        whole = life(policies.create(name, **parameters), loss)
        assert life(policies.create(name, **parameters), loss, cut=True) == whole

    def test_it_remembers_what_it_declares(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        policy = policies.create(name, **parameters)
        selection = select(policy, asked_for(all_scores(loss), policy))
        assert set(selection.memory) <= set(remembered_names(policy))

    def test_its_products_are_charged(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        """What torch counts of a choice's matrix products is no more than what the scores have metered."""
        policy = policies.create(name, **parameters)
        scores = asked_for(all_scores(loss), policy)
        with FlopCounterMode(display=False) as counter:
            select(policy, scores)
        assert counter.get_total_flops() <= 2 * scores.meter.macs, "a product of embeddings that nobody is charged for"

    def test_several_processes_choose_as_one(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        """In float64; three processes, among which neither the super-batch nor a chunk divides."""
        policy = policies.create(name, **parameters)
        scores = in_float64(asked_for(all_scores(loss), policy))
        wanted = select(policy, scores)

        def choice(world: World) -> tuple[Selection, Meter]:
            shared = dataclasses.replace(scores, world=world, meter=Meter())
            return select(policy, shared), shared.meter

        for found, meter in by_threads(3, choice):
            assert torch.equal(found.index_K, wanted.index_K)
            assert found.statistics == pytest.approx(wanted.statistics, abs=1e-12)
            for one, other in ((found.weight_K, wanted.weight_K), (found.score_B, wanted.score_B)):
                assert (one is None) == (other is None)
                assert one is None or torch.allclose(one, other, rtol=1e-6, atol=1e-12)
            assert saved(found.state) == saved(wanted.state)
            assert meter.macs == scores.meter.macs, "what is charged depends on no number of processes"
            assert meter.own_macs * SIZE <= meter.macs * 11, "each computes its share of all products"

    def test_what_it_did_not_ask_for_changes_nothing(self, name: str, parameters: Mapping[str, Any], loss: str) -> None:
        policy = policies.create(name, **parameters)
        scores = all_scores(loss)
        assert_same(select(policy, scores), select(policy, asked_for(scores, policy)))

    def test_the_choice_goes_the_way_that_it_declares(
        self, name: str, parameters: Mapping[str, Any], loss: str
    ) -> None:
        """By default clearly; no other value of a parameter turns it round (a control may lose it)."""
        policy = policies.create(name, **parameters)
        assert set(policy.prefers.values()) <= {1, -1}
        given = asked_for(all_scores(loss), policy)
        assert set(policy.prefers) <= {*policy.needs, *given.values, *given.memory}
        for quantity, direction in policy.prefers.items():
            lean = direction * (share_of_more(policy, quantity, loss) - 0.5)
            assert lean > (-0.1 if parameters else 0.06), f"{quantity}: {lean:+.2f} over a half"


def life(policy: Policy, loss: str, cut: bool = False) -> list[bytes]:
    """All that a policy does in some epochs over 32 pairs: what it leaves out, chooses, weighs and remembers.

    ``cut``: state and memory go through a checkpoint after each step.
    """
    everything = all_scores(loss)
    keys, state, memory = everything.key_B, initial_state(policy), Memory(remembered_names(policy))
    trace: list[bytes] = []
    for epoch in range(EPOCHS):
        share, kept_M = epoch / EPOCHS, torch.arange(SIZE)
        if isinstance(policy, LeavingPolicy):
            before = Remembered(state, memory.read(keys))
            out_N = leave_out(policy, keys, before, Moment(share, epoch), seeded(100 + epoch))
            kept_M = (~out_N).nonzero().flatten()
            assert len(kept_M), "a policy leaves some pairs in"
        now = all_scores(loss, seed=epoch).take(kept_M)  # the learner has changed
        moment = Moment(share, epoch, SIZE - len(kept_M))
        rows = {"key_B": keys[kept_M], "words_BL": everything.words_BL[kept_M], "progress": moment}
        now = dataclasses.replace(now, **rows, memory={**now.memory, **memory.read(keys[kept_M])})
        count = len(kept_M) if takes_all(policy) else COUNT
        selection = choose(policy, asked_for(now, policy), count, seeded(epoch), state)
        state = selection.state
        memory.write(keys[kept_M], selection.memory)
        if isinstance(policy, LearningPolicy):
            chosen_K = keys[kept_M][selection.index_K]
            losses = torch.rand(2, len(chosen_K), generator=seeded(200 + epoch)) + torch.linspace(0, 2, len(chosen_K))
            learnt = learn(policy, Trained(*losses, moment), Remembered(state, memory.read(chosen_K)))
            state = learnt.state
            memory.write(chosen_K, learnt.memory)
        if cut:
            state = torch.load(io.BytesIO(saved(state)), weights_only=True)
            kept, memory = memory.state_dict(), Memory()
            memory.load_state_dict(torch.load(io.BytesIO(saved(kept)), weights_only=True))
        numbers = [number.nan_to_num(-1.0) for number in memory.read(keys).values()]
        trace.append(saved([kept_M, selection.index_K, selection.weight_K, numbers]))
    return trace


def tries(name: str, parameter: str) -> Iterator[object]:
    """Values that a parameter might take, beside its default."""
    default = next(field.default for field in dataclasses.fields(policies.get(name)) if field.name == parameter)
    yield from (value for key, value in alternatives(policies.get(name)) if key == parameter)
    if isinstance(default, str):
        yield from (column.removeprefix(COLUMN) for column in VALUES if column.startswith(COLUMN))
    elif not isinstance(default, bool):
        yield from (value for value in (0, 1, 2, 3, 20, 0.05, 0.15, 0.5, 0.9, 5.0, 50.0) if value != default)


def matters(name: str, parameter: str) -> bool:
    """Whether some value of a parameter, beside some value of the others, changes what the policy does."""
    others = [other for other in parameter_types(policies.get(name)) if other != parameter]
    bases = [base for variant, base in VARIANTS if variant == name and parameter not in base]
    bases += [{other: value} for other in others for value in (5, 0.5)]  # some numbers matter beside another one
    for base in bases:
        for value in tries(name, parameter):
            try:
                one, other = policies.create(name, **base), policies.create(name, **base, **{parameter: value})
            except (ValueError, TypeError):
                continue
            if any(life(one, loss) != life(other, loss) for loss in ("sigmoid", "softmax")):
                return True
    return False


def two_kinds(quantity: str, loss: str) -> Scores:
    """Pairs that are alike but for one quantity, which the odd ones have more of: a model's loss, or a value."""

    def model(side: str) -> Embeddings:
        axis_B = torch.arange(SIZE) + SIZE * (torch.arange(SIZE) % 2) * (side == quantity)
        everything = torch.eye(2 * SIZE)
        return Embeddings(everything[:SIZE], everything[axis_B], 10.0, -5.0)

    alike_B, odd_B = torch.full((SIZE,), 0.5), (torch.arange(SIZE) % 2).float()
    values, memory = (
        {name: odd_B if name == quantity else alike_B for name in names} for names in (VALUES, REMEMBERED)
    )
    models = {side: model(side) for side in SIDES}
    other = all_scores(loss)
    more = {"key_B": other.key_B, "words_BL": torch.ones_like(other.words_BL), "progress": other.progress}
    return Scores(**models, **more, values=values, memory=memory, loss=loss)


def share_of_more(policy: Policy, quantity: str, loss: str) -> float:
    """Which share of the chosen has more of the quantity; a half where it doesn't matter.

    Of a policy that leaves pairs out, the share of those that stay once it has learned from losses of that quantity.
    """
    scores = asked_for(two_kinds(quantity, loss), policy)
    if isinstance(policy, LeavingPolicy):
        state, memory = initial_state(policy), {name: value.clone() for name, value in scores.memory.items()}
        if isinstance(policy, LearningPolicy):
            unknown = {name: torch.full((SIZE,), math.nan) for name in memory}
            loss_B = scores.memory.get(quantity, torch.rand(SIZE, generator=seeded()))
            state = learn(policy, Trained(loss_B, loss_B, Moment(0.2, 5)), Remembered(state, unknown)).state
        left = [
            leave_out(policy, torch.arange(SIZE), Remembered(state, memory), Moment(0.2, 6), seeded(seed))
            for seed in range(24)
        ]
        return float(torch.cat([(~out_N).nonzero().flatten() for out_N in left]).remainder(2).double().mean())
    draws = 24 if uses_generator(policy, scores) else 1
    chosen = torch.cat([select(policy, scores, seed).index_K for seed in range(draws)])
    return float((chosen % 2).double().mean())


def saved(state: object) -> bytes:
    """A state as a checkpoint keeps it; what comes back from there is the same."""

    def written(what: object) -> bytes:
        file = io.BytesIO()
        torch.save(what, file)
        return file.getvalue()

    found = written(state)
    assert written(torch.load(io.BytesIO(found), weights_only=True)) == found
    return found


def select(policy: Policy, scores: Scores, seed: int = 0, count: int = COUNT) -> Selection:
    """The policy's first choice; from the state that it begins with, where it has one."""
    return choose(policy, scores, count, seeded(seed), initial_state(policy))


def assert_same(one: Selection, other: Selection) -> None:
    assert torch.equal(one.index_K, other.index_K)
    assert one.statistics == other.statistics
    weights = (one.weight_K, other.weight_K)
    assert weights == (None, None) or torch.equal(*weights)
    assert one.memory.keys() == other.memory.keys()
    for name, value_B in one.memory.items():
        assert torch.equal(value_B.nan_to_num(-1.0), other.memory[name].nan_to_num(-1.0))


def uses_generator(policy: Policy, scores: Scores) -> bool:
    generator = seeded()
    choose(policy, scores, COUNT, generator, initial_state(policy))
    return not torch.equal(generator.get_state(), seeded().get_state())


def global_randomness() -> tuple[object, ...]:
    numpy_state = mtrand.get_state()
    return torch.get_rng_state().tolist(), numpy_state[1].tolist(), numpy_state[2:], random.getstate()


def models_of(scores: Scores) -> dict[str, Embeddings]:
    return {side: getattr(scores, side) for side in SIDES if getattr(scores, side) is not None}


def tensors_of(scores: Scores) -> list[Tensor]:
    parts = [tensor for model in models_of(scores).values() for tensor in (model.image_BD, model.text_BD)]
    rows = [rows for rows in (scores.key_B, scores.words_BL) if rows is not None]
    return [*parts, *rows, *scores.values.values(), *scores.memory.values()]


WRONG_BY_NAME: dict[str, tuple[object, ...]] = {
    "gain": (-1.0, math.inf),
    "chunks": (0, -1, math.nan, 2.5),
    "temperature": (-1.0, math.inf),
    "share": (-1.0, 2.0),
    "repetition": (-0.1, math.inf),
    "epochs": (-1,),
    "momentum": (-0.1, 1.0),
    "prune": (-0.1, 1.0),
    "until": (-0.1, 1.1),
    "cap": (0,),
    "skip": (-1,),
    "size": (-1,),
    "batch": (-1,),
    "rounds": (0,),
    "name": ("",),
}
WRONG_BY_TYPE: dict[object, tuple[object, ...]] = {
    float: (math.nan,),
    types.UnionType: (math.nan, (1.0, -1.0), (math.nan, 1.0), (1.0,)),  # a number, or (from, to)
    Literal: ("nonsense",),
}


def wrong_parameters() -> Iterator[Any]:
    """Every bad value of every parameter of every policy, by the parameter's name and type."""
    for name in NAMES:
        for parameter, kind in parameter_types(policies.get(name)).items():
            values = WRONG_BY_NAME.get(parameter, ())
            values += WRONG_BY_TYPE.get(typing.get_origin(kind) or kind, ())
            for value in values:
                yield pytest.param(name, parameter, value, id=f"{name}-{parameter}={value}")


class TestEveryPolicy:
    @pytest.mark.parametrize(("name", "parameter", "value"), list(wrong_parameters()))
    def test_wrong_parameters_are_refused_when_built(self, name: str, parameter: str, value: object) -> None:
        with pytest.raises(ValueError, match=parameter):
            policies.create(name, **{parameter: value})

    @each_policy
    def test_unknown_parameters_are_refused(self, name: str) -> None:
        with pytest.raises(TypeError, match="no_such_parameter"):
            policies.create(name, no_such_parameter=1)

    @each_policy
    def test_frozen(self, name: str) -> None:
        policy = policies.create(name)
        for attribute in (*parameter_types(type(policy)), "needs", "prefers", "smuggled_state"):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(policy, attribute, None)

    @each_policy
    def test_the_protocol(self, name: str) -> None:
        policy = policies.create(name)
        assert isinstance(policy, Policy)
        assert isinstance(policy.needs, frozenset)
        check_needs(policy)
        assert isinstance(policy.remembers, tuple)
        assert policy == policies.create(name)
        assert (type(policy).__doc__ or "").strip(), "--list_policies prints the first line"

    @each_policy
    def test_every_parameter_matters(self, name: str) -> None:
        assert [parameter for parameter in parameter_types(policies.get(name)) if not matters(name, parameter)] == []

    @each_policy
    def test_no_needs_cost_nothing(self, name: str) -> None:
        policy = policies.create(name)
        scores = asked_for(all_scores("sigmoid"), policy)
        select(policy, scores)
        assert policy.needs or scores.meter.macs == 0

    @each_policy
    def test_what_reads_cosines_alone_is_moved_by_neither_scale_nor_bias(self, name: str) -> None:
        policy = policies.create(name)
        if not getattr(policy, "cosine_only", False):
            return
        assert "reference" in policy.needs, "there is no reference whose loss could matter"
        for loss, scale, bias in (("sigmoid", 0.5, 0.0), ("sigmoid", 40.0, -20.0), ("softmax", 40.0, 0.0)):
            scores = asked_for(all_scores(loss), policy)
            other = dataclasses.replace(scores.side("reference"), scale=scale, bias=bias)
            moved = dataclasses.replace(scores, reference=other)
            assert torch.equal(select(policy, moved).index_K, select(policy, scores).index_K)


@each_loss
def test_control_jest_with_its_learner_as_reference_is_uniform(loss: str) -> None:
    size, count, draws = 12, 4, 500
    model = all_scores(loss, size).learner
    policy, generator, times = policies.create("jest", chunks=2), seeded(4), Counter()
    for _ in range(draws):
        times.update(choose(policy, Scores(model, model, loss=loss), count, generator).index_K.tolist())
    expected = draws * count / size
    # Inclusions of one draw repel each other, which shrinks the statistic by (B − b) / (B − 1).
    statistic = sum((times[i] - expected) ** 2 for i in range(size)) / expected * (size - 1) / (size - count)
    assert chi2.sf(statistic, size - 1) > 1e-3


@each_loss
def test_without_randomness_the_choice_follows_the_pairs(loss: str) -> None:
    """Whatever draws nothing chooses the same pairs wherever they stand in the super-batch."""
    order_B, tried = torch.randperm(SIZE, generator=seeded(9)), set()
    for name, parameters in VARIANTS:
        policy = policies.create(name, **parameters)
        scores = asked_for(all_scores(loss), policy)
        if not uses_generator(policy, scores):
            moved = order_B[select(policy, scores.take(order_B)).index_K]
            assert set(moved.tolist()) == set(select(policy, scores).index_K.tolist()), (name, parameters)
            tried.add(name)
    assert {"jest", "learnability", "rho_loss"} <= tried


@each_loss
def test_jest_of_one_chunk_is_learnability(loss: str) -> None:
    scores = all_scores(loss)
    one_chunk = select(policies.create("jest", chunks=1), scores).index_K
    assert torch.equal(one_chunk, select(policies.create("learnability"), scores).index_K)


@each_loss
def test_the_control_of_jest_keeps_the_learner_and_loses_the_reference(loss: str) -> None:
    control = policies.create("jest", shuffle_reference=True)
    assert share_of_more(control, "learner", loss) > 0.9
    assert 0.35 < share_of_more(control, "reference", loss) < 0.65


@each_loss
@pytest.mark.parametrize(("share", "passed"), [(0.01, 3), (0.25, 8), (0.5, 16), (1.0, 32)])
def test_clip_score_draws_among_the_share_that_passes(share: float, passed: int, loss: str) -> None:
    policy, scores = policies.create("clip_score", share=share), all_scores(loss)
    best = set(scores.own_logit_B("reference").topk(passed).indices.tolist())
    drawn = {index for seed in range(40) for index in select(policy, scores, seed, count=3).index_K.tolist()}
    assert drawn <= best
    assert len(drawn) > 0.8 * passed


@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
def test_selective_backprop_draws_by_a_power_of_the_percentile(beta: float) -> None:
    size, draws = 8, 600
    policy, scores = policies.create("selective_backprop", beta=beta), all_scores("sigmoid", size)
    generator = seeded(1)
    times = torch.zeros(size, dtype=torch.float64)
    for _ in range(draws):
        times[choose(policy, scores, 1, generator).index_K] += 1
    rank_B = scores.pair_loss_B("learner", "in_batch").argsort().argsort().double() + 1
    expected_B = draws * rank_B**beta / (rank_B**beta).sum()
    statistic = float(((times - expected_B) ** 2 / expected_B).sum())
    assert chi2.sf(statistic, size - 1) > 1e-3


SIGNS = {"hard_learner": (1, 0), "easy_reference": (0, -1), "learnability": (1, -1), "rho_loss": (1, -1)}
"""What the learner's and the reference's loss count in a policy's score."""


@each_loss
@pytest.mark.parametrize("pair_loss", ["own", "in_batch"])
@pytest.mark.parametrize("name", SIGNS)
def test_the_top_by_the_papers_score(name: str, pair_loss: str, loss: str) -> None:
    scores, (learner, reference) = all_scores(loss), SIGNS[name]
    learner_B, reference_B = (scores.pair_loss_B(side, pair_loss) for side in ("learner", "reference"))
    best_K = (learner * learner_B + reference * reference_B).topk(COUNT).indices
    top = {} if name == "rho_loss" else {"deterministic": True}
    assert torch.equal(select(policies.create(name, pair_loss=pair_loss, **top), scores).index_K, best_K)


@each_loss
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("name", ["easy_reference", "hard_learner", "learnability"])
def test_joint_is_jest_on_what_the_policy_needs(name: str, deterministic: bool, loss: str) -> None:
    policy = policies.create(name, joint=True, chunks=3, deterministic=deterministic)
    scores = asked_for(all_scores(loss), policy)
    jest = policies.create("jest", chunks=3, deterministic=deterministic)
    assert_same(select(policy, scores), select(jest, scores))


@pytest.mark.parametrize("name", ["easy_reference", "hard_learner", "learnability"])
def test_a_joint_draw_by_in_batch_losses_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="own"):
        policies.create(name, joint=True, pair_loss="in_batch")


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Chooses what it was told to."""

    selection: Selection
    needs: ClassVar[frozenset[str]] = frozenset()
    prefers: ClassVar[Mapping[str, int]] = {}

    def select(self, scores: Scores, count: int, generator: torch.Generator) -> Selection:
        return self.selection


FINE = torch.tensor([0, 2, 4])


class TestChoose:
    @pytest.mark.parametrize(
        ("selection", "message"),
        [
            (Selection(FINE[:2]), r"int64 indices \[3\], got torch.int64 \[2\]"),
            (Selection(torch.arange(4)), r"got torch.int64 \[4\]"),
            (Selection(FINE[:0]), r"got torch.int64 \[0\]"),
            (Selection(FINE[None]), r"got torch.int64 \[1, 3\]"),
            (Selection(FINE.int()), "got torch.int32"),
            (Selection(FINE.float()), "got torch.float32"),
            (Selection(FINE > 0), "got torch.bool"),
            (Selection(torch.tensor([0, 2, 2])), "twice: 3 chosen, 2 distinct"),
            (Selection(torch.tensor([0, 2, 5])), "outside the super-batch of 5"),
            (Selection(torch.tensor([-1, 2, 4])), "outside the super-batch of 5"),
            (Selection(FINE, {"select/entropy": math.nan}), "'select/entropy' = nan"),
            (Selection(FINE, {"select/entropy": math.inf}), "'select/entropy' = inf"),
            (Selection(FINE, {"entropy": 1.0}), "'entropy' = 1.0 must be"),
            (Selection(FINE, weight_K=torch.ones(2)), "weights"),
            (Selection(FINE, weight_K=torch.ones(3, 1)), "weights"),
            (Selection(FINE, weight_K=torch.tensor([1.0, math.nan, 1.0])), "weights"),
            (Selection(FINE, weight_K=torch.tensor([1.0, 1.0, math.inf])), "weights"),
            (Selection(FINE, score_B=torch.ones(3)), r"one for each pair \[5\], got \[3\]"),
        ],
    )
    def test_what_is_no_choice_is_refused(self, selection: Selection, message: str) -> None:
        with pytest.raises(PolicyError, match=message) as caught:
            choose(Fixed(selection), Scores(size=5), 3, seeded())
        assert "Fixed" in str(caught.value)

    @pytest.mark.parametrize("weight_K", [None, torch.tensor([0.5, 0.0, 2.5])])
    def test_a_choice_comes_back_as_it_is(self, weight_K: Tensor | None) -> None:
        selection = Selection(FINE, {"select/entropy": 1.0}, weight_K, state={"seen": 3})
        assert choose(Fixed(selection), Scores(size=5), 3, seeded()) is selection


@pytest.fixture
def sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The registry as it is, to be spoilt."""
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    yield monkeypatch
    registry._discover.cache_clear()


PLUGIN = '''\
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from policies import register


@register("first_pairs")
@dataclass(frozen=True)
class FirstPairs:
    """The first pairs, by a package of somebody else."""

    needs: ClassVar[frozenset[str]] = frozenset()
    prefers: ClassVar[Mapping[str, int]] = {}

    def select(self, scores, count, generator):
        return Selection(torch.arange(count))
'''
REMEMBERING = '''\
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch

from jestbench.batch import Selection
from policies import register


@register("near_the_mean")
@dataclass(frozen=True)
class NearTheMean:
    """Pairs whose loss is nearest a running mean, which is the state."""

    decay: float = 0.9
    needs: ClassVar[frozenset[str]] = frozenset({"learner"})
    prefers: ClassVar[Mapping[str, int]] = {}

    def __post_init__(self):
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay lies in [0, 1), got {self.decay}")

    def initial_state(self):
        return {"mean": torch.zeros(()), "seen": 0, "by": "loss"}

    def select(self, scores, count, generator, *, state):
        loss_B = scores.pair_loss_B("learner")
        mean = self.decay * state['mean'] + (1 - self.decay) * loss_B.mean().cpu()
        index_K = (loss_B - mean).abs().argsort(stable=True)[:count]
        return Selection(index_K, {}, state=state | {"mean": mean, "seen": state["seen"] + len(scores)})
'''
FAULTS = {
    "a pair twice": ("argsort(stable=True)[:count]", "argsort(stable=True)[:1].expand(count)", "exactly_count"),
    "global randomness": ("index_K = (", "index_K = torch.rand(()) * 0 + (", "global_randomness"),
    "a hidden state": (
        "loss_B = ",
        "NearTheMean.used = getattr(self, 'used', 0) + 1; loss_B = self.used * ",
        "goes_in_and_comes_out",
    ),
    "a state changed in place": ("state=state |", "state=state.update(seen=1) or state |", "goes_in_and_comes_out"),
    "inputs changed": ("index_K = (", "scores.learner.image_BD.mul_(2); index_K = (", "inputs_are_left_alone"),
    "more than it asked for": (
        "mean = ",
        "loss_B = loss_B - (0 if scores.reference is None else scores.pair_loss_B('reference')); mean = ",
        "did_not_ask_for",
    ),
    "a preference that it does not have": ("int]] = {}", 'int]] = {"learner": 1}', "goes_the_way"),
    "an uncharged product": (
        "index_K = (",
        "loss_B = loss_B + 0 * (scores.learner.image_BD @ scores.learner.text_BD.T).sum(1); index_K = (",
        "products_are_charged",
    ),
    "a parameter that does nothing": (
        "mean = self.decay * state['mean'] + (1 - self.decay) *",
        "mean = 0.9 * state['mean'] + 0.1 *",
        "every_parameter",
    ),
    "a name that it did not declare": (
        "Selection(index_K, {}",
        "Selection(index_K, {}, memory={'x': loss_B}",
        "exactly_count",
    ),
    "any parameter": ("if not 0 <=", "if 1 < 0 and not 0 <=", "wrong_parameters"),
}
USE_PLUGIN = """\
import torch, policies
from jestbench import Scores
from jestbench.select.policy import choose

print(*policies.available())
print(choose(policies.create("first_pairs"), Scores(size=9), 3, torch.Generator()).index_K.tolist())
"""


def installed(folder: Path, source: str, name: str) -> dict[str, str]:
    """An environment in which a package is installed that brings a policy."""
    (folder / "somebodys_policies.py").write_text(source)
    metadata = folder / "somebodys_policies-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys-policies\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{name} = somebodys_policies\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


@pytest.fixture
def with_plugin(tmp_path: Path) -> dict[str, str]:
    return installed(tmp_path, PLUGIN, "first_pairs")


@pytest.fixture(scope="module")
def conformance(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What this suite prints over a policy that an installed package brings, and over its spoilt copies."""
    sources = [REMEMBERING]
    for number, (right, wrong, _) in enumerate(FAULTS.values()):
        assert right in REMEMBERING
        spoilt = REMEMBERING.replace(right, wrong, 1).replace("NearTheMean", f"Spoilt{number}")
        sources.append(spoilt.replace("near_the_mean", f"spoilt{number}"))
    sources += re.findall(r"^```python\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL | re.MULTILINE)
    environment = installed(tmp_path_factory.mktemp("site"), "\n".join(sources), "near_the_mean")
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-rpf", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += [str(Path(__file__)), "-k", "TestEvery and (near_the_mean or spoilt or loss_band or rising_loss)"]
    environment.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def run_python(environment: Mapping[str, str], *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout


class TestRegistry:
    def test_sorted_and_known(self) -> None:
        assert list(NAMES) == sorted(NAMES)
        assert {"easy_reference", "hard_learner", "jest", "learnability", "rho_loss", "uniform"} <= set(NAMES)

    def test_an_unknown_name_brings_the_nearest(self) -> None:
        with pytest.raises(ValueError, match=r"'learnabilty'; did you mean 'learnability'\? there are .*uniform"):
            policies.create("learnabilty")
        with pytest.raises(ValueError, match="'zzzz'; there are"):
            policies.create("zzzz")

    def test_a_taken_name_is_refused_with_both_classes(self, sandbox: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match=r"policies\.jest\.Jest and \S*test_policies\.Fixed"):
            policies.register("jest")(Fixed)
        assert policies.get("jest").__name__ == "Jest"

    def test_the_same_class_may_come_twice(self, sandbox: pytest.MonkeyPatch) -> None:
        assert policies.register("jest")(policies.get("jest")) is policies.get("jest")

    @pytest.mark.parametrize("members", [{}, {"needs": frozenset()}, {"select": print}, {"needs": (), "select": 1}])
    def test_what_is_no_policy_is_refused(self, members: dict[str, object], sandbox: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match="'odd': Odd needs `needs` and `select"):
            policies.register("odd")(type("Odd", (), members))
        assert "odd" not in policies.available()

    @pytest.mark.parametrize(
        ("value", "cause"),
        [
            ("no_such_module", "No module named"),
            ("math:no_such_class", "no_such_class"),
            ("raises_at_import", "oh dear"),
        ],
    )
    def test_a_broken_entry_point_is_named(
        self, value: str, cause: str, sandbox: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "raises_at_import.py").write_text("raise RuntimeError('oh dear')\n")
        sandbox.syspath_prepend(tmp_path)
        sandbox.setattr(registry, "entry_points", lambda group: [EntryPoint("broken", value, group)])
        registry._discover.cache_clear()
        with pytest.raises(ValueError, match=rf"'broken' \({value}\) of group jestbench\.policies .*{cause}"):
            policies.available()

    def test_an_installed_package_brings_its_policy(self, with_plugin: dict[str, str]) -> None:
        listed, chosen = run_python(with_plugin, "-c", USE_PLUGIN).splitlines()
        assert set(listed.split()) == {*NAMES, "first_pairs"}
        assert chosen == "[0, 1, 2]"

    def test_the_command_lists_it_too(self, with_plugin: dict[str, str]) -> None:
        rows = [
            row.split(maxsplit=1) for row in run_python(with_plugin, "tools/run.py", "--list_policies").splitlines()
        ]
        assert {name for name, _ in rows} == {*NAMES, "first_pairs"}
        assert dict(rows)["first_pairs"] == "The first pairs, by a package of somebody else."

    @pytest.mark.slow  # a process of its own; the fast tests run the suite over all that is shipped
    @pytest.mark.parametrize("name", ["near_the_mean", "loss_band", "rising_loss"])
    def test_an_installed_policy_passes_the_suite(self, name: str, conformance: str) -> None:
        """One of its own, and those of the contributing guide."""
        rows = [row for row in conformance.splitlines() if name in row]
        # Each test of a variant under both losses, each test of a policy once (of a wrong value: there is one, NaN).
        each = [sum(name.startswith("test_") for name in vars(suite)) for suite in (TestEveryVariant, TestEveryPolicy)]
        wrong = len(WRONG_BY_NAME["gain"]) if name == "rising_loss" else 0  # of a parameter that the suite has more of
        assert [row.partition(" ")[0] for row in rows] == ["PASSED"] * (2 * each[0] + each[1] + wrong)

    @pytest.mark.slow  # a process of its own; the fast tests run the suite over all that is shipped
    @pytest.mark.parametrize("fault", FAULTS)
    def test_one_with_a_fault_does_not(self, fault: str, conformance: str) -> None:
        name, caught_by = f"spoilt{list(FAULTS).index(fault)}", FAULTS[fault][2]
        failed = [row for row in conformance.splitlines() if row.startswith("FAILED") and name in row]
        assert any(caught_by in row for row in failed), conformance
