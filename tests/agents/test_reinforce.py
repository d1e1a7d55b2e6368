"""REINFORCE on tables against a slow loop over episodes in float64, its gradient by hand."""

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
from purerl.agents import reinforce
from purerl.base import Box, Discrete, Network, Rollout, Spec, Transition, cast_hypers
from purerl.distributions import Categorical, Gaussian

STATES, ACTIONS, NUM_ENVS, WINDOW = 3, 3, 3, 4
CUTS = 1, 7, 2  # lengths of rollouts, in turn: shorter than the window and longer
LENGTH = 63  # of these cuts, and of sevens, nothing remains
SEEDS = 0, 1
LOGITS = np.array([[0.3, -0.2, 0.1], [-0.5, 0.0, 0.4], [0.2, 0.6, -0.1]])
VALUES = np.array([0.5, -1.0, 0.8])
ENDINGS = [(True, False), (False, True), (True, True)]

# Not so small an epsilon, because Adam by itself is blind to a factor of all gradients.
GENERIC = reinforce.Hypers(
    learning_rate=0.3,
    learning_rate_end_fraction=0.3,
    learning_rate_horizon=10.0,
    max_gradient_norm=0.7,
    adam_b1=0.8,
    adam_b2=0.95,
    adam_eps=0.3,
    discount=0.9,
    value_weight=0.6,
    entropy_weight=0.2,
)


@functools.cache
def made(baseline, discount_states=True, window=WINDOW, num_envs=NUM_ENVS):
    """An agent and its compiled update, made once."""
    critic = value_table(STATES) if baseline else None
    spec = spec_of(num_envs, STATES, ACTIONS)
    agent = reinforce.reinforce(
        spec, policy_table(STATES, ACTIONS), critic, window=window, discount_states=discount_states
    )
    return agent, jax.jit(agent.update)


def random_experience(seed):
    return record(LENGTH, NUM_ENVS, seed, (STATES, ACTIONS))


class Step:
    """A step of an episode that is learned from: what is behind it, what was done, and what it was worth."""

    def __init__(self, time, state, action, reward):
        self.time, self.state, self.action, self.reward = time, state, action, reward
        self.target = None


class Book:
    """The algorithm, one step after the other: an episode is a list that waits to be complete."""

    def __init__(self, hypers, baseline, discount_states=True, window=WINDOW, num_envs=NUM_ENVS):
        self.logits, self.values = LOGITS, VALUES if baseline else None
        self.discount_states, self.window = discount_states, window
        self.adam = Adam(hypers)
        self.under_way = [[] for _ in range(num_envs)]
        self.rollouts = 0
        self.lengths, self.excluded = [], 0  # of the episodes learned from so far; how many were not

    def complete(self, x):
        """Return the episodes that ended in a rollout, and how many that are not to be learned from."""
        lost = [len(episode) > self.window for episode in self.under_way]
        found, excluded = [], 0
        for time, environment in np.ndindex(*x["reward"].shape):
            now = {name: leaf[time, environment].item() for name, leaf in x.items()}
            episode = self.under_way[environment]
            episode.append(Step(len(episode), now["observation"], now["action"], now["reward"]))
            if not now["terminated"] and not now["truncated"]:
                continue
            if lost[environment]:
                excluded += 1
            else:
                bootstraps = self.values is not None and not now["terminated"]
                self.judge(episode, self.values[now["next_observation"]] if bootstraps else 0.0)
                found.append(episode)
            self.under_way[environment], lost[environment] = [], False
        return found, excluded

    def judge(self, episode, after):
        for step in reversed(episode):
            after = step.target = step.reward + self.adam.numbers["discount"] * after

    def update(self, x):
        """Return the metrics, or none of the losses where no episode is complete."""
        episodes, excluded = self.complete(x)
        self.rollouts += 1
        self.lengths += [len(episode) for episode in episodes]
        self.excluded += excluded
        if not episodes:
            return {"excluded": excluded}
        h, steps = self.adam.numbers, [step for episode in episodes for step in episode]
        actor, critic = np.zeros_like(self.logits), np.zeros(STATES)
        metrics = {"policy_loss": 0.0, "value_loss": 0.0, "entropy": 0.0, "excluded": excluded}
        for step in steps:
            row = self.logits[step.state]
            error = step.target - (0.0 if self.values is None else self.values[step.state])
            gain = error * (h["discount"] ** step.time if self.discount_states else 1.0) / len(episodes)
            actor[step.state] -= gain * score(row, step.action)
            actor[step.state] -= h["entropy_weight"] * entropy_slope(row) / len(steps)
            critic[step.state] -= h["value_weight"] * error / len(steps)
            metrics["policy_loss"] -= gain * np.log(softmax(row)[step.action])
            metrics["value_loss"] += error**2 / 2 / len(steps)
            metrics["entropy"] += entropy(row) / len(steps)
        if self.values is None:
            (step,) = self.adam.steps([actor], self.rollouts - 1)
        else:
            step, critic_step = self.adam.steps([actor, critic], self.rollouts - 1)
            self.values = self.values + critic_step
        self.logits = self.logits + step
        return metrics


def assert_updates_are_those_of_the_book(hypers, baseline, cuts, seed, **options):
    """Return the book after updates, with each of which the agent agrees."""
    hypers = cast_hypers(hypers)
    agent, update = made(baseline, **options)
    state, book = begun(agent, hypers, LOGITS, VALUES if baseline else None), Book(hypers, baseline, **options)
    for experience in pieces(random_experience(seed), cuts):
        expected = book.update(experience)
        state, metrics = update(jax.random.key(0), state, rollout_of(experience), hypers)
        for name, number in expected.items():
            assert metrics[name] == pytest.approx(number, rel=1e-4, abs=1e-5), name
        logits, *values = tables_of(state)
        np.testing.assert_allclose(logits, book.logits, atol=2e-5)
        if baseline:
            np.testing.assert_allclose(values[0], book.values, atol=2e-5)
        assert state.updates == book.rollouts
    return book


# --- the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(1,), CUTS])
@pytest.mark.parametrize("baseline", [False, True])
def test_updates_are_those_of_the_book(baseline, cuts):
    for seed in SEEDS:
        book = assert_updates_are_those_of_the_book(GENERIC, baseline, cuts, seed)
        assert book.excluded > 2
        assert max(book.lengths) > WINDOW
        assert min(book.lengths) == 1
        assert sum(norm > GENERIC.max_gradient_norm for norm in book.adam.norms) > 2
        assert np.abs(book.logits - LOGITS).max() > 0.2


def test_updates_without_the_discount_of_states_are_those_of_the_book():
    one, other = (
        assert_updates_are_those_of_the_book(GENERIC, True, (7,), 0, discount_states=choice) for choice in (True, False)
    )
    assert np.abs(one.logits - other.logits).max() > 0.01


@pytest.mark.parametrize("discount", [0.0, 1.0])
def test_at_the_ends_of_the_discount_they_are_too(discount):
    assert_updates_are_those_of_the_book(dataclasses.replace(GENERIC, discount=discount), True, CUTS, 0)


def test_the_experience_holds_all_that_can_happen():
    for seed in SEEDS:
        experience = random_experience(seed)
        ends = set(zip(experience["terminated"].ravel(), experience["truncated"].ravel(), strict=True))
        assert len(ends) == 4


# --- what is learned from, and when ---------------------------------------------------------------------------------

PLAIN = descending(reinforce.Hypers, discount=0.5)


def learn(*rollouts, baseline=False, hypers=PLAIN, window=WINDOW, logits=LOGITS, values=VALUES, **options):
    """What each rollout moves, the tables held: [(by the logits, by the values, if any), ...]; and the metrics."""
    num_envs = rollouts[0]["reward"].shape[1]
    agent, update = made(baseline, window=window, num_envs=num_envs, **options)
    state = begun(agent, hypers, logits, values if baseline else None)
    params, found, metrics = state.params, [], []
    for experience in rollouts:
        state = dataclasses.replace(state, params=params)
        state, now = update(jax.random.key(0), state, rollout_of(experience), hypers)
        found.append(moves_of(state))
        metrics.append(now)
    return found, metrics


def steps_in(experience, first, last=None):
    return {name: leaf[first:last] for name, leaf in experience.items()}


def policy_gradient(*steps, logits=LOGITS):
    """The sum of weight grad log pi(a|s) over (state, action, weight): [S, A]."""
    total = np.zeros_like(logits)
    for state, action, weight in steps:
        total[state] += weight * score(logits[state], action)
    return total


EPISODE = path((0, 1, 1), (1, 2, 2), (2, 0, 4), 0, terminated=True)  # by a discount of 1/2 worth 3, 4, 4
GRADIENT = policy_gradient((0, 1, 3), (1, 2, 0.5 * 4), (2, 0, 0.25 * 4))


@pytest.mark.parametrize("cuts", [(3,), (1,), (2, 1), (1, 2)])
def test_an_episode_is_learned_from_whole_in_the_update_after_its_end(cuts):
    found, _ = learn(*pieces(EPISODE, cuts))
    *before, (last,) = found
    np.testing.assert_allclose(last, GRADIENT, atol=1e-6)
    assert all((moved == 0).all() for (moved,) in before)


SHORT = path((1, 0, 8), 0, terminated=True)
SHORT_GRADIENT = policy_gradient((1, 0, 8))


def test_it_is_learned_from_once_though_it_stays_in_the_window():
    found, _ = learn(EPISODE, SHORT)
    np.testing.assert_allclose(found[0][0], GRADIENT, atol=1e-6)
    np.testing.assert_allclose(found[1][0], SHORT_GRADIENT, atol=1e-6)


def test_updates_are_means_over_the_episodes_that_ended_and_not_over_steps():
    first, last = EPISODE, joined(SHORT, SHORT, path((2, 2, 99), 0))
    found, _ = learn(steps_in(first, 0, 2), joined(steps_in(first, 2), steps_in(last, 0, 2)), steps_in(last, 2))
    np.testing.assert_allclose(found[1][0], (GRADIENT + 2 * SHORT_GRADIENT) / 3, atol=1e-6)


def sum_over_episodes(experience, cuts, **options):
    """The updates, times the numbers of episodes over which they are means, summed: by a window that holds them all."""
    rollouts = pieces(experience, cuts)
    found, metrics = learn(*rollouts, window=LENGTH, **options)
    assert sum(float(one["excluded"]) for one in metrics) == 0
    ends = [(one["terminated"] | one["truncated"]).sum() for one in rollouts]
    return sum(count * moved[0] for count, moved in zip(ends, found, strict=True))


def test_however_the_experience_is_cut_the_same_is_learned():
    for seed in SEEDS:
        one, other = (sum_over_episodes(random_experience(seed), cuts, baseline=True) for cuts in ((7,), (LENGTH,)))
        assert np.abs(one).max() > 1
        np.testing.assert_allclose(other, one, atol=2e-5)


def long_episode(length):
    """An episode of so many steps, and its gradient: the only reward is 1 at its end, its discount 1/2."""
    steps = [(time % STATES, time % 2, float(time == length - 1)) for time in range(length)]
    weights = [(state, action, 0.5 ** (length - 1)) for state, action, _ in steps]
    return path(*steps, 0, terminated=True), policy_gradient(*weights)


@pytest.mark.parametrize(("waits", "excluded"), [(WINDOW - 1, 0), (WINDOW, 0), (WINDOW + 1, 1), (3 * WINDOW, 1)])
def test_an_episode_is_excluded_if_more_steps_wait_than_the_window_holds(waits, excluded):
    episode, gradient = long_episode(waits + 1)
    found, metrics = learn(*pieces(joined(episode, SHORT), (1,)))
    assert [float(one["excluded"]) for one in metrics] == [0] * waits + [excluded, 0]
    assert all((moved == 0).all() for (moved,) in found[:waits])
    np.testing.assert_allclose(found[waits][0], 0 * gradient if excluded else gradient, atol=1e-7)
    np.testing.assert_allclose(found[-1][0], SHORT_GRADIENT, atol=1e-6)  # the next one is learned from


def test_what_begins_in_the_rollout_in_which_an_excluded_one_ended_is_learned_from():
    episode, _ = long_episode(WINDOW + 2)
    *first, last = pieces(joined(episode, SHORT, EPISODE), (1,))
    found, metrics = learn(*first[:-4], joined(*first[-4:-1]), first[-1], last)
    assert [float(one["excluded"]) for one in metrics[-3:]] == [1, 0, 0]
    np.testing.assert_allclose(found[-3][0], SHORT_GRADIENT, atol=1e-6)
    np.testing.assert_allclose(found[-1][0], GRADIENT, atol=1e-6)


def test_within_a_rollout_an_episode_may_be_longer_than_the_window():
    for waits in (0, WINDOW):  # of more steps than the window holds only so many waited
        episode, gradient = long_episode(waits + 7)
        *_, rollout = rollouts = [*pieces(steps_in(episode, 0, waits), (1,)), steps_in(episode, waits)]
        assert len(rollout["reward"]) > WINDOW
        found, metrics = learn(*rollouts)
        assert float(metrics[-1]["excluded"]) == 0
        np.testing.assert_allclose(found[-1][0], gradient, atol=1e-7)


@pytest.mark.parametrize("baseline", [False, True])
def test_without_a_complete_episode_nothing_changes_that_was_learned(baseline):
    hypers, (agent, update) = cast_hypers(GENERIC), made(baseline, num_envs=1)
    state, too_long = begun(agent, hypers, LOGITS, VALUES if baseline else None), long_episode(6)[0]
    kept = lambda state: (state.params, state.optimizer)  # noqa: E731
    key = jax.random.key(0)

    def fed(state, *steps):
        for step in steps:
            state, metrics = update(key, state, rollout_of(step), hypers)
        return state, metrics

    *first, last = pieces(too_long, (1,))
    at_the_start, metrics = fed(state, *first)
    jax.tree.map(np.testing.assert_array_equal, kept(at_the_start), kept(state))
    assert {name: float(number) for name, number in metrics.items()} == {
        "policy_loss": 0,
        "value_loss": 0,
        "entropy": 0,
        "excluded": 0,
    }
    # Nor by the momentum that there is after an update; neither if an episode only begins, nor if one is excluded.
    learned, _ = fed(state, EPISODE)
    assert learned.updates == 1  # rollouts, whatever was learned
    assert np.abs(moves_of(learned)[0]).max() > 0.01
    begins, _ = fed(learned, *first)
    ends, metrics = fed(begins, last)
    assert metrics["excluded"] == 1
    for after in (begins, ends):
        jax.tree.map(np.testing.assert_array_equal, kept(after), kept(learned))
    assert (float(begins.pending.age[0]), float(ends.pending.age[0])) == (5, 0)


# --- the baseline and where episodes end ----------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize(("terminated", "truncated"), ENDINGS)
def test_where_the_clock_ended_it_the_return_goes_on_with_the_value_if_there_is_one(baseline, terminated, truncated):
    hypers = descending(reinforce.Hypers, discount=0.5, value_weight=1.0)
    episode = path((0, 1, 1), (1, 2, 2), 2, terminated=terminated, truncated=truncated)
    after = 0.5 * VALUES[2] if baseline and not terminated else 0.0
    second = 2 + after
    first = 1 + 0.5 * second
    errors = np.array([first, second]) - (VALUES[:2] if baseline else 0.0)
    for rollouts in ([episode], pieces(episode, (1,))):
        *_, (actor, *critic) = learn(*rollouts, baseline=baseline, hypers=hypers)[0]
        np.testing.assert_allclose(actor, policy_gradient((0, 1, errors[0]), (1, 2, 0.5 * errors[1])), atol=1e-6)
        if baseline:
            np.testing.assert_allclose(critic[0], [*(errors / 2), 0], atol=1e-6)  # in the mean over two steps


def test_the_baseline_is_fitted_to_the_returns():
    hypers = descending(reinforce.Hypers, rate=0.5, discount=0.5, value_weight=1.0)
    agent, update = made(True, num_envs=1)
    state = begun(agent, hypers, LOGITS, VALUES)
    for _ in range(200):
        state, metrics = update(jax.random.key(0), state, rollout_of(EPISODE), hypers)
    np.testing.assert_allclose(tables_of(state)[1], [3, 4, 4], atol=1e-4)
    assert float(metrics["value_loss"]) < 1e-6


def test_the_actor_is_not_moved_by_the_weight_of_the_baseline_s_loss():
    light, heavy = (
        learn(EPISODE, baseline=True, hypers=descending(reinforce.Hypers, value_weight=weight))[0][0]
        for weight in (0.5, 2.0)
    )
    np.testing.assert_array_equal(light[0], heavy[0])
    np.testing.assert_allclose(4 * light[1], heavy[1], rtol=1e-6)


def test_entropy_is_raised_in_the_states_of_the_episodes_alike():
    # Nothing is won: entropy alone moves the policy, by the mean over two steps; the third one waits.
    hypers = descending(reinforce.Hypers, entropy_weight=0.3)
    episode = path((0, 0, 0), (1, 2, 0), 2, terminated=True)
    ((moved,),), (metrics,) = learn(joined(episode, path((2, 0, 0), 1)), hypers=hypers)
    slopes = [0.3 * entropy_slope(LOGITS[0]) / 2, 0.3 * entropy_slope(LOGITS[1]) / 2, np.zeros(ACTIONS)]
    np.testing.assert_allclose(moved, slopes, atol=1e-7)
    assert metrics["entropy"] == pytest.approx((entropy(LOGITS[0]) + entropy(LOGITS[1])) / 2, rel=1e-6)


# --- other spaces ---------------------------------------------------------------------------------------------------


def test_observations_may_be_trees_and_actions_continuous():
    spec = Spec(
        observation={
            "place": Discrete(3),
            "feature": Box(shape=(2,), dtype=np.float32, low=-np.inf, high=np.inf),
        },
        action=Box(shape=(2,), dtype=np.float32, low=-np.inf, high=np.inf),
        num_envs=1,
    )

    def policy(params, observation):
        mean = params[observation["place"]] + observation["feature"]
        return Gaussian(mean=mean, log_deviation=jnp.full_like(mean, jnp.log(2.0)))

    network = Network(init=lambda key, observation: jnp.zeros((3, 2)), apply=policy)
    agent = reinforce.reinforce(spec, network, window=2)
    hypers = descending(reinforce.Hypers, discount=0.5)
    observation = {"place": np.int32([[1], [2]]), "feature": np.float32([[[1, 2]], [[3, 4]]])}
    steps = Transition(
        observation=observation,
        action=np.float32([[[2, 0]], [[3, 5]]]),
        reward=np.float32([[1], [4]]),
        terminated=np.array([[False], [True]]),
        truncated=np.zeros((2, 1), bool),
        next_observation=observation,
    )
    state, update = agent.init(jax.random.key(0), hypers), jax.jit(agent.update)
    for time in range(2):
        now = jax.tree.map(lambda leaf, time=time: jnp.asarray(leaf[time : time + 1]), steps)
        state, _ = update(jax.random.key(0), state, Rollout(steps=now, memory=()), hypers)
    # Returns 3 and 4, the second weighed by 1/2; the score is (a - mean) / 2^2.
    expected = [[0, 0], [3 * (2 - 1) / 4, 3 * (0 - 2) / 4], [2 * (3 - 3) / 4, 2 * (5 - 4) / 4]]
    np.testing.assert_allclose(state.params.actor, expected, atol=1e-6)


IMPOSSIBLE = np.array([[-np.inf, 0, 0], [0, 0, -np.inf], [0, -np.inf, 0]])
LAWFUL = path((0, 1, 1), (1, 0, 2), (2, 2, 4), (0, 2, 1), 1, truncated=True)


def learned_around_the_impossible(baseline):
    """The state and the metrics after each of two updates; what fills the empty window is the impossible (0, 0)."""
    hypers = descending(reinforce.Hypers, rate=0.1, entropy_weight=0.1)
    agent, update = made(baseline, num_envs=1)
    state = begun(agent, hypers, LOGITS + IMPOSSIBLE, VALUES if baseline else None)
    for rollout in pieces(LAWFUL, (2,)):
        state, metrics = update(jax.random.key(0), state, rollout_of(rollout), hypers)
        yield state, metrics


@pytest.mark.parametrize("baseline", [False, True])
def test_impossible_actions_stay_so_and_nothing_turns_to_nan(baseline):
    for state, _ in learned_around_the_impossible(baseline):
        for table in tables_of(state):
            assert not np.isnan(table).any()
    assert state.updates == 2
    assert np.abs(moves_of(state)[0]).max() > 0.01
    np.testing.assert_array_equal(np.isinf(tables_of(state)[0]), np.isinf(IMPOSSIBLE))


def test_what_fills_the_empty_window_is_not_in_the_metrics():
    for _, metrics in learned_around_the_impossible(baseline=False):
        assert not any(np.isnan(number) for number in metrics.values()), metrics


def test_an_observation_in_which_nothing_is_possible_may_fill_the_window():
    # Observations say which actions are possible, as in board games; zeros say that none is.
    spec = Spec(observation=Box(shape=(2,), dtype=np.int32, low=0, high=1), action=Discrete(2), num_envs=1)
    network = Network(
        init=lambda key, observation: jnp.zeros(2),
        apply=lambda params, observation: Categorical(logits=params + jnp.where(observation == 1, 0.0, -jnp.inf)),
    )
    agent, hypers = reinforce.reinforce(spec, network, window=1), descending(reinforce.Hypers)
    experience = path((0, 1, 1), 0, terminated=True)
    experience |= {name: np.ones((1, 1, 2), np.int32) for name in ("observation", "next_observation")}
    state, _ = jax.jit(agent.update)(
        jax.random.key(0), agent.init(jax.random.key(0), hypers), rollout_of(experience), hypers
    )
    np.testing.assert_allclose(state.params.actor, [-0.5, 0.5], atol=1e-6)


# --- the agent ------------------------------------------------------------------------------------------------------


def test_it_starts_with_nothing_pending_and_nothing_counted():
    agent, _ = made(True)
    state = agent.init(jax.random.key(0), PLAIN)
    assert (state.updates.dtype, int(state.updates)) == (jnp.int32, 0)
    np.testing.assert_array_equal(state.pending.age, np.zeros(NUM_ENVS, np.int32), strict=True)
    kept = state.pending.observation, state.pending.action, state.pending.reward
    assert [(leaf.shape, leaf.dtype) for leaf in kept] == [
        ((WINDOW, NUM_ENVS), dtype) for dtype in (jnp.int32, jnp.int32, jnp.float32)
    ]


def test_it_acts_by_its_policy_or_greedily():
    agent, _ = made(False)
    state, observation = begun(agent, PLAIN, LOGITS), jnp.ones(20_000, jnp.int32)
    actions, memory = agent.act(jax.random.key(1), state, (), observation, PLAIN)
    assert memory == ()
    counts = np.bincount(actions, minlength=ACTIONS)
    assert stats.chisquare(counts, 20_000 * softmax(LOGITS[1])).pvalue > 1e-4
    greedy, _ = agent.act(jax.random.key(1), state, (), jnp.arange(STATES), PLAIN, greedy=True)
    np.testing.assert_array_equal(greedy, LOGITS.argmax(axis=-1))


@pytest.mark.parametrize("window", [0, -1])
def test_a_window_below_one_is_refused(window):
    with pytest.raises(ValueError, match=f"window is {window}; it takes a whole number of at least 1"):
        reinforce.reinforce(spec_of(1), policy_table(3, 2), window=window)


def test_a_rollout_of_another_number_of_environments_is_refused():
    agent, _ = made(False, num_envs=2)
    with pytest.raises(ValueError, match=r"reinforce was made for 2 environments .* is handed a rollout of 1"):
        agent.update(jax.random.key(0), begun(agent, PLAIN, LOGITS), rollout_of(EPISODE), PLAIN)


def test_without_a_baseline_it_learns_to_walk_to_the_reward():
    # Rollouts of four steps cut most episodes. From state 1 the way is too long for what it costs.
    env = envs.make(Walk(), 8)
    network = Network(
        init=lambda key, observation: jnp.zeros((7, 2)),
        apply=lambda params, observation: Categorical(logits=params[observation]),
    )
    agent = reinforce.reinforce(env.spec, network, window=7)
    hypers = reinforce.Hypers(learning_rate=0.02, discount=0.99, entropy_weight=0.0)
    train = jax.jit(lambda key: loop.train(key, agent, env, hypers, iterations=1000, length=4))
    run, metrics = train(jax.random.key(0))
    assert (softmax(np.float64(run.agent.params.actor))[2:6, 1] > 0.9).all()
    assert float(metrics["excluded"][0]) == 0
