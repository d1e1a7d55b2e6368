"""Groups of environments: each is shuffled, read and sampled by itself, and all of them are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import batches, envs, replay
from purerl.base import Rollout, Transition

T, N, GROUPS = 4, 6, 3


def numbered():
    """Return [T, N, 2] of which each element names its step and environment."""
    step, environment = jnp.meshgrid(jnp.arange(T), jnp.arange(N), indexing="ij")
    return jnp.stack([step, environment], axis=-1)


def test_flat_puts_group_after_group_and_loses_nothing():
    flat = np.asarray(batches.flat(numbered(), GROUPS))
    wanted = [(t, n) for group in range(GROUPS) for t in range(T) for n in range(group * 2, group * 2 + 2)]
    assert [tuple(row) for row in flat] == wanted
    np.testing.assert_array_equal(batches.flat(numbered()), numbered().reshape(T * N, 2))


@pytest.mark.parametrize("groups", [1, GROUPS])
def test_reading_by_rows_is_reading_at_once(groups):
    found = batches.by_rows(lambda rows: {"sum": jnp.sum(rows, axis=-1), "same": rows}, numbered(), groups)
    np.testing.assert_array_equal(found["same"], numbered())
    np.testing.assert_array_equal(found["sum"], numbered().sum(axis=-1))


def test_every_minibatch_has_as_many_of_each_group_in_an_order_of_its_own():
    flat = batches.flat(numbered(), GROUPS)
    cut = np.asarray(batches.shuffled(jax.random.key(0), flat, 2, GROUPS))
    assert cut.shape == (2, T * N // 2, 2)
    for minibatch in cut:
        groups = minibatch[:, 1] // 2
        np.testing.assert_array_equal(groups, np.repeat(np.arange(GROUPS), T))
    assert {tuple(row) for row in cut.reshape(-1, 2)} == {tuple(row) for row in np.asarray(flat)}
    orders = [[(t, n % 2) for t, n in cut[:, group * T : (group + 1) * T].reshape(-1, 2)] for group in range(GROUPS)]
    assert orders[0] != orders[1], "groups have keys of their own"
    others = batches.shuffled(jax.random.key(1), flat, 2, GROUPS)
    assert not np.array_equal(cut, others)


def test_parts_must_divide_what_a_group_has():
    batches.require_parts("minibatches", 4, 24, 3)
    with pytest.raises(ValueError, match="minibatches is 3, which does not divide the 8 steps that a rollout has of a"):
        batches.require_parts("minibatches", 3, 24, 3)
    with pytest.raises(ValueError, match="minibatches is 5, which does not divide the 24 steps of a rollout"):
        batches.require_parts("minibatches", 5, 24, 1)


def collected(spec, steps):
    """Return a rollout whose rewards name its environment, as 100 n + t."""
    reward = 100.0 * jnp.arange(spec.num_envs) + jnp.arange(steps)[:, None]
    observation = jnp.broadcast_to(reward[..., None], (*reward.shape, 4))
    never = jnp.zeros_like(reward, bool)
    action = jnp.zeros(reward.shape, jnp.int32)
    steps = Transition(
        observation=observation,
        action=action,
        reward=reward,
        terminated=never,
        truncated=never,
        next_observation=observation + 1,
    )
    return Rollout(steps=steps, memory=())


def test_a_grouped_buffer_samples_as_much_of_each_group_and_what_was_added():
    spec = envs.make("CartPole-v1", N, groups=GROUPS).spec
    buffer = replay.uniform(spec, 10 * N)
    state = buffer.add(buffer.init(), collected(spec, 5))
    found, ready = buffer.sample(jax.random.key(0), state, 30)
    assert ready
    reward = np.asarray(found.steps.reward[0])
    np.testing.assert_array_equal(reward // 100 // 2, np.repeat(np.arange(GROUPS), 10))
    assert set(reward % 100) == set(range(5))
    np.testing.assert_array_equal(found.steps.next_observation[0, :, 0], reward + 1)
    own = [tuple(reward[group * 10 : group * 10 + 10] % 200) for group in range(GROUPS)]
    assert len(set(own)) == GROUPS, "groups have keys of their own"
    with pytest.raises(ValueError, match="batch_size is 32, which the 3 groups of environments do not divide"):
        buffer.sample(jax.random.key(0), state, 32)


@pytest.mark.parametrize("name", ["CartPole-v1", "Breakout-MinAtar"])
def test_environments_of_groups_take_the_same_steps_to_the_bit(name):
    one, many = (envs.make(name, 4, groups=groups) for groups in (1, 2))
    key = jax.random.key(0)
    stepped = []
    for env in (one, many):
        observation, state = env.reset(key, env.params)
        seen = [observation]
        step = jax.jit(env.step)
        for number in range(60):
            observation, state, reward, terminated, truncated, last = step(
                jax.random.fold_in(key, number), state, jnp.arange(4) % 2, env.params
            )
            seen += [observation, reward, terminated, truncated, last]
        stepped.append(seen)
    assert any(bool(ended.any()) for ended in stepped[0][3::5])
    jax.tree.map(np.testing.assert_array_equal, *stepped)
