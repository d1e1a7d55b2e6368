"""The page of the book's curves: its values against the references (slow tier), and what it tells of them."""

import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scripts import load

from purerl import cli, driver, results
from purerl.interrupts import Stopped

SCRIPT = load("textbook")
# What the book's curves are said to be: panel, curve, where, value.
TRUTHS = {
    "testbed": [
        ("reward", "epsilon 0", "step 901-1000", 1.033),
        ("reward", "epsilon 0.01", "step 901-1000", 1.317),
        ("reward", "epsilon 0.1", "step 901-1000", 1.397),
        ("reward", "UCB, c 2", "step 901-1000", 1.531),
        ("reward", "UCB, c 2", "step 11", 1.125),
        ("optimal action, %", "epsilon 0", "step 901-1000", 36),
        ("optimal action, %", "epsilon 0.01", "step 901-1000", 61),
        ("optimal action, %", "epsilon 0.1", "step 901-1000", 81),
    ],
    "cliff": [
        ("return", "Q-learning", "episode 401-500", -49.7),
        ("return", "SARSA", "episode 401-500", -26.8),
        ("return", "Expected SARSA", "episode 401-500", -20.9),
    ],
    "short_walk": [
        ("RMS error of V", "TD(0), alpha .05", "episode 100", 0.036),
        ("RMS error of V", "TD(0), alpha .1", "episode 100", 0.056),
        ("RMS error of V", "TD(0), alpha .15", "episode 100", 0.071),
        ("RMS error of V", "Monte Carlo, alpha .02", "episode 100", 0.082),
    ],
    "long_walk": [
        ("RMS error of V, first 10 episodes", "n = 1", "alpha 0.8", 0.3455),
        ("RMS error of V, first 10 episodes", "n = 2", "alpha 0.6", 0.2774),
        ("RMS error of V, first 10 episodes", "n = 4", "alpha 0.4", 0.2644),
        ("RMS error of V, first 10 episodes", "n = 8", "alpha 0.2", 0.2790),
    ],
    "maximization_bias": [
        ("left, %", "Q-learning", "episode 10", 87),
        ("left, %", "Q-learning", "episode 300", 12),
        ("left, %", "Double Q-learning", "episode 10", 45),
        ("left, %", "Double Q-learning", "episode 300", 7),
    ],
    "dyna_maze": [
        ("steps", "Dyna-Q, 0 steps", "episode 3", 546),
        ("steps", "Dyna-Q, 5 steps", "episode 3", 55),
        ("steps", "Dyna-Q, 50 steps", "episode 3", 18),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRUTHS)
def test_every_value_of_the_book_is_within_three_standard_errors(name, slow_result):
    panels = SCRIPT.panels_of(getattr(SCRIPT, name), driver.seed_keys(0, SCRIPT.Settings().runs))
    rows = [row for panel in panels for row in SCRIPT.rows_of(panel)]
    found = [f"{row.curve} {row.found:.4g} +- {row.error:.2g} ({row.reference:g})" for row in rows]
    assert [(row.quantity, row.curve, row.at, row.reference) for row in rows] == TRUTHS[name]
    far = {f"{row.curve}, {row.at}": row.apart for row in rows if not abs(row.apart) < 3}
    assert not far
    slow_result("; ".join(found))


def test_walks_are_measured_from_their_exact_values():
    """The errors before the first episode are known: of V = 1/2, and of V = 0."""
    for states, params, initial, error in ((5, {}, 0.5, 0.235702), (19, {"left_reward": -1.0}, 0.0, 0.547723)):
        _, measure = SCRIPT.walk(states, **params)
        state = SCRIPT.n_step_td.State(weights=jnp.full(states + 2, initial), waiting=None)
        assert float(measure(state)) == pytest.approx(error, abs=1e-6)


def test_what_a_curve_is_held_against_is_its_mean_over_runs_with_its_error():
    rng = np.random.default_rng(0)
    values = rng.normal(3.0, 1.0, size=(50, 10))
    reference = SCRIPT.Reference("one", 4, 6, 2.9, 0.1)
    panel = SCRIPT.Panel("title", "step", "thing", {"one": (np.arange(1, 11), values)}, (reference,))
    (row,) = SCRIPT.rows_of(panel)
    means = values[:, 3:6].mean(axis=1)
    error = means.std(ddof=1) / np.sqrt(50)
    assert (row.found, row.error) == (pytest.approx(means.mean()), pytest.approx(error))
    assert row.apart == pytest.approx((means.mean() - 2.9) / np.hypot(error, 0.1))
    assert (row.at, row.reference) == ("step 4-6", 2.9)


def test_runs_stop_with_their_last_episode_and_are_measured_after_each():
    env, _ = SCRIPT.walk(5)
    agent = SCRIPT.n_step_td.n_step_td(
        env.spec, SCRIPT.features.table(env.spec), SCRIPT.prediction.uniform(env.spec), n=1
    )

    def learned(state):
        return jnp.sum(jnp.abs(state.weights - 0.5))

    play = SCRIPT.episodes_of(env, agent, 4, learned)
    keys, hypers = jax.random.split(jax.random.key(0), 6), SCRIPT.prediction.Hypers(initial_value=0.5)
    table, measured = play(keys, hypers)
    assert table.count.tolist() == [4] * 6
    # The first episode moves nothing but its last state, whose value goes to an end's.
    np.testing.assert_allclose(measured[:, 0], 0.1 * 0.5, rtol=1e-5)
    assert (np.diff(measured, axis=1) != 0).any(axis=1).all()
    again, _ = play(keys[:2], hypers)
    np.testing.assert_array_equal(again.episode_length, table.episode_length[:2])


def test_the_page_is_made_and_told(tmp_path, capsys, monkeypatch):
    """By a process that is asked to end after the one experiment, and another that goes on."""
    monkeypatch.setattr(SCRIPT, "EXPERIMENTS", (SCRIPT.short_walk,))

    def asked(path, content):
        results.replace_file(path, content)
        signal.raise_signal(signal.SIGTERM)

    settings = cli.parse(SCRIPT.Settings, ["--runs", "8", "--out", str(tmp_path / "run"), "--resume", "auto"])
    with monkeypatch.context() as patch:
        patch.setattr(SCRIPT.parts, "results", types.SimpleNamespace(**vars(results) | {"replace_file": asked}))
        with pytest.raises(Stopped, match="stopped after short_walk"):
            SCRIPT.main(settings)
    monkeypatch.setattr(SCRIPT, "panels_of", None)
    SCRIPT.main(settings)
    told = capsys.readouterr().out.splitlines()
    assert sum("Walk of 5" in line for line in told) == 4
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"textbook.png", "summary.json", "metrics.npz"}
    assert (tmp_path / "run" / "textbook.png").read_bytes().startswith(b"\x89PNG")
    found = results.load(tmp_path / "run")
    assert [row["reference"] for row in found.summary["rows"]] == [0.036, 0.056, 0.071, 0.082]
    assert {array.shape for array in found.metrics.values()} == {(8, 100)}


def test_bad_settings_are_told_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match="runs is 7; it takes a whole number of at least 8"):
        SCRIPT.Settings(runs=7)
    with pytest.raises(cli.BadInput, match="seed is 4294967296; it takes a whole number from 0"):
        SCRIPT.main(SCRIPT.Settings(seed=2**32, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_all_experiments_are_on_the_page():
    assert {experiment.__name__ for experiment in SCRIPT.EXPERIMENTS} == {*TRUTHS, "drifting_testbed"}
