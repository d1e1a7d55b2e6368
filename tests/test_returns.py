"""Sums of discounted rewards against slow loops, and against rlax where no episode ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from purerl import returns

TIME, COLUMNS = 6, 8  # one shape only, so that every n is compiled once
EXAMPLES = settings(max_examples=60, deadline=None, derandomize=True)


@functools.cache
def compiled(n):
    return jax.jit(functools.partial(returns.n_step, n=n))


def n_step(reward, terminated, truncated, discount, *, n):
    given_arrays = jnp.asarray(reward, jnp.float32), jnp.asarray(terminated), jnp.asarray(truncated)
    return jax.tree.map(np.asarray, compiled(n)(*given_arrays, jnp.float32(discount)))


def slow_n_step(reward, terminated, truncated, discount, n):
    """The definition: go on until n rewards are gathered or the episode is over."""
    found = {name: np.zeros((TIME - n + 1, COLUMNS)) for name in returns.NStep._fields}
    for first, column in np.ndindex(TIME - n + 1, COLUMNS):
        total, weight = 0.0, 1.0
        for last in range(first, first + n):
            total, weight = total + weight * reward[last, column], weight * discount
            if terminated[last, column]:
                weight = 0.0
            if terminated[last, column] or truncated[last, column]:
                break
        for name, number in (("reward", total), ("bootstrap", weight), ("last", last)):
            found[name][first, column] = number
    return returns.NStep(**found)


flags = arrays.arrays(bool, (TIME, COLUMNS))
rewards = arrays.arrays(np.int8, (TIME, COLUMNS), elements=st.integers(-9, 9))
discounts = st.sampled_from([0.0, 0.5, 0.9, 1.0])
steps = st.integers(1, TIME)


@EXAMPLES
@given(reward=rewards, terminated=flags, truncated=flags, discount=discounts, n=steps)
def test_n_step_returns_are_those_of_a_loop(reward, terminated, truncated, discount, n):
    found = n_step(reward, terminated, truncated, discount, n=n)
    expected = slow_n_step(reward.astype(float), terminated, truncated, discount, n)
    np.testing.assert_allclose(found.reward, expected.reward, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.bootstrap, expected.bootstrap, rtol=1e-6)
    np.testing.assert_array_equal(found.last, expected.last)
    assert (found.reward.dtype, found.bootstrap.dtype, found.last.dtype) == (np.float32, np.float32, np.int32)


@EXAMPLES
@given(
    reward=rewards,
    noise=arrays.arrays(np.float32, (TIME, COLUMNS), elements=st.sampled_from([-7.0, np.inf, np.nan])),
    ends=arrays.arrays(np.int8, COLUMNS, elements=st.integers(0, TIME - 1)),
    kind=arrays.arrays(np.int8, COLUMNS, elements=st.integers(0, 2)),
    later=st.tuples(flags, flags),
    n=steps,
)
def test_nothing_after_an_end_counts(reward, noise, ends, kind, later, n):
    before_the_end, at_the_end = np.arange(TIME)[:, None] < ends, np.arange(TIME)[:, None] == ends
    terminated, truncated = at_the_end & (kind != 1), at_the_end & (kind != 0)
    found = n_step(reward, terminated, truncated, 0.9, n=n)
    kept = before_the_end | at_the_end
    other = n_step(np.where(kept, reward, noise), terminated | ~kept & later[0], truncated | ~kept & later[1], 0.9, n=n)
    for one, two in zip(found, other, strict=True):
        np.testing.assert_array_equal(np.where(kept[: len(one)], one, 0), np.where(kept[: len(two)], two, 0))


@pytest.mark.parametrize("n", range(1, TIME + 1))
def test_where_nothing_ends_they_are_those_of_rlax(n):
    rng = np.random.default_rng(n)
    reward, value = rng.normal(size=(2, TIME, COLUMNS)).astype(np.float32)
    nowhere = np.zeros((TIME, COLUMNS), bool)
    found = n_step(reward, nowhere, nowhere, 0.9, n=n)
    ours = found.reward + found.bootstrap * np.take_along_axis(value, found.last, axis=0)
    theirs = jax.vmap(functools.partial(rlax.n_step_bootstrapped_returns, n=n), in_axes=1, out_axes=1)(
        jnp.asarray(reward), jnp.full(reward.shape, 0.9), jnp.asarray(value)
    )
    # rlax also gives the last n - 1 steps, which fewer rewards follow.
    np.testing.assert_allclose(ours, theirs[: TIME - n + 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trailing", [(), (2, 4)])
def test_n_step_returns_take_any_trailing_axes(trailing):
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(TIME, COLUMNS)).astype(np.float32)
    terminated, truncated = rng.random((2, TIME, COLUMNS)) < 0.2
    flat = n_step(reward, terminated, truncated, 0.9, n=3)
    columns = slice(None) if trailing else 0
    shaped = n_step(*(leaf[:, columns].reshape(TIME, *trailing) for leaf in (reward, terminated, truncated)), 0.9, n=3)
    for one, other in zip(flat, shaped, strict=True):
        np.testing.assert_allclose(one[:, columns].reshape(TIME - 2, *trailing), other, rtol=1e-6)


@pytest.mark.parametrize("n", [-1, 0, TIME + 1])
def test_an_n_that_the_steps_do_not_allow_is_named(n):
    nowhere = jnp.zeros((TIME, 1), bool)
    with pytest.raises(ValueError, match=f"n is {n}; for 6 steps it takes 1 to 6"):
        returns.n_step(jnp.zeros((TIME, 1)), nowhere, nowhere, jnp.float32(0.9), n=n)


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("trailing", [(), (3,), (2, 3)])
def test_discounted_returns_are_those_of_a_loop(discount, trailing):
    rng = np.random.default_rng(1)
    reward, last_value = rng.normal(size=(TIME, *trailing)), rng.normal(size=trailing)
    expected, following = np.zeros_like(reward), last_value
    for time in reversed(range(TIME)):
        expected[time] = following = reward[time] + discount * following
    found = returns.discounted(
        jnp.asarray(reward, jnp.float32), jnp.float32(discount), jnp.asarray(last_value, jnp.float32)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_discounted_and_n_step_returns_agree_over_a_whole_stretch():
    reward, nowhere = jnp.arange(1.0, TIME + 1), jnp.zeros(TIME, bool)
    whole = returns.n_step(reward, nowhere, nowhere, jnp.float32(0.8), n=TIME)
    stretch = returns.discounted(reward, jnp.float32(0.8), jnp.float32(5.0))
    np.testing.assert_allclose(whole.reward[0] + whole.bootstrap[0] * 5.0, stretch[0], rtol=1e-6)
