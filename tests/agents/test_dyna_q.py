"""Dyna-Q: what its model holds, what it plans with, and how soon it finds its way through the book's maze."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from agents.feeding import everything_once
from agents.tables_by_the_book import record, rollout_of

from purerl import envs, loop, planning
from purerl.agents import dyna_q, q_learning
from purerl.base import Box, Discrete, Spec, cast_hypers

STATES, ACTIONS, ENVS = 5, 3, 2
SPEC = Spec(observation=Discrete(STATES), action=Discrete(ACTIONS), num_envs=ENVS)


def experience(length=30, seed=0):
    return record(length, ENVS, seed, (STATES, ACTIONS))


def updated(planning_steps, steps, hypers, key=0, state=None):
    agent = dyna_q.dyna_q(SPEC, planning_steps=planning_steps)
    hypers = cast_hypers(hypers)
    state = agent.init(jax.random.key(0), hypers) if state is None else state
    return jax.jit(agent.update)(jax.random.key(key), state, rollout_of(steps), hypers)[0]


def test_without_planning_it_is_q_learning_to_the_bit():
    hypers, steps = cast_hypers(dyna_q.Hypers(discount=0.9, initial_value=0.3)), experience()
    other = q_learning.q_learning(SPEC)
    expected, _ = jax.jit(other.update)(
        jax.random.key(0), other.init(jax.random.key(0), hypers), rollout_of(steps), hypers
    )
    np.testing.assert_array_equal(updated(0, steps, hypers).values, expected.values)


def test_the_model_holds_what_came_last_and_lists_each_state_once():
    steps = experience()
    state = updated(2, steps, dyna_q.Hypers())
    model = state.model
    last, order = {}, []
    for place in np.ndindex(*steps["reward"].shape):
        pair = int(steps["observation"][place]), int(steps["action"][place])
        if pair not in last:
            order += [pair[0]] * (pair[0] not in order)
        last[pair] = tuple(steps[name][place] for name in ("reward", "next_observation", "terminated"))
    assert int(state.count) == len(order)
    assert state.states[: len(order)].tolist() == order
    for pair in np.ndindex(STATES, ACTIONS):
        assert bool(model.seen[pair]) == (pair in last)
        if pair in last:
            found = model.reward[pair], model.next_observation[pair], model.terminated[pair]
            np.testing.assert_allclose(found, last[pair], rtol=1e-6)


def test_it_plans_with_what_was_seen_alone_and_evenly():
    """Each leads to its own state with reward 1, gamma 0: Q = 1 - (1 - alpha)^k tells how often it was backed up."""
    seen, alpha, draws = [(0, 1), (0, 2), (4, 2)], 1e-3, 4_000
    steps = {
        "observation": np.array([[pair[0]] * ENVS for pair in seen]),
        "action": np.array([[pair[1]] * ENVS for pair in seen]),
        "next_observation": np.array([[pair[0]] * ENVS for pair in seen]),
        "reward": np.ones((3, ENVS), np.float32),
        "terminated": np.zeros((3, ENVS), bool),
        "truncated": np.zeros((3, ENVS), bool),
    }
    hypers = dyna_q.Hypers(learning_rate=alpha, discount=0.0)
    first = updated(0, steps, hypers)
    last = {name: leaf[-1:, :1] for name, leaf in steps.items()}
    again = updated(draws, last, hypers, key=1, state=first)
    times = np.log1p(-np.asarray(again.values, np.float64)) / np.log(1 - alpha)
    counts = np.array([times[pair] for pair in seen]) - [2, 2, 3]  # less those of experience
    assert counts.sum() == pytest.approx(draws, rel=1e-3)
    share = np.array([0.25, 0.25, 0.5])  # states evenly, and then actions
    assert np.abs(counts - draws * share).max() < 4 * np.sqrt(draws / 4)
    unseen = np.ones((STATES, ACTIONS), bool)
    unseen[tuple(zip(*seen, strict=True))] = False
    assert (np.asarray(again.values)[unseen] == 0).all()


def test_having_seen_everything_once_it_plans_to_the_exact_values():
    mdp = envs.enumerate_mdp("DynaMaze-purerl")
    states, actions = mdp.reward.shape
    agent = dyna_q.dyna_q(Spec(Discrete(states), Discrete(actions), num_envs=1), planning_steps=20_000)
    hypers = cast_hypers(dyna_q.Hypers(learning_rate=1.0, discount=0.95))
    pairs, steps = everything_once(mdp)
    state, _ = jax.jit(agent.update)(
        jax.random.key(0), agent.init(jax.random.key(0), hypers), rollout_of(steps), hypers
    )
    exact = planning.value_iteration(*mdp.arrays, 0.95).action_value
    np.testing.assert_allclose(state.values[pairs[:, 0], pairs[:, 1]], exact[pairs[:, 0], pairs[:, 1]], atol=1e-5)


@pytest.mark.thorough
def test_steps_through_the_dyna_maze_in_the_third_episode_are_those_of_a_loop():
    """In NumPy, after the book's pseudo-code: 60.0 +- 2.5 in 250 runs with 5 planning steps."""
    env, runs = envs.make("DynaMaze-purerl", 1), 400
    agent = dyna_q.dyna_q(env.spec, planning_steps=5)
    hypers = cast_hypers(dyna_q.Hypers(learning_rate=0.1, discount=0.95, exploration=0.1))

    def one(key):
        return loop.train(key, agent, env, hypers, iterations=8_000, episode_table=3)[0].table

    table = jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(0), runs))
    lengths = np.asarray(table.episode_length)[:, 2]
    assert int(table.count.min()) >= 3, "too few steps for all the episodes"
    own_error = lengths.std(ddof=1) / np.sqrt(runs)
    assert abs(lengths.mean() - 60.0) < 3 * np.hypot(2.5, own_error), f"{lengths.mean():.1f} +- {own_error:.1f}"


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="planning_steps is -1; it takes a whole number of at least 0"):
        dyna_q.dyna_q(SPEC, planning_steps=-1)
    pixels = Box((2,), np.dtype(np.float32), 0.0, 1.0)
    with pytest.raises(ValueError, match="dyna_q needs a discrete observation space"):
        dyna_q.dyna_q(SPEC._replace(observation=pixels), planning_steps=1)
