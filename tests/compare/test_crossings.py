"""Speed-ups and crossings of ladders whose points are known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import make_coverage
import numpy as np
import planted
import pytest

from jestbench.compare.crossings import Ladder, crossings, speedups
from jestbench.compare.curves import AXES
from jestbench.compare.statistics import Cell
from jestbench.evals.measure import Measure

ANY = Measure()
LEANING = np.array([-1.0, 0.2, 0.8])


def ladder(
    values: Sequence[float],
    flops: Sequence[float] = (1, 2, 4, 8),
    noise: float = 1e-4,
    seeds: int = 3,
    **other: Sequence[float],
) -> Ladder:
    """Rungs with given means, whose seeds lie ``noise`` apart, all rungs of a seed on the same side."""
    lean_S = LEANING[:seeds] - LEANING[:seeds].mean()
    cells = tuple(Cell(tuple(range(seeds)), value + noise * lean_S) for value in values)
    amounts = planted.amounts(flops) | {axis: np.array(amount, dtype=float) for axis, amount in other.items()}
    return Ladder(cells, amounts)


def speedup(arm: Ladder, baseline: Ladder, axis: str = "flops", lower: bool = False):
    return speedups(arm, baseline, None, ANY, lower)[axis]


BASE = ladder([1, 2, 3, 4])


class TestSpeedups:
    def test_value_is_interpolated_in_log_amounts_of_each_axis(self) -> None:
        # The target 4 lies half way from 3 (rung 2) to 5 (rung 3): √(2·4) FLOPs, √(3·5) all in, against 8 and 8.
        arm = ladder([1.5, 3, 5, 6], flops_all_in=(2, 3, 5, 9))
        found = speedups(arm, BASE, None, ANY, False)
        assert set(found) == set(AXES)
        assert found["flops"].value == pytest.approx(8 / math.sqrt(8))
        assert found["flops_all_in"].value == pytest.approx(8 / math.sqrt(15))
        assert found["flops"].low < found["flops"].value < found["flops"].high
        assert found["flops"].high / found["flops"].low < 1.01
        assert (found["flops"].kind, found["flops"].fell, found["flops"].absent) == ("decayed", False, "")

    def test_noise_of_a_fraction_of_a_rung_gives_the_interval_by_hand(self) -> None:
        # Only the arm is noisy, by one deviation at all rungs, which grow by 1 a doubling: a shift of δ is 2^δ.
        arm = ladder([2.5, 3.5, 4.5, 5.5], noise=0.1)
        found = speedups(arm, ladder([1, 2, 3, 4], noise=1e-9), None, ANY, False, draws=8000)["flops"]
        up, down = math.log2(found.high / found.value), math.log2(found.value / found.low)
        assert up == pytest.approx(down, rel=0.1)
        # Student's quantile at two degrees of freedom, since the two arms' variances differ beyond doubt.
        assert up == pytest.approx(4.30 * 0.1 * LEANING.std(ddof=1) / math.sqrt(3), rel=0.08)

    def test_first_rung_already_there_is_a_lower_bound(self) -> None:
        found = speedup(ladder([4.5, 5, 6, 7]), BASE)
        assert (found.value, found.kind, found.high) == (8, "at_least", None)
        assert found.low == 8

    def test_arm_that_ends_below_has_no_value(self) -> None:
        found = speedup(ladder([1, 4.5, 3, 3.5]), BASE)
        assert (found.value, found.absent, found.low) == (None, "worse", None)

    def test_arm_slightly_below_in_the_noise_keeps_an_upper_end(self) -> None:
        found = speedup(ladder([1, 2, 3, 3.95], noise=0.2), BASE)
        assert (found.value, found.kind, found.low) == (None, None, None)
        assert 1 < found.high < 2.5

    def test_draws_that_never_cross_leave_the_low_end_open(self) -> None:
        found = speedup(ladder([1, 2, 3, 4.05], noise=0.2), BASE)
        assert found.value == pytest.approx(1, abs=0.05)
        assert found.low is None
        assert found.high is not None

    @pytest.mark.parametrize(("arm_end", "base_end"), [(8.0, 8.0), (8.0, 9.0), (9.0, 8.0)])
    def test_target_is_the_baselines_last_rung_however_far_one_of_the_two_overshoots(self, arm_end, base_end) -> None:
        """A last step that is large beside the budget makes the FLOPs of one budget differ by more than a little."""
        found = speedup(
            ladder([2, 3, 3.5, 4.01], flops=(1, 2, 4, arm_end)), ladder([1, 2, 3, 4], flops=(1, 2, 4, base_end))
        )
        arm = 4 * (arm_end / 4) ** (0.5 / 0.51)
        assert (found.kind, found.value) == ("decayed", pytest.approx(base_end / arm))
        assert (found.arm, found.baseline) == (pytest.approx(arm), base_end)

    def test_target_may_be_the_baselines_value_at_its_own_end(self) -> None:
        long = ladder([1, 2, 3, 4, 4.5], flops=(1, 2, 4, 8, 32))

        def to_end(values: Sequence[float]):
            return speedups(ladder(values), long, None, ANY, False, to_end=True)["flops"]

        found = to_end([2, 3, 4, 5])  # 4.5 lies half way from 4 FLOPs to 8
        assert found.value == pytest.approx(32 / math.sqrt(32))
        assert found.low < found.value < found.high
        assert (to_end([1, 2, 3, 4.2]).value, to_end([1, 2, 3, 4.2]).absent) == (None, "never")
        assert to_end([2, 5, 3, 4]).absent == "worse"
        assert (to_end([5, 6, 7, 8]).value, to_end([5, 6, 7, 8]).kind) == (32, "at_least")

    def test_unlogged_axis_is_unknown(self) -> None:
        found = speedups(ladder([2, 3, 4, 5], seconds=(1, math.nan, 2, 3)), BASE, None, ANY, False)
        assert found["seconds"].absent == "unknown"
        assert found["flops"].value == pytest.approx(2)

    def test_evident_fall_takes_the_first_crossing(self) -> None:
        found = speedup(ladder([2, 6, 3, 5]), BASE)
        assert found.fell
        assert found.value == pytest.approx(8 / math.sqrt(2))

    def test_wiggle_within_the_noise_is_smoothed(self) -> None:
        # Apart, 4.2 and 3.6 would cross on the way to the second rung; together they are 3.9, below the target.
        arm = Ladder(
            tuple(
                Cell((0, 1, 2), mean + 0.5 * np.roll(LEANING, turn)) for turn, mean in enumerate((2.0, 4.2, 3.6, 5.0))
            ),
            planted.amounts((1, 2, 4, 8)),
        )
        found = speedup(arm, BASE)
        assert not found.fell
        assert found.value == pytest.approx(8 / (4 * 2 ** ((4 - 3.9) / (5 - 3.9))))

    def test_lower_is_better_is_the_mirror_image(self) -> None:
        arm, turned = ladder([2, 3, 4, 5]), ladder([-2, -3, -4, -5], noise=-1e-4)
        mirrored = speedup(turned, ladder([-1, -2, -3, -4], noise=-1e-4), lower=True)
        assert mirrored.value == pytest.approx(speedup(arm, BASE).value)
        assert mirrored.low == pytest.approx(speedup(arm, BASE).low, rel=1e-3)

    def test_one_seed_has_a_value_without_an_interval(self) -> None:
        found = speedup(ladder([2, 3, 4, 5], seeds=1), BASE)
        assert (found.value, found.low, found.high) == (pytest.approx(2), None, None)

    def test_same_seed_same_interval(self) -> None:
        arm = ladder([2, 3, 4, 5], noise=0.3)
        assert speedups(arm, BASE, None, ANY, False, seed=4) == speedups(arm, BASE, None, ANY, False, seed=4)

    @pytest.mark.parametrize(("seeds", "deviations"), [(3, (0.2, 0.2)), (8, (0.2, 0.6))])
    def test_planted_speedups_are_covered(self, seeds: int, deviations: tuple[float, float]) -> None:
        found = make_coverage.simulate_speedups(seeds, deviations, 2.5, 100)
        assert found["covered"] >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 100)
        assert found["open"] < 0.8


class TestCrossings:
    def test_every_crossing_with_its_direction_and_interval(self) -> None:
        # one − other: −1, 1, 1, −3: zero half way from rung 1 to 2 and a quarter of the way from rung 3 to 4.
        found = crossings(ladder([0, 3, 4, 1.5]), ladder([1, 2, 3, 4.5]), None, ANY, False)
        assert [c.budget for c in found] == pytest.approx([math.sqrt(2), 4 * 2**0.25], rel=1e-6)
        assert [(c.before, c.after) for c in found] == [("worse", "better"), ("better", "worse")]
        for crossing in found:
            assert crossing.low < crossing.budget < crossing.high < crossing.low * 1.01

    def test_lower_is_better_turns_the_direction(self) -> None:
        found = crossings(ladder([0, 3, 4, 5]), BASE, None, ANY, True)
        assert [(c.before, c.after) for c in found] == [("better", "worse")]

    def test_axis_is_that_of_the_amounts(self) -> None:
        one = ladder([0.5, 2.5, 4, 5], flops_all_in=(3, 4, 6, 10))
        plain, all_in = (crossings(one, BASE, None, ANY, False, axis=axis) for axis in ("flops", "flops_all_in"))
        assert plain[0].budget == pytest.approx(math.sqrt(2), rel=1e-6)
        assert all_in[0].budget > 3

    def test_nothing_is_extrapolated(self) -> None:
        # The lines would cross at 16.
        assert crossings(ladder([0, 1.5, 2.75, 3.9]), BASE, None, ANY, False) == []
        assert crossings(ladder([0, 9], flops=(10, 20)), BASE, None, ANY, False) == []

    def test_ties_cross_in_their_middle_or_not_at_all(self) -> None:
        # one − other: −1, 0, 0, 1 is level from 2 to 4; −1, 0, −1, −1 and 0, 0, 0, 0 change no sign.
        (found,) = crossings(ladder([0, 2, 3, 5]), BASE, None, ANY, False)
        assert found.budget == pytest.approx(math.sqrt(8))
        assert crossings(ladder([0, 2, 2.01, 3]), BASE, None, ANY, False) == []
        assert crossings(BASE, BASE, None, ANY, False) == []
        assert speedup(BASE, BASE).value == pytest.approx(1)

    def test_crossing_within_the_noise_has_open_ends(self) -> None:
        found = crossings(ladder([0.95, 2.02, 3.02, 4.05], noise=0.3), BASE, None, ANY, False)
        assert [(c.low, c.high) for c in found] == [(None, None)]
