"""The cliff (S&B Example 6.6), where what is on-policy and what is not shows in the returns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, evaluate, exploration, loop
from purerl.agents import expected_sarsa, q_learning, sarsa
from purerl.base import cast_hypers
from purerl.tables import Hypers

RUNS, EPISODES, STEPS = 200, 500, 40_000
AGENTS = {
    "q_learning": q_learning.q_learning,
    "sarsa": sarsa.sarsa,
    "expected_sarsa": expected_sarsa.expected_sarsa,
}
ENV = envs.make("CliffWalking-purerl", 1)
START = 36


@pytest.fixture(scope="module")
def trained():
    """The runs of every agent, by name; each trained when it is first asked for."""
    runs = {}

    def of(name):
        if name not in runs:
            agent = AGENTS[name](ENV.spec)

            def one(key, hypers):
                return loop.train(key, agent, ENV, hypers, iterations=STEPS, episode_table=EPISODES)[0]

            keys = jax.random.split(jax.random.key(0), RUNS)
            runs[name] = jax.jit(jax.vmap(one, (0, None)))(keys, cast_hypers(Hypers()))
        return AGENTS[name](ENV.spec), runs[name]

    return of


@pytest.mark.parametrize(
    ("name", "mean", "error"),
    [("q_learning", -49.7, 0.5), ("sarsa", -26.8, 0.4), ("expected_sarsa", -20.9, 0.15)],
)
def test_online_returns_of_late_episodes_are_the_books(trained, name, mean, error):
    _, run = trained(name)
    assert int(run.table.count.min()) >= EPISODES, "too few steps for all the episodes"
    late = np.asarray(run.table.episode_return)[:, 400:500].mean(axis=1)
    own_error = late.std(ddof=1) / np.sqrt(RUNS)
    print(f"{late.mean():.2f} +- {own_error:.2f}")
    assert abs(late.mean() - mean) < 3 * np.hypot(error, own_error), f"{late.mean():.2f} +- {own_error:.2f}"


@pytest.mark.parametrize(("name", "steps"), [("q_learning", 13), ("expected_sarsa", 15)])
def test_greedy_paths_go_along_the_edge_or_one_row_off(trained, name, steps):
    agent, run = trained(name)

    def walk(key, state):
        return evaluate.evaluate(key, agent, state, ENV, Hypers(), max_steps=100)

    paths = jax.jit(jax.vmap(walk))(jax.random.split(jax.random.key(1), RUNS), run.agent)
    assert np.array_equal(np.asarray(paths.episode_length), np.full((RUNS, 1), steps))


def test_expected_sarsa_comes_to_the_best_epsilon_soft_policy_as_its_rate_decays():
    """The rate is traced: a run goes on with another one as the same program. The exact value is from TRUTHS 1."""
    agent = expected_sarsa.expected_sarsa(ENV.spec)
    advance = jax.jit(lambda run, hypers: loop.advance(run, agent, ENV, hypers, iterations=20_000)[0])
    hypers = cast_hypers(Hypers())
    run = loop.begin(jax.random.key(0), agent, ENV, hypers)
    for number in range(200):
        rate = jnp.float32(0.5 / np.sqrt(1 + number))
        run = advance(run, dataclasses.replace(hypers, learning_rate=rate))
    assert advance._cache_size() == 1
    values = run.agent.values[START]
    value = float(jnp.sum(exploration.epsilon_greedy_policy(values, hypers.exploration) * values))
    assert value == pytest.approx(-20.7077, abs=1e-3)
