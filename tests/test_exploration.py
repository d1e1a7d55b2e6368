"""Policies in closed form, actions by their frequencies over many keys, what UCB counts, and the schedules."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl import exploration
from purerl.base import Box, Discrete, Rollout, Spec, Transition
from purerl.exploration import (
    boltzmann_policy,
    epsilon_greedy_policy,
    exponential_schedule,
    greedy_policy,
    linear_schedule,
    ucb_policy,
)

DRAWS = 40_000
# A wrong draw of a few per cent gives p-values near zero at 40 000 draws; a right one fails once in ten thousand seeds,
# and the seeds are fixed.
SMALL = 1e-4
# Keys of the extreme numbers that a uniform draw has, each once in 2^23: 0 and 1 - 2^-23.
LEAST, GREATEST = 780_233, 20_192_286
SPEC = Spec(observation=Discrete(4), action=Discrete(3), num_envs=2)
FACTORIES = {way: getattr(exploration, way) for way in ("epsilon_greedy", "boltzmann", "ucb")}
WAYS = {way: factory(SPEC) for way, factory in FACTORIES.items()}


@functools.cache
def program(way, greedy):
    def act(key, values, visits, observation, number):
        return exploration.act(key, WAYS[way], values, visits, observation, number, greedy=greedy)

    return jax.jit(jax.vmap(act, (0, None, None, None, None)))


def draw(values, number, seed=0, draws=DRAWS, way="epsilon_greedy", visits=(), observation=(), greedy=False):
    """Actions [draws, *batch], each from a key of its own."""
    keys = jax.random.split(jax.random.key(seed), draws)
    values, number = jnp.asarray(values, jnp.float32), jnp.float32(number)
    return np.asarray(program(way, greedy)(keys, values, visits, observation, number))


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


# --- how actions are drawn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_actions_are_int32_of_the_leading_shape(leading):
    actions = exploration.draw(jax.random.key(0), jnp.full((*leading, 4), 0.25))
    assert (actions.shape, actions.dtype) == (leading, jnp.int32)


def test_any_policy_is_drawn_with_its_probabilities():
    policy = np.random.default_rng(0).dirichlet(np.ones(7), size=2)
    policy = np.stack([*policy, [0, 0.5, 0, 0.2, 0, 0.3, 0], [0, 0, 0, 0, 0, 0, 1]])
    keys = jax.random.split(jax.random.key(1), DRAWS)
    actions = np.asarray(jax.vmap(exploration.draw, (0, None))(keys, jnp.asarray(policy, jnp.float32)))
    for row, probabilities in enumerate(policy):
        assert_frequencies(actions[:, row], probabilities)
    for one, other in itertools.combinations(range(3), 2):
        pairs = 7 * actions[:, one] + actions[:, other]
        assert_frequencies(pairs, np.outer(policy[one], policy[other]).reshape(-1))


@pytest.mark.parametrize(("seed", "uniform"), [(LEAST, 0.0), (GREATEST, 1 - 2.0**-23)])
def test_at_the_ends_of_the_uniform_numbers_no_action_of_probability_zero_is_drawn(seed, uniform):
    key = jax.random.key(seed)
    assert jax.random.uniform(key, ()) == uniform  # if not, jax draws differently now: other keys are needed
    rng = np.random.default_rng(2)
    policies = rng.dirichlet(np.ones(9), size=2000) * (rng.random((2000, 9)) < 0.5)
    policies = policies[policies.sum(axis=-1) > 0]
    policies /= policies.sum(axis=-1, keepdims=True)
    policies = np.concatenate([policies, np.eye(9), policies * (1 - 1e-6)]).astype(np.float32)
    with jax.debug_nans(True):
        actions = np.asarray(jax.vmap(exploration.draw, (None, 0))(key, jnp.asarray(policies)))
    possible = policies > 0
    assert np.take_along_axis(possible, actions[:, None], axis=-1).all()
    if uniform == 0:
        np.testing.assert_array_equal(actions, possible.argmax(axis=-1))  # the first there is


# --- epsilon-greedy -------------------------------------------------------------------------------------------------


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
        ([1.0, 2.0], -0.5, [0, 1]),  # beyond [0, 1] it counts as the nearer end
        ([1.0, 2.0], 1.5, [0.5, 0.5]),
        ([4.0], 0.3, [1]),
        ([0.0, -0.0, -1.0], 0.0, [0.5, 0.5, 0]),  # zero and minus zero tie
    ],
)
def test_epsilon_greedy_actions_are_drawn_with_their_probabilities(values, epsilon, probabilities):
    assert_frequencies(draw(values, epsilon), probabilities)
    np.testing.assert_allclose(epsilon_greedy_policy(jnp.array(values), epsilon), probabilities, atol=1e-6)


@pytest.mark.parametrize(("epsilon", "probabilities"), [(0.0, [0, 1, 0]), (1.0, [1 / 3] * 3)])
def test_epsilon_can_be_a_number_of_the_program(epsilon, probabilities):
    values = jnp.array([0.0, 2.0, 1.0])
    keys = jax.random.split(jax.random.key(0), DRAWS)

    def act(key):
        return exploration.act(key, WAYS["epsilon_greedy"], values, (), (), epsilon, greedy=False)

    with jax.debug_nans(True):
        actions = jax.jit(jax.vmap(act))(keys)
    assert_frequencies(np.asarray(actions), probabilities)


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
    # 0 / 0 must not be computed even where it is not chosen.
    with jax.debug_nans(True):
        # Not jitted: of a program only the outputs are checked.
        action = exploration.act(
            jax.random.key(LEAST), WAYS["epsilon_greedy"], jnp.zeros(1), (), (), jnp.float32(0.0), greedy=False
        )
    assert action == 0


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
    np.testing.assert_allclose(policy, [[0, 0.5, 0.5], [0.8, 0.1, 0.1]], rtol=1e-6)


# --- Boltzmann ------------------------------------------------------------------------------------------------------


def softmax(preferences):
    weights = np.exp(preferences - np.max(preferences, axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_boltzmann_actions_are_drawn_by_the_softmax_of_values_over_temperature(temperature):
    values = np.array([[0.0, 1.0, -1.0, 0.5], [100.0, 100.5, 99.0, 101.0], [2.0, 2.0, 2.0, 2.0]])
    expected = softmax(values / temperature)
    actions = draw(values, temperature, way="boltzmann")
    for row in range(3):
        assert_frequencies(actions[:, row], expected[row])
    np.testing.assert_allclose(boltzmann_policy(jnp.asarray(values, jnp.float32), temperature), expected, rtol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e-38, 1e-6, -1.0])
def test_without_temperature_boltzmann_is_greedy_with_even_ties(temperature):
    values = jnp.array([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0], [-1.0, -0.5, -2.0, -0.75], [0.0, 1e30, 0.0, 1e30]])
    with jax.debug_nans(True):
        policy = boltzmann_policy(values, jnp.float32(temperature))
    np.testing.assert_array_equal(policy, [[0, 0.5, 0.5, 0], [0.25] * 4, [0, 1, 0, 0], [0, 0.5, 0, 0.5]])
    np.testing.assert_array_equal(policy, greedy_policy(values))


def test_without_temperature_the_least_difference_decides():
    values = jnp.array([1.0, np.nextafter(np.float32(1), np.float32(2)), 1.0])
    np.testing.assert_array_equal(boltzmann_policy(values, jnp.float32(0.0)), [0, 1, 0])


def test_at_great_temperatures_boltzmann_is_uniform():
    for temperature in (1e6, 1e30, np.inf):
        policy = boltzmann_policy(jnp.array([3.0, -1.0, 0.0, 7.0]), jnp.float32(temperature))
        np.testing.assert_allclose(policy, [0.25] * 4, atol=1e-5)


# --- UCB ------------------------------------------------------------------------------------------------------------


def test_ucb_tries_first_what_was_not_tried_evenly():
    values = [[9.0, 0.0, 1.0, 9.0], [9.0, 0.0, 1.0, 2.0], [0.0, 0.0, 5.0, 0.0]]
    table = jnp.array([[3, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]], jnp.int32)
    expected = [[0, 0.5, 0.5, 0], [0.25] * 4, [0, 0, 0, 1]]
    for c in (0.0, 1.0, 1e30):
        with jax.debug_nans(True):
            policy = ucb_policy(jnp.array(values), table, jnp.float32(c))
        np.testing.assert_array_equal(policy, expected)
    # As an agent draws: the visits of all states, and the observations of its environments.
    actions = draw(values, 1.0, way="ucb", visits=table, observation=jnp.array([0, 1, 2]))
    for row in range(3):
        assert_frequencies(actions[:, row], expected[row])


def test_ucb_then_takes_the_best_by_the_equation_of_the_book():
    rng = np.random.default_rng(3)
    values, visits = rng.normal(size=(200, 5)).astype(np.float32), rng.integers(1, 40, size=(200, 5)).astype(np.int32)
    for c in (0.3, 1.0, 5.0):
        policy = np.asarray(ucb_policy(jnp.asarray(values), jnp.asarray(visits), c))
        changed = 0
        for row in range(200):
            bounds = [
                values[row, action] + c * np.sqrt(np.log(visits[row].sum()) / visits[row, action])
                for action in range(5)
            ]
            np.testing.assert_array_equal(policy[row], np.eye(5)[np.argmax(bounds)])
            changed += np.argmax(bounds) != np.argmax(values[row])
        assert changed > 5  # or the bonus decided nothing


def test_ucb_breaks_ties_evenly_and_without_c_is_greedy():
    visits = jnp.array([[4, 4, 1], [7, 2, 2]], jnp.int32)
    values = jnp.array([[1.0, 1.0, -9.0], [3.0, 3.0, 3.0]])
    np.testing.assert_array_equal(ucb_policy(values, visits, 1.0), [[0.5, 0.5, 0], [0, 0.5, 0.5]])
    np.testing.assert_array_equal(ucb_policy(values, visits, 0.0), greedy_policy(values))
    # One visit in all: its logarithm is zero, and the other actions come first.
    np.testing.assert_array_equal(ucb_policy(jnp.zeros(3), jnp.array([0, 1, 0], jnp.int32), 2.0), [0.5, 0, 0.5])
    np.testing.assert_array_equal(ucb_policy(jnp.zeros(1), jnp.array([1], jnp.int32), 2.0), [1])


def rollout_of(observation, action):
    observation, action = jnp.asarray(observation, jnp.int32), jnp.asarray(action, jnp.int32)
    no = jnp.zeros(action.shape, bool)
    steps = Transition(
        observation=observation,
        action=action,
        reward=jnp.zeros(action.shape),
        terminated=no,
        truncated=no,
        next_observation=jnp.full(action.shape, 3, jnp.int32),
    )
    return Rollout(steps=steps, memory=())


def test_ucb_counts_every_visit_of_a_state_and_action():
    rng = np.random.default_rng(4)
    visits, expected = WAYS["ucb"].init(), np.zeros((4, 3), int)
    assert (visits.shape, visits.dtype) == ((4, 3), jnp.int32)
    np.testing.assert_array_equal(visits, expected)
    observe = jax.jit(WAYS["ucb"].observe)
    for time in (1, 20):  # twenty steps of two environments meet many of the twelve pairs again
        for _ in range(3):
            observation, action = rng.integers(3, size=(time, 2)), rng.integers(2, size=(time, 2))
            visits = observe(visits, rollout_of(observation, action))
            for pair in zip(observation.flat, action.flat, strict=True):
                expected[pair] += 1
            np.testing.assert_array_equal(visits, expected)
    assert visits.dtype == jnp.int32
    assert np.sum(visits) == 2 * 3 * 21
    assert not visits[3].any()  # where they arrived, nothing was done


def test_the_other_ways_remember_nothing():
    for way in ("epsilon_greedy", "boltzmann"):
        assert WAYS[way].init() == ()
        assert FACTORIES[way](SPEC._replace(observation=Box((2,), np.float32, 0, 1))).init() == ()
        assert WAYS[way].observe((), rollout_of([[0, 1]], [[0, 1]])) == ()


def test_ucb_refuses_what_it_cannot_count_by_name():
    box = Box(shape=(2,), dtype=np.float32, low=0, high=1)
    with pytest.raises(ValueError, match=r"ucb, which counts visits, needs a discrete observation space.*Box\(shape"):
        exploration.ucb(SPEC._replace(observation=box))
    with pytest.raises(ValueError, match=r"ucb needs a discrete action space.*Box\(shape=\(2,\)"):
        exploration.ucb(SPEC._replace(action=box))


# --- all of them ----------------------------------------------------------------------------------------------------


VALUES = np.float32(
    [
        [-np.inf, 1.0, 1.0, 0.0],
        [0.0, -np.inf, -np.inf, -np.inf],
        [-np.inf, -3e38, 3e38, 0.0],
        [np.inf, 0.0, -np.inf, np.inf],
        [1.0, 2.0, 3.0, 2.0],
    ]
)
VISITS = jnp.array([[0, 0, 3, 2], [5, 0, 1, 0], [0, 1, 1, 1], [0, 2, 0, 1], [4, 5, 6, 7]], jnp.int32)
STATES = jnp.arange(5)


def policy_of(way, number):
    return WAYS[way].policy(jnp.asarray(VALUES), VISITS if way == "ucb" else (), STATES, jnp.float32(number))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", [0.0, 0.3, 1.0, 50.0])
def test_an_action_of_value_minus_infinity_is_never_chosen(way, number):
    with jax.debug_nans(True):
        policy = np.asarray(jax.jit(policy_of, static_argnums=0)(way, number))
    assert np.isfinite(policy).all()
    assert (policy >= 0).all()
    np.testing.assert_array_equal(policy[-np.inf == VALUES], 0)
    np.testing.assert_allclose(policy.sum(axis=-1), 1.0, atol=1e-6)
    actions = draw(VALUES, number, draws=4000, way=way, visits=VISITS if way == "ucb" else (), observation=STATES)
    for row in range(5):
        assert (VALUES[row, actions[:, row]] > -np.inf).all()
        assert_frequencies(actions[:, row], policy[row])


def test_masked_actions_share_in_nothing():
    # Probabilities are what they would be if there were only the others.
    masked, others = jnp.array([0.5, -jnp.inf, 1.0, 1.0, -jnp.inf]), jnp.array([0.5, 1.0, 1.0])
    visits = jnp.array([4, 0, 2, 0, 1], jnp.int32)
    here = np.array([0, 2, 3])
    for one, other in [
        (epsilon_greedy_policy(masked, 0.3), epsilon_greedy_policy(others, 0.3)),
        (boltzmann_policy(masked, 0.7), boltzmann_policy(others, 0.7)),
        (ucb_policy(masked, visits, 1.0), ucb_policy(others, visits[here], 1.0)),
        (greedy_policy(masked), greedy_policy(others)),
    ]:
        np.testing.assert_allclose(one[here], other, rtol=1e-6)
        assert one[1] == one[4] == 0
    np.testing.assert_allclose(epsilon_greedy_policy(masked, 0.3), [0.1, 0, 0.45, 0.45, 0], rtol=1e-6)
    np.testing.assert_array_equal(ucb_policy(masked, visits, 1.0), [0, 0, 0, 1, 0])


@pytest.mark.parametrize("way", WAYS)
def test_where_all_actions_are_masked_the_policy_is_still_one(way):
    visits = jnp.array([[2, 0, 1]], jnp.int32) if way == "ucb" else ()
    nothing = jnp.full((1, 3), -jnp.inf)
    with jax.debug_nans(True):
        policy = jax.jit(WAYS[way].policy)(nothing, visits, jnp.array([0]), jnp.float32(0.5))
    np.testing.assert_allclose(policy, [[1 / 3] * 3], rtol=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_the_number_can_be_traced_and_vmapped(way):
    numbers = np.float32([0.0, 0.1, 1.0, 50.0])
    together = jax.jit(jax.vmap(functools.partial(policy_of, way)))(jnp.asarray(numbers))
    assert together.shape == (4, 5, 4)
    for number, policy in zip(numbers, together, strict=True):
        np.testing.assert_allclose(policy, policy_of(way, number), rtol=1e-5, atol=1e-7)
    assert np.abs(together[0, 4] - together[3, 4]).max() > 0.1  # or it does not matter


@pytest.mark.parametrize("way", WAYS)
def test_greedily_the_best_are_drawn_evenly_whatever_the_number(way):
    visits = jnp.array([[1, 2, 0, 4]], jnp.int32) if way == "ucb" else ()
    actions = draw([[2.0, 5.0, 1.0, 5.0]], 9.0, way=way, visits=visits, observation=jnp.array([0]), greedy=True)
    assert_frequencies(actions[:, 0], [0, 0.5, 0, 0.5])


def test_the_greedy_policy_is_uniform_over_the_best():
    policy = greedy_policy(jnp.array([[1.0, 3.0, 3.0], [-jnp.inf, -jnp.inf, 2.0], [jnp.inf, 1.0, jnp.inf]]))
    np.testing.assert_array_equal(policy, [[0, 0.5, 0.5], [0, 0, 1], [0.5, 0, 0.5]])
    assert policy.dtype == jnp.float32


# --- schedules ------------------------------------------------------------------------------------------------------


def schedule_of(schedule, counts, **ends):
    numbers = {name: jnp.float32(number) for name, number in ends.items()}
    return np.asarray(jax.vmap(lambda count: schedule(count, **numbers))(jnp.asarray(counts, jnp.int32)))


def test_the_linear_schedule_is_a_line_between_its_ends_and_stays_at_the_last():
    schedule = schedule_of(linear_schedule, [0, 25, 50, 100, 101, 2**31 - 1], start=1.0, end=0.2, horizon=100)
    np.testing.assert_allclose(schedule, [1.0, 0.8, 0.6, 0.2, 0.2, 0.2], rtol=1e-6)
    assert schedule[0] == 1.0


def test_the_linear_schedule_can_rise():
    schedule = schedule_of(linear_schedule, [0, 1, 4, 9], start=0.1, end=0.5, horizon=4)
    np.testing.assert_allclose(schedule, [0.1, 0.2, 0.5, 0.5], rtol=1e-6)


def test_a_linear_schedule_without_horizon_is_over_at_the_first_update():
    with jax.debug_nans(True):
        schedule = schedule_of(linear_schedule, [0, 1, 2], start=1.0, end=0.05, horizon=0)
    np.testing.assert_allclose(schedule, [1.0, 0.05, 0.05], rtol=1e-6)


@pytest.mark.parametrize(("start", "end"), [(1.0, 0.2), (0.1, 3.0), (0.5, 0.5)])
@pytest.mark.parametrize("horizon", [1, 40, 1e6])
def test_the_exponential_schedule_is_its_closed_form(start, end, horizon):
    counts = np.array([0, 1, 2, 40, 120, 4000, 2**31 - 1])
    schedule = schedule_of(exponential_schedule, counts, start=start, end=end, horizon=horizon)
    np.testing.assert_allclose(schedule, end + (start - end) * np.exp(-counts / horizon), rtol=1e-5)
    assert schedule[0] == pytest.approx(start, rel=1e-6)


def test_the_exponential_schedule_is_near_its_end_after_three_horizons():
    schedule = schedule_of(exponential_schedule, [300], start=1.0, end=0.0, horizon=100)
    np.testing.assert_allclose(schedule, 0.05, atol=0.001)


def test_an_exponential_schedule_without_horizon_is_finite_and_soon_over():
    with jax.debug_nans(True):
        schedule = schedule_of(exponential_schedule, [0, 1, 20], start=1.0, end=0.05, horizon=0)
    np.testing.assert_allclose(schedule, 0.05 + 0.95 * np.exp([0.0, -1.0, -20.0]), rtol=1e-5)


@pytest.mark.parametrize("schedule", [linear_schedule, exponential_schedule])
@pytest.mark.parametrize("horizon", [0, 7, 300])
def test_schedules_are_monotone_and_between_their_ends(schedule, horizon):
    falling = schedule_of(schedule, np.arange(500), start=2.0, end=0.5, horizon=horizon)
    rising = schedule_of(schedule, np.arange(500), start=0.5, end=2.0, horizon=horizon)
    for numbers, sign in ((falling, -1), (rising, 1)):
        assert (sign * np.diff(numbers) >= 0).all()
        assert (numbers >= 0.5 - 1e-6).all()
        assert (numbers <= 2.0 + 1e-6).all()
        assert sign * (numbers[-1] - numbers[0]) > 1.2


def test_an_action_of_probability_zero_is_not_drawn_among_thousands():
    """Long sums are not taken in order: they can rise by a rounding where nothing is added."""
    rng = np.random.default_rng(0)
    masked = rng.random(4672) < 0.4
    policy = boltzmann_policy(jnp.where(masked, -jnp.inf, rng.normal(size=4672).astype(np.float32)), 1.0)
    reached = np.asarray(jnp.cumsum(policy))
    before = np.append(np.float32(0), np.maximum.accumulate(reached)[:-1])
    at_a_rise = before[masked & (reached > before)] / reached[-1]
    assert at_a_rise.size > 10
    uniform = jnp.asarray(np.append(at_a_rise, np.arange(4096) / 4096), jnp.float32)
    actions = np.asarray(jax.lax.map(lambda number: exploration.pick(number, policy), uniform))
    assert not masked[actions].any()
    assert_frequencies(actions[-4096:] // 400, np.bincount(np.arange(4672) // 400, policy))


@pytest.mark.parametrize("temperature", [0.0, 1e-45, 1e38, np.inf])
def test_extreme_temperatures_leave_masks_alone(temperature):
    policy = boltzmann_policy(jnp.array([-jnp.inf, 0.0, 1.0]), jnp.float32(temperature))
    np.testing.assert_allclose(policy, [0, 0, 1] if temperature < 1 else [0, 0.5, 0.5], atol=1e-6)
