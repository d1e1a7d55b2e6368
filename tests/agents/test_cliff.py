"""The cliff (S&B Example 6.6), where what is on-policy and what is not shows in the returns."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from purerl import envs, evaluate, loop
from purerl.agents import q_learning, sarsa

RUNS, EPISODES, STEPS = 200, 500, 40_000


def train(agent_of, hypers, *, runs=RUNS):
    env = envs.make("CliffWalking-purerl", 1)
    agent = agent_of(env.spec)

    def one(key):
        return loop.train(key, agent, env, hypers, iterations=STEPS, episode_table=EPISODES)[0]

    return env, agent, jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), runs))


@pytest.mark.parametrize(
    ("agent_of", "hypers", "mean", "error"),
    [
        (q_learning.q_learning, q_learning.Hypers(), -49.7, 0.5),
        (sarsa.sarsa, sarsa.Hypers(), -26.8, 0.4),
    ],
    ids=["q_learning", "sarsa"],
)
def test_online_returns_of_late_episodes_are_the_books(agent_of, hypers, mean, error):
    _, _, run = train(agent_of, hypers)
    assert int(run.table.count.min()) >= EPISODES, "too few steps for all the episodes"
    late = np.asarray(run.table.episode_return)[:, 400:500].mean(axis=1)
    own_error = late.std(ddof=1) / np.sqrt(RUNS)
    print(f"{late.mean():.2f} +- {own_error:.2f}")
    assert abs(late.mean() - mean) < 3 * np.hypot(error, own_error), f"{late.mean():.2f} +- {own_error:.2f}"


def test_q_learnings_greedy_path_is_thirteen_steps_along_the_edge():
    env, agent, run = train(q_learning.q_learning, q_learning.Hypers(), runs=20)

    def walk(key, state):
        return evaluate.evaluate(key, agent, state, env, q_learning.Hypers(), max_steps=100)

    paths = jax.jit(jax.vmap(walk))(jax.random.split(jax.random.key(1), 20), run.agent)
    assert np.array_equal(np.asarray(paths.episode_length), np.full((20, 1), 13))
