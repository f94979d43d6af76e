"""Faults that a named fast test must catch: one entry each, tried by ``pytest -m slow tests/test_mutants.py``.

An entry gives what is broken, the file, its exact text (there once), the text in its place, and the tests of which one
must fail. To add a mutant, add an entry.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        fault: what is wrong, in a few words; the test's id.
        file: that is changed, from the repository's root.
        old: text that stands there exactly once.
        new: text that takes its place.
        tests: node ids, separated by blanks; the run stops at the first that fails.
    """

    fault: str
    file: str
    old: str
    new: str
    tests: str


DRAWS, SCORES, STRIPS, LOSSES = (f"jestbench/select/{name}.py" for name in ("draws", "scores", "strips", "losses"))
CONTRACT, METRICS, GRADING = "jestbench/select/contract.py", "jestbench/evals/metrics.py", "jestbench/evals/grading.py"
OPTIMIZER, LEDGER, BUDGET = "jestbench/engine/optimizer.py", "jestbench/cost/ledger.py", "jestbench/cost/budget.py"
TRACING, PRICE, SEEDS = "jestbench/cost/tracing.py", "jestbench/cost/price.py", "jestbench/seeds.py"
SPEEDUPS = "jestbench/compare/speedups.py"
CURVES, ANALYSIS, GROUPS = (f"jestbench/compare/{name}.py" for name in ("curves", "analysis", "groups"))

SAMPLING = "tests/select/test_sampling.py"
LAW, LOGITS, COUNT = f"{SAMPLING}::TestLaw", f"{SAMPLING}::TestConditionalLogits", f"{SAMPLING}::TestCount"
PAIR_LOSSES, METER = f"{SAMPLING}::TestPairLosses", f"{SAMPLING}::TestMeter"
SHARED = "tests/select/test_shared.py"
EVERY, MODEL, EVALS, COMPARE = (
    "tests/policies/test_policies.py",
    "tests/model/test_model.py",
    "tests/evals/test_evals.py",
    "tests/compare/test_compare.py",
)
FORMULAS = f"{MODEL}::test_losses_are_their_formulas"
SCHEDULE = f"{MODEL}::test_the_schedule_is_a_function_of_the_share_spent"
DECLARED = f"{EVERY}::TestEveryVariant::test_the_choice_goes_the_way_that_it_declares"
SPENT = "tests/cost/test_budget.py"

SAMPLER = (
    Mutant("a remainder is not drawn", DRAWS, "size + (i < rest) for i in", "size for i in", COUNT),
    Mutant(
        "Gumbel noise of the wrong sign",
        DRAWS,
        ".log_().neg_().to(",
        ".log_().to(",
        f"{LAW}::test_independent_draw",
    ),
    Mutant(
        "no noise",
        DRAWS,
        ".log_().neg_().to(",
        ".log_().mul_(0).to(",
        f"{LAW}::test_independent_draw",
    ),
    Mutant(
        "ties go anywhere",
        DRAWS,
        "if bool(distinct & ((logit_B >= best.values[-1]).sum() == count)):",
        "if True or distinct:",
        COUNT,
    ),
    Mutant("a chosen pair may be drawn again", DRAWS, "self._drawn_B.index_fill_(0, index_C, True)", "pass", COUNT),
    Mutant(
        "the last but one chunk conditions nothing",
        DRAWS,
        "if number + 1 < len(sizes):",
        "if number + 2 < len(sizes):",
        f"{LAW}::test_joint_draw",
    ),
    Mutant(
        "the last chunk is conditioned on for nothing",
        DRAWS,
        "if number + 1 < len(sizes):",
        "if number < len(sizes):",
        f"{METER}::test_joint_draw_costs_the_closed_form",
    ),
    Mutant(
        "softmax terms are not halved",
        DRAWS,
        "term_B = self.sign * (self.row_B + self.column_B) / 2",
        "term_B = self.sign * (self.row_B + self.column_B)",
        f"{LOGITS}::test_equal_brute_force",
    ),
    Mutant(
        "columns are summed as rows",
        DRAWS,
        "((model.image_BD, model.text_BD), (model.text_BD, model.image_BD))",
        "((model.image_BD, model.text_BD), (model.image_BD, model.text_BD))",
        f"{LOGITS}::test_equal_brute_force",
    ),
    Mutant(
        "chunks of softmax sums are added",
        DRAWS,
        'join = torch.add if self.scores.loss == "sigmoid" else torch.logaddexp',
        "join = torch.add",
        f"{LOGITS}::test_chunks_extend_to_the_same_logits_in_any_order",
    ),
    Mutant(
        "the reference's terms count for the pair",
        DRAWS,
        "self.sign, self.model, self.scores = sign, model, scores",
        "self.sign, self.model, self.scores = 1.0, model, scores",
        f"{LOGITS}::test_equal_brute_force",
    ),
    Mutant(
        "deterministic draws",
        DRAWS,
        "noise = None if deterministic else _noise(joint.diagonal_B, len(sizes), generator)",
        "noise = _noise(joint.diagonal_B, len(sizes), generator)",
        f"{LAW}::test_a_large_gain_is_greedy",
    ),
    Mutant(
        "gain is ignored by an independent draw",
        DRAWS,
        "gained_B = _gained(score_B, gain, offset_B)",
        "gained_B = _gained(score_B, 1.0, offset_B)",
        f"{LAW}::test_independent_draw",
    ),
    Mutant(
        "gain is ignored by a joint draw",
        DRAWS,
        "gained_B = _gained(logit_B, gain, offset_B)",
        "gained_B = _gained(logit_B, 1.0, offset_B)",
        f"{LAW}::test_joint_draw",
    ),
    Mutant(
        "no gain makes the excluded NaN",
        DRAWS,
        "gained_B = torch.where(torch.isneginf(logit_B), logit_B, gain * logit_B)",
        "gained_B = gain * logit_B",
        COUNT,
    ),
    Mutant(
        "entropy of another sign",
        DRAWS,
        '"select/entropy": -p_log_p',
        '"select/entropy": p_log_p',
        f"{SAMPLING}::TestStatistics",
    ),
)

VALUES = (
    Mutant(
        "the learner's loss counts against a pair",
        SCORES,
        "both = ((1.0, self.learner), (-1.0, self.reference))",
        "both = ((-1.0, self.learner), (1.0, self.reference))",
        f"{PAIR_LOSSES}::test_learnability_is_learner_minus_reference",
    ),
    Mutant(
        "a batch loss without its positive",
        SCORES,
        "return [(rows_B + columns_B) / 2 - own_B for",
        "return [(rows_B + columns_B) / 2 for",
        PAIR_LOSSES,
    ),
    Mutant(
        "an own loss of the wrong sign",
        SCORES,
        'return [F.softplus(-own_B) if self.loss == "sigmoid" else -own_B for',
        'return [F.softplus(own_B) if self.loss == "sigmoid" else own_B for',
        f"{PAIR_LOSSES}::test_own_is_of_the_pair_alone",
    ),
    Mutant(
        "an offset is left out of a strip",
        STRIPS,
        'offset = left_BD.new_full((), model.bias if loss == "sigmoid" else 0.0)',
        "offset = left_BD.new_full((), 0.0)",
        PAIR_LOSSES,
    ),
    Mutant(
        "a gradient without its positive",
        SCORES,
        "            slope_BT[tile].diagonal().sub_(1)\n",
        "",
        "tests/select/test_grad_norm.py::test_any_model_that_is_there",
    ),
    Mutant(
        "strips are free",
        DRAWS,
        "            scores.meter.add(len(left_BD), len(index_C), left_BD.shape[1], own=len(sums_P))\n",
        "",
        METER,
    ),
    Mutant(
        "diagonals are free",
        SCORES,
        "self.meter.add(len(self), 1, model.image_BD.shape[1], own=share.stop - share.start)",
        "pass",
        METER,
    ),
    Mutant(
        "a process's terms of a softmax are added",
        SCORES,
        'return terms_nB.sum(0) if self.loss == "sigmoid" else terms_nB.logsumexp(0)',
        "return terms_nB.sum(0)",
        f"{SHARED}::test_scores_are_those_of_one_process",
    ),
    Mutant(
        "every process computes all rows of a strip",
        DRAWS,
        "share = self._world.share(size)",
        "share = slice(0, size)",
        f"{SHARED}::test_work_falls_with_the_number_of_processes_and_the_ledger_stays",
    ),
    Mutant(
        "the gradient by the texts is a process's own",
        LOSSES,
        "total, by_text_KD, by_scale, by_bias = world.add(total, by_text_KD, by_scale, by_bias)",
        "total, by_scale, by_bias = world.add(total, by_scale, by_bias)",
        f"{SHARED}::test_losses_and_gradients_are_whole_on_every_process",
    ),
    Mutant(
        "the odd term of a fold is lost",
        STRIPS,
        "sums_nCR = sums_nCR.narrow(1, 0, sums_nCR.shape[1] - half)",
        "sums_nCR = sums_nCR.narrow(1, 0, half)",
        f"{LOGITS}::test_equal_brute_force {SAMPLING}::test_strips_keep_small_terms_and_survive_large_ones",
    ),
    Mutant(
        "embeddings may be NaN",
        SCORES,
        "if not bool(torch.isfinite(torch.stack(sums)).all()):",
        "if False:",
        f"{SAMPLING}::TestExtremes::test_embeddings_that_are_not_finite_are_named",
    ),
    Mutant(
        "a sigmoid loss of the wrong sign",
        LOSSES,
        "sign_KK = 1 - 2 * torch.eye",
        "sign_KK = 2 * torch.eye",
        FORMULAS,
    ),
    Mutant("a mean over all products", LOSSES, "terms_KK.sum() / len(logits_KK)", "terms_KK.mean()", FORMULAS),
    Mutant(
        "a weight acts on the row alone",
        LOSSES,
        "(weight_K[:, None] + weight_K[None, :]) / 2",
        "weight_K[:, None]",
        f"{MODEL}::test_a_weight_acts_on_the_row_and_the_column_of_its_pair",
    ),
    Mutant(
        "a softmax over rows alone",
        LOSSES,
        'F.cross_entropy(side_KK, target_K, reduction="none") for side_KK in (logits_KK, logits_KK.T)',
        'F.cross_entropy(side_KK, target_K, reduction="none") for side_KK in (logits_KK, logits_KK)',
        FORMULAS,
    ),
    Mutant(
        "a pair may be chosen twice",
        CONTRACT,
        "if len(index_K.unique()) != count:",
        "if False:",
        f"{EVERY}::TestChoose",
    ),
    Mutant(
        "a weight may be NaN",
        CONTRACT,
        "if not (low >= 0 and 0 < high <= MAX_WEIGHT):",
        "if low < 0 or high <= 0 or high > MAX_WEIGHT:",
        f"{EVERY}::TestChoose",
    ),
)

POLICIES = (
    Mutant(
        "clip_score takes the worst",
        "policies/clip_score.py",
        'score_B = scores.own_logit_B("reference")',
        'score_B = -scores.own_logit_B("reference")',
        DECLARED,
    ),
    Mutant(
        "clip_score.share is ignored",
        "policies/clip_score.py",
        "top_share(score_B, self.share, count)",
        "top_share(score_B, 0.3, count)",
        f"{EVERY}::test_clip_score_draws_among_the_share_that_passes",
    ),
    Mutant(
        "selective_backprop takes low losses",
        "policies/selective_backprop.py",
        'loss_B = scores.pair_loss_B("learner", self.pair_loss)',
        'loss_B = -scores.pair_loss_B("learner", self.pair_loss)',
        DECLARED,
    ),
    Mutant(
        "selective_backprop.beta is ignored",
        "policies/selective_backprop.py",
        "self.beta * percentile_B.log()",
        "percentile_B.log()",
        f"{EVERY}::test_selective_backprop_draws_by_a_power_of_the_percentile",
    ),
    Mutant(
        "active_clip turned round",
        "policies/active_clip.py",
        "self.by_score(scores, score_B, count",
        "self.by_score(scores, -score_B, count",
        DECLARED,
    ),
    Mutant(
        "jest.shuffle_reference shuffles nothing",
        "policies/jest.py",
        "scores = replace(scores, reference=reference.take(others_B))",
        "reference.take(others_B)",
        f"{EVERY}::test_the_control_of_jest_keeps_the_learner_and_loses_the_reference",
    ),
    Mutant(
        "jest.chunks is ignored",
        "policies/jest.py",
        "self.jointly(scores, count, generator, self.chunks,",
        "self.jointly(scores, count, generator, 16,",
        f"{EVERY}::test_jest_of_one_chunk_is_learnability",
    ),
    Mutant(
        "easy_reference takes the hard",
        SCORES,
        "(-1.0, self.reference)",
        "(1.0, self.reference)",
        DECLARED,
    ),
    Mutant(
        "hard_learner takes the easy",
        SCORES,
        "(1.0, self.learner)",
        "(-1.0, self.learner)",
        DECLARED,
    ),
    Mutant(
        "rho_loss takes the bottom",
        "policies/rho_loss.py",
        "independent_draw(score_B, count, deterministic=True)",
        "independent_draw(-score_B, count, deterministic=True)",
        DECLARED,
    ),
    Mutant(
        "grad_norm takes small gradients",
        "policies/grad_norm.py",
        ".log() / self.temperature",
        ".log() / -self.temperature",
        DECLARED,
    ),
    Mutant(
        "grad_norm weighs by the probability",
        "policies/grad_norm.py",
        "torch.softmax(-logit_B[index_K], dim=0)",
        "torch.softmax(logit_B[index_K], dim=0)",
        "tests/select/test_grad_norm.py::test_weights_are_the_inverse_of_the_probabilities",
    ),
    Mutant(
        "cappy takes bad grades",
        "policies/cappy.py",
        'grade_B = scores.values["g"]',
        'grade_B = -scores.values["g"]',
        DECLARED,
    ),
    Mutant(
        "cappy.temperature multiplies",
        "policies/cappy.py",
        "self.by_score(scores, grade_B, count, generator, 1 / self.temperature",
        "self.by_score(scores, grade_B, count, generator, self.temperature",
        "tests/engine/test_cappy.py::test_pairs_are_drawn_by_the_grade_over_the_temperature",
    ),
    Mutant(
        "learnability draws by its in-batch loss",
        "policies/_per_pair.py",
        "scores.learnability_B(self.pair_loss)",
        'scores.learnability_B("in_batch")',
        f"{EVERY}::test_the_top_by_the_papers_score",
    ),
)

SPENDING = (
    Mutant("evaluation is in the total", LEDGER, 'if purpose != "eval"', "if purpose", SPENT),
    Mutant(
        "a pass is charged once for all",
        LEDGER,
        "self._macs[item.purpose] += item",
        "self._macs[item.purpose] = item",
        SPENT,
    ),
    Mutant("purposes are counted in MACs", LEDGER, "{p: FLOPS_PER_MAC * macs", "{p: macs", SPENT),
    Mutant("a run goes on at its budget", BUDGET, "ledger.total >= flops", "ledger.total > flops", SPENT),
    Mutant(
        "a rounded share ends a run",
        BUDGET,
        "min(ledger.total / flops, BELOW_ONE)",
        "ledger.total / flops",
        SPENT,
    ),
    Mutant("pairs are counted as steps", BUDGET, "pairs_seen / self.pairs", "step / self.pairs", SPENT),
    Mutant(
        "a multiply-add is one operation",
        TRACING,
        "FLOPS_PER_MAC = 2",
        "FLOPS_PER_MAC = 1",
        f"{SPENT} tests/cost/test_flops.py",
    ),
    Mutant(
        "a training pass is two passes",
        TRACING,
        "TRAINING_PASSES = 3",
        "TRAINING_PASSES = 2",
        "tests/cost/test_flops.py::test_three_forward_passes_are_a_fair_price_of_a_training_step",
    ),
    Mutant(
        "a resized patch embedding is paid for by each image",
        PRICE,
        "return cls(two - one, text, 2 * one - two)",
        "return cls(one, text)",
        "tests/model/test_views.py::test_the_price_of_a_view_is_the_closed_form",
    ),
    Mutant(
        "the last micro-batch is free",
        PRICE,
        "passes = -(-count // (microbatch or max(1, count)))",
        "passes = count // (microbatch or max(1, count))",
        "tests/model/test_views.py::test_scoring_is_charged_what_torch_counts",
    ),
    Mutant(
        "a price is traced inside a dispatch mode",
        TRACING,
        "            _disable_current_modes(),\n",
        "",
        "tests/launch/test_pretended_device.py",
    ),
)

SCHEDULES = (
    Mutant("no warm-up", OPTIMIZER, "self.learning_rate * position / self.warmup", "self.learning_rate", SCHEDULE),
    Mutant(
        "a cosine that begins at 0", OPTIMIZER, "(position - self.warmup) / (1 - self.warmup)", "position", SCHEDULE
    ),
    Mutant(
        "a rate that rises again",
        OPTIMIZER,
        "min(1.0, (position - self.warmup) / (1 - self.warmup))",
        "(position - self.warmup) / (1 - self.warmup)",
        SCHEDULE,
    ),
    Mutant("a final rate of 0", OPTIMIZER, "(self.final + (1 - self.final) * left)", "left", SCHEDULE),
    Mutant(
        "positions decay",
        OPTIMIZER,
        "p.ndim >= 2 and not n.endswith(NOT_MATRICES)",
        "p.ndim >= 2",
        f"{MODEL}::test_only_matrices_decay",
    ),
    Mutant(
        "one stream for all purposes", SEEDS, "{seed}/{stream}/{position}", "{seed}/{position}", "tests/test_seeds.py"
    ),
    Mutant("one position for all steps", SEEDS, "{seed}/{stream}/{position}", "{seed}/{stream}", "tests/test_seeds.py"),
    Mutant(
        "one seed for all runs",
        SEEDS,
        "{seed}/{stream}/{position}",
        "{stream}/{position}",
        "tests/test_seeds.py tests/data/test_data.py",
    ),
)

EVALUATION = (
    Mutant(
        "ties count for a class",
        METRICS,
        "ahead_QG = ~(score_QG < best_Q1)",
        "ahead_QG = (score_QG > best_Q1)",
        EVALS,
    ),
    Mutant("equal captions are counted once", METRICS, "else ahead_QG * count_G)", "else ahead_QG)", EVALS),
    Mutant(
        "every right image counts against the first",
        METRICS,
        "~(score_QG < best_Q1) & ~right_QG",
        "~(score_QG < best_Q1)",
        EVALS,
    ),
    Mutant(
        "the worst right image counts",
        METRICS,
        "masked_fill(~right_QG, -torch.inf).amax",
        "masked_fill(~right_QG, torch.inf).amin",
        EVALS,
    ),
)

COMPARISON = (
    Mutant(
        "the common budget is the smallest",
        ANALYSIS,
        "return max(shared)",
        "return min(shared)",
        COMPARE,
    ),
    Mutant("speedups upside down", SPEEDUPS, "value = have / need if", "value = need / have if", COMPARE),
    Mutant("the oldest of two runs counts", GROUPS, "newest = max(same,", "newest = min(same,", COMPARE),
    Mutant("a target must be passed", CURVES, "np.flatnonzero(ahead_E >= 0)", "np.flatnonzero(ahead_E > 0)", COMPARE),
    Mutant(
        "a crossing is read at the evaluation after",
        CURVES,
        "amount_E[before] + part * (amount_E[after] - amount_E[before])",
        "amount_E[after]",
        COMPARE,
    ),
    Mutant(
        "an overshoot is cut off",
        CURVES,
        "if budget >= curve.flops_E[-1] - step:",
        "if budget >= curve.flops_E[-1]:",
        COMPARE,
    ),
    Mutant(
        "seeds are averaged at equal FLOPs",
        CURVES,
        "return flops_E / end if end > 0 else flops_E",
        "return flops_E",
        COMPARE,
    ),
)

FROZEN, CASCADE, HALVES = "jestbench/engine/frozen.py", "jestbench/data/cascade.py", "jestbench/data/part_pairs.py"
BATCHES, FORECAST, RESULTS = (
    "jestbench/data/super_batches.py",
    "jestbench/launch/forecast.py",
    "jestbench/evals/results.py",
)
CAPPY, PLANNED = "tests/engine/test_cappy.py", "tests/launch/test_forecast.py"
RUN, CACHE, CASCADES, TWIN = (
    "tests/launch/test_run.py",
    "tests/engine/test_cache.py",
    "tests/data/test_cascade.py",
    "tests/engine/test_twin.py",
)

FROZEN_MODELS = (
    Mutant(
        "a row is charged at every sight",
        FROZEN,
        "        new = charged.missing(key_B)\n",
        "        new = torch.arange(len(key_B))\n",
        f"{RUN} {CACHE}",
    ),
    Mutant(
        "an amortised reference is charged",
        FROZEN,
        'if self.accounting != "amortised":',
        'if self.accounting != "free":',
        f"{RUN} {CACHE}",
    ),
    Mutant(
        "a damaged pair has a row",
        FROZEN,
        "torch.nan, dtype=torch.float64)",
        "0.0, dtype=torch.float64)",
        CAPPY,
    ),
    Mutant("rows are counted as found", FROZEN, "self.hits += len(key_B) - computed", "self.hits += len(key_B)", CACHE),
    Mutant(
        "a NaN embedding is taken",
        FROZEN,
        "if not bool(torch.isfinite(row_ND).all()):",
        "if False:",
        f"{CACHE} {RUN} tests/engine/test_actors.py",
    ),
    Mutant(
        "a resumed run's amortised passes start at zero",
        FROZEN,
        'self.amortised_macs = state["amortised_macs"]',
        "self.amortised_macs = 0",
        CAPPY,
    ),
)

SUPER_BATCHES = (
    Mutant(
        "every epoch has one order",
        BATCHES,
        'seeds.generator(self.seed, "data", epoch)',
        'seeds.generator(self.seed, "data", 0)',
        "tests/data/test_data.py",
    ),
    Mutant(
        "a tail is not counted",
        BATCHES,
        "(step // self.per_epoch) * (len(self.pairs) - self.per_epoch * self.size)",
        "0 * step",
        "tests/data/test_data.py tests/data/test_loader.py",
    ),
    Mutant(
        "damage is forgotten on resume",
        BATCHES,
        '        self.tally.load_state_dict(state["tally"])\n',
        "",
        "tests/data",
    ),
    Mutant(
        "a cascade takes the hardest", CASCADE, "return top_k(-loss_C, count)", "return top_k(loss_C, count)", CASCADES
    ),
    Mutant("a cascade draws the hardest", CASCADE, "gumbel_top_k(-loss_C", "gumbel_top_k(loss_C", CASCADES),
    Mutant("a cascade's temperature is ignored", CASCADE, "-loss_C / self.temperature", "-loss_C", CASCADES),
    Mutant("every step's cascade draws alike", CASCADE, '"cascade", step)', '"cascade", 0)', CASCADES),
    Mutant(
        "a cascade's passes are not handed on",
        CASCADE,
        "index_B=index_C[chosen_B], passes=passes, placement",
        "index_B=index_C[chosen_B], placement",
        CASCADES,
    ),
    Mutant("both halves are one", HALVES, "== self.half", "== 0", f"{TWIN} tests/data"),
    Mutant(
        "a half reads a pair of the other",
        HALVES,
        "            if not foreign:\n",
        "            if True:\n",
        f"{TWIN} tests/data",
    ),
)

FORECASTS = (
    Mutant(
        "a reference is forecast at every pass over the pool",
        "jestbench/launch/charges.py",
        "found = replace(found, each=price.total - price.first_sight)",
        "found = replace(found, each=price.total)",
        PLANNED,
    ),
    Mutant(
        "one half of a twin is forecast",
        FORECAST,
        "None if flops is None else len(stands) * flops",
        "None if flops is None else flops",
        PLANNED,
    ),
    Mutant(
        "an amortised reference is forecast",
        "jestbench/launch/step_price.py",
        'once = [] if accounting == "amortised" else once',
        "once = [*once]",
        "tests/engine/test_cache.py tests/launch tests/cost tests/data/test_cascade.py",
    ),
)

COMMANDS = (
    Mutant(
        "pre-training need not pay",
        FORECAST,
        "charges.total(steps) + once + pretrained",
        "charges.total(steps)",
        PLANNED,
    ),
    Mutant(
        "the goal of a sweep is dropped",
        "jestbench/compare/choose_metric.py",
        "return metric, record.lower_is_better",
        "return metric, None",
        "tests/compare/test_entry.py",
    ),
    Mutant(
        "a page reloads itself for ever",
        "jestbench/compare/watch.py",
        "_reload(out / PAGE, None if now.over else interval)",
        "_reload(out / PAGE, interval)",
        "tests/compare/test_entry.py",
    ),
    Mutant(
        "what a resumed arm had spent counts as its speed",
        "jestbench/sweep/progress.py",
        "_spent(self.folder) - self.begun",
        "_spent(self.folder)",
        "tests/sweep/test_progress.py",
    ),
)

PER_EXAMPLE = (
    Mutant("hits are counted from rank 0", RESULTS, "(ranking.rank_N <= k)", "(ranking.rank_N < k)", EVALS),
    Mutant("nll is a log-probability", RESULTS, "-ranking.log_probability_N", "ranking.log_probability_N", EVALS),
    Mutant(
        "both directions count by their queries",
        RESULTS,
        "total / (len(there) * len(ranking.rank_N))",
        "1.0",
        EVALS,
    ),
    Mutant(
        "probabilities at a scale of one",
        METRICS,
        "(scale * image_ND.float()",
        "(image_ND.float()",
        EVALS,
    ),
    Mutant(
        "a run's end leaves no examples",
        "jestbench/runs/recorder.py",
        "if after >= 1 and self.world.first_of_all:",
        "if after > 1 and self.world.first_of_all:",
        RUN,
    ),
)

NOISE, STATISTICS = (f"jestbench/compare/{name}.py" for name in ("noise", "statistics"))
INTERVALS = "tests/compare/test_statistics.py"

VERDICTS = (
    Mutant("a worse end has a speedup", SPEEDUPS, '        elif worse:\n            absent = "worse"\n', "", COMPARE),
    Mutant(
        "the second target is the first again",
        SPEEDUPS,
        "other, found = ladder_of(base), {}",
        "other, found = ladder_of(base, budget), {}",
        "tests/compare/test_frontiers.py",
    ),
    Mutant(
        "a touch is called decayed", SPEEDUPS, '"touch" if value is not None', '"decayed" if value is not None', COMPARE
    ),
    Mutant(
        "an early touch is a number", SPEEDUPS, "elif not (arm.resolved and baseline.resolved):", "elif False:", COMPARE
    ),
    Mutant(
        "pre-training is left out of all-in",
        ANALYSIS,
        "int(member.counters.get(TOTAL_FLOPS, 0)) + pretrained",
        "int(member.counters.get(TOTAL_FLOPS, 0))",
        COMPARE,
    ),
    Mutant(
        "paired differences of the wrong sign",
        STATISTICS,
        "cell.value_S[_of(cell, seeds)].mean() - base.value_S[_of(base, seeds)].mean()",
        "base.value_S[_of(base, seeds)].mean() - cell.value_S[_of(cell, seeds)].mean()",
        INTERVALS,
    ),
    Mutant(
        "an interval holds no examples",
        NOISE,
        "float(ndtri(_TAIL)) * self.unit_deviation]",
        "0.0]",
        INTERVALS,
    ),
    Mutant(
        "an interval of the spread, not of the mean",
        NOISE,
        "math.sqrt(part.net / count)",
        "math.sqrt(part.net)",
        INTERVALS,
    ),
    Mutant(
        "several arms are judged one by one",
        STATISTICS,
        "max(1.0, float(np.quantile(scaled_KD.max(0, initial=0.0), CONFIDENCE)))",
        "1.0",
        INTERVALS,
    ),
    Mutant(
        "a verdict from the pointwise interval",
        STATISTICS,
        "ends[0] > 0 or ends[1] < 0",
        "ends[2] > 0 or ends[3] < 0",
        INTERVALS,
    ),
    Mutant(
        "an interval of a share as far down as up",
        NOISE,
        "if shares and 0 < mean < 1 else",
        "if False else",
        INTERVALS,
    ),
    Mutant("more is always better", STATISTICS, "(value > 0) != lower_is_better", "value > 0", INTERVALS),
    Mutant(
        "degrees of freedom of unequal variances add up",
        NOISE,
        "2 * min(rank, 1 - rank) < _REFUSED_BELOW",
        "False",
        INTERVALS,
    ),
)

PAGE = (
    Mutant(
        "a page tells where its runs lie",
        "jestbench/compare/page.py",
        "    environment.finalize = scrub\n",
        "",
        "tests/compare/test_page.py",
    ),
    Mutant(
        "a caption ends the data of a page",
        "jestbench/compare/page.py",
        'replace("<", "\\\\u003c")',
        'replace("<", "<")',
        "tests/compare/test_page.py",
    ),
    Mutant(
        "the lowest scores are shown last",
        "jestbench/runs/choices.py",
        'np.argsort(self.score_B[refused_N], kind="stable")',
        'np.argsort(-self.score_B[refused_N], kind="stable")',
        "tests/compare/test_configurations.py",
    ),
    Mutant(
        "evaluations of long runs are thinned out",
        "jestbench/runs/folder.py",
        "            kept_N[line] = True\n",
        "",
        "tests/runs/test_run_folder.py",
    ),
)

PROCESSES: tuple[Mutant, ...] = (
    Mutant(
        "a weight that no process runs has a gradient of 0, and decays",
        "jestbench/engine/gradients.py",
        "            self._held[name].grad = None\n",
        "            pass\n",
        "tests/parallel/test_gradients.py",
    ),
    Mutant(
        "a stand-in pair is trained on",
        "jestbench/engine/contrastive.py",
        "if len(row_P) else torch.zeros_like(own)",
        "if len(row_P) else torch.ones_like(own)",
        "tests/parallel/test_gradients.py",
    ),
)

MUTANTS = (
    *(*SAMPLER, *VALUES, *POLICIES, *SPENDING, *SCHEDULES, *EVALUATION, *COMPARISON),
    *(*FROZEN_MODELS, *SUPER_BATCHES, *FORECASTS, *COMMANDS, *PER_EXAMPLE, *VERDICTS, *PAGE, *PROCESSES),
)
