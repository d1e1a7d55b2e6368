"""The brick of tabular agents by itself: reading, moving, waiting, and the order in which transitions come."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import tables
from purerl.base import Box, Discrete, Rollout, Spec, Transition

INFINITE = [[-np.inf, np.inf, np.nan], [1.0, 2.0, 3.0]]


def step_of(shape=(), **leaves):
    zeros, closed = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)
    default = {
        "observation": zeros,
        "action": zeros,
        "reward": jnp.zeros(shape, jnp.float32),
        "terminated": closed,
        "truncated": closed,
        "next_observation": zeros,
    }
    return Transition(**default | leaves)


def test_sizes_are_those_of_the_spaces():
    spec = Spec(observation=Discrete(7), action=Discrete(4), num_envs=2)
    assert tables.sizes(spec, agent="nobody") == (7, 4)
    box = Box(shape=(2,), dtype=np.float32, low=0, high=1)
    with pytest.raises(ValueError, match=r"^nobody needs a discrete observation space"):
        tables.sizes(spec._replace(observation=box), agent="nobody")
    with pytest.raises(ValueError, match=r"^nobody needs a discrete action space"):
        tables.sizes(spec._replace(action=box), agent="nobody")


@pytest.mark.parametrize("cell", np.ndindex(2, 3))
def test_a_value_is_read_beside_values_that_are_not_finite(cell):
    values = jnp.array(INFINITE)
    value = tables.value_of(values, *map(jnp.int32, cell))
    np.testing.assert_array_equal(value, values[cell])


@pytest.mark.parametrize("cell", np.ndindex(2, 3))
def test_only_the_cell_moves_and_by_a_part_of_its_error(cell):
    values = jnp.arange(6.0).reshape(2, 3)
    moved, error = tables.move(values, *map(jnp.int32, cell), jnp.float32(10), jnp.float32(0.25))
    expected = np.array(values)
    expected[cell] += 0.25 * (10 - expected[cell])
    np.testing.assert_array_equal(moved, expected, strict=True)
    assert error == 10 - values[cell]


@pytest.mark.parametrize("target", [0.0, np.inf, -np.inf, np.nan])
def test_what_does_not_move_stays_whatever_its_value_and_target(target):
    values = jnp.array(INFINITE)
    for cell in np.ndindex(2, 3):
        moved, error = tables.move(
            values, *map(jnp.int32, cell), jnp.float32(target), jnp.float32(0.5), where=jnp.bool_(False)
        )
        np.testing.assert_array_equal(moved, values)
        assert error == 0


@pytest.mark.parametrize("shape", [(), (3,), (3, 2)])
def test_places_of_waiting_transitions_start_empty_as_a_transition_would_fill_them(shape):
    places = tables.nothing_waits(shape)
    assert not places.open.any()
    filled = tables.wait(step_of(shape))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), places) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), filled
    )


@pytest.mark.parametrize(("terminated", "truncated"), itertools.product([False, True], repeat=2))
def test_a_transition_waits_unless_its_episode_ended(terminated, truncated):
    step = step_of(
        observation=jnp.int32(3),
        action=jnp.int32(1),
        reward=jnp.float32(0.5),
        terminated=jnp.bool_(terminated),
        truncated=jnp.bool_(truncated),
    )
    place = tables.wait(step)
    assert (place.observation, place.action, place.reward) == (3, 1, 0.5)
    assert place.open == (not terminated and not truncated)


def test_transitions_come_one_at_a_time_in_the_order_of_time_and_then_of_environments():
    """A learner that writes down what it is given, and counts for itself and for each environment."""
    length, num_envs = 4, 3
    number = jnp.arange(length * num_envs, dtype=jnp.int32).reshape(length, num_envs)
    rollout = Rollout(steps=step_of((length, num_envs), observation=number), memory=())

    def learn(values, own, step, doubled, pair):
        count, log = values
        assert (step.reward.shape, own["of this"].shape, doubled.shape, pair[0].shape) == ((), (), (), (2,))
        log = log.at[count].set(jnp.stack([step.observation, own["steps"], own["of this"], doubled, pair[0][1]]))
        return (count + 1, log), own | {"steps": own["steps"] + 1}, 0.5 * step.observation

    start = jnp.int32(0), jnp.full((length * num_envs, 5), -1, jnp.int32)
    own = {"steps": jnp.zeros(num_envs, jnp.int32), "of this": 10 * jnp.arange(num_envs, dtype=jnp.int32)}
    also = 2 * number, (jnp.stack([number, 3 * number], axis=-1),)
    (count, log), own, errors = jax.jit(lambda *also: tables.one_at_a_time(learn, start, own, rollout, *also))(*also)
    assert count == length * num_envs
    expected = [
        [time * num_envs + environment, time, 10 * environment, *(k * (time * num_envs + environment) for k in (2, 3))]
        for time, environment in np.ndindex(length, num_envs)
    ]
    np.testing.assert_array_equal(log, expected)
    np.testing.assert_array_equal(own["steps"], [length] * num_envs)
    np.testing.assert_array_equal(own["of this"], [0, 10, 20])
    np.testing.assert_array_equal(errors, 0.5 * number)


def test_nothing_that_an_environment_has_to_itself_is_a_tree_without_leaves():
    rollout = Rollout(steps=step_of((2, 3), reward=jnp.ones((2, 3))), memory=())
    values, own, errors = tables.one_at_a_time(
        lambda values, own, step: (values + step.reward, own, values), jnp.float32(0), (), rollout
    )
    assert (float(values), own) == (6.0, ())
    np.testing.assert_array_equal(errors, [[0, 1, 2], [3, 4, 5]])
