"""Evaluation: the first episode of every environment counts once, whatever its length, and nothing else does."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from purerl import envs, evaluate, loop
from purerl.agents import q_learning
from purerl.base import Agent, no_memory

HUGE = 2**31 - 1


def constant_agent(act_hook=lambda: None):
    """Acts 1 when greedy and else 0; it has no parameters, and calls `act_hook` on the host for every step."""

    def act(key, state, memory, observation, hypers, *, greedy=False):
        jax.debug.callback(act_hook)
        count = jax.tree.leaves(observation)[0].shape[0]
        return jnp.full(count, int(greedy), jnp.int32), memory

    def update(key, state, rollout, hypers):
        return state, {}

    return Agent(init=lambda key, hypers: (), start=no_memory, act=act, update=update)


def judge(env, agent=None, **options):
    agent = agent or constant_agent()
    return jax.jit(lambda key: evaluate.evaluate(key, agent, (), env, (), **options))


def starts(env, key):
    """Return what `Countdown` counts down from in the evaluation with this key."""
    observation, _ = env.reset(jax.random.split(key)[0], env.params)
    return np.asarray(observation[:, 0])


def test_the_first_episode_of_every_environment_counts_once():
    env = envs.make(probes.Countdown(), 4000)
    key = jax.random.key(0)
    found = judge(env, max_steps=HUGE)(key)
    expected = starts(env, key)
    assert set(expected) == {1, 2, 3, 4, 5}
    np.testing.assert_array_equal(found.episode_return, expected)  # no second episode is added to a short first one
    np.testing.assert_array_equal(found.episode_length, expected)
    assert found.finished.all()
    # Short episodes count no more than long ones: the mean is 3, with a standard error of sqrt(2 / 4000).
    assert abs(float(found.episode_return.mean()) - 3) < 4 * np.sqrt(2 / 4000)


def test_the_step_cap_leaves_longer_episodes_unfinished_with_what_they_had():
    env = envs.make(probes.Countdown(), 50)
    key = jax.random.key(1)
    expected = starts(env, key)
    found = judge(env, max_steps=3)(key)
    np.testing.assert_array_equal(found.finished, expected <= 3)
    np.testing.assert_array_equal(found.episode_return, np.minimum(expected, 3))
    np.testing.assert_array_equal(found.episode_length, np.minimum(expected, 3))


def test_it_stops_as_soon_as_all_have_ended():
    calls = []
    env = envs.make(probes.Countdown(), 3)
    program = judge(env, constant_agent(lambda: calls.append(1)), max_steps=HUGE)
    for seed in range(6):
        key = jax.random.key(seed)
        calls.clear()
        program(key)
        jax.effects_barrier()
        assert len(calls) == starts(env, key).max()


def test_the_clock_ends_an_episode_as_the_environment_does():
    env = envs.make(probes.Countdown(), 50)
    key = jax.random.key(2)
    short = env.params.replace(max_steps_in_episode=jnp.int32(2))
    found = judge(env, max_steps=HUGE, env_params=short)(key)
    assert found.finished.all()
    np.testing.assert_array_equal(found.episode_length, np.minimum(starts(env, key), 2))


def test_the_policy_acts_greedily():
    env = envs.make(probes.Walk(), 2)
    straight = env.params.replace(slip=jnp.float32(0.0))
    key = jax.random.key(3)
    # Greedy: three steps to the right end, each -1/8, and 1 on arrival. Otherwise it would go left.
    right = judge(env, max_steps=100, env_params=straight)(key)
    assert right.episode_length.tolist() == [3, 3]
    assert right.episode_return.tolist() == [0.625, 0.625]


def test_it_changes_nothing_in_the_run_and_its_own_key_repeats_it():
    env, judged = envs.make(probes.Walk(), 2), envs.make(probes.Walk(), 20)
    agent, hypers = q_learning.q_learning(env.spec), q_learning.Hypers()
    run = loop.begin(jax.random.key(4), agent, env, hypers)
    advance = jax.jit(functools.partial(loop.advance, agent=agent, env=env, hypers=hypers, iterations=20))
    run = advance(run)[0]
    before = jax.device_get(run)

    @jax.jit
    def score(key, state):
        return evaluate.evaluate(key, agent, state, judged, hypers, max_steps=100)

    first, again, other = (score(jax.random.key(seed), run.agent) for seed in (0, 0, 1))
    chex.assert_trees_all_equal(first, again)
    assert (first.episode_return != other.episode_return).any()
    # Looked at or not, the run goes on alike.
    chex.assert_trees_all_equal(jax.device_get(run), before)
    untouched = advance(loop.begin(jax.random.key(4), agent, env, hypers))[0]
    chex.assert_trees_all_equal(advance(run)[0], advance(untouched)[0])


def test_evaluations_of_many_keys_in_one_program_equal_single_ones():
    env = envs.make(probes.Countdown(), 2)
    keys = jax.random.split(jax.random.key(5), 8)
    # The evaluations end after different numbers of steps: the early ones must not go on counting.
    single = judge(env, max_steps=HUGE)
    found = jax.jit(jax.vmap(single))(keys)
    expected = [single(key) for key in keys]
    assert len({int(one.episode_length.max()) for one in expected}) > 1
    chex.assert_trees_all_equal(found, jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected))


@pytest.mark.parametrize("cap", [0, -5])
def test_a_cap_below_one_is_named(cap):
    env = envs.make(probes.Countdown(), 2)
    with pytest.raises(ValueError, match=f"max_steps is {cap}; it takes a whole number of at least 1"):
        judge(env, max_steps=cap)(jax.random.key(0))
