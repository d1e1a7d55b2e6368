"""Epsilon-greedy by its frequencies over many keys, and the schedule of epsilon."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl.exploration import epsilon_greedy, epsilon_greedy_policy, linear_schedule

DRAWS = 40_000
# A wrong draw of a few per cent gives p-values near zero at 40 000 draws; a right one fails once in ten thousand seeds,
# and the seeds are fixed.
SMALL = 1e-4


@jax.jit
def draw_traced(keys, values, epsilon):
    return jax.vmap(epsilon_greedy, (0, None, None))(keys, values, epsilon)


def draw(values, epsilon, seed=0, draws=DRAWS):
    """Actions [draws, *batch], each from a key of its own."""
    keys = jax.random.split(jax.random.key(seed), draws)
    return np.asarray(draw_traced(keys, jnp.asarray(values, jnp.float32), jnp.float32(epsilon)))


def assert_frequencies(actions, probabilities):
    """Chi-square where the probability is positive; where it is zero, not once."""
    probabilities = np.asarray(probabilities, np.float64)
    counts = np.bincount(actions, minlength=len(probabilities))
    assert len(counts) == len(probabilities)
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    if possible.sum() > 1:
        expected = probabilities[possible] / probabilities.sum() * len(actions)
        assert stats.chisquare(counts[possible], expected).pvalue > SMALL, counts


@pytest.mark.parametrize(
    ("values", "epsilon", "probabilities"),
    [
        ([1.0, 1.0, 1.0, 1.0, 1.0], 0.0, [0.2] * 5),  # ties are broken evenly
        ([0.0, 2.0, 1.0, 2.0], 0.0, [0, 0.5, 0, 0.5]),
        ([3.0, 2.0, 1.0], 0.0, [1, 0, 0]),  # never a non-best
        ([0.0, 0.0, 5.0, 5.0, 5.0, 1.0, 5.0], 0.0, [0, 0, 0.25, 0.25, 0.25, 0, 0.25]),
        ([0.0, 9.0, 1.0, 2.0, 9.0, 3.0], 1.0, [1 / 6] * 6),  # uniform, whatever the values
        ([7.0, 1.0, 7.0, 2.0], 0.1, [0.475, 0.025, 0.475, 0.025]),
        ([1.0, 2.0], 0.5, [0.25, 0.75]),
        ([4.0], 0.3, [1]),
    ],
)
def test_actions_are_drawn_with_their_probabilities(values, epsilon, probabilities):
    assert_frequencies(draw(values, epsilon), probabilities)
    np.testing.assert_allclose(epsilon_greedy_policy(jnp.array(values), epsilon), probabilities, atol=1e-6)


@pytest.mark.parametrize(("epsilon", "probabilities"), [(0.0, [0, 1, 0]), (1.0, [1 / 3] * 3)])
def test_epsilon_can_be_a_number_of_the_program(epsilon, probabilities):
    values = jnp.array([0.0, 2.0, 1.0])
    keys = jax.random.split(jax.random.key(0), DRAWS)
    with jax.debug_nans(True):
        actions = jax.jit(jax.vmap(lambda key: epsilon_greedy(key, values, epsilon)))(keys)
    assert_frequencies(np.asarray(actions), probabilities)


def test_actions_are_int32_of_the_leading_shape():
    for leading in [(), (3,), (2, 3)]:
        actions = epsilon_greedy(jax.random.key(0), jnp.zeros((*leading, 4)), 0.5)
        assert (actions.shape, actions.dtype) == (leading, jnp.int32)


def test_environments_in_one_call_draw_independently():
    actions = draw(np.zeros((3, 4)), 0.5)
    for environment in range(3):
        assert_frequencies(actions[:, environment], [0.25] * 4)
    for one, other in [(0, 1), (0, 2), (1, 2)]:
        pairs = 4 * actions[:, one] + actions[:, other]
        assert_frequencies(pairs, [1 / 16] * 16)


def test_environments_in_one_call_explore_independently():
    explored = draw([[1.0, 0.0, 0.0]] * 2, 0.6) > 0  # with probability .4 each
    assert_frequencies(2 * explored[:, 0] + explored[:, 1], [0.36, 0.24, 0.24, 0.16])


def test_each_environment_follows_its_own_values():
    actions = draw([[1.0, 0.0, 0.0], [0.0, 2.0, 2.0]], 0.3)
    assert_frequencies(actions[:, 0], [0.8, 0.1, 0.1])
    assert_frequencies(actions[:, 1], [0.1, 0.45, 0.45])


def test_epsilon_can_be_traced_and_vmapped():
    epsilons = np.float32([0.0, 0.1, 0.6, 1.0])
    keys = jax.random.split(jax.random.key(3), DRAWS)
    values = jnp.array([7.0, 1.0, 7.0, 2.0])
    over_keys = jax.vmap(lambda key, epsilon: epsilon_greedy(key, values, epsilon), (0, None))
    actions = np.asarray(jax.jit(jax.vmap(over_keys, (None, 0)))(keys, jnp.asarray(epsilons)))
    for row, epsilon in zip(actions, epsilons.astype(np.float64), strict=True):
        assert_frequencies(row, [(1 - epsilon) / 2 + epsilon / 4, epsilon / 4] * 2)


@pytest.mark.parametrize("epsilon", [0.0, 1e-45, 1e-38, 1e-30, 1e-8, 1e-7, 1 - 1e-7, 1.0])
@pytest.mark.parametrize(
    "values",
    [
        [1e30, -1e30, 1e30],
        [-np.inf, 1.0, -np.inf],
        [-np.inf, -np.inf, -np.inf],
        [np.inf, 0.0, -np.inf],
        [2e-38, 0.0, -0.0],
        [-3e38, 3e38, 0.0],
    ],
)
def test_extreme_values_and_epsilons_give_valid_actions(values, epsilon):
    with jax.debug_nans(True):
        actions = draw(values, epsilon, draws=2000)
    assert set(actions.tolist()) <= {0, 1, 2}
    if epsilon <= 1e-7:
        best = np.float32(values) == np.max(np.float32(values))
        assert best[actions].mean() > 0.99


def test_a_uniform_number_of_exactly_zero_makes_no_nan():
    # Once in 2^23 draws: this key has one, and 0 / 0 must not be computed even where it is not chosen.
    key, draws = jax.random.key(4), 2**22
    assert jax.random.uniform(key, (draws,)).min() == 0.0
    with jax.debug_nans(True):
        # Not jitted: of a program only the outputs are checked.
        actions = epsilon_greedy(key, jnp.zeros((draws, 1)), jnp.float32(0.0))
    assert not actions.any()


def test_zero_and_minus_zero_tie():
    assert_frequencies(draw([0.0, -0.0, -1.0], 0.0), [0.5, 0.5, 0])


def test_the_policy_sums_to_one_and_is_what_is_drawn():
    rng = np.random.default_rng(5)
    values = rng.integers(3, size=(6, 5)).astype(np.float32)  # many ties
    policy = np.asarray(epsilon_greedy_policy(jnp.asarray(values), 0.3))
    np.testing.assert_allclose(policy.sum(axis=-1), 1.0, atol=1e-6)
    actions = draw(values, 0.3, seed=6)
    for row in range(6):
        assert_frequencies(actions[:, row], policy[row])


def test_the_policy_is_finite_where_values_are_not():
    with jax.debug_nans(True):
        policy = epsilon_greedy_policy(jnp.array([[-jnp.inf, 1.0, 1.0], [1e30, -1e30, 0.0]]), jnp.float32(0.3))
    np.testing.assert_allclose(policy, [[0.1, 0.45, 0.45], [0.8, 0.1, 0.1]], rtol=1e-6)


def epsilons(counts, **ends):
    numbers = {name: jnp.float32(number) for name, number in ends.items()}
    return np.asarray(jax.vmap(lambda count: linear_schedule(count, **numbers))(jnp.asarray(counts, jnp.int32)))


def test_the_schedule_is_a_line_between_its_ends_and_stays_at_the_last():
    schedule = epsilons([0, 25, 50, 100, 101, 2**31 - 1], start=1.0, end=0.2, horizon=100)
    np.testing.assert_allclose(schedule, [1.0, 0.8, 0.6, 0.2, 0.2, 0.2], rtol=1e-6)
    assert schedule[0] == 1.0


def test_the_schedule_can_rise():
    np.testing.assert_allclose(epsilons([0, 1, 4, 9], start=0.1, end=0.5, horizon=4), [0.1, 0.2, 0.5, 0.5], rtol=1e-6)


def test_a_schedule_without_horizon_is_over_at_the_first_update():
    with jax.debug_nans(True):
        np.testing.assert_allclose(epsilons([0, 1, 2], start=1.0, end=0.05, horizon=0), [1.0, 0.05, 0.05], rtol=1e-6)
