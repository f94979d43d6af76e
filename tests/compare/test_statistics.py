"""Intervals and verdicts against classical tests, hand-computed variances and planted truths."""

from __future__ import annotations

import math

import make_coverage
import numpy as np
import planted
import pytest
from scipy import special, stats

from jestbench.compare.noise import SeedVariance, Spread, paired
from jestbench.compare.statistics import Cell, Difference, Fit, fit, seed_deviation
from jestbench.evals.measure import Measure
from jestbench.evals.results import influence_SG

ANY = Measure()
SHARE = Measure(0.0, 1.0, 400)


def cell(*value: float, seeds: tuple[int, ...] = ()) -> Cell:
    return Cell(seeds or tuple(range(len(value))), np.array(value))


def of_examples(example_SN: np.ndarray) -> Cell:
    return Cell(tuple(range(len(example_SN))), example_SN.mean(1), example_SN)


def small_table(seeds: int = 3) -> tuple[dict[str, Cell], np.ndarray]:
    generator = np.random.default_rng(3)
    unit_N = np.repeat(np.arange(100), [2, 6] * 50)
    chance = generator.beta(1, 4, 400)
    cells = {
        arm: of_examples((generator.random((seeds, 400)) < chance * better).astype(float))
        for arm, better in (("uniform", 1.0), ("jest", 1.8), ("other", 1.05))
    }
    return cells, unit_N


def numbers(found: Fit) -> np.ndarray:
    rows = [(m.value, m.low, m.high) for _, m in sorted(found.means.items())]
    rows += [(d.low, d.high, d.pointwise_low) for _, d in sorted(found.differences.items())]
    return np.array(rows, dtype=float)


class TestClassicalCases:
    @pytest.mark.parametrize("seeds", [2, 3, 8])
    def test_seeds_alone_give_students_interval(self, seeds: int) -> None:
        value_S = np.random.default_rng(seeds).normal(5, 2, seeds)
        found = fit({"a": cell(*value_S)}, "a", None, ANY, False).means["a"]
        low, high = stats.t.interval(0.95, seeds - 1, value_S.mean(), stats.sem(value_S))
        assert (found.low, found.high) == pytest.approx((low, high), rel=0.02)

    def test_examples_alone_give_students_interval(self) -> None:
        value_N = np.random.default_rng(0).normal(3, 1, 300)
        found = fit({"a": of_examples(np.stack([value_N] * 4))}, "a", None, ANY, False).means["a"]
        low, high = stats.t.interval(0.95, 299, value_N.mean(), stats.sem(value_N))
        assert (found.low, found.high) == pytest.approx((low, high), rel=2e-3)

    def test_differences_of_examples_alone_give_the_paired_t_interval(self) -> None:
        easy_N, gain_N = np.random.default_rng(0).normal([[3], [0.2]], [[5], [1]], (2, 300))
        arms = {"a": of_examples(np.stack([easy_N] * 4)), "b": of_examples(np.stack([easy_N + gain_N] * 4))}
        found = fit(arms, "a", None, ANY, False).differences["b"]
        low, high = stats.t.interval(0.95, 299, gain_N.mean(), stats.sem(gain_N))
        assert (found.low, found.high) == pytest.approx((low, high), rel=0.01)

    def test_many_seeds_of_equal_deviation_give_dunnetts_intervals(self) -> None:
        generator = np.random.default_rng(1)
        groups = [stats.zscore(generator.normal(size=60), ddof=1) + mean for mean in (0, 0.1, 0.3, 0.6, 0.2, 0.4)]
        ends = stats.dunnett(*groups[1:], control=groups[0], random_state=0).confidence_interval(0.95)
        found = fit({str(k): cell(*group) for k, group in enumerate(groups)}, "0", None, ANY, False)
        assert [d.low for d in found.differences.values()] == pytest.approx(list(ends.low), abs=0.01)
        assert [d.high for d in found.differences.values()] == pytest.approx(list(ends.high), abs=0.01)
        assert found.differences["3"].verdict == "better"
        assert found.differences["1"].verdict == "not told apart"

    def test_one_comparison_needs_no_correction(self) -> None:
        found = fit({"a": cell(1, 2, 4), "b": cell(2, 3, 3.5)}, "a", None, ANY, False).differences["b"]
        assert (found.low, found.high) == (found.pointwise_low, found.pointwise_high)

    def test_deviation_has_the_chi_square_interval(self) -> None:
        value_S = np.array([1.0, 4.0, 2.0, 2.5, 3.0, 7.0, 1.5, 2.0])
        found = seed_deviation(value_S)
        low, high = np.sqrt(7 * value_S.var(ddof=1) / stats.chi2.ppf([0.975, 0.025], 7))
        assert (found.value, found.low, found.high) == pytest.approx((value_S.std(ddof=1), low, high))
        assert seed_deviation(np.array([1.0])).reason.startswith("one seed")
        assert seed_deviation(np.array([1.0, 1.0])).low is None


class TestVariances:
    def test_units_of_unequal_sizes(self) -> None:
        # Units (0, 0, 1 | 1, 1 | 0): x̄ = 1/2; sums of deviations −1/2, 1, −1/2 over N = 6, times 3/2 for three units.
        influence = influence_SG(np.array([[0, 0, 1, 1, 1, 0.0]]), np.array([4, 4, 4, 7, 7, 1]))
        assert float((influence**2).sum()) == pytest.approx(1.5 * (0.25 + 1 + 0.25) / 36)

    def test_duplicated_examples_of_a_class_add_nothing(self) -> None:
        value_N = np.random.default_rng(0).normal(size=50)
        once = influence_SG(value_N[None], None)
        twice = influence_SG(np.repeat(value_N, 2)[None], np.repeat(np.arange(50), 2))
        assert float((once**2).sum()) == pytest.approx(float((twice**2).sum()))

    def test_noise_of_examples_given_the_seed_is_counted_once(self) -> None:
        hits = (np.random.default_rng(5).random((40, 2000)) < 0.1).astype(float)
        found = fit({"a": of_examples(hits)}, "a", None, planted.SHARE, False).means["a"]
        assert found.low is not None
        assert found.high is not None
        assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(0.09 / 2000 / 40), rel=0.2)

    def test_half_widths_of_the_parts_add_up_as_variances_do(self) -> None:
        # Units ±1/2 have no excess: all G − 1 = 2 degrees. Of the residual f / (f + 2.42) is taken out.
        spread = Spread([(SeedVariance(4.0, 1, 1.0), 2), (SeedVariance(3.0, 2, 1.0), 5)], np.array([0.5, -0.5, 0.5]))
        one, two = stats.t.ppf(0.975, [1, 2]) ** 2
        assert spread.half_width == pytest.approx(
            math.sqrt(one * (4 - 1 / 3.42) / 2 + two * (3 - 2 / 4.42) / 5 + two * 0.75)
        )
        assert Spread([(SeedVariance(1.0, 2, 3.0), 2)], None).half_width == 0

    @pytest.mark.parametrize("freedom", [7, 14])
    @pytest.mark.parametrize("share", [0.5, 0.25, 0.1])
    def test_noise_of_examples_inside_the_seed_variance_leaves_students_interval(
        self, freedom: int, share: float
    ) -> None:
        """Where the examples have no noise but what seeds hit by themselves, the variance of seeds is all there is."""
        unit_G = np.random.default_rng(0).choice([-1.0, 1.0], 5000) * math.sqrt(2 * share / 8 / 5000)
        spread = Spread([(SeedVariance(1.0, freedom, share), 8)] * 2, unit_G)
        student = stats.t.ppf(0.975, freedom) * math.sqrt(2 / 8)
        assert spread.half_width == pytest.approx(student, rel=0.015)

    def test_few_units_that_carry_all_have_few_degrees_of_freedom(self) -> None:
        unit_G = np.zeros(1000)
        unit_G[:5] = 1.0
        assert Spread([], unit_G).unit_freedom == pytest.approx(10, rel=0.02)
        assert Spread([], np.random.default_rng(0).normal(size=1000)).unit_freedom == pytest.approx(999, rel=0.25)

    def test_degrees_of_freedom_add_up_while_variances_may_be_equal(self) -> None:
        def freedoms(one: SeedVariance, other: SeedVariance, lent: float = 1.0) -> tuple[float, float, bool]:
            first, second, apart = paired(one, other, 0.0, lent)
            return first.freedom, second.freedom, apart

        assert freedoms(SeedVariance(3.9, 2), SeedVariance(1.0, 2)) == (4, 4, False)
        assert freedoms(SeedVariance(1.5, 1), SeedVariance(1.0, 7)) == (pytest.approx(8 / 7), 8, False)
        assert freedoms(SeedVariance(3.9, 2), SeedVariance(1.0, 2), 0.5) == (3, 3, False)
        edge = float(stats.f.ppf(0.8, 7, 3))
        for ratio, apart in ((0.99 * edge, False), (1.01 * edge, True)):
            assert freedoms(SeedVariance(ratio, 7), SeedVariance(1.0, 3))[2] == apart
            assert freedoms(SeedVariance(1.0, 3), SeedVariance(ratio, 7))[2] == apart
        assert freedoms(SeedVariance(400.0, 7), SeedVariance(1.0, 3)) == (7, 3, True)

    def test_two_arms_of_seeds_alone_have_students_interval_of_two_samples(self) -> None:
        one_S, other_S = np.random.default_rng(5).normal([[0], [1]], 1, (2, 5))
        found = fit({"a": cell(*one_S), "b": cell(*other_S)}, "a", None, ANY, False).differences["b"]
        ends = stats.ttest_ind(other_S, one_S).confidence_interval(0.95)
        assert (found.pointwise_low, found.pointwise_high) == pytest.approx((ends.low, ends.high))

    def test_a_difference_of_shares_reaches_as_far_as_its_means_do(self) -> None:
        """Down by the lower end of the arm and the upper one of the baseline, up by the others (no examples here)."""
        one, other = cell(0.010, 0.013, 0.012), cell(0.09, 0.06, 0.055)
        found = fit({"a": one, "b": other}, "a", None, SHARE, False).differences["b"]
        ends = []
        for each in (one, other):  # each keeps its own degrees of freedom: the F test refuses equal variances
            mean = float(each.value_S.mean())
            reach = stats.t.ppf(0.975, 2) * each.value_S.std(ddof=1) / math.sqrt(3) / (mean * (1 - mean))
            ends.append((mean, *special.expit(special.logit(mean) + np.array([-reach, reach]))))
        (base, base_low, base_high), (mean, low, high) = ends
        assert found.pointwise_low == pytest.approx(mean - base - math.hypot(mean - low, base_high - base))
        assert found.pointwise_high == pytest.approx(mean - base + math.hypot(high - mean, base - base_low))
        assert found.verdict == "better"
        turned = fit({"a": other, "b": one}, "a", None, SHARE, False).differences["b"]
        assert (turned.low, turned.high, turned.verdict) == (-found.high, -found.low, "worse")

    def test_arms_of_clearly_unequal_variance_are_named(self) -> None:
        quiet, loud = np.linspace(-1, 1, 8), 20 * np.linspace(-1, 1, 8)
        found = fit({"a": cell(*quiet), "b": cell(*loud), "c": cell(*quiet)}, "a", None, ANY, False)
        assert found.apart == ("b",)
        assert "F test parts it from that of a: b" in found.rule
        assert "F test" not in fit({"a": cell(*quiet), "c": cell(*quiet)}, "a", None, ANY, False).rule

    def test_equal_values_on_a_coarse_metric_are_no_proof_of_unequal_variance(self) -> None:
        none, step = SeedVariance(0.0, 1), SeedVariance((2 / 400) ** 2, 1)
        assert not paired(none, step, 1 / 400)[2]
        assert paired(none, step, 0.0)[2]
        assert paired(step, none, 0.0)[2]
        assert not paired(none, none, 0.0)[2]


class TestInvariance:
    def test_orders_of_arms_seeds_and_examples_do_not_matter(self) -> None:
        cells, unit_N = small_table()
        order = np.random.default_rng(0).permutation(400)
        turned = {
            arm: Cell(cells[arm].seeds[::-1], cells[arm].value_S[::-1], cells[arm].example_SN[::-1][:, order])
            for arm in reversed(cells)
        }
        plain = fit(cells, "uniform", unit_N, SHARE, False)
        assert numbers(plain) == pytest.approx(numbers(fit(turned, "uniform", 900 - unit_N[order], SHARE, False)))

    def test_a_common_shift_leaves_differences_and_a_turned_sign_turns_verdicts(self) -> None:
        cells, unit_N = small_table()

        def moved(scale: float, shift: float) -> dict[str, Cell]:
            return {arm: of_examples(scale * part.example_SN + shift) for arm, part in cells.items()}

        plain = fit(moved(1, 0), "uniform", unit_N, ANY, False).differences["jest"]
        shifted = fit(moved(1, 7), "uniform", unit_N, ANY, False).differences["jest"]
        turned = fit(moved(-1, 3), "uniform", unit_N, ANY, True).differences["jest"]
        assert (plain.low, plain.high, plain.verdict) == pytest.approx((shifted.low, shifted.high, "better"))
        assert (turned.low, turned.high, turned.verdict) == pytest.approx((-plain.high, -plain.low, "better"))
        assert fit(moved(-1, 3), "uniform", unit_N, ANY, False).differences["jest"].verdict == "worse"

    def test_the_verdict_is_the_simultaneous_intervals(self) -> None:
        cells, unit_N = small_table()

        def other(shift: float) -> Difference:
            moved = cells | {"other": of_examples(cells["other"].example_SN + shift)}
            return fit(moved, "uniform", unit_N, ANY, False).differences["other"]

        plain = other(0.0)
        pointwise, simultaneous = plain.pointwise_high - plain.value, plain.high - plain.value
        assert pointwise < 0.98 * simultaneous
        for value, verdict in (((pointwise + simultaneous) / 2, "not told apart"), (1.01 * simultaneous, "better")):
            assert other(value - plain.value).verdict == verdict
            assert other(-value - plain.value).verdict == verdict.replace("better", "worse")

    def test_simultaneous_intervals_hold_the_pointwise_ones(self) -> None:
        cells, unit_N = small_table()
        for found in fit(cells, "uniform", unit_N, SHARE, False).differences.values():
            assert found.low < found.pointwise_low < found.value < found.pointwise_high < found.high


class TestWhatIsMissing:
    def test_one_seed_has_no_interval_and_leaves_the_others_theirs(self) -> None:
        cells, unit_N = small_table()
        single = of_examples(cells["other"].example_SN[:1])
        found = fit(cells | {"single": single}, "uniform", unit_N, SHARE, False)
        assert found.means["single"].low is None
        assert found.means["single"].reason.startswith("one seed")
        assert found.differences["single"].verdict == "not told apart"
        assert numbers(fit(cells, "uniform", unit_N, SHARE, False))[3:] == pytest.approx(
            np.array([(d.low, d.high, d.pointwise_low) for k, d in sorted(found.differences.items()) if k != "single"])
        )

    def test_differences_rest_on_shared_seeds(self) -> None:
        arms = {"a": cell(1, 2, 4, 9, seeds=(0, 1, 2, 3)), "b": cell(5, 2.5, 3, seeds=(9, 2, 1)), "c": cell(1, 3)}
        found = fit(arms | {"d": cell(7, 8, seeds=(20, 21))}, "a", None, ANY, False)
        assert found.differences["b"].seeds == (1, 2)
        assert found.differences["b"].value == pytest.approx((2.5 + 3 - 4 - 2) / 2)
        assert found.differences["d"].seeds == ()
        assert found.differences["d"].low is None
        assert "2 to 4 seeds" in found.rule

    def test_an_arm_with_few_shared_seeds_has_the_baselines_noise_over_those(self) -> None:
        base_S = np.random.default_rng(0).normal(size=8)
        quiet = {"all": cell(*(1 + 1e-6 * base_S)), "two": cell(1, 1 + 1e-6)}
        found = fit({"base": cell(*base_S)} | quiet, "base", None, ANY, False).differences
        for arm, shared in (("all", 8), ("two", 2)):
            half = stats.t.ppf(0.975, 7) * base_S.std(ddof=1) / math.sqrt(shared)
            assert found[arm].pointwise_high - found[arm].value == pytest.approx(half, rel=0.02)

    def test_without_examples_the_rule_names_the_arm(self) -> None:
        cells, unit_N = small_table()
        bare = cells | {"jest": Cell(cells["jest"].seeds, cells["jest"].value_S)}
        found = fit(bare, "uniform", unit_N, SHARE, False)
        assert "no per-example results (jest)" in found.rule
        assert found.differences["jest"].low is not None
        assert "100 classes" in fit(cells, "uniform", unit_N, SHARE, False).rule

    def test_equal_seeds_keep_the_noise_of_examples_and_nothing_has_no_interval(self) -> None:
        hit_N = (np.arange(400) < 40).astype(float)
        arms = {"a": of_examples(np.stack([hit_N] * 3)), "b": of_examples(np.stack([hit_N] * 3))}
        found = fit(arms, "a", None, SHARE, False)
        assert found.means["a"].low < 0.1 < found.means["a"].high
        assert found.differences["b"].low is None
        assert found.differences["b"].reason.startswith("nothing varies")
        assert fit({"a": cell(2, 2)}, "a", None, ANY, False).means["a"].reason.startswith("nothing varies")

    def test_intervals_end_where_the_metric_does(self) -> None:
        arms = {"a": cell(0.01, 0.5), "b": cell(0.99, 0.2)}
        found = fit(arms, "a", None, Measure(0.0, 1.0), False)
        assert found.scale == "logit"
        assert found.means["a"].low >= 0
        assert found.means["a"].high <= 1
        assert found.differences["b"].low > -1
        assert found.differences["b"].high < 1
        plain = fit(
            {"a": of_examples(np.full((2, 4), [[0.1], [0.9]]))} | {"b": of_examples(np.full((2, 4), [[0.2], [0.7]]))},
            "a",
            None,
            Measure(0.0, 1.0),
            False,
        )
        assert plain.scale == "identity"
        assert (plain.differences["b"].low, plain.differences["b"].high) == (-1, 1)
        assert fit({"a": cell(0.1, 3)}, "a", None, Measure(0.0, None), True).means["a"].low == 0

    def test_reciprocal_ranks_stay_on_their_own_scale(self) -> None:
        rank = np.random.default_rng(0).integers(1, 9, (3, 400))
        assert fit({"a": of_examples(1 / rank)}, "a", None, SHARE, False).scale == "identity"

    def test_an_arm_that_hits_nothing_spoils_no_other(self) -> None:
        cells, unit_N = small_table()
        found = fit(cells | {"dead": of_examples(np.zeros((3, 400)))}, "uniform", unit_N, SHARE, False)
        assert found.scale == "logit"
        assert found.means["dead"].low is None
        assert found.differences["dead"].verdict == "worse"
        assert found.means["jest"].low == pytest.approx(fit(cells, "uniform", unit_N, SHARE, False).means["jest"].low)

    @pytest.mark.parametrize(
        ("arms", "message"),
        [
            ({"b": cell(1, 2)}, "no arm 'a'"),
            ({"a": cell(1, math.nan)}, "not finite"),
            ({"a": cell(1, 2, seeds=(3, 3))}, "stands twice"),
            ({"a": of_examples(np.ones((2, 4))), "b": of_examples(np.ones((2, 5)))}, "same examples"),
        ],
    )
    def test_cells_that_do_not_fit_are_refused(self, arms: dict[str, Cell], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            fit(arms, "a", None, ANY, False)


class TestPlanted:
    """Fewer simulations than docs/statistics.md has, with three binomial standard errors of tolerance."""

    SIMULATIONS = 200
    LEAST = 0.93 - 3 * math.sqrt(0.93 * 0.07 / SIMULATIONS)

    @pytest.mark.parametrize(
        "setting",
        [
            make_coverage.Setting(2, 2, 0.06, 1000, 1),
            make_coverage.Setting(2, 4, 0.06, 1000, 0),
            make_coverage.Setting(3, 4, 0.06, 200, 1),
            make_coverage.Setting(8, 2, 0.06, 200, None),
            make_coverage.Setting(8, 4, 0.012, 200, 0),
        ],
        ids=str,
    )
    def test_intervals_cover(self, setting: make_coverage.Setting) -> None:
        found = make_coverage.simulate(setting, self.SIMULATIONS)
        assert found.least() >= self.LEAST
        assert found.false_better <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / self.SIMULATIONS)

    @pytest.mark.parametrize("noisy", [None, 0])
    def test_all_intervals_of_a_table_cover_together(self, noisy: int | None) -> None:
        setting = make_coverage.Setting(8, 4, 0.06, 1000, noisy, make_coverage.SMALL, own=0.0)
        found = make_coverage.simulate(setting, self.SIMULATIONS)
        assert found.family >= 0.94 - 3 * math.sqrt(0.94 * 0.06 / self.SIMULATIONS)
        assert found.family == 1 - found.false_verdict

    def test_two_seeds_of_equal_deviation_are_not_covered_too_often(self) -> None:
        assert make_coverage.simulate(make_coverage.Setting(2, 4, 0.06, 1000, None), 1000).most() <= 0.98
