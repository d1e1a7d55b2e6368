"""QAC on tables against a slow loop over transitions in float64, its gradient by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.mdps import (
    Adam,
    begun,
    descending,
    entropy,
    entropy_slope,
    moves_of,
    pieces,
    policy_table,
    score,
    softmax,
    tables_of,
    value_table,
)
from agents.tables_by_the_book import joined, path, record, rollout_of, spec_of
from probes import Walk
from scipy import stats

from purerl import envs, loop
from purerl.agents import q_actor_critic
from purerl.base import Box, Network, cast_hypers
from purerl.distributions import Categorical

STATES, ACTIONS, NUM_ENVS = 3, 3, 3
SEEDS = 0, 1
LENGTH = 30
LOGITS = np.array([[0.3, -0.2, 0.1], [-0.5, 0.0, 0.4], [0.2, 0.6, -0.1]])
VALUES = np.array([[0.5, -1.0, 0.8], [1.0, 0.3, -0.4], [-0.7, 0.2, 0.9]])
ENDINGS = [(True, False), (False, True), (True, True)]

# Not so small an epsilon, because Adam by itself is blind to a factor of all gradients.
GENERIC = q_actor_critic.Hypers(
    learning_rate=0.2,
    learning_rate_end_fraction=0.25,
    learning_rate_horizon=12.0,
    max_gradient_norm=0.3,
    adam_b1=0.8,
    adam_b2=0.95,
    adam_eps=0.3,
    critic_speed=3.0,
    discount=0.9,
    entropy_weight=0.2,
)
PLAIN = descending(q_actor_critic.Hypers, discount=0.5, critic_speed=1.0)


@functools.cache
def made(num_envs=NUM_ENVS):
    """An agent and its compiled update, made once."""
    spec = spec_of(num_envs, STATES, ACTIONS)
    agent = q_actor_critic.q_actor_critic(spec, policy_table(STATES, ACTIONS), value_table(STATES, ACTIONS))
    return agent, jax.jit(agent.update)


def random_experience(seed):
    return record(LENGTH, NUM_ENVS, seed, (STATES, ACTIONS))


class Book:
    """The algorithm, one transition after the other: each is learned from when it is known what followed."""

    def __init__(self, hypers, num_envs=NUM_ENVS):
        self.logits, self.values = LOGITS, VALUES
        self.numbers = {name: float(number) for name, number in dataclasses.asdict(hypers).items()}
        self.adams = Adam(hypers), Adam(hypers)  # each clips the gradient of its own table
        self.waiting = [[] for _ in range(num_envs)]

    def known(self, x):
        """Return (state, action, target) of each transition to be learned from, by the tables as they are."""
        discount, found = self.numbers["discount"], []
        for time, environment in np.ndindex(*x["reward"].shape):
            now = {name: leaf[time, environment].item() for name, leaf in x.items()}
            waiting = self.waiting[environment]
            here = now["observation"], now["action"]
            if waiting:
                *before, reward = waiting.pop()
                found.append((*before, reward + discount * self.values[here]))
            if now["terminated"]:
                found.append((*here, now["reward"]))
            elif now["truncated"]:
                after = now["next_observation"]
                worth = softmax(self.logits[after]) @ self.values[after]
                found.append((*here, now["reward"] + discount * worth))
            else:
                waiting.append((*here, now["reward"]))
        return found

    def gradients(self, known):
        """Return the sums over transitions of what is descended, by the logits and by the values; and the metrics."""
        actor, critic = np.zeros_like(self.logits), np.zeros_like(self.values)
        metrics = {"policy_loss": 0.0, "value_loss": 0.0, "entropy": 0.0}
        for state, action, target in known:
            row, value = self.logits[state], self.values[state, action]
            actor[state] -= value * score(row, action) + self.numbers["entropy_weight"] * entropy_slope(row)
            critic[state, action] -= target - value
            metrics["policy_loss"] -= value * np.log(softmax(row)[action]) / len(known)
            metrics["value_loss"] += (target - value) ** 2 / 2 / len(known)
            metrics["entropy"] += entropy(row) / len(known)
        return actor, critic, metrics

    def update(self, x):
        known = self.known(x)
        assert known, "what an update does that has nothing to learn from is another question"
        actor, critic, metrics = self.gradients(known)
        (actor_step,), (critic_step,) = (
            adam.steps([total / len(known)]) for adam, total in zip(self.adams, (actor, critic), strict=True)
        )
        self.logits = self.logits + actor_step
        self.values = self.values + self.numbers["critic_speed"] * critic_step
        return metrics


def assert_waiting_is(waiting, expected):
    """Compare what waits in every environment with the lists of (state, action, reward) of a book."""
    for environment, transitions in enumerate(expected):
        one = jax.tree.map(lambda leaf, environment=environment: leaf[environment].item(), waiting)
        assert [(one.observation, one.action, one.reward)] * one.open == transitions


# --- the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(2, *[1] * LENGTH), (2, 5, 1)])
def test_updates_are_those_of_the_book(cuts):
    hypers, (agent, update) = cast_hypers(GENERIC), made()
    for seed in SEEDS:
        state, book = begun(agent, hypers, LOGITS, VALUES), Book(hypers)
        for number, experience in enumerate(pieces(random_experience(seed), cuts)):
            expected = book.update(experience)
            state, metrics = update(jax.random.key(0), state, rollout_of(experience), hypers)
            assert set(metrics) == set(expected)
            for name, value in expected.items():
                assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
            np.testing.assert_allclose(tables_of(state), [book.logits, book.values], atol=2e-5)
            assert_waiting_is(state.waiting, book.waiting)
            assert state.updates == number + 1
        for adam in book.adams:
            clipped = np.array(adam.norms) > GENERIC.max_gradient_norm
            assert clipped.any()
            assert not clipped.all()
        assert np.abs(book.logits - LOGITS).max() > 0.1


def test_the_experience_holds_all_that_can_happen():
    for seed in SEEDS:
        experience = random_experience(seed)
        ends = set(zip(experience["terminated"].ravel(), experience["truncated"].ravel(), strict=True))
        assert len(ends) == 4


@pytest.mark.parametrize("cuts", [(1,), (2,), (5,)])
def test_however_the_experience_is_cut_each_transition_is_learned_from_once(cuts):
    """The tables held, updates times the number of transitions over which they are means add up to what all teach."""
    agent, update = made()
    hypers = descending(q_actor_critic.Hypers, discount=0.9, critic_speed=1.0, entropy_weight=0.2)
    for seed in SEEDS:
        book, experience = Book(hypers), random_experience(seed)
        known = book.known(experience)
        assert len(known) + sum(map(len, book.waiting)) == LENGTH * NUM_ENVS
        actor, critic, _ = book.gradients(known)
        state, counter = begun(agent, hypers, LOGITS, VALUES), Book(hypers)
        params, total = state.params, 0.0
        for rollout in pieces(experience, cuts):
            state = dataclasses.replace(state, params=params)
            state, _ = update(jax.random.key(0), state, rollout_of(rollout), hypers)
            total = total + len(counter.known(rollout)) * np.array(moves_of(state))
        np.testing.assert_allclose(total, [-actor, -critic], atol=2e-5)
        assert_waiting_is(state.waiting, book.waiting)


# --- by hand --------------------------------------------------------------------------------------------------------


def learn(*rollouts, hypers=PLAIN, logits=LOGITS, values=VALUES):
    """What each rollout moves, the tables held: [(by the logits, by the values), ...]."""
    agent, update = made(rollouts[0]["reward"].shape[1])
    state = begun(agent, hypers, logits, values)
    params, found = state.params, []
    for experience in rollouts:
        state = dataclasses.replace(state, params=params)
        state, _ = update(jax.random.key(0), state, rollout_of(experience), hypers)
        found.append(moves_of(state))
    return found


def taught(*steps, logits=LOGITS, values=VALUES):
    """The means over (state, action, target) of Q grad log pi [S, A] and of target - Q [S, A]."""
    actor, critic = np.zeros((STATES, ACTIONS)), np.zeros((STATES, ACTIONS))
    for state, action, target in steps:
        actor[state] += values[state, action] * score(logits[state], action) / len(steps)
        critic[state, action] += (target - values[state, action]) / len(steps)
    return actor, critic


def after(state, action):
    """What follows is worth by PLAIN, which discounts by a half."""
    return 0.5 * VALUES[state, action]


STEPS = path((0, 1, 1), (1, 2, 2), (2, 0, 4), 1)  # the greedy actions would be 2, 0 and 2


def test_the_target_holds_the_action_executed_next_and_the_last_one_waits_for_it():
    ((whole),) = learn(STEPS)
    first, second = (0, 1, 1 + after(1, 2)), (1, 2, 2 + after(2, 0))
    np.testing.assert_allclose(whole, taught(first, second), atol=1e-6)
    nothing, one, two = learn(*pieces(STEPS, (1,)))
    np.testing.assert_array_equal(nothing, np.zeros((2, STATES, ACTIONS)))
    np.testing.assert_allclose(one, taught(first), atol=1e-6)
    np.testing.assert_allclose(two, taught(second), atol=1e-6)


@pytest.mark.parametrize("cuts", [(3,), (1,)])
@pytest.mark.parametrize(("terminated", "truncated"), ENDINGS)
def test_at_an_end_nothing_waits_and_the_next_episode_does_not_count(cuts, terminated, truncated):
    # State 2 follows, in which the policy's expectation stands in if the clock ended it; the next episode begins in 0.
    episode = path((0, 1, 1), (1, 2, 2), 2, terminated=terminated, truncated=truncated)
    found = learn(*pieces(joined(episode, path((0, 0, 9), 0)), cuts))
    last = 2.0 if terminated else 2.0 + 0.5 * softmax(LOGITS[2]) @ VALUES[2]
    first, second = (0, 1, 1 + after(1, 2)), (1, 2, last)
    if len(found) == 1:
        np.testing.assert_allclose(found[0], taught(first, second), atol=1e-6)
    else:  # in one update what waited and what ended
        np.testing.assert_allclose(found[1], taught(first, second), atol=1e-6)
        np.testing.assert_array_equal(found[2], np.zeros((2, STATES, ACTIONS)))


def test_environments_wait_each_for_itself():
    other = path((2, 1, 5), (2, 2, 6), (0, 2, 7), 0)
    third = joined(path((1, 1, 3), (1, 0, 1), 2, terminated=True), path((2, 0, 0), 1))
    *_, last = learn(*pieces(joined(STEPS, other, third, axis=1), (2, 1)))
    known = (1, 2, 2 + after(2, 0)), (2, 2, 6 + after(0, 2))  # of the third environment none waited
    np.testing.assert_allclose(last, taught(*known), atol=1e-6)


def test_speed_multiplies_the_critic_s_step_and_nothing_else():
    # By Adam with its own epsilon: a weight of the critic's loss would not pass for it, nor would it be clipped away.
    agent, update = made(1)
    numbers = {"learning_rate": 0.01, "max_gradient_norm": 0.1, "discount": 0.5}
    slow, fast = (
        update(
            jax.random.key(0),
            begun(agent, PLAIN, LOGITS, VALUES),
            rollout_of(STEPS),
            cast_hypers(q_actor_critic.Hypers(critic_speed=speed, **numbers)),
        )[0]
        for speed in (1.0, 4.0)
    )
    np.testing.assert_array_equal(moves_of(slow)[0], moves_of(fast)[0])
    np.testing.assert_allclose(4 * moves_of(slow)[1], moves_of(fast)[1], rtol=1e-6)
    cells = (0, 1), (1, 2)
    for cell in cells:
        assert abs(moves_of(fast)[1][cell]) == pytest.approx(0.04, rel=1e-3)
    assert np.count_nonzero(moves_of(fast)[1]) == len(cells)
    jax.tree.map(np.testing.assert_array_equal, slow.critic_optimizer, fast.critic_optimizer)


def test_neither_loss_has_a_gradient_in_the_other_s_table():
    episode = path((0, 1, 1), (1, 2, 2), 2, terminated=True)
    richer = path((0, 1, 11), (1, 2, -12), 2, terminated=True)
    warm = descending(q_actor_critic.Hypers, discount=0.5, critic_speed=1.0, entropy_weight=0.7)
    (usual,), (other_rewards,) = learn(episode), learn(richer)
    (other_policy,), (with_entropy,) = learn(episode, logits=-2 * LOGITS), learn(episode, hypers=warm)
    np.testing.assert_array_equal(other_rewards[0], usual[0])
    assert np.abs(other_rewards[1] - usual[1]).max() > 1
    for actor, critic in (other_policy, with_entropy):
        np.testing.assert_array_equal(critic, usual[1])
        assert np.abs(actor - usual[0]).max() > 0.01


def test_entropy_is_raised_in_the_mean_over_transitions():
    hypers = descending(q_actor_critic.Hypers, critic_speed=1.0, entropy_weight=0.3)
    ((actor, critic),) = learn(STEPS, hypers=hypers, values=np.zeros_like(VALUES))
    # Actions are worth nothing: entropy alone moves the policy, where it was known what followed.
    slopes = [0.3 * entropy_slope(row) / 2 for row in LOGITS[:2]]
    np.testing.assert_allclose(actor, [*slopes, np.zeros(ACTIONS)], atol=1e-7)
    np.testing.assert_allclose(critic, [[0, 0.5, 0], [0, 0, 1], [0, 0, 0]], atol=1e-6)


# --- nothing to learn from ------------------------------------------------------------------------------------------


def test_a_first_step_that_must_wait_changes_no_parameter():
    hypers, (agent, update) = cast_hypers(GENERIC), made(1)
    state = begun(agent, hypers, LOGITS, VALUES)
    first, metrics = update(jax.random.key(0), state, rollout_of(pieces(STEPS, (1,))[0]), hypers)
    jax.tree.map(np.testing.assert_array_equal, first.params, state.params)
    assert {name: float(number) for name, number in metrics.items()} == {
        "policy_loss": 0,
        "value_loss": 0,
        "entropy": 0,
    }
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(first))


def test_an_update_without_a_transition_to_learn_from_changes_nothing_that_was_learned():
    # An episode has just ended, and the first step of the next one must wait.
    hypers, (agent, update) = cast_hypers(GENERIC), made(1)
    state = begun(agent, hypers, LOGITS, VALUES)
    end, begins = pieces(joined(path((0, 1, 1), 0, terminated=True), path((1, 1, 1), 0)), (1,))
    ended, _ = update(jax.random.key(0), state, rollout_of(end), hypers)
    waits, _ = update(jax.random.key(0), ended, rollout_of(begins), hypers)
    assert waits.waiting.open.all()
    ours, theirs = (dataclasses.replace(state, waiting=(), updates=()) for state in (waits, ended))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- what is impossible ---------------------------------------------------------------------------------------------

IMPOSSIBLE = np.array([[-np.inf, 0, 0], [0, 0, -np.inf], [0, -np.inf, 0]])
LAWFUL = path((0, 1, 1), (1, 0, 2), (2, 2, 4), 1, truncated=True)


def learned_around_the_impossible(experience=LAWFUL, values=VALUES, logits=LOGITS + IMPOSSIBLE):
    """State and metrics after an update; what waits in an empty place is the impossible action 0 in state 0."""
    hypers = descending(q_actor_critic.Hypers, critic_speed=1.0, entropy_weight=0.1)
    agent, update = made(1)
    state = begun(agent, hypers, logits, values)
    return update(jax.random.key(0), state, rollout_of(experience), hypers)


def test_impossible_actions_stay_so_and_no_parameter_turns_to_nan():
    state, _ = learned_around_the_impossible()
    actor, critic = tables_of(state)
    assert not np.isnan(actor).any()
    assert np.isfinite(critic).all()
    assert (moves_of(state)[1] != 0).sum() == 3
    np.testing.assert_array_equal(np.isinf(actor), np.isinf(IMPOSSIBLE))


@pytest.mark.parametrize("truncated", [False, True])
def test_no_action_need_be_possible_after_a_termination(truncated):
    logits, values = LOGITS.copy(), VALUES.copy()
    logits[2] = values[2] = -np.inf
    episode = path((1, 1, 1), (0, 1, 1), (1, 0, 2), 2, terminated=True, truncated=truncated)
    state, metrics = learned_around_the_impossible(episode, values, logits)
    assert all(np.isfinite(table[:2]).all() for table in tables_of(state))
    assert all(np.isfinite(number) for number in metrics.values())


def test_what_fills_an_empty_place_is_not_in_the_metrics():
    _, metrics = learned_around_the_impossible()
    assert not any(np.isnan(number) for number in metrics.values()), metrics


def minus_infinity_at(*cells):
    values = VALUES.copy()
    values[tuple(zip(*cells, strict=True))] = -np.inf
    return values


def test_what_fills_an_empty_place_may_be_worth_minus_infinity():
    # That is how an impossible action is masked where values are all there is.
    state, _ = learned_around_the_impossible(values=minus_infinity_at((0, 0)))
    assert not np.isnan(moves_of(state)).any()


def test_impossible_actions_may_be_worth_minus_infinity_where_the_clock_ends_an_episode():
    # As they may in losses.expected_sarsa_target, which leaves out what has no probability.
    state, _ = learned_around_the_impossible(values=minus_infinity_at((1, 2), (2, 1)))
    assert not np.isnan(moves_of(state)).any()


# --- the agent ------------------------------------------------------------------------------------------------------


def test_nothing_waits_at_the_start_and_nothing_is_counted():
    agent, _ = made()
    state = agent.init(jax.random.key(0), PLAIN)
    assert (state.updates.dtype, int(state.updates)) == (jnp.int32, 0)
    assert not state.waiting.open.any()
    assert {leaf.shape for leaf in jax.tree.leaves(state.waiting)} == {(NUM_ENVS,)}


def test_it_acts_by_its_policy_or_greedily():
    agent, _ = made()
    state, observation = begun(agent, PLAIN, LOGITS, VALUES), jnp.ones(20_000, jnp.int32)
    actions, memory = agent.act(jax.random.key(1), state, (), observation, PLAIN)
    assert memory == ()
    counts = np.bincount(actions, minlength=ACTIONS)
    assert stats.chisquare(counts, 20_000 * softmax(LOGITS[1])).pvalue > 1e-4
    greedy, _ = agent.act(jax.random.key(1), state, (), jnp.arange(STATES), PLAIN, greedy=True)
    np.testing.assert_array_equal(greedy, LOGITS.argmax(axis=-1))


def test_continuous_actions_are_refused_by_name():
    box = Box(shape=(2,), dtype=np.float32, low=-1, high=1)
    with pytest.raises(ValueError, match=r"q_actor_critic needs a discrete action space.*Box\(shape=\(2,\)"):
        q_actor_critic.q_actor_critic(spec_of(1)._replace(action=box), policy_table(3, 2), value_table(3, 2))


def test_a_rollout_of_another_number_of_environments_is_refused():
    agent, _ = made()
    state = begun(agent, PLAIN, LOGITS, VALUES)
    with pytest.raises(ValueError, match=r"q_actor_critic was made for 3 environments .* is handed a rollout of 1"):
        agent.update(jax.random.key(0), state, rollout_of(STEPS), PLAIN)


def test_it_learns_to_walk_to_the_reward():
    # From state 1 the way is too long for what it costs.
    env = envs.make(Walk(), 8)
    table = Network(
        init=lambda key, observation: jnp.zeros((7, 2)), apply=lambda params, observation: params[observation]
    )
    actor = table._replace(apply=lambda params, observation: Categorical(logits=params[observation]))
    agent = q_actor_critic.q_actor_critic(env.spec, actor, table)
    hypers = q_actor_critic.Hypers(learning_rate=0.02, critic_speed=5.0, discount=0.99, entropy_weight=0.01)
    run, _ = jax.jit(lambda key: loop.train(key, agent, env, hypers, iterations=1000, length=4))(jax.random.key(0))
    assert (softmax(np.float64(run.agent.params.actor))[2:6, 1] > 0.9).all()
