"""Maximization bias (S&B Example 6.7, Figure 6.5): Q-learning is drawn to the left, double Q-learning hardly."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, loop
from purerl.agents import double_q_learning, q_learning
from purerl.base import cast_hypers
from purerl.envs.textbook import A
from purerl.tables import Hypers

RUNS, EPISODES = 10_000, 300


def masked(values):
    """A has two actions, right and left."""
    return values.at[A, 2:].set(-jnp.inf)


def mask(state):
    tables = {"values", "first", "second"} & set(vars(state))
    return dataclasses.replace(state, **{name: masked(getattr(state, name)) for name in tables})


@pytest.mark.parametrize(
    ("factory", "at_10", "at_300"),
    [(q_learning.q_learning, 87, 12), (double_q_learning.double_q_learning, 45, 7)],
    ids=["q_learning", "double_q_learning"],
)
def test_the_share_of_runs_that_go_left_is_the_books(factory, at_10, at_300):
    env = envs.make("MaximizationBias-purerl", 1)
    agent = factory(env.spec)

    def one(key, hypers):
        run = loop.begin(key, agent, env, hypers, episode_table=EPISODES)
        run = dataclasses.replace(run, agent=mask(run.agent))
        return loop.advance(run, agent, env, hypers, iterations=2 * EPISODES)[0].table

    keys = jax.random.split(jax.random.key(0), RUNS)
    table = jax.jit(jax.vmap(one, (0, None)))(keys, cast_hypers(Hypers(learning_rate=0.1)))
    left = np.asarray(table.episode_length) == 2  # to B, and from there to the end
    for episode, expected in ((10, at_10), (300, at_300)):
        share = left[:, episode - 1].mean()
        error = np.sqrt(share * (1 - share) / RUNS)
        print(f"episode {episode}: {100 * share:.1f} +- {100 * error:.1f} % left, the book's {expected}")
        # The reference is known to half a per cent.
        assert abs(share - expected / 100) < 0.005 + 3 * error
