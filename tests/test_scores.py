import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from purerl import scores


def test_interquartile_mean_by_hand():
    # Eight scores: two are cut at each end, and (2 + 3 + 4 + 6) / 4 is left.
    assert scores.interquartile_mean([100, 3, 1, 4, 6, 9, 2, -50]) == 3.75
    # Three scores: a quarter of them rounds down to none.
    assert scores.interquartile_mean([0, 0, 9]) == 3.0


def test_interquartile_mean_agrees_with_scipy():
    x = np.random.default_rng(0).standard_t(2, size=(10, 7))
    assert scores.interquartile_mean(x) == stats.trim_mean(x, 0.25, axis=None)
    np.testing.assert_array_equal(scores.interquartile_mean(x, axis=1), [stats.trim_mean(row, 0.25) for row in x])


def test_bootstrap_interval_covers_the_truth():
    # 500 trials: the standard error of a coverage of 95 % is 1 %.
    rng = np.random.default_rng(0)
    for statistic in (np.mean, scores.interquartile_mean):
        samples = 3.0 + rng.normal(size=(500, 100))
        # A seed each: what 500 resamples leave to chance would else be common to all trials.
        intervals = [
            scores.bootstrap_interval(x, statistic, resamples=500, seed=trial) for trial, x in enumerate(samples)
        ]
        coverage = np.mean([low <= 3.0 <= high for low, high in intervals])
        assert 0.91 <= coverage <= 0.98


def test_bootstrap_interval_narrows_with_confidence_and_runs():
    rng = np.random.default_rng(1)
    few, many = rng.normal(size=10), rng.normal(size=1000)

    def width(x, **options):
        low, high = scores.bootstrap_interval(x, np.mean, **options)
        return high - low

    assert width(few, confidence=0.5) < width(few)
    # The theory's width for a mean is 2 * 1.96 * deviation / sqrt(runs).
    assert width(many) == pytest.approx(3.92 * many.std() / np.sqrt(1000), rel=0.06)


def test_bootstrap_is_stratified_over_tasks():
    # No spread within a task: drawing within each gives one value, drawing over all would not.
    tasks_apart = np.tile([0.0, 10.0, 1000.0], (4, 1))
    low, high = scores.bootstrap_interval(tasks_apart, np.mean)
    assert (low, high) == pytest.approx((1010 / 3, 1010 / 3))


def test_bootstrap_draws_each_task_independently():
    # Runs [0, 1] in two tasks. Each task's resampled mean is 0, .5, 1 with odds 1:2:1, so that
    # the pooled mean is 0 or 1 once in 16; drawn together it would be once in 4.
    exact = [np.mean(draw) for draw in itertools.product([0, 1], repeat=4)]
    low, high = scores.bootstrap_interval([[0, 0], [1, 1]], np.mean, confidence=0.7, resamples=5000)
    assert (low, high) == tuple(np.percentile(exact, [15, 85])) == (0.25, 0.75)
    together, _ = scores.bootstrap_interval([0, 1], np.mean, confidence=0.7, resamples=5000)
    assert together == 0.0


def test_bootstrap_repeats_with_its_seed():
    x = np.random.default_rng(2).normal(size=9)
    assert scores.bootstrap_interval(x, seed=3) == scores.bootstrap_interval(x, seed=3)
    assert scores.bootstrap_interval(x, seed=3) != scores.bootstrap_interval(x, seed=4)


def test_summary_of_seeds():
    found = scores.summary(np.float32([1, 2, 3, 4, 100]))
    assert list(found) == ["per_seed", "mean", "iqm", "ci95"]
    assert found["per_seed"] == [1, 2, 3, 4, 100]
    assert (found["mean"], found["iqm"]) == (22.0, 3.0)
    assert tuple(found["ci95"]) == scores.bootstrap_interval([1, 2, 3, 4, 100])
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_summary_leaves_seeds_without_a_score_out():
    found = scores.summary([1.0, np.nan, 3.0, np.inf])
    assert found["per_seed"] == [1.0, None, 3.0, None]
    assert (found["mean"], found["iqm"], found["without_score"]) == (2.0, 2.0, 2)
    assert tuple(found["ci95"]) == scores.bootstrap_interval([1.0, 3.0])
    json.dumps(found, allow_nan=False)
    # What was written can be summed up again.
    assert scores.summary(found["per_seed"]) == found


def test_summary_of_one_seed_and_of_none():
    one = {"per_seed": [7.0], "mean": 7.0, "iqm": 7.0, "ci95": [None, None]}
    assert scores.summary([7]) == one
    none = {"per_seed": [None], "mean": None, "iqm": None, "ci95": [None, None], "without_score": 1}
    assert scores.summary([np.nan]) == none


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.interquartile_mean([]), r"x has shape \(0,\); it takes at least one"),
        (lambda: scores.interquartile_mean([1, np.nan]), "x has 1 of 2 scores that are not finite"),
        (lambda: scores.interquartile_mean(["good"]), "x is .*good.*; it takes an array of numb"),
        (lambda: scores.bootstrap_interval([1.0]), "x has 1 run; a bootstrap takes at least 2"),
        (lambda: scores.bootstrap_interval(np.ones((2, 2, 2))), r"x has shape .*\[runs, tasks\]"),
        (lambda: scores.bootstrap_interval([1, 2], confidence=95.0), "confidence is 95.0; it"),
        (lambda: scores.bootstrap_interval([1, 2], resamples=0), "resamples is 0; it takes"),
        (lambda: scores.bootstrap_interval([1, 2], lambda x, axis: x), "statistic returned shape"),
        (lambda: scores.summary([]), r"per_seed has shape \(0,\); it takes \[seeds\]"),
        (lambda: scores.summary([[1.0]]), r"per_seed has shape \(1, 1\); it takes \[seeds\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- comparisons ----------------------------------------------------------------------------------------------------


def test_the_probability_of_improvement_is_the_statistic_of_mann_and_whitney():
    rng = np.random.default_rng(0)
    x, y = rng.integers(8, size=(13, 3)).astype(float), rng.integers(8, size=(9, 3)).astype(float)
    expected = np.mean([stats.mannwhitneyu(x[:, task], y[:, task]).statistic / (13 * 9) for task in range(3)])
    assert scores.probability_of_improvement(x, y) == pytest.approx(expected)
    assert scores.probability_of_improvement(x[:, 0], x[:, 0]) == 0.5
    assert scores.probability_of_improvement([2.0, 3.0], [1.0]) == 1.0
    assert scores.probability_of_improvement(x, y) + scores.probability_of_improvement(y, x) == pytest.approx(1.0)


def test_the_performance_profile_is_one_less_the_distribution_function():
    x = np.random.default_rng(1).integers(10, size=(7, 4)).astype(float)
    thresholds = np.array([-1.0, 0.0, 2.5, 5.0, 9.0, 20.0])
    expected = stats.ecdf(x.ravel()).sf.evaluate(thresholds)
    np.testing.assert_allclose(scores.performance_profile(x, thresholds), expected)


def test_what_cannot_be_compared_is_told():
    with pytest.raises(ValueError, match=r"x has shape \(2, 3\) and y \(2, 2\); they take"):
        scores.probability_of_improvement(np.zeros((2, 3)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="not finite"):
        scores.probability_of_improvement([1.0, np.nan], [1.0])
    with pytest.raises(ValueError, match="not finite"):
        scores.performance_profile([np.inf], [0.0])


def test_the_numbers_are_those_of_rliable():
    """Of rliable 1.2.0, the library of Agarwal et al., on scores of 12 and of 9 runs in 5 tasks; 50 000 resamples."""
    theirs = json.loads((Path(__file__).parent / "truths" / "rliable.json").read_text())
    runs = {name: np.array(theirs[name]) for name in ("x", "y")}
    for name, x in runs.items():
        np.testing.assert_allclose(scores.interquartile_mean(x), theirs["iqm"][name], rtol=1e-12)
        found = scores.bootstrap_interval(x, resamples=20_000)
        np.testing.assert_allclose(found, theirs["iqm_interval"][name], atol=0.005)  # both are drawn
        profile = scores.performance_profile(x, theirs["thresholds"])
        np.testing.assert_allclose(profile, theirs["profile"][name], rtol=1e-12)
    found = scores.probability_of_improvement(runs["x"], runs["y"])
    np.testing.assert_allclose(found, theirs["probability_of_improvement"], rtol=1e-12)
