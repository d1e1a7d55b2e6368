"""The scripts that sweep: what they leave, that they go on with what is there, and what they refuse."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from scripts import load

from purerl import cli, results, sweep, sweep_reports, training

FLAGS = ["--total-steps", "1024", "--hidden", "8", "--eval-episodes", "2", "--eval-max-steps", "30", "--seeds", "2"]
AXES = ["--sweep.learning-rate", "1e-4", "1e-2", "--sweep.entropy-weight", "0", "0.1"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    script, directory = load("sweep_ppo"), tmp_path_factory.mktemp("sweep") / "run"
    return script, *script.main(cli.parse(script.Settings, [*FLAGS, *AXES, "--out", str(directory)]))


def test_a_sweep_leaves_a_table_pictures_and_an_index(swept):
    _, found = swept
    assert {path.name for path in found.directory.iterdir()} == {
        "settings.json",
        "metrics.npz",
        "summary.json",
        "index.sqlite",
        "learning_curves.png",
        "sensitivity.png",
        "heat_map.png",
    }
    assert found.metrics["episode_return"].shape == (4, 2, 2)
    assert found.metrics["evaluation_return"].shape == (4, 2, 2)
    assert found.summary["labels"] == {"learning_rate": [1e-4, 1e-4, 1e-2, 1e-2], "entropy_weight": [0, 0.1, 0, 0.1]}
    assert found.summary["environment_steps"] == [512, 1024]
    for point, row in enumerate(found.summary["points"]):
        np.testing.assert_allclose(row["per_seed"], found.metrics["evaluation_return"][point].mean(axis=1), rtol=1e-5)


def test_a_sweep_is_read_as_a_labelled_table(swept, tmp_path):
    _, found = swept
    table = results.frame(results.load(found.directory))
    assert list(table.columns) == ["learning_rate", "entropy_weight", "seed", "score", "diverged_at"]
    assert len(table) == 8
    one = table[(table.learning_rate == 1e-2) & (table.entropy_weight == 0) & (table.seed == 1)]
    np.testing.assert_allclose(one.score, found.metrics["evaluation_return"][2, 1].mean(), rtol=1e-5)
    results.write(tmp_path, settings={}, metrics={}, summary={"agent": "ppo"})
    with pytest.raises(ValueError, match="holds no sweep"):
        results.frame(results.load(tmp_path))


def test_every_run_is_what_it_would_be_alone(swept):
    """The same numbers from the script of the agent by itself, but for rounding: its program is another."""
    script, found = swept
    settings = dataclasses.replace(cli.parse(script.Settings, FLAGS), out=None)
    alone = load("ppo")
    hypers = dataclasses.replace(cli.annealed(settings, settings.hypers), learning_rate=1e-2, entropy_weight=0.1)
    env = script.sweep_cli.envs.make("CartPole-v1", 4)
    train = training.trainer(alone.phases(settings, env.spec), env, length=128, rows=2)
    expected = jax.jit(train)(script.sweep_cli.driver.seed_keys(0, 2)[1], hypers)
    for name in ("value_loss", "episodes", "entropy"):
        np.testing.assert_allclose(found.metrics[name][3, 1], expected[name], rtol=1e-3, atol=1e-5)


def test_a_finished_sweep_is_not_run_again_and_others_are_refused(swept, tmp_path):
    script, found = swept
    flags = [*FLAGS, *AXES]
    for changed, sentence in [
        ([*flags, "--out", str(found.directory)], "already holds a finished run"),
        ([*flags, "--out", str(tmp_path / "x"), "--sweep.discount", "nan"], "discount is .* an axis takes a list of"),
        ([*flags, "--out", str(tmp_path / "x"), "--minibatches", "7"], "minibatches is 7"),
        ([*flags, "--out", str(tmp_path / "x"), "--stop-at-return", "7"], "a sweep runs every point to its end"),
        ([*flags, "--out", str(tmp_path / "x"), "--log-every", "7"], "a sweep has up to a hundred rows"),
        ([*flags, "--out", str(tmp_path / "x"), "--eval-every", "7"], "a sweep evaluates at the end, or with 0 never"),
        ([*flags, "--out", str(tmp_path / "x"), "--sweep.learning-rate-horizon", "0"], "has a 0; on an axis it takes"),
        ([*flags, "--out", str(tmp_path / "x"), "--env-params.max-steps-in-episode", "0"], "takes at least 1 step"),
    ]:
        with pytest.raises(cli.BadInput, match=sentence):
            script.main(cli.parse(script.Settings, changed))
    assert not (tmp_path / "x").exists()


def results_of(score, diverged=None):
    score = np.asarray(score, float)
    diverged = np.zeros(score.shape, bool) if diverged is None else np.asarray(diverged)
    outputs = {"evaluation_return": score[..., None], "diverged_at": np.where(diverged, 7, -1)}
    return sweep.Results(outputs, {"rate": np.arange(len(score)) / 10}, diverged)


def test_the_table_is_sorted_and_diverged_runs_are_named_and_left_out():
    found = results_of([[1, 2, 3], [9, np.inf, 8], [0, 0, 0]], [[False] * 3, [False, True, False], [True] * 3])
    rows = sweep_reports.summarise(found)
    assert [row["mean"] for row in rows] == [2.0, 8.5, None]
    assert rows[1]["diverged"] == {"1": 7}
    best, second, worst = sweep_reports.lines(found)[1:]
    assert "8.5" in best
    assert best.endswith("; seed 1 diverged in update 7")
    assert "2.0" in second
    assert "none" in worst


def test_without_evaluations_the_last_tenth_of_the_rows_counts():
    episodes = np.ones((1, 1, 20))
    episodes[..., -1] = 3
    returns = np.arange(20.0).reshape(1, 1, 20)
    outputs = {"episodes": episodes, "episode_return": returns, "diverged_at": np.full((1, 1), -1)}
    found = sweep.Results(outputs, {}, np.zeros((1, 1), bool))
    np.testing.assert_allclose(sweep_reports.score_of(found), [[(18 + 3 * 19) / 4]])
