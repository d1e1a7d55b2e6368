"""Sums of discounted rewards against slow sums, and against rlax where no episode is cut short."""

import functools
from typing import Any, NamedTuple

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
def test_discounted_returns_are_the_sums_of_what_follows(discount, trailing):
    rng = np.random.default_rng(1)
    reward, last_value = rng.normal(size=(TIME, *trailing)), rng.normal(size=trailing)
    with_the_last = np.concatenate([reward, last_value[None]])
    expected = [np.tensordot(discount ** np.arange(TIME + 1 - t), with_the_last[t:], axes=1) for t in range(TIME)]
    found = returns.discounted(
        jnp.asarray(reward, jnp.float32), jnp.float32(discount), jnp.asarray(last_value, jnp.float32)
    )
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_discounted_returns_and_their_gradients_are_those_of_rlax():
    rng = np.random.default_rng(2)
    reward, weight = jnp.asarray(rng.normal(size=(2, TIME)), jnp.float32)
    ours = lambda reward, last_value: returns.discounted(reward, jnp.float32(0.9), last_value)  # noqa: E731
    theirs = lambda reward, last_value: rlax.discounted_returns(reward, jnp.full(TIME, 0.9), last_value)  # noqa: E731
    for one, other in zip(*(slopes(f, weight, reward, jnp.float32(4)) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_discounted_and_n_step_returns_agree_over_a_whole_stretch():
    reward, nowhere = jnp.arange(1.0, TIME + 1), jnp.zeros(TIME, bool)
    whole = returns.n_step(reward, nowhere, nowhere, jnp.float32(0.8), n=TIME)
    stretch = returns.discounted(reward, jnp.float32(0.8), jnp.float32(5.0))
    np.testing.assert_allclose(whole.reward[0] + whole.bootstrap[0] * 5.0, stretch[0], rtol=1e-6)


# --- lambda-returns, advantages and V-trace --------------------------------------------------------------------------


class Steps(NamedTuple):
    """Consecutive steps [T, *batch]; in the definitions below the rest of one episode, up to its end or the last."""

    reward: Any
    terminated: Any
    truncated: Any
    value: Any
    next_value: Any
    log_ratio: Any


class Numbers(NamedTuple):
    discount: Any = 0.9
    trace_decay: Any = 0.8
    clip_rho: Any = 1.0
    clip_c: Any = 1.0


def estimate(steps, numbers):
    flags, pair = (steps.terminated, steps.truncated), (steps.value, steps.next_value)
    discount, trace_decay, clip_rho, clip_c = numbers
    vtrace = returns.vtrace(steps.reward, *flags, *pair, steps.log_ratio, discount, trace_decay, clip_rho, clip_c)
    return {
        "lambda_returns": returns.lambda_returns(steps.reward, *flags, steps.next_value, discount, trace_decay),
        "gae": returns.gae(steps.reward, *flags, *pair, discount, trace_decay),
        "target": vtrace.target,
        "advantage": vtrace.advantage,
    }


compiled_estimate = jax.jit(estimate)


def float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, None if np.asarray(leaf).dtype == bool else jnp.float32), tree)


def estimates(steps, numbers):
    found = compiled_estimate(float32(steps), float32(numbers))
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype(jnp.float32)}
    return jax.tree.map(np.asarray, found)


def td_errors(steps, discount):
    return steps.reward + discount * ~steps.terminated * steps.next_value - steps.value


def n_step_return(rest, n, discount):
    successor = discount**n * ~rest.terminated[n - 1] * rest.next_value[n - 1]
    return discount ** np.arange(n) @ rest.reward[:n] + successor


def mixture(rest, numbers):
    """The lambda-return: (1 - lambda) lambda^(n-1) of each n-step return, what is left of 1 of the last one."""
    discount, decay, _, _ = numbers
    longest = len(rest.reward)
    shorter = sum((1 - decay) * decay ** (n - 1) * n_step_return(rest, n, discount) for n in range(1, longest))
    return shorter + decay ** (longest - 1) * n_step_return(rest, longest, discount)


def sum_of_td_errors(rest, numbers):
    weights = (numbers.discount * numbers.trace_decay) ** np.arange(len(rest.reward))
    return weights @ td_errors(rest, numbers.discount)


def vtrace_target(rest, numbers):
    ratio, powers = np.exp(rest.log_ratio), numbers.discount ** np.arange(len(rest.reward))
    c = numbers.trace_decay * np.minimum(numbers.clip_c, ratio)
    products = np.array([np.prod(c[:count]) for count in range(len(c))])
    errors = np.minimum(numbers.clip_rho, ratio) * td_errors(rest, numbers.discount)
    return rest.value[0] + np.sum(powers * products * errors)


def vtrace_advantage(rest, numbers):
    now, later = Steps(*(leaf[0] for leaf in rest)), Steps(*(leaf[1:] for leaf in rest))
    after = vtrace_target(later, numbers) if len(later.reward) else now.next_value
    q = numbers.trace_decay * after + (1 - numbers.trace_decay) * now.next_value
    rho = min(numbers.clip_rho, np.exp(now.log_ratio))
    return rho * (now.reward + numbers.discount * (not now.terminated) * q - now.value)


DEFINITIONS = {
    "lambda_returns": mixture,
    "gae": sum_of_td_errors,
    "target": vtrace_target,
    "advantage": vtrace_advantage,
}


def everywhere(definition, steps, numbers):
    """What `definition` says of the rest of the episode, from every step of every environment on."""
    found = np.zeros(steps.reward.shape)
    for first, column in np.ndindex(found.shape):
        ends = np.flatnonzero((steps.terminated | steps.truncated)[first:, column])
        stop = first + ends[0] + 1 if len(ends) else len(found)
        found[first, column] = definition(Steps(*(leaf[first:stop, column] for leaf in steps)), numbers)
    return found


def journey(reward, terminated, truncated, value, last_value, log_ratio):
    """Steps in which V(next_observation) is V(observation) of the next step, `last_value` where an episode ends."""
    reward, value, last_value, log_ratio = (leaf.astype(float) for leaf in (reward, value, last_value, log_ratio / 9))
    ended = terminated | truncated | (np.arange(TIME) == TIME - 1)[:, None]
    next_value = np.where(ended, last_value, np.roll(value, -1, axis=0))
    return Steps(reward, terminated, truncated, value, next_value, log_ratio)


def random_journey(seed):
    rng = np.random.default_rng(seed)
    reward, value, last_value, log_ratio = rng.normal(scale=5, size=(4, TIME, COLUMNS))
    return journey(reward, *(rng.random((2, TIME, COLUMNS)) < 0.2), value, last_value, log_ratio)


journeys = st.builds(journey, rewards, flags, flags, rewards, rewards, rewards)
clips = st.sampled_from([0.5, 1.0, 2.0])
numbers_of_all_kinds = st.builds(Numbers, discounts, discounts, clips, clips)


@pytest.mark.parametrize("name", DEFINITIONS)
@EXAMPLES
@given(steps=journeys, numbers=numbers_of_all_kinds)
def test_estimates_are_the_sums_that_define_them(name, steps, numbers):
    expected = everywhere(DEFINITIONS[name], steps, numbers)
    np.testing.assert_allclose(estimates(steps, numbers)[name], expected, rtol=1e-5, atol=1e-3)


@EXAMPLES
@given(steps=journeys, discount=discounts)
def test_without_a_trace_advantages_are_td_errors_and_with_a_full_one_monte_carlo_returns_less_values(steps, discount):
    none, full = Numbers(discount, 0.0), Numbers(discount, 1.0)
    np.testing.assert_allclose(estimates(steps, none)["gae"], td_errors(steps, discount), rtol=1e-5, atol=1e-5)
    monte_carlo = everywhere(lambda rest, _: n_step_return(rest, len(rest.reward), discount), steps, full)
    np.testing.assert_allclose(estimates(steps, full)["gae"], monte_carlo - steps.value, rtol=1e-5, atol=1e-4)


@EXAMPLES
@given(steps=journeys, discount=discounts, trace_decay=discounts)
def test_on_policy_all_estimates_are_lambda_returns(steps, discount, trace_decay):
    on_policy = steps._replace(log_ratio=np.zeros_like(steps.log_ratio))
    found = estimates(on_policy, Numbers(discount, trace_decay, clip_rho=1.0, clip_c=3.0))
    for returns_again in (found["gae"] + steps.value, found["target"], found["advantage"] + steps.value):
        np.testing.assert_allclose(returns_again, found["lambda_returns"], rtol=1e-5, atol=1e-4)


@EXAMPLES
@given(
    steps=journeys,
    other=journeys,
    scale=st.sampled_from([1.0, 1e30]),
    ends=arrays.arrays(np.int8, COLUMNS, elements=st.integers(0, TIME - 1)),
    kind=arrays.arrays(np.int8, COLUMNS, elements=st.integers(0, 2)),
    numbers=numbers_of_all_kinds,
)
def test_nothing_of_the_next_episode_counts(steps, other, scale, ends, kind, numbers):
    time = np.arange(TIME)[:, None]
    terminated, truncated = (time == ends) & (kind != 1), (time == ends) & (kind != 0)
    one = steps._replace(terminated=terminated, truncated=truncated)
    loud = Steps(*(leaf if leaf.dtype == bool else scale * leaf for leaf in other))._replace(log_ratio=other.log_ratio)
    two = Steps(*(np.where(time <= ends, kept, later) for kept, later in zip(one, loud, strict=True)))
    two = two._replace(next_value=np.where(terminated, loud.next_value, two.next_value))
    found, again = estimates(one, numbers), estimates(two, numbers)
    for name in DEFINITIONS:
        np.testing.assert_array_equal(np.where(time <= ends, found[name], 0), np.where(time <= ends, again[name], 0))


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"), [(True, False, 1.0), (True, True, 1.0), (False, True, 1 + 0.5 * 10)]
)
@pytest.mark.parametrize("length", [1, 2])
def test_a_terminated_step_is_worth_its_reward_and_a_truncated_one_also_its_successor(
    terminated, truncated, expected, length
):
    full = lambda first, later: np.array([[first], [later]])[:length]  # noqa: E731
    flags = full(terminated, False), full(truncated, False)
    steps = Steps(full(1.0, 100.0), *flags, full(2.0, 200.0), full(10.0, 300.0), full(0.0, 0.0))
    found = {name: leaf[0, 0] for name, leaf in estimates(steps, Numbers(discount=0.5)).items()}
    assert found == {
        "lambda_returns": expected,
        "gae": expected - 2,
        "target": expected,
        "advantage": expected - 2,
    }


@pytest.mark.parametrize("last_value", [1e30, -1e30])
def test_what_follows_a_termination_may_be_of_any_size(last_value):
    steps = random_journey(seed=3)
    steps = steps._replace(terminated=np.ones_like(steps.terminated))
    huge = steps._replace(next_value=np.full_like(steps.next_value, last_value))
    jax.tree.map(np.testing.assert_array_equal, estimates(steps, Numbers()), estimates(huge, Numbers()))


@pytest.mark.parametrize(
    ("clip_rho", "clip_c", "target", "advantage"),
    [
        (2.0, 1.0, [2 * 1 + 1 * 2 * 10, 2 * 10], [2 * (1 + 20), 2 * 10]),
        (1.0, 2.0, [1 * 1 + 2 * 1 * 10, 1 * 10], [1 * (1 + 10), 1 * 10]),
        (5.0, 1.0, [3 * 1 + 1 * 3 * 10, 3 * 10], [3 * (1 + 30), 3 * 10]),
        (5.0, 5.0, [3 * 1 + 3 * 3 * 10, 3 * 10], [3 * (1 + 30), 3 * 10]),
    ],
)
def test_vtrace_clips_the_ratio_of_errors_apart_from_that_of_traces(clip_rho, clip_c, target, advantage):
    nothing, nowhere = np.zeros((2, 1)), np.zeros((2, 1), bool)
    steps = Steps(np.array([[1.0], [10.0]]), nowhere, nowhere, nothing, nothing, np.full((2, 1), np.log(3)))
    found = estimates(steps, Numbers(1.0, 1.0, clip_rho, clip_c))
    np.testing.assert_allclose(found["target"][:, 0], target, rtol=1e-6)
    np.testing.assert_allclose(found["advantage"][:, 0], advantage, rtol=1e-6)


def slopes(function, weight, *arguments):
    """The values of `function`, and the gradients of their weighted sum with respect to all arguments."""
    values, back = jax.vjp(function, *arguments)
    return values, *back(weight)


def rlax_vtrace(reward, discount, value, log_ratio, trace_decay, clip_rho):
    return rlax.vtrace_td_error_and_advantage(
        value[:-1],
        value[1:],
        reward,
        discount,
        jnp.exp(log_ratio),
        trace_decay,
        clip_rho,
        clip_rho,
        stop_target_gradients=False,
    )


# Of rewards, discounts, values of T + 1 observations, logarithms of ratios, the trace's decay and the ratios' clip.
WITNESSES = {
    "lambda_returns": lambda r, d, v, _, decay, clip: rlax.lambda_returns(r, d, v[1:], decay),
    "gae": lambda r, d, v, _, decay, clip: rlax.truncated_generalized_advantage_estimation(r, d, decay, v),
    "target": lambda r, d, v, *rest: v[:-1] + rlax_vtrace(r, d, v, *rest).errors,
    "advantage": lambda *arguments: rlax_vtrace(*arguments).pg_advantage,
}


@pytest.mark.parametrize("name", WITNESSES)
def test_where_nothing_is_truncated_estimates_and_their_gradients_are_those_of_rlax(name):
    rng = np.random.default_rng(4)
    reward, log_ratio, weight = float32(rng.normal(size=(3, 2 * TIME)))
    value = float32(rng.normal(size=2 * TIME + 1))
    terminated, nowhere = jnp.asarray(rng.random(2 * TIME) < 0.25), jnp.zeros(2 * TIME, bool)
    assert 0 < terminated.sum() < len(terminated)

    def ours(numbers, reward, value, log_ratio):
        return estimate(Steps(reward, terminated, nowhere, value[:-1], value[1:], log_ratio), numbers)[name]

    def theirs(numbers, reward, value, log_ratio):
        discount = numbers.discount * (1.0 - terminated)
        return WITNESSES[name](reward, discount, value, log_ratio, numbers.trace_decay, numbers.clip_rho)

    one, other = (jax.jit(lambda n, *x, f=f: slopes(functools.partial(f, n), weight, *x)) for f in (ours, theirs))
    for numbers in float32([Numbers(0.9, 0.0, 1.0), Numbers(0.9, 0.9, 1.5), Numbers(1.0, 1.0, 0.7)]):
        compared = one(numbers, reward, value, log_ratio), other(numbers, reward, value, log_ratio)
        for found, expected in zip(*compared, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trailing", [(), (2, 4)])
def test_estimates_take_any_trailing_axes(trailing):
    steps = random_journey(seed=5)
    columns = slice(None) if trailing else 0
    shaped = estimates(Steps(*(leaf[:, columns].reshape(TIME, *trailing) for leaf in steps)), Numbers())
    for name, flat in estimates(steps, Numbers()).items():
        np.testing.assert_allclose(flat[:, columns].reshape(TIME, *trailing), shaped[name], rtol=1e-5, atol=1e-5)


def test_estimates_of_many_numbers_at_once_are_those_of_one_at_a_time():
    steps = random_journey(seed=6)
    many = Numbers(*np.random.default_rng(7).uniform(0.3, 1.0, size=(4, 3)))
    swept = jax.jit(jax.vmap(estimate, (None, 0)))(float32(steps), float32(many))
    for index in range(3):
        for name, alone in estimates(steps, Numbers(*(leaf[index] for leaf in many))).items():
            np.testing.assert_allclose(swept[name][index], alone, rtol=1e-5, atol=1e-5)


def test_estimates_mapped_over_environments_are_those_of_all_together():
    steps = random_journey(seed=8)
    mapped = jax.jit(jax.vmap(estimate, (1, None), 1))(float32(steps), float32(Numbers()))
    for name, together in estimates(steps, Numbers()).items():
        np.testing.assert_allclose(mapped[name], together, rtol=1e-5, atol=1e-5)


def test_estimates_need_no_jit():
    steps = random_journey(seed=9)
    for name, eager in estimate(float32(steps), float32(Numbers())).items():
        np.testing.assert_allclose(eager, estimates(steps, Numbers())[name], rtol=1e-5, atol=1e-5)


def test_standardized_advantages_have_mean_zero_and_deviation_one_and_constant_ones_vanish():
    advantage = np.random.default_rng(0).normal(5.0, 3.0, size=(7, 4)).astype(np.float32)
    exact = advantage.astype(float)
    np.testing.assert_allclose(
        returns.standardized(jnp.asarray(advantage)), (exact - exact.mean()) / exact.std(), atol=1e-5
    )
    for number in (0.1, -0.3, 1 / 3, 10.1, 0.0, 1e-20):
        np.testing.assert_array_equal(returns.standardized(jnp.full((33, 3), number, jnp.float32)), 0)
