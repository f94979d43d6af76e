"""Evaluation: zero-shot classification and retrieval, outside the budget."""

from jestbench.evals.evaluate import Evaluate, Evaluator, points_reached

__all__ = ["Evaluate", "Evaluator", "points_reached"]
