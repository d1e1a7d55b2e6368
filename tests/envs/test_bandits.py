"""The k-armed testbed: how problems are drawn, what an arm pays, how values drift, and that only the clock ends it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl import envs

COUNT = 4_000


def params_of(env, **numbers):
    return env.params.replace(**{name: jnp.asarray(number, jnp.float32) for name, number in numbers.items()})


@pytest.fixture(scope="module")
def env():
    """The testbed of ten arms, thousands of problems of it, its two functions compiled."""
    made = envs.make("Bandit-purerl", COUNT)
    return made._replace(reset=jax.jit(made.reset), step=jax.jit(made.step))


def test_it_has_one_observation_and_as_many_actions_as_arms(env):
    assert (env.spec.observation.n, env.spec.action.n) == (1, 10)
    assert envs.make("Bandit-purerl", 2, arms=3).spec.action.n == 3
    observation, state = env.reset(jax.random.key(0), env.params)
    assert (observation.shape, observation.dtype) == ((COUNT,), jnp.int32)
    assert not observation.any()
    assert state.values.shape == (COUNT, 10)
    following, _, _, _, _, successor = env.step(jax.random.key(1), state, jnp.zeros(COUNT, jnp.int32), env.params)
    assert not following.any()
    assert not successor.any()


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (2.0, 0.5)])
def test_values_are_normal_with_the_numbers_of_the_parameters(env, mean, deviation):
    params = params_of(env, value_mean=mean, value_deviation=deviation)
    values = np.asarray(env.reset(jax.random.key(2), params)[1].values)
    assert stats.kstest(values.ravel(), stats.norm(mean, deviation).cdf).pvalue > 1e-3
    # Arms and problems by themselves.
    correlation = np.corrcoef(values.T) - np.eye(10)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(COUNT)
    assert len(np.unique(values)) > 0.99 * values.size


def test_without_deviation_all_arms_are_worth_the_mean(env):
    values = env.reset(jax.random.key(0), params_of(env, value_mean=1.5, value_deviation=0.0))[1].values
    np.testing.assert_array_equal(values, np.full((COUNT, 10), 1.5))


@pytest.mark.parametrize("deviation", [1.0, 0.3])
def test_rewards_are_normal_around_the_value_of_the_arm_that_is_taken(env, deviation):
    params = params_of(env, reward_deviation=deviation)
    _, state = env.reset(jax.random.key(3), params)
    arm = jnp.arange(COUNT, dtype=jnp.int32) % 10
    reward = np.asarray(env.step(jax.random.key(4), state, arm, params)[2])
    noise = reward - np.asarray(state.values)[np.arange(COUNT), np.asarray(arm)]
    assert stats.kstest(noise, stats.norm(0, deviation).cdf).pvalue > 1e-3
    again = np.asarray(env.step(jax.random.key(5), state, arm, params)[2]) - reward + noise
    assert abs(np.corrcoef(noise, again)[0, 1]) < 4 / np.sqrt(COUNT)


def test_values_stay_where_they_are_by_default(env):
    _, state = env.reset(jax.random.key(0), env.params)
    first = state.values
    for time in range(5):
        _, state, *_ = env.step(jax.random.key(time), state, jnp.full(COUNT, time, jnp.int32), env.params)
    np.testing.assert_array_equal(state.values, first)
    assert (state.time == 5).all()


def test_values_drift_by_steps_of_the_deviation_each_arm_by_itself(env):
    params = params_of(env, value_deviation=0.0, drift_deviation=0.01, value_mean=1.0)
    _, state = env.reset(jax.random.key(0), params)
    path = [np.asarray(state.values)]
    for time in range(4):
        arm = jnp.zeros(COUNT, jnp.int32)
        _, state, reward, *_ = env.step(jax.random.key(10 + time), state, arm, params)
        noise = np.asarray(reward) - path[-1][:, 0]
        path.append(np.asarray(state.values))
    moves = np.diff(path, axis=0)
    assert stats.kstest(moves.ravel() / 0.01, stats.norm.cdf).pvalue > 1e-3
    assert path[-1].std() == pytest.approx(0.01 * 2, rel=0.05)
    columns = np.concatenate([moves[-1], moves[-2], noise[:, None]], axis=1)
    assert np.abs(np.corrcoef(columns.T) - np.eye(21)).max() < 4.5 / np.sqrt(COUNT)


def test_an_episode_is_cut_by_its_clock_and_followed_by_another_problem():
    env = envs.make("Bandit-purerl", 3, arms=2)
    params = env.params.replace(max_steps_in_episode=jnp.int32(4))
    _, state = env.reset(jax.random.key(0), params)
    step = jax.jit(env.step)
    for time in range(1, 13):
        before = np.asarray(state.values)
        _, state, _, terminated, truncated, _ = step(jax.random.key(time), state, jnp.ones(3, jnp.int32), params)
        assert not terminated.any()
        assert truncated.tolist() == [time % 4 == 0] * 3
        assert (np.asarray(state.values) != before).all() == (time % 4 == 0)
    assert int(env.params.max_steps_in_episode) == 1_000


def test_parameters_are_traced():
    """A problem for each of several parameters at once, as sweeps have it."""
    env = envs.make("Bandit-purerl", 500, arms=2)
    means, deviations = jnp.array([-5.0, 0.0, 5.0]), jnp.array([0.0, 0.1, 0.2])

    @jax.jit
    @jax.vmap
    def run(mean, deviation):
        params = env.params.replace(value_mean=mean, value_deviation=deviation, reward_deviation=2 * deviation)
        _, state = env.reset(jax.random.key(0), params)
        reward = env.step(jax.random.key(1), state, jnp.zeros(500, jnp.int32), params)[2]
        return state.values, reward - state.values[:, 0]

    values, noise = run(means, deviations)
    np.testing.assert_allclose(np.mean(values, axis=(1, 2)), means, atol=0.03)
    np.testing.assert_allclose(np.std(values, axis=(1, 2)), deviations, rtol=0.1)
    np.testing.assert_allclose(np.std(noise, axis=1), 2 * deviations, rtol=0.15, atol=1e-6)


@pytest.mark.parametrize("arms", [0, -1])
def test_fewer_than_one_arm_are_refused(arms):
    with pytest.raises(ValueError, match=f"^arms is {arms}; it takes a whole number of at least 1$"):
        envs.make("Bandit-purerl", 1, arms=arms)
