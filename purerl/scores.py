"""Scores of a few runs: interquartile mean and stratified bootstrap (Agarwal et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from purerl.checks import is_count, require_count, require_function


@overload
def interquartile_mean(x: ArrayLike, axis: None = None) -> float: ...
@overload
def interquartile_mean(x: ArrayLike, axis: int) -> Float[np.ndarray, "..."]: ...
def interquartile_mean(x: ArrayLike, axis: int | None = None) -> float | Float[np.ndarray, "..."]:
    """Mean of the middle half of the scores: a quarter, rounded down, is cut off at each end.

    `x` has any shape; `axis=None` pools all of it, as over [runs, tasks]. Fewer than four
    scores lose none, so this is then their mean. Raises ValueError where `x` is empty or not
    finite. Agarwal et al. (2021), "Deep RL at the edge of the statistical precipice", section
    4.3.
    """
    scores = _finite(x)
    if axis is not None and not (is_count(axis, least=-scores.ndim) and axis < scores.ndim):
        raise ValueError(f"axis is {axis!r}; it takes None, or an axis of scores of shape {scores.shape}.")
    if axis is None:
        return float(stats.trim_mean(scores.ravel(), 0.25))
    return np.asarray(stats.trim_mean(scores, 0.25, axis=axis))


def bootstrap_interval(
    x: ArrayLike,
    statistic: Callable[..., Any] = interquartile_mean,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval (low, high) of a statistic, in the unit of the scores.

    `x` is [runs], or [runs, tasks]: then runs are drawn within each task independently
    (stratified), and the statistic pools runs and tasks. `statistic(samples, axis=1)` reduces
    [resamples, runs * tasks] to [resamples], as interquartile_mean, np.mean and np.median do.
    Percentile intervals of fewer than about ten runs are too narrow. Raises ValueError on
    another shape, fewer than two runs, scores that are not finite, a confidence outside (0, 1)
    and fewer than one resample. Agarwal et al. (2021), section 4.1.
    """
    scores = _finite(x)
    if scores.ndim not in (1, 2):
        raise ValueError(f"x has shape {scores.shape}; it takes [runs] or [runs, tasks].")
    if scores.shape[0] < 2:
        raise ValueError(f"x has {scores.shape[0]} run; a bootstrap takes at least 2 to resample.")
    if isinstance(confidence, str) or not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence!r}; it takes a number between 0 and 1.")
    require_count("resamples", resamples)
    require_count("seed", seed, least=0)
    require_function("statistic", statistic, wanted="a function such as np.mean")
    table = scores if scores.ndim == 2 else scores[:, None]
    runs, tasks = table.shape
    drawn = np.random.default_rng(seed).integers(runs, size=(resamples, runs, tasks))
    samples = table[drawn, np.arange(tasks)].reshape(resamples, runs * tasks)
    values = np.asarray(statistic(samples, axis=1))
    if values.shape != (resamples,):
        raise ValueError(
            f"statistic returned shape {values.shape}; with axis=1 it must reduce"
            f" [resamples, scores] = {samples.shape} to ({resamples},)."
        )
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def probability_of_improvement(x: ArrayLike, y: ArrayLike) -> float:
    """Probability that a run of X scores higher than one of Y, ties counting half, as a mean over tasks.

    Each is [runs], or [runs, tasks] with the same tasks; the numbers of runs may differ. Raises
    ValueError on other shapes and scores that are not finite. Agarwal et al. (2021), section 4.3.
    """
    both = _finite(x), _finite(y, "y")
    ours, theirs = (scores[:, None] if scores.ndim == 1 else scores for scores in both)
    if ours.ndim != 2 or theirs.ndim != 2 or ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"x has shape {np.shape(x)} and y {np.shape(y)}; they take [runs], or [runs, tasks] with the same tasks."
        )
    apart = ours[:, None] - theirs
    return float(np.mean((apart > 0) + 0.5 * (apart == 0)))


def performance_profile(x: ArrayLike, thresholds: ArrayLike) -> Float[np.ndarray, " T"]:
    """Share of all runs that score higher than each of `thresholds` [T]; `x` has any shape.

    Raises ValueError where `x` is empty or not finite. Dolan & Moré (2002); Agarwal et al. (2021), section 4.2.
    """
    scores = np.sort(_finite(x).ravel())
    return 1.0 - np.searchsorted(scores, _finite(thresholds, "thresholds"), side="right") / scores.size


def summary(per_seed: ArrayLike) -> dict[str, Any]:
    """Scores of [seeds] as a JSON-ready dict: per_seed, mean, iqm, ci95 = [low, high] of the iqm.

    A score that is not finite (a seed that diverged, or finished no episode) is None in per_seed, is left out of the
    rest, and is counted under `without_score`, a key that is there only if there are any. With one
    score left the interval is [None, None], since one run says nothing of the spread; with
    none, mean and iqm are None too. Raises ValueError where `per_seed` is not a list of at
    least one number.
    """
    scores = _numbers(per_seed, "per_seed")
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"per_seed has shape {scores.shape}; it takes [seeds], at least one.")
    kept = scores[np.isfinite(scores)]
    result: dict[str, Any] = {
        "per_seed": [float(score) if np.isfinite(score) else None for score in scores],
        "mean": float(np.mean(kept)) if kept.size else None,
        "iqm": interquartile_mean(kept) if kept.size else None,
        "ci95": list(bootstrap_interval(kept)) if kept.size > 1 else [None, None],
    }
    if kept.size < scores.size:
        result["without_score"] = int(scores.size - kept.size)
    return result


def _numbers(x: ArrayLike, name: str) -> np.ndarray:
    try:
        return np.asarray(x, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {x!r:.80}; it takes an array of numbers.") from error


def _finite(x: ArrayLike, name: str = "x") -> np.ndarray:
    scores = _numbers(x, name)
    if scores.size == 0:
        raise ValueError(f"{name} has shape {scores.shape}; it takes at least one score.")
    # Trimming would drop a NaN or an infinity from one end without a word.
    bad = int(np.sum(~np.isfinite(scores)))
    if bad:
        raise ValueError(f"{name} has {bad} of {scores.size} scores that are not finite; leave those runs out first.")
    return scores
