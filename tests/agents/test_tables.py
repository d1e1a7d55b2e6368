"""What all agents that learn a table have in common."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.tables_by_the_book import (
    AGENTS,
    VARIANTS,
    WAITING,
    heads,
    joined,
    learn,
    made,
    path,
    record,
    rollout_of,
    spec_of,
    tables_of,
    with_tables,
)

from purerl import envs, exploration, loop, tables
from purerl.base import Box, Discrete, Spec, cast_hypers

ENDINGS = [(True, False), (False, True), (True, True)]
# Those in whose targets the policy stands: everywhere, or where the clock ended the episode.
ON_POLICY = ["sarsa", "expected_sarsa", "n_step_sarsa", "sarsa_lambda"]


def first_table(name, experience, **more):
    """The table after one update; of double Q-learning the first one, which alone learns."""
    state, _ = learn(name, experience, len(experience["reward"]), key=heads(*experience["reward"].shape), **more)
    return tables_of(state)[0]


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_the_state_starts_from_the_initial_value(name):
    agent, _ = made(name, spec_of(3))
    state = agent.init(jax.random.key(0), cast_hypers(AGENTS[name].hypers(initial_value=7.0)))
    for table in tables_of(state):
        np.testing.assert_array_equal(table, np.full((3, 2), 7.0, np.float32), strict=True)
    assert state.visits == ()


@pytest.mark.parametrize("name", AGENTS)
def test_environments_that_meet_in_one_cell_each_count_in_turn(name):
    # Rewards 1 and 3 at rate .5: 0 -> .5 -> 1.75. Summed it would be 2, the last one alone 1.5, the other order 1.25.
    experience = joined(*[path((0, 0, reward), 0, terminated=True) for reward in (1, 3)], axis=1)
    np.testing.assert_array_equal(first_table(name, experience, learning_rate=0.5), [[1.75, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(("terminated", "truncated"), ENDINGS)
def test_a_truncated_episode_bootstraps_and_a_terminated_one_does_not(name, terminated, truncated):
    # At rate 1 the value becomes the target: 1, or 1 + .9 * 10 with either action worth 10 in state 1.
    experience = path((0, 0, 1), 1, terminated=terminated, truncated=truncated)
    values = [[0, 0], [10, 10], [0, 0]]
    table = first_table(name, experience, values=values, learning_rate=1.0, discount=0.9)
    assert table[0, 0] == pytest.approx(1.0 if terminated else 10.0)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("terminated", "truncated"), ENDINGS)
def test_nothing_is_learned_across_the_end_of_an_episode(name, terminated, truncated):
    """Two episodes with states of their own: neither the rewards nor the values of one show in the other's."""
    values = np.random.default_rng(0).normal(size=(6, 2))

    def both(scales):
        first = path((0, 0, scales[0]), (1, 1, 2), (0, 0, 3), 2, terminated=terminated, truncated=truncated)
        second = path((3, 1, scales[1]), (4, 0, 2), (3, 1, 3), 5, terminated=True)
        scaled = values * np.repeat(scales, 3)[:, None]
        numbers = {"values": scaled, "learning_rate": 0.5, "discount": 0.9, "exploration": 0.3}
        return tables_of(learn(name, joined(first, second), 1, **numbers)[0])

    for table, other_second, other_first in zip(both([1, 1]), both([1, 1e6]), both([1e6, 1]), strict=True):
        np.testing.assert_array_equal(table[:3], other_second[:3])
        np.testing.assert_array_equal(table[3:], other_first[3:])
        assert not np.array_equal(table, values.astype(np.float32))


@pytest.mark.parametrize("name", AGENTS)
def test_observing_and_learning_leave_to_each_other_what_is_theirs(name):
    agent, update = made(name, spec_of(3), exploration.ucb)
    hypers = cast_hypers(AGENTS[name].hypers(initial_value=1.0))
    state, experience = agent.init(jax.random.key(0), hypers), rollout_of(record(5, 3, seed=0))
    observed = agent.observe(state, experience, hypers)
    jax.tree.map(np.testing.assert_array_equal, dataclasses.replace(observed, visits=state.visits), state)
    learned, _ = update(jax.random.key(0), observed, experience, hypers)
    np.testing.assert_array_equal(learned.visits, observed.visits)
    assert observed.visits.sum() == 15
    assert not np.array_equal(tables_of(learned), tables_of(observed))


@pytest.mark.parametrize("name", ON_POLICY)
@pytest.mark.parametrize(
    ("explore", "number", "judgment"),
    [
        # e^(0 / 2) to e^(4.394 / 2) is 1 to 9.
        (exploration.boltzmann, 2.0, 0.9 * 2 * np.log(9)),
        # Of state 1 only action 1 was tried, which is better; of state 0 only action 0. State 1 is judged by its 0.
        (exploration.ucb, 1.0, 0.0),
    ],
    ids=["boltzmann", "ucb"],
)
def test_the_policy_in_the_target_is_the_one_that_acts_in_the_successor(name, explore, number, judgment):
    # The first steps only count as visits: their reward is what they are worth already.
    visits = path((1, 1, 2 * np.log(9)), 0, terminated=True)
    experience = joined(visits, path((0, 0, 1), 1, truncated=True))
    more = {"values": [[0, 0], [0, 2 * np.log(9)], [0, 0]], "explore": explore, "observe": True}
    table = first_table(name, experience, learning_rate=1.0, discount=0.5, exploration=number, **more)
    assert table[0, 0] == pytest.approx(1 + 0.5 * judgment, rel=1e-5)


# --- acting ---------------------------------------------------------------------------------------------------------

DRAWS = 10_000


@functools.cache
def drawing(name, spec, explore):
    agent, _ = made(name, spec, explore)
    observation = jnp.arange(spec.num_envs, dtype=jnp.int32)

    def draw(key, state, hypers):
        return [agent.act(key, state, (), observation, hypers, greedy=greedy)[0] for greedy in (False, True)]

    return jax.jit(jax.vmap(draw, (0, None, None)))


def frequencies(name, values, *, number=0.0, explore=exploration.epsilon_greedy, visits=None):
    """How often each action is drawn [S, A] by tables that hold `values`: by the policy that explores, and greedily."""
    *_, states, actions = np.shape(values)
    spec, hypers = spec_of(states, states, actions), cast_hypers(AGENTS[name].hypers(exploration=number))
    state = with_tables(made(name, spec, explore)[0].init(jax.random.key(0), hypers), values)
    if visits is not None:
        state = dataclasses.replace(state, visits=jnp.int32(visits))
    both = drawing(name, spec, explore)(jax.random.split(jax.random.key(1), DRAWS), state, hypers)
    return [
        np.stack([np.bincount(column, minlength=actions) for column in np.asarray(drawn).T]) / DRAWS for drawn in both
    ]


def assert_frequencies(found, probabilities):
    # Four standard deviations of a half are .02; what has no chance is not drawn once.
    np.testing.assert_allclose(found, probabilities, atol=0.02)
    assert (found[np.array(probabilities) == 0] == 0).all()


TABLE = [[1.0, 0.0, 0.5], [0.0, 1.0, 1.0], [-np.inf, 2.0, 2.5], [-np.inf, -np.inf, 0.0]]
GREEDY = [[1, 0, 0], [0, 0.5, 0.5], [0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("name", AGENTS)
def test_the_agent_acts_epsilon_greedily_by_its_table(name):
    exploring, greedy = frequencies(name, TABLE, number=0.3)
    assert_frequencies(exploring, [[0.8, 0.1, 0.1], [0.1, 0.45, 0.45], [0, 0.15, 0.85], [0, 0, 1]])
    assert_frequencies(greedy, GREEDY)


@pytest.mark.parametrize("name", AGENTS)
def test_the_agent_acts_by_the_softmax_of_its_values(name):
    powers = np.exp(np.array(TABLE) / 0.5)
    exploring, greedy = frequencies(name, TABLE, number=0.5, explore=exploration.boltzmann)
    assert_frequencies(exploring, powers / powers.sum(axis=1, keepdims=True))
    assert_frequencies(greedy, GREEDY)


@pytest.mark.parametrize("name", AGENTS)
def test_by_ucb_what_was_not_tried_comes_first_and_masked_actions_never(name):
    # Where all were tried 4, 1 and 1 times of 6: 1 + c .669, 0 + c 1.339, .5 + c 1.339, which is the most with c = 1.
    visits = [[4, 1, 1], [9, 9, 0], [0, 0, 9], [0, 0, 9]]
    exploring, greedy = frequencies(name, TABLE, number=1.0, explore=exploration.ucb, visits=visits)
    assert_frequencies(exploring, [[0, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 1]])
    assert_frequencies(greedy, GREEDY)
    # With c = .5: 1.335, .669, 1.169.
    exploring, _ = frequencies(name, TABLE, number=0.5, explore=exploration.ucb, visits=visits)
    np.testing.assert_array_equal(exploring[0], [1, 0, 0])


@pytest.mark.parametrize("name", AGENTS)
def test_observing_counts_the_visits_of_ucb(name):
    agent, _ = made(name, spec_of(3), exploration.ucb)
    hypers = cast_hypers(AGENTS[name].hypers())
    state = agent.init(jax.random.key(0), hypers)
    np.testing.assert_array_equal(state.visits, np.zeros((3, 2), np.int32), strict=True)
    expected = np.zeros((3, 2), np.int32)
    for seed in range(2):
        experience = record(10, 3, seed)
        np.add.at(expected, (experience["observation"], experience["action"]), 1)
        state = agent.observe(state, rollout_of(experience), hypers)
    np.testing.assert_array_equal(state.visits, expected, strict=True)


def test_double_q_learning_acts_by_the_mean_of_its_tables():
    # The means are [.5, 2] and [2, 3], although in the first state one table, and the larger value, is for action 0.
    both = np.array([[[5.0, 0.0], [2.0, 3.0]], [[-4.0, 4.0], [2.0, 3.0]]])
    for values in (both, both[::-1]):
        exploring, greedy = frequencies("double_q_learning", values, number=1.0, explore=exploration.boltzmann)
        np.testing.assert_array_equal(greedy, [[0, 1], [0, 1]])
        # The sums would be twice as far apart.
        powers = np.exp([[0.5, 2], [2, 3]])
        assert_frequencies(exploring, powers / powers.sum(axis=1, keepdims=True))


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_continuous_spaces_are_refused_by_name(name):
    box = Box(shape=(2,), dtype=np.float32, low=0, high=1)
    with pytest.raises(ValueError, match=rf"^{name} needs a discrete observation space.*Box"):
        AGENTS[name].make(Spec(observation=box, action=Discrete(2), num_envs=1))
    with pytest.raises(ValueError, match=rf"^{name} needs a discrete action space.*Box"):
        AGENTS[name].make(Spec(observation=Discrete(2), action=box, num_envs=1))


@pytest.mark.parametrize("name", AGENTS)
def test_only_what_keeps_something_of_every_environment_refuses_another_number_of_them(name):
    agent, update = made(name, spec_of(3))
    hypers = cast_hypers(AGENTS[name].hypers())
    state = agent.init(jax.random.key(0), hypers)
    for num_envs in (1, 4):
        arguments = jax.random.key(0), state, rollout_of(record(5, num_envs, seed=0)), hypers
        if name in WAITING:
            with pytest.raises(ValueError, match=rf"^{name} was made for 3 environments .* a rollout of {num_envs}\b"):
                update(*arguments)
        else:
            learned, _ = update(*arguments)
            assert not np.array_equal(tables_of(learned), tables_of(state))


@pytest.mark.parametrize("n", [0, -1])
def test_n_below_one_is_refused(n):
    with pytest.raises(ValueError, match=rf"^n is {n}; it takes a whole number of at least 1$"):
        AGENTS["n_step_sarsa"].make.func(spec_of(1), n=n)


# --- what it costs --------------------------------------------------------------------------------------------------


# SARSA(lambda) is left out: it moves all of its table in every step anyway.
@pytest.mark.parametrize("name", [name for name in AGENTS if name != "sarsa_lambda"])
def test_a_step_of_the_loop_copies_no_table(name):
    """A step costs the same whatever the table's size; a value read both before and after a write would copy it."""
    make, hypers = AGENTS[name].make, tables.Hypers()
    env = envs.make("CliffWalking-purerl", 1)
    agent = make(env.spec)

    def train(key, hypers):
        return loop.train(key, agent, env, hypers, iterations=100, rows=2)

    text = jax.jit(train).lower(jax.random.key(0), cast_hypers(hypers)).compile().as_text()
    # What is done once, before the loop, may copy: the second table of double Q-learning starts as a copy.
    in_loops, once = text.split("\nENTRY ")
    once, *rest = once.split("\n}\n")
    assert "f32[48,4]" in in_loops
    assert not re.findall(r"f32\[48,4\]\S* copy\(", in_loops + "".join(rest))
