"""Each agent that learns a table against its loop, against rlax, and against numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from agents.tables_by_the_book import (
    AGENTS,
    VARIANTS,
    WAITING,
    assert_by_the_book,
    by_the_book,
    joined,
    learn,
    made,
    path,
    record,
    spec_of,
    tables_of,
)

from purerl.base import cast_hypers

LENGTH, NUM_ENVS, SEEDS = 20, 3, (0, 1, 2)
SIZES = 3, 3  # one shape for all random experience: what is compiled for one test serves the others
NUMBERS = {"learning_rate": 0.4, "discount": 0.9, "exploration": 0.3, "initial_value": 0.5}
ENDINGS = [(True, False), (False, True), (True, True)]


def numbers_of(name):
    return NUMBERS | ({"trace_decay": 0.8} if "lambda" in name else {})


def random_experience(seed, masked=()):
    return record(LENGTH, NUM_ENVS, seed, SIZES, masked)


# --- the loops ------------------------------------------------------------------------------------------------------


def test_the_experience_holds_all_that_can_happen():
    records = [random_experience(seed) for seed in SEEDS]
    ends = {pair for one in records for pair in zip(one["terminated"].ravel(), one["truncated"].ravel(), strict=True)}
    assert len(ends) == 4
    cells = [3 * one["observation"] + one["action"] for one in records]
    assert any(len(set(row)) < NUM_ENVS for one in cells for row in one), "no environments meet"
    running, longest = np.zeros((len(SEEDS), NUM_ENVS)), 0
    for ended in np.stack([one["terminated"] | one["truncated"] for one in records], axis=1):
        running += 1
        longest = max(longest, running.max())
        running[ended] = 0
    assert longest > 5, "no transition ever has five others after it"


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_agent_is_the_book_s_however_the_experience_is_cut(name):
    for seed in SEEDS:
        experience, states = random_experience(seed), []
        for chunk in (1, 5, LENGTH):
            state, errors = learn(name, experience, chunk, sizes=SIZES, **numbers_of(name))
            book = by_the_book(name, experience, chunk, sizes=SIZES, **numbers_of(name))
            assert_by_the_book(state, errors, book, chunk)
            states.append(state)
        # Not to rounding but to the bit; only double Q-learning tosses other coins where the cuts are others.
        if name != "double_q_learning":
            jax.tree.map(np.testing.assert_array_equal, *states[:2])
            jax.tree.map(np.testing.assert_array_equal, *states[1:])


@pytest.mark.parametrize("chunk", [1, LENGTH])
@pytest.mark.parametrize("name", VARIANTS)
def test_learning_around_masked_actions_is_the_book_s_and_never_nan(name, chunk):
    # The cell of what waits in an empty place is (0, 0), which is masked here.
    values = [[-np.inf, 1, 2], [3, -np.inf, -np.inf], [1, 1, -np.inf]]
    masked = {tuple(cell) for cell in np.argwhere(np.isinf(values))}
    for seed in SEEDS:
        experience = random_experience(seed, masked)
        more = {"values": values} | numbers_of(name)
        state, errors = learn(name, experience, chunk, **more)
        assert_by_the_book(state, errors, by_the_book(name, experience, chunk, **more), chunk)
        assert all(np.array_equal(np.isinf(table), np.isinf(values)) for table in tables_of(state))
        assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(state))


def test_one_step_sarsa_is_sarsa():
    for seed in SEEDS:
        experience = random_experience(seed)
        n_step, sarsa = [learn(name, experience, 5, sizes=SIZES, **NUMBERS) for name in ("1_step_sarsa", "sarsa")]
        np.testing.assert_allclose(n_step[0].values, sarsa[0].values, atol=1e-6)
        np.testing.assert_allclose(n_step[1], sarsa[1], atol=1e-6)


@pytest.mark.parametrize("name", ["sarsa_lambda", "sarsa_lambda, replacing"])
def test_sarsa_lambda_without_traces_is_sarsa(name):
    for seed in SEEDS:
        experience = random_experience(seed)
        with_traces, errors = learn(name, experience, 5, sizes=SIZES, trace_decay=0.0, **NUMBERS)
        sarsa, expected = learn("sarsa", experience, 5, sizes=SIZES, **NUMBERS)
        np.testing.assert_allclose(with_traces.values, sarsa.values, atol=1e-6)
        np.testing.assert_allclose(errors, expected, atol=1e-6)


# --- rlax -----------------------------------------------------------------------------------------------------------


def corridors(length, num_envs, actions, seed):
    """Experience in which no state comes twice: environment i walks through length * i, length * i + 1, ...

    So what is learned from one transition is not yet known to any other, as for losses of a whole trajectory.
    """
    rng = np.random.default_rng(seed)
    times, environments = np.indices((length, num_envs), np.int32)
    observation = length * environments + times
    return {
        "observation": observation,
        "action": np.int32(rng.integers(actions, size=(length, num_envs))),
        "reward": np.float32(rng.normal(size=(length, num_envs))),
        "terminated": (rng.random((length, num_envs)) < 0.25) | (times == length - 1),
        "truncated": np.zeros((length, num_envs), bool),
        "next_observation": (observation + 1) % (length * num_envs),
    }


def rlax_errors(name, step, values, judge, discount, epsilon):
    """TD errors [T] of one environment, by values [S, A]; of double Q-learning where `values` learn, judged by others.

    No action follows the last step, which terminates: any will do.
    """
    now, then = values[step["observation"]], values[step["next_observation"]]
    here = now, step["action"], step["reward"], discount
    following = jnp.append(step["action"][1:], 0)
    match name:
        case "q_learning":
            return jax.vmap(rlax.q_learning)(*here, then)
        case "expected_sarsa":
            return jax.vmap(rlax.expected_sarsa)(*here, then, jax.vmap(rlax.epsilon_greedy(epsilon).probs)(then))
        case "double_q_learning":
            return jax.vmap(rlax.double_q_learning)(*here, judge[step["next_observation"]], then)
        case "sarsa":
            return jax.vmap(rlax.sarsa)(*here, then, following)
        case "sarsa_lambda":
            return rlax.sarsa_lambda(*here, then, following, lambda_=0.8)
        case "n_step_sarsa":
            following_values = rlax.batched_index(then, following)
            returns = rlax.n_step_bootstrapped_returns(step["reward"], discount, following_values, n=3)
            return returns - rlax.batched_index(now, step["action"])


@pytest.mark.parametrize("name", AGENTS)
def test_errors_are_rlax_s(name):
    length, num_envs, actions, key = 8, 2, 3, jax.random.key(3)
    experience = corridors(length, num_envs, actions, seed=0)
    assert experience["terminated"][:-1].any()
    double = name == "double_q_learning"
    before = np.random.default_rng(1).normal(size=(2, length * num_envs, actions)).astype(np.float32)
    numbers = numbers_of(name) | {"learning_rate": 0.5}
    state, _ = learn(name, experience, length, values=before if double else before[0], key=key, **numbers)

    heads = np.asarray(jax.random.uniform(key, (length, num_envs))) < 0.5
    expected = before.copy()
    for environment in range(num_envs):
        step = {what: jnp.asarray(leaf[:, environment]) for what, leaf in experience.items()}
        discount = jnp.where(step["terminated"], 0.0, 0.9)
        for table, learns in enumerate([heads, ~heads] if double else [heads | True]):
            errors = rlax_errors(name, step, jnp.asarray(before[table]), jnp.asarray(before[1 - table]), discount, 0.3)
            cells = step["observation"], step["action"]
            expected[table][cells] += 0.5 * np.where(learns[:, environment], errors, 0.0)
    for table, values in zip(tables_of(state), expected, strict=False):
        np.testing.assert_allclose(table, values, atol=1e-6)


# --- one step -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["q_learning", "expected_sarsa"])
def test_it_bootstraps_from_what_was_just_learned(name):
    # The second environment comes from state 1 into (0, 0), which the first has just raised from 0 to .5.
    experience = joined(path((0, 0, 1), 0, terminated=True), path((1, 0, 1), 0), axis=1)
    state, _ = learn(name, experience, 1, learning_rate=0.5, discount=1.0, exploration=0.0)
    np.testing.assert_array_equal(state.values, [[0.5, 0], [0.75, 0], [0, 0]])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([8, 2, 4], 1 + 0.5 * (0.8 * 8 + 0.1 * 2 + 0.1 * 4)),
        ([2, 8, 8], 1 + 0.5 * (0.1 * 2 + 0.45 * 8 + 0.45 * 8)),
        ([3, 3, 3], 1 + 0.5 * 3),
        ([4, -np.inf, 2], 1 + 0.5 * (0.85 * 4 + 0.15 * 2)),
        ([-np.inf, 4, -np.inf], 1 + 0.5 * 4),
    ],
)
def test_expected_sarsa_expects_what_the_acting_policy_does_with_ties_and_masks(values, expected):
    values = [[0, 0, 0], values, [0, 0, 0]]
    more = {"values": values, "learning_rate": 1.0, "discount": 0.5, "exploration": 0.3}
    state, _ = learn("expected_sarsa", path((0, 1, 1), 1), 1, **more)
    np.testing.assert_allclose(state.values, [[0, expected, 0], *values[1:]], rtol=1e-6)


def test_one_table_selects_and_the_other_judges():
    # Where the first learns, it selects action 1 (9) and the second says 2; the other way, action 0 (5), said to be 3.
    values = [[[10, 0], [3, 9]], [[20, 0], [5, 2]]]
    more = {"values": values, "learning_rate": 1.0, "discount": 0.5}
    learned = set()
    for seed in range(10):
        state, (error,) = learn("double_q_learning", path((0, 0, 1), 1), 1, key=jax.random.key(seed), **more)
        learned.add((*np.array(tables_of(state))[:, 0, 0].tolist(), error))
        np.testing.assert_array_equal(np.array(tables_of(state))[:, 1], np.array(values)[:, 1])
    assert learned == {(1 + 0.5 * 2, 20, 8), (10, 1 + 0.5 * 3, 17.5)}


def test_both_tables_learn_about_half_of_the_time():
    count = 1000
    states = np.arange(count, dtype=np.int32)
    steps = [path((state, 0, 1), 0, terminated=True) for state in states]
    state, _ = learn("double_q_learning", joined(*steps, axis=1), 1, sizes=(count, 1), learning_rate=1.0)
    first, second = np.array(tables_of(state))[:, :, 0]
    np.testing.assert_array_equal(first + second, 1)
    # Four standard deviations of the binomial distribution are 63.
    assert 437 < first.sum() < 563


# --- what waits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in AGENTS or name in WAITING])
def test_nothing_waits_at_the_start(name):
    agent, _ = made(name, spec_of(3))
    state = agent.init(jax.random.key(0), cast_hypers(VARIANTS[name].hypers(initial_value=7.0)))
    assert not state.waiting.open.any()
    n = {"1_step_sarsa": (1,), "2_step_sarsa": (2,), "n_step_sarsa": (3,), "5_step_sarsa": (5,)}
    assert {leaf.shape for leaf in jax.tree.leaves(state.waiting)} == {(3, *n.get(name, ()))}
    if hasattr(state, "traces"):
        np.testing.assert_array_equal(state.traces, np.zeros((3, 3, 2), np.float32), strict=True)


def test_sarsa_s_target_holds_the_action_executed_next():
    # 0 -a0-> 1 -a1-> 2 -a0-> end; Q(1, 0) = 100 is greedy, but action 1 was executed.
    experience = path((0, 0, 1), (1, 1, 2), (2, 0, 4), 0, terminated=True)
    values = [[0, 0], [100, 10], [30, 0]]
    state, _ = learn("sarsa", experience, 1, values=values, learning_rate=1.0, discount=0.5, exploration=0.0)
    np.testing.assert_array_equal(state.values, [[1 + 5, 0], [100, 2 + 15], [4, 0]])


@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize(("terminated", "truncated"), ENDINGS)
def test_sarsa_never_learns_across_a_reset(chunk, terminated, truncated):
    # 0 -a0-> 1 -a1-> (2, end); the new episode starts in 3, whose value is huge. Policy in 2: .75 and .25 (epsilon .5).
    experience = joined(
        path((0, 0, 1), (1, 1, 2), 2, terminated=terminated, truncated=truncated), path((3, 0, 0), (3, 0, 0), 3)
    )
    values = [[0, 0], [0, 6], [8, 4], [1e9, 1e9]]
    more = {"values": values, "learning_rate": 1.0, "discount": 0.5, "exploration": 0.5}
    state, _ = learn("sarsa", experience, chunk, **more)
    last = 2.0 if terminated else 2 + 0.5 * (0.75 * 8 + 0.25 * 4)
    np.testing.assert_allclose(state.values[:3], [[1 + 0.5 * 6, 0], [0, last], [8, 4]], rtol=1e-6)


@pytest.mark.parametrize("name", ["sarsa", "1_step_sarsa", "sarsa_lambda"])
def test_a_transition_waits_for_one_update_and_is_learned_from_once(name):
    steps = path((0, 0, 1), (1, 0, 1), (2, 0, 1), 0)
    after = [
        learn(name, {k: leaf[:n] for k, leaf in steps.items()}, 1, learning_rate=0.5, discount=0.0)[0].values[:, 0]
        for n in (1, 2, 3)
    ]
    np.testing.assert_array_equal(after, [[0, 0, 0], [0.5, 0, 0], [0.5, 0.5, 0]])


@pytest.mark.parametrize("name", ["sarsa", "1_step_sarsa", "sarsa_lambda"])
def test_the_td_error_is_the_mean_per_transition(name):
    # Both kinds of learning in one step: what waited (error 1) and the episode's end (error 3), of 2 environments.
    experience = joined(path((0, 0, 1), (1, 0, 3), 0, terminated=True), path((2, 0, 0), (2, 0, 0), 2), axis=1)
    _, errors = learn(name, experience, 1, learning_rate=0.5)
    assert errors == [0, (1 + 3) / 2]


# --- n steps --------------------------------------------------------------------------------------------------------


def test_two_step_sarsa_learns_from_two_rewards_and_the_action_after_them():
    # The action executed in state 2 is worth 8, the greedy one 100; the third transition still waits for a reward.
    experience = path((0, 0, 1), (1, 1, 2), (2, 0, 4), (0, 1, 8), 1)
    values = [[0, 16], [0, 0], [8, 100]]
    state, _ = learn("2_step_sarsa", experience, 1, values=values, learning_rate=1.0, discount=0.5, exploration=0.0)
    np.testing.assert_array_equal(state.values, [[1 + 1 + 8 / 4, 16], [0, 2 + 2 + 16 / 4], [8, 100]])
    np.testing.assert_array_equal(state.waiting.reward, [[4, 8]])


def test_at_a_termination_those_that_wait_learn_from_the_rewards_there_are():
    experience = path((0, 0, 1), (1, 1, 2), (2, 0, 4), 0, terminated=True)
    values = [[64, 64], [0, 0], [0, 0]]
    state, _ = learn("5_step_sarsa", experience, 1, values=values, learning_rate=1.0, discount=0.5)
    np.testing.assert_array_equal(state.values, [[1 + 1 + 1, 64], [0, 2 + 2], [4, 0]])
    assert not state.waiting.open.any()


def test_at_a_truncation_the_successor_is_judged_after_the_oldest_and_before_the_rest():
    """0 -a0-> 1 -a0-> 2 -a0-> (0, the clock): the state judged is one whose value changes while all that wait learn.

    n steps ago: Q(0, 0) = 8 -> (8 + 1 + 1 + 16/4) / 2 = 7, the value of state 0 from then on (its action 1: 4).
    Then Q(1, 0) = 0 -> (2 + 2 + 7/4) / 2 and Q(2, 0) = 16 -> (16 + 4 + 7/2) / 2.
    """
    experience = path((0, 0, 1), (1, 0, 2), (2, 0, 4), 0, truncated=True)
    values = [[8, 4], [0, 0], [16, 0]]
    more = {"values": values, "learning_rate": 0.5, "discount": 0.5, "exploration": 0.0}
    state, errors = learn("2_step_sarsa", experience, 1, **more)
    np.testing.assert_array_equal(state.values, [[7, 4], [2.875, 0], [11.75, 0]])
    assert errors == [0, 0, 2 + 5.75 + 8.5]


def test_at_a_truncation_the_successor_is_judged_once():
    # Two that wait, n not yet reached; state 0 is worth 8 for both, although the first of them lowers it to 6.
    experience = path((0, 0, 1), (1, 0, 2), 0, truncated=True)
    more = {"values": [[8, 4], [0, 0], [0, 0]], "learning_rate": 0.5, "discount": 0.5, "exploration": 0.0}
    state, _ = learn("n_step_sarsa", experience, 1, **more)
    np.testing.assert_array_equal(state.values, [[(8 + 1 + 1 + 8 / 4) / 2, 4], [(2 + 8 / 2) / 2, 0], [0, 0]])


# --- traces ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sarsa_lambda", "sarsa_lambda, replacing"])
@pytest.mark.parametrize(
    ("terminated", "truncated", "returns"),
    [(True, False, [3, 4, 4]), (True, True, [3, 4, 4]), (False, True, [4, 6, 8])],
)
def test_with_undecayed_traces_distinct_pairs_learn_from_the_whole_return(name, terminated, truncated, returns):
    # Rewards 1, 2, 4 at discount .5, and where only the clock ended it state 3, worth 8: half of the way to the return.
    experience = path((0, 0, 1), (1, 1, 2), (2, 0, 4), 3, terminated=terminated, truncated=truncated)
    values = np.float32([[10, 0], [0, 20], [30, 0], [8, 8]])
    more = {"values": values, "learning_rate": 0.5, "discount": 0.5, "trace_decay": 1.0}
    state, _ = learn(name, experience, 1, **more)
    one, two, three = returns
    expected = [[(10 + one) / 2, 0], [0, (20 + two) / 2], [(30 + three) / 2, 0], [8, 8]]
    np.testing.assert_array_equal(state.values, expected)
    np.testing.assert_array_equal(state.traces, np.zeros((1, 4, 2)))


@pytest.mark.parametrize(("name", "expected"), [("sarsa_lambda", 2.0), ("sarsa_lambda, replacing", 1.25)])
def test_a_pair_seen_twice_counts_twice_unless_its_trace_is_replaced(name, expected):
    # First error 1: 0 -> .5. Then 2 - .5 = 1.5, by a trace of 2: .5 + .5 * 1.5 * 2; or of 1.
    experience = path((0, 0, 1), (0, 0, 2), 0, terminated=True)
    state, _ = learn(name, experience, 1, learning_rate=0.5, discount=1.0, trace_decay=1.0)
    np.testing.assert_array_equal(state.values, [[expected, 0], [0, 0], [0, 0]])


def test_a_trace_decays_by_discount_and_lambda():
    # Errors 1, 2, 4 (the values are 0 and stay so at the next pair): the first pair has .25 and then .25^2 of them.
    experience = path((0, 0, 1), (1, 0, 2), (2, 0, 4), 0)
    more = {"learning_rate": 1.0, "discount": 0.5, "trace_decay": 0.5}
    state, _ = learn("sarsa_lambda", joined(experience, path((0, 1, 0), 0)), 1, **more)
    np.testing.assert_array_equal(state.values, [[1 + 2 / 4 + 4 / 16, 0], [2 + 4 / 4, 0], [4, 0]])
    np.testing.assert_array_equal(state.traces, [[[1 / 64, 0], [1 / 16, 0], [1 / 4, 0]]])


def test_an_environment_s_errors_move_its_own_pairs_only():
    # Two environments in turn, each with one pair behind it: the error 1 of one must not reach the other's pair.
    experience = joined(
        path((0, 0, 0), (1, 0, 1), 0, terminated=True), path((0, 1, 0), (1, 1, 8), 0, truncated=True), axis=1
    )
    more = {"learning_rate": 1.0, "discount": 1.0, "trace_decay": 1.0, "exploration": 0.0}
    state, _ = learn("sarsa_lambda", experience, 1, **more)
    # The first ends with error 1 for both its pairs, then the second with 8 + max(1, 0), from state 0.
    np.testing.assert_array_equal(state.values, [[1, 9], [1, 9], [0, 0]])
