"""Evaluation: zero-shot classification and retrieval, outside the budget."""

from jestbench.evals.evaluate import Evaluate, Evaluator

__all__ = ["Evaluate", "Evaluator"]
