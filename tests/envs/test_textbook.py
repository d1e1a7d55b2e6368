"""The MDP of the maximization bias, move by move and by its rewards' distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl import envs
from purerl.envs.textbook import END, LEFT, RIGHT, A, B


def step(env, state, action, seed=0):
    return env.step(jax.random.key(seed), state, jnp.full(env.spec.num_envs, action, jnp.int32), env.params)


@pytest.fixture(scope="module")
def env():
    return envs.make("MaximizationBias-purerl", 2)


def test_it_starts_in_a_and_has_three_places_and_ten_actions(env):
    observation, _ = env.reset(jax.random.key(0), env.params)
    np.testing.assert_array_equal(observation, [A, A])
    assert (env.spec.observation.n, env.spec.action.n) == (3, 10)


@pytest.mark.parametrize("action", [RIGHT, *range(2, 10)])
def test_every_action_but_left_ends_it_in_a_without_reward(env, action):
    _, state = env.reset(jax.random.key(0), env.params)
    observation, _, reward, terminated, truncated, successor = step(env, state, action)
    np.testing.assert_array_equal(observation, [A, A])
    np.testing.assert_array_equal(successor, [END, END])
    assert terminated.all()
    assert not truncated.any()
    np.testing.assert_array_equal(reward, [0, 0])


def test_left_leads_to_b_where_any_action_ends_it(env):
    _, state = env.reset(jax.random.key(0), env.params)
    observation, state, reward, terminated, truncated, _ = step(env, state, LEFT)
    np.testing.assert_array_equal(observation, [B, B])
    assert not (terminated | truncated).any()
    np.testing.assert_array_equal(reward, [0, 0])
    for action in range(10):
        observation, _, reward, terminated, _, successor = step(env, state, action, seed=action)
        assert terminated.all()
        assert np.all(reward != 0)
        np.testing.assert_array_equal(successor, [END, END])


@pytest.mark.parametrize(("mean", "deviation"), [(-0.1, 1.0), (2.0, 0.5)])
def test_the_reward_in_b_is_normal_with_the_numbers_of_the_parameters(mean, deviation):
    env = envs.make("MaximizationBias-purerl", 20_000)
    params = env.params.replace(reward_mean=jnp.float32(mean), reward_deviation=jnp.float32(deviation))
    _, state = env.reset(jax.random.key(0), params)
    left = jnp.full(20_000, LEFT, jnp.int32)
    _, state, *_ = env.step(jax.random.key(1), state, left, params)
    reward = np.asarray(env.step(jax.random.key(2), state, left, params)[2])
    assert stats.kstest(reward, stats.norm(mean, deviation).cdf).pvalue > 1e-3
    assert env.params.reward_mean == np.float32(-0.1)
    assert env.params.reward_deviation == 1


def test_fewer_than_two_actions_are_refused():
    assert envs.make("MaximizationBias-purerl", 1, actions=4).spec.action.n == 4
    with pytest.raises(ValueError, match="actions is 1; it takes a whole number of at least 2"):
        envs.make("MaximizationBias-purerl", 1, actions=1)
