"""The rules of 2024 and 2025 against plain loops written from their formulas, on random cases and on planted worlds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from scipy.stats import chi2

import policies
from jestbench import Embeddings, Scores
from jestbench.select import Moment, Remembered, Trained, joint_draw
from jestbench.select.given import word_ids
from jestbench.select.memory import Memory
from jestbench.select.policy import choose, initial_state

SIZE, COUNT = 40, 12


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(seed: int, size: int = SIZE) -> Embeddings:
    image, text = torch.nn.functional.normalize(torch.randn(2, size, 6, generator=seeded(seed)).double(), dim=2)
    return Embeddings(image, text, 7.0, -2.0)


def test_clip_loss_keeps_the_top_share_by_the_papers_score() -> None:
    for seed, tau in ((0, 0.01), (1, 0.07)):
        model = embeddings(seed)
        cosine = (model.image_BD @ model.text_BD.T).tolist()
        plain = []
        for i in range(SIZE):
            rows = math.log(sum(math.exp(cosine[i][j] / tau) for j in range(SIZE)))
            columns = math.log(sum(math.exp(cosine[j][i] / tau) for j in range(SIZE)))
            plain.append(cosine[i][i] - tau / 2 * (rows + columns))
        policy = policies.create("clip_loss", share=0.4, temperature=tau)
        chosen = choose(policy, Scores(reference=model, loss="sigmoid"), COUNT, seeded(seed))
        assert chosen.score_B.tolist() == pytest.approx(plain)
        best = sorted(range(SIZE), key=lambda i: -plain[i])[: round(0.4 * SIZE)]
        assert set(chosen.index_K.tolist()) <= set(best)
        passed = {
            i for s in range(30) for i in choose(policy, Scores(reference=model), COUNT, seeded(s)).index_K.tolist()
        }
        assert passed == set(best)


@pytest.mark.parametrize(("batch", "parts"), [(8, 5), (9, 4), (13, 3), (25, 1)])
def test_clip_loss_averages_over_random_batches(batch: int, parts: int) -> None:
    model, tau, rounds = embeddings(2), 0.05, 3
    policy = policies.create("clip_loss", temperature=tau, batch=batch, rounds=rounds)
    scores = Scores(reference=model)
    found, generator = choose(policy, scores, COUNT, seeded(5)).score_B, seeded(5)
    cosine, plain, macs = (model.image_BD @ model.text_BD.T).tolist(), [0.0] * SIZE, 0
    for _ in range(rounds):
        order = torch.randperm(SIZE, generator=generator).tolist()
        cuts = [-(-SIZE * cut // parts) for cut in range(parts + 1)]
        for part in (order[start:stop] for start, stop in pairwise(cuts)):
            assert len(part) >= batch, "no pair is scored among fewer"
            macs += len(part) * (len(part) + 1) * 6
            for i in part:
                rows = math.log(sum(math.exp(cosine[i][j] / tau) for j in part))
                columns = math.log(sum(math.exp(cosine[j][i] / tau) for j in part))
                plain[i] += (cosine[i][i] - tau / 2 * (rows + columns)) / rounds
    assert found.tolist() == pytest.approx(plain)
    assert scores.meter.macs == macs


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_clip_loss_sums_over_no_equal_pair_whatever_they_are_to_the_loss(loss: str) -> None:
    model, group_B = embeddings(2), torch.arange(SIZE) // 2
    masked, positive = (
        choose(
            policies.create("clip_loss", batch=9),
            Scores(reference=model, loss=loss, group_B=group_B, equal=equal),
            COUNT,
            seeded(5),
        )
        for equal in ("masked", "positive")
    )
    assert torch.equal(masked.score_B, positive.score_B)
    assert torch.equal(masked.index_K, positive.index_K)
    plain = choose(policies.create("clip_loss", batch=9), Scores(reference=model, loss=loss), COUNT, seeded(5))
    assert (masked.score_B > plain.score_B).any()


@pytest.mark.parametrize("mode", ["warmup", "momentum"])
def test_dissect_compares_with_what_it_remembers(mode: str) -> None:
    policy = policies.create("dissect", mode=mode, epochs=2, momentum=0.8)
    held = [math.nan] * SIZE
    for epoch in range(5):
        model, random = embeddings(epoch), seeded(epoch)
        now = [max(0.0, 100 * float(model.image_BD[i] @ model.text_BD[i])) for i in range(SIZE)]
        scores = Scores(learner=model, progress=Moment(0.1, epoch), memory={"h": torch.tensor(held)})
        chosen = choose(policy, scores, COUNT, random)
        if mode == "warmup" and epoch < 2:
            held = now
            if epoch == 0:
                other = choose(policy, scores, COUNT, seeded(77))
                assert set(other.index_K.tolist()) != set(chosen.index_K.tolist()), "random"
        else:
            before = [n if math.isnan(h) else h for h, n in zip(held, now, strict=True)]
            shift = sum(before) / SIZE - sum(now) / SIZE if mode == "warmup" else 0.0
            grown = [h - n - shift for h, n in zip(before, now, strict=True)]
            assert chosen.score_B.tolist() == pytest.approx(grown, abs=1e-3)
            if epoch or mode == "warmup":
                best = sorted(range(SIZE), key=lambda i: -grown[i])[:COUNT]
                assert set(chosen.index_K.tolist()) == set(best)
            held = before if mode == "warmup" else [0.8 * h + 0.2 * n for h, n in zip(before, now, strict=True)]
        held = torch.tensor(held).tolist()  # single precision, as the memory
        assert chosen.memory["h"].tolist() == pytest.approx(held, rel=1e-5)


@pytest.mark.parametrize("mode", ["warmup", "momentum"])
def test_dissect_finds_the_noise_of_a_planted_world_once_it_is_warm(mode: str) -> None:
    """Clean pairs are learned early, noisy pairs are memorised late. The policy has no reference."""
    size, noisy_B = 200, torch.arange(200) < 80
    policy, held = policies.create("dissect", mode=mode), torch.full((200,), math.nan)
    shares = []
    for epoch in range(10):
        progress = epoch / 9
        clean, noise = min(1.0, 0.5 + progress), max(0.0, progress - 0.45)
        level_B = torch.where(noisy_B, 0.9 * noise, 0.6 * clean) + 0.03 * torch.randn(size, generator=seeded(epoch))
        image = torch.eye(size + 1)[:size]
        text = level_B[:, None] * image + (1 - level_B**2).clamp(min=0).sqrt()[:, None] * torch.eye(size + 1)[size]
        scores = Scores(learner=Embeddings(image, text), progress=Moment(progress, epoch), memory={"h": held})
        chosen = choose(policy, scores, 60, seeded(epoch))
        held = chosen.memory["h"].float()
        shares.append(float(noisy_B[chosen.index_K].double().mean()))
    assert sum(shares[:4]) / 4 > 0.3 or mode == "momentum", "random before it is warm: as noisy as the pool"
    assert max(shares[7:]) < 0.1


def test_scan_marks_both_ends_and_leaves_a_cosine_share_of_them_out() -> None:
    policy = policies.create("scan", share=0.25, epochs=3)
    random, marked = seeded(1), torch.full((64,), -1.0)
    for start in range(0, 64, 16):
        image, text = torch.rand(2, 16, generator=random).tolist()
        trained = Trained(torch.tensor(image), torch.tensor(text), Moment(0.0, 4))
        learnt = policy.learn(trained, Remembered(memory={"marked": torch.full((16,), math.nan)}))
        top = [set(sorted(range(16), key=lambda i, losses=losses: -losses[i])[:4]) for losses in (image, text)]
        bottom = [set(sorted(range(16), key=lambda i, losses=losses: losses[i])[:4]) for losses in (image, text)]
        plain = (top[0] & top[1]) | (bottom[0] & bottom[1])
        assert {i for i in range(16) if learnt.memory["marked"][i] == 4} == plain
        marked[start : start + 16] = learnt.memory["marked"]
    assert policy.learn(replace(trained, progress=Moment(0.0, 5)), Remembered()).memory == {}, (
        "made in whole epochs alone"
    )
    union = (marked == 4).nonzero().flatten().tolist()
    for epoch, share in ((4, 0.0), (5, 0.25), (6, 0.75), (7, 1.0)):
        out_N = policy.leave_out(
            torch.arange(64), Remembered(memory={"marked": marked}), Moment(0.5, epoch), seeded(epoch)
        )
        assert set(out_N.nonzero().flatten().tolist()) <= set(union)
        assert int(out_N.sum()) == round(share * len(union))
    stale = Remembered(memory={"marked": marked})
    assert not policy.leave_out(torch.arange(64), stale, Moment(0.5, 9), seeded()).any(), "the sets are made anew"


def test_infobatch_leaves_half_of_the_easy_out_and_doubles_the_rest() -> None:
    policy, size = policies.create("infobatch"), 60
    losses, state = [math.nan] * size, initial_state(policy)
    for epoch in range(6):
        share, known = epoch / 5, [value for value in losses if not math.isnan(value)]
        mean = sum(known) / len(known) if known else -math.inf
        memory = {"loss": torch.tensor(losses)}
        out_N = policy.leave_out(torch.arange(size), Remembered(state, memory), Moment(share, epoch), seeded(epoch))
        below = {i for i in range(size) if losses[i] < mean}
        left = set(out_N.nonzero().flatten().tolist())
        assert left <= below
        assert len(left) == (round(len(below) / 2) if share < 0.875 else 0)
        kept = [i for i in range(size) if i not in left]
        for part in (kept[:20], kept[20:]):
            moment = Moment(share, epoch, len(left))
            held = {"loss": torch.tensor([losses[i] for i in part])}
            scores = Scores(size=len(part), progress=moment, memory=held)
            chosen = choose(policy, scores, len(part), seeded(), state)
            weights = [2.0 if left and i in below else 1.0 for i in part]
            assert (chosen.weight_K.tolist() if chosen.weight_K is not None else [1.0] * len(part)) == weights
            new = torch.rand(2, len(part), generator=seeded(100 * epoch + len(part))).float()
            learnt = policy.learn(Trained(*new, moment), Remembered(chosen.state, held))
            state = learnt.state
            for place, i in enumerate(part):
                losses[i] = float(learnt.memory["loss"][place])
                assert losses[i] == pytest.approx(float(new[:, place].mean()))


@pytest.mark.parametrize(("room", "pairs"), [(99, 20), (10, 20), (10, 40)])
def test_infobatchs_mean_is_that_of_the_losses_which_are_remembered(room: int, pairs: int) -> None:
    """Also once the memory is full, and where a sub-batch holds a key twice."""
    policy, memory = policies.create("infobatch"), Memory(("loss",), limit=12 * room)
    state, keys = initial_state(policy), torch.arange(pairs) % 20
    for epoch in range(5):
        for key_K in keys[torch.randperm(pairs, generator=seeded(epoch))].split(10):
            losses = torch.rand(2, len(key_K), generator=seeded(epoch))
            held_K = memory.holds(key_K)
            learnt = policy.learn(Trained(*losses, held_K=held_K), Remembered(state, memory.read(key_K)))
            state = learnt.state
            memory.write(key_K, learnt.memory)
            held = memory.read(torch.arange(20))["loss"]
            held = held[~held.isnan()]
            assert state["count"] == len(held) == len(memory)
            assert state["sum"] == pytest.approx(float(held.double().sum()))
    assert len(memory) == min(room, 20)


def zipf_world(size: int, seed: int) -> list[list[str]]:
    weights = 1 / torch.arange(1, 31).double()
    drawn = torch.multinomial(weights.expand(size, -1), 3, generator=seeded(seed)).tolist()
    return [[f"w{word}" for word in row[: 1 + at % 3]] for at, row in enumerate(drawn)]


def test_concept_balance_is_the_plain_greedy_and_flattens_a_zipf_world() -> None:
    policy = policies.create("concept_balance", cap=3)
    state, times = initial_state(policy), Counter()
    spread = {"chosen": Counter(), "world": Counter()}
    for step in range(4):
        concepts = zipf_world(120, step)
        times.update(word for row in concepts for word in row)
        scores = Scores(words_BL=word_ids([" ".join(row) for row in concepts]))
        chosen = choose(policy, scores, 30, seeded(step), state)
        state, picked = chosen.state, chosen.index_K.tolist()
        assert sorted(state["times"].tolist()) == sorted(times.values())
        # Ties may be broken in any way, so each pick is held against the best of its own history.
        held = Counter()
        for at, pick in enumerate(picked):

            def score(i: int, held=held, concepts=concepts) -> float:
                terms = [(3 - held[c]) / 3 + 1 / times[c] for c in concepts[i] if held[c] < 3]
                return sum(terms) / len(concepts[i])

            rest = [i for i in range(120) if i not in picked[:at]]
            assert score(pick) == pytest.approx(max(map(score, rest)))
            held.update(concepts[pick])
        spread["chosen"].update(word for i in picked for word in concepts[i])
        spread["world"].update(word for row in concepts for word in row)

    def most(counts: Counter[str]) -> float:
        return max(counts.values()) / sum(counts.values())

    assert most(spread["world"]) > 0.2
    assert most(spread["chosen"]) < 0.5 * most(spread["world"])


def test_neighbours_brings_the_ranks_after_the_nearest() -> None:
    model, skip, size = embeddings(8), 2, 3
    cosine = ((model.image_BD @ model.text_BD.T + (model.image_BD @ model.text_BD.T).T) / 2).tolist()
    for seed in range(6):
        scores = Scores(reference=model)
        chosen = choose(
            policies.create("neighbours", skip=skip, size=size), scores, COUNT, seeded(seed)
        ).index_K.tolist()
        order = torch.randperm(SIZE, generator=seeded(seed)).tolist()
        plain: list[int] = []
        while len(plain) < COUNT:
            first = next(i for i in order if i not in plain)
            plain.append(first)
            ranked = sorted((j for j in range(SIZE) if j not in plain), key=lambda j, first=first: -cosine[first][j])
            plain += ranked[skip : skip + min(size, COUNT - len(plain))]
        assert chosen == plain
        assert scores.meter.macs == 3 * 2 * SIZE * 6, "two rows of similarities for each seed"


@pytest.mark.parametrize(("by", "bound"), [("top", {"share": 0.3}), ("threshold", {"threshold": 0.7})])
def test_column_draws_uniformly_among_what_passes(by: str, bound: dict[str, float]) -> None:
    value_B = torch.rand(SIZE, generator=seeded(3))
    scores = Scores(values={"column:v": value_B})
    policy = policies.create("column", **{"name": "v", "by": by, **bound})
    assert policy.needs == {"column:v"}
    rank = sorted(range(SIZE), key=lambda i: -value_B[i])
    passing = rank[:12] if by == "top" else [i for i in rank if value_B[i] >= 0.7]
    times = Counter(i for seed in range(400) for i in choose(policy, scores, 4, seeded(seed)).index_K.tolist())
    assert set(times) == set(passing)
    expected = 400 * 4 / len(passing)
    statistic = sum((times[i] - expected) ** 2 for i in passing) / expected
    assert chi2.sf(statistic * (len(passing) - 1) / (len(passing) - 4), len(passing) - 1) > 1e-3
    few = choose(policy, scores, 30, seeded()).index_K.tolist()
    assert set(few) == set(rank[:30]), "too few pass: the best"


def test_column_draws_by_the_number_over_the_temperature() -> None:
    value_B = torch.rand(6, generator=seeded(4))
    policy = policies.create("column", name="v", by="draw", temperature=0.5)
    times = Counter(
        choose(policy, Scores(values={"column:v": value_B}), 1, seeded(seed)).index_K.item() for seed in range(900)
    )
    expected = 900 * torch.softmax(value_B.double() / 0.5, 0)
    assert chi2.sf(sum((times[i] - float(expected[i])) ** 2 / float(expected[i]) for i in range(6)), 5) > 1e-3


def test_neighbours_looks_once_through_the_pairs_for_its_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    size, looks, real = 1500, [0], torch.Tensor.__getitem__

    def look(*of: Any) -> Any:
        looks[0] += 1
        return real(*of)

    monkeypatch.setattr(torch.Tensor, "__getitem__", look)
    choose(policies.create("neighbours", size=1, skip=0), Scores(reference=embeddings(1, size)), 1000, seeded())
    assert looks[0] < 10 * size


@pytest.mark.parametrize("name", [name for name in policies.available() if hasattr(policies.get(name), "repetition")])
def test_the_repetition_penalty_takes_its_share_off_the_logit(name: str) -> None:
    """With a large penalty what was trained on most is not drawn, whatever its score; the chosen are counted."""
    times_B = torch.zeros(SIZE)
    times_B[::2] = 5
    models = {side: embeddings(at) for at, side in enumerate(("learner", "reference", "online"))}
    values = {"g": torch.rand(SIZE), "column:similarity": torch.rand(SIZE)}
    share = {"share": 1.0} if hasattr(policies.get(name), "share") else {}
    policy = policies.create(name, repetition=60.0, **share)
    assert "memory" in policy.needs
    assert "memory" not in policies.create(name).needs
    chosen = choose(policy, Scores(**models, values=values, memory={"times": times_B}), COUNT, seeded())
    assert not (chosen.index_K % 2 == 0).any()
    times, drawn = chosen.memory["times"], set(chosen.index_K.tolist())
    assert [int(times[i]) for i in drawn] == [int(times_B[i]) + 1 for i in drawn]
    assert times.isnan().tolist() == [i not in drawn for i in range(SIZE)]


def test_repetition_counts_a_pair_whose_key_another_pair_of_the_super_batch_has() -> None:
    """Shards hold many a pair twice: the copy that is not chosen does not undo the count of the one that is."""
    held, key_B, value_B = Memory(("times",)), torch.tensor([7, 5, 7, 6]), torch.tensor([9.0, 0.0, 0.0, 0.0])
    policy = policies.create("column", name="v", by="top", share=0.25, repetition=0.15)
    for step in range(3):
        scores = Scores(values={"column:v": value_B}, memory=held.read(key_B))
        chosen = choose(policy, scores, 1, seeded(step))
        assert chosen.index_K.tolist() == [0]
        held.write(key_B, chosen.memory)
    assert held.read(key_B)["times"].nan_to_num(0).tolist() == [3.0, 0.0, 3.0, 0.0]


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_jest_with_repetition_draws_by_the_logits_less_the_penalty(loss: str) -> None:
    size, draws, alpha = 8, 800, 0.7
    scores = Scores(embeddings(1, size), embeddings(2, size), loss=loss, memory={"times": torch.arange(size) % 3.0})
    policy, generator = policies.create("jest", chunks=1, gain=0.5, repetition=alpha), seeded(3)
    times = Counter(choose(policy, scores, 1, generator).index_K.item() for _ in range(draws))
    logit_B = 0.5 * scores.learnability_B("own").double() - alpha * (torch.arange(size) % 3)
    expected = draws * torch.softmax(logit_B, 0)
    assert chi2.sf(sum((times[i] - float(expected[i])) ** 2 / float(expected[i]) for i in range(size)), size - 1) > 1e-3


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_gain_from_to_is_linear_in_the_budget(share: float) -> None:
    scores = Scores(embeddings(1), embeddings(2), progress=Moment(share))
    policy = policies.create("jest", gain=(1.0, 5.0))
    assert "progress" in policy.needs
    plain = joint_draw(scores, COUNT, gain=1.0 + 4.0 * share, generator=seeded(2))
    assert torch.equal(choose(policy, scores, COUNT, seeded(2)).index_K, plain.index_K)
