"""Checks of what a policy returns, and the errors of a policy that breaks its contract, fails or never returns."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from jestbench.batch import Selection
from jestbench.parallel.peers import LostProcess
from jestbench.select.scores import NonFiniteScore, ScoreError, Scores

MAX_WEIGHT = 1e12
"""Largest loss weight: the square of a gradient that it multiplies, which clipping sums, must not overflow in fp32."""
_MODELS_DIVERGED = 1e30
"""A scale or bias above which logits may overflow by themselves, so that the policy is not to blame."""


class PolicyError(Exception):
    """A policy breaks its contract; training on its choice would be silent nonsense."""

    exit_status: ClassVar[int] = 2


class PolicyFailure(PolicyError):
    """An exception inside a policy; ``__cause__`` is that exception, whose traceback the command prints."""

    exit_status: ClassVar[int] = 1
    shows_cause: ClassVar[bool] = True


class PolicyHang(PolicyError):
    """A policy did not return within ``run.patience``."""


def checked(name: str, selection: Any, scores: Scores, count: int) -> Selection:
    """A policy's selection with its indices on the CPU, after a check against the contract.

    Args:
        name: of the policy, for messages.
        selection: what ``select`` returned.
        scores: what the policy chose from.
        count: b.

    Raises:
        PolicyError: the message holds what was returned.
    """
    try:
        return _checked(name, selection, scores, count)
    except PolicyError:
        raise
    except Exception as error:  # a tensor without values, a mapping that fails, a number too large for a float
        said = f"{name} returned what cannot be read: {type(error).__name__}: {error}"
        raise PolicyError(said) from error


def _checked(name: str, selection: Any, scores: Scores, count: int) -> Selection:
    if not isinstance(selection, Selection):
        raise PolicyError(f"{name} must return a Selection, got {shown_value(selection)}")
    index_K: Any = selection.index_K
    if not isinstance(index_K, Tensor):
        raise PolicyError(f"{name} must return index_K as an int64 tensor, got {shown_value(index_K)}")
    # The checks and the batch read the indices on the CPU: one copy, not a wait each.
    index_K = index_K.cpu()
    if index_K.dtype != torch.int64 or index_K.ndim != 1 or len(index_K) != count:
        raise PolicyError(f"{name} must return int64 indices [{count}], got {index_K.dtype} {list(index_K.shape)}")
    low, high = int(index_K.min()), int(index_K.max())
    if low < 0 or high >= len(scores):
        raise PolicyError(
            f"{name} chose a position outside the super-batch of {len(scores)} pairs: {low if low < 0 else high}"
        )
    if len(index_K.unique()) != count:
        raise PolicyError(f"{name} chose a pair twice: {count} chosen, {len(index_K.unique())} distinct")
    _check_statistics(name, selection.statistics)
    _check_weights(name, selection.weight_K, index_K)
    _check_scores(name, selection.score_B, len(scores))
    check_state(name, selection.state)
    return selection if index_K is selection.index_K else replace(selection, index_K=index_K)


def _check_statistics(name: str, statistics: Any) -> None:
    if not isinstance(statistics, Mapping):
        raise PolicyError(f"{name} must return statistics as a mapping, got {shown_value(statistics)}")
    for key, value in statistics.items():
        if not (isinstance(key, str) and isinstance(value, int | float)):
            raise PolicyError(f"{name}: statistic {key!r} must be a plain number, got {shown_value(value)}")
        if not key.startswith("select/") or not math.isfinite(value):
            raise PolicyError(f"{name}: statistic {key!r} = {value} must be finite and named select/…")


def _check_weights(name: str, weight_K: Any, index_K: Tensor) -> None:
    if weight_K is None:
        return
    if not (isinstance(weight_K, Tensor) and weight_K.is_floating_point() and weight_K.shape == index_K.shape):
        raise PolicyError(
            f"{name}: weights are floats, one for each chosen pair [{len(index_K)}], got {shown_value(weight_K)}"
        )
    low, high = torch.stack(weight_K.detach().aminmax()).tolist()  # NaN where one is
    if not (low >= 0 and 0 < high <= MAX_WEIGHT):
        raise PolicyError(
            f"{name}: weights must be finite, not negative, at most {MAX_WEIGHT:g} and not all zero; got values from "
            f"{low:g} to {high:g}"
        )


def _check_scores(name: str, score_B: Any, size: int) -> None:
    if score_B is None:
        return
    if not isinstance(score_B, Tensor) or score_B.is_complex():
        raise PolicyError(f"{name}: score_B must be a tensor of numbers, got {shown_value(score_B)}")
    if score_B.shape != (size,):
        raise PolicyError(f"{name}: scores are one for each pair [{size}], got {list(score_B.shape)}")


_PLAIN = (type(None), bool, int, float, str, torch.Tensor)


def check_state(name: str, state: object, path: str = "state") -> None:
    """Refuse a state that a checkpoint could not bring back.

    Raises:
        PolicyError: with the part that is neither tensor, number nor text, nor a list, tuple or dict of these.
    """
    if type(state) in (list, tuple):
        for number, part in enumerate(state):  # type: ignore[arg-type, var-annotated]
            check_state(name, part, f"{path}[{number}]")
    elif type(state) is dict:
        for key, part in state.items():
            check_state(name, key, f"a key of {path}")
            check_state(name, part, f"{path}[{key!r}]")
    elif type(state) not in _PLAIN:
        raise PolicyError(
            f"{name}: {path} must be a tensor, a number, a text, or a list, tuple or dict of these, which a "
            f"checkpoint can hold; got {shown_value(state)}"
        )


def shown_value(value: object) -> str:
    """A short description of a value that a policy returned: its type, and its content where that is short."""
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # what a policy returns may fail in any way
        return kind
    return f"{kind}: {text[:80]}{'…' * (len(text) > 80)}"


@contextmanager
def blamed(name: str, scores: Scores | None = None) -> Iterator[None]:
    """Turn what goes wrong inside a policy's own code into an error that names the policy.

    A score that is not finite passes through where the models themselves have diverged, and so does the loss of another
    process, which shares the scores' work.

    Args:
        name: of the policy.
        scores: what the policy was given; ``None`` where it was given none.

    Raises:
        PolicyFailure: any exception inside the policy.
        PolicyError: the policy asked for an impossible draw, or left a setting of the process changed.
    """
    before = _settings()
    try:
        yield
    except (PolicyError, LostProcess):
        raise
    except ScoreError as error:
        if not isinstance(error, NonFiniteScore):
            raise PolicyError(f"{name}: {error}") from error
        if scores is None or not _sane(scores):
            raise
        raise PolicyError(
            f"{name}: {error}, although the models' scores are finite: mend the policy's arithmetic"
        ) from error
    except (Exception, SystemExit) as error:  # a policy does not end a run
        try:
            text = str(error)
        except Exception:
            text = ""
        raise PolicyFailure(f"{name} raised {type(error).__name__}{f': {text}' if text else ''}") from error
    finally:
        after = _settings()
        _restore(before, after)
    if changed := [key for key in before if before[key] != after[key]]:
        said = ", ".join(f"{key} from {before[key]} to {after[key]}" for key in changed)
        raise PolicyError(f"{name} left a setting of the whole process changed: {said}")


def _sane(scores: Scores) -> bool:
    """Whether the logits of the models are far from overflow."""
    parts = [*scores.models().values(), *(part for _, part in scores.unseen)]
    return all(abs(part.scale) + abs(part.bias) < _MODELS_DIVERGED for part in parts)


def _settings() -> dict[str, Any]:
    """Settings of the process that decide what the rest of a step computes, and where it writes."""
    try:
        folder = str(Path.cwd())
    except OSError:  # it was removed
        folder = ""
    return {
        "torch's gradient mode": torch.is_grad_enabled(),
        "torch's default dtype": torch.get_default_dtype(),
        "the working directory": folder,
    }


def _restore(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    torch.set_grad_enabled(before["torch's gradient mode"])
    if before["torch's default dtype"] != after["torch's default dtype"]:
        torch.set_default_dtype(before["torch's default dtype"])
    if before["the working directory"] != after["the working directory"]:
        os.chdir(before["the working directory"])
