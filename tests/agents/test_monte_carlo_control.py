"""Monte-Carlo control against a slow loop over whole episodes, and by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.feeding import fed, rows
from agents.tables_by_the_book import joined, path, record, rollout_of, spec_of

from purerl.agents import monte_carlo_control
from purerl.base import Box, cast_hypers

STATES, ACTIONS, NUM_ENVS, LENGTH = 3, 2, 3, 40
CHUNKS = 1, 5, 20
SEEDS = 0, 1
LONG, SHORT = 40, 3  # windows: none that any episode could exceed, and one that many do
NUMBERS = {"discount": 0.9, "exploration": 0.3, "initial_value": 0.5}
RATES = {
    "averages": {},
    "a constant rate": {"learning_rate": 0.4, "learning_rate_decay": 0.0},
    "a falling rate": {"learning_rate": 0.9, "learning_rate_decay": 0.6},
}


@functools.cache
def made(window, first_visit, num_envs=NUM_ENVS):
    """An agent and its compiled update, made once."""
    spec = spec_of(num_envs, STATES, ACTIONS)
    agent = monte_carlo_control.monte_carlo_control(spec, window=window, first_visit=first_visit)
    return agent, jax.jit(agent.update)


class Book:
    """Episodes are lists of (time, environment, s, a, r); Q learns from those that ended once an update has all."""

    def __init__(self, hypers, window, first_visit, num_envs=NUM_ENVS):
        self.hypers, self.window, self.first_visit = hypers, window, first_visit
        self.values = np.full((STATES, ACTIONS), hypers.initial_value)
        self.counts = np.zeros((STATES, ACTIONS))
        self.episodes = [[] for _ in range(num_envs)]

    def expectation(self, values):
        """The mean under the epsilon-greedy policy of values of which no two are equal, or all."""
        epsilon = self.hypers.exploration
        return (1 - epsilon) * max(values) + epsilon * sum(values) / len(values)

    def update(self, experience):
        """Return the metrics."""
        too_long = [len(episode) > self.window for episode in self.episodes]
        before, learned_from, excluded = self.values.copy(), [], 0
        for step in rows(experience):
            episode = self.episodes[step.environment]
            episode.append((step.environment, step.observation, step.action, step.reward))
            if not step.ended:
                continue
            if too_long[step.environment]:
                excluded += 1
            else:
                value = 0.0 if step.terminated else self.expectation(before[step.next_observation])
                returns = []
                for _, _, _, reward in reversed(episode):
                    value = reward + self.hypers.discount * value
                    returns.insert(0, value)
                pairs = [(state, action) for _, state, action, _ in episode]
                for number, pair in enumerate(pairs):
                    if not self.first_visit or pair not in pairs[:number]:
                        since_end = number - len(episode) + 1
                        learned_from.append((step.time + since_end, step.environment, pair, returns[number]))
            too_long[step.environment] = False
            episode.clear()
        errors = []
        for _, _, pair, value in sorted(learned_from):
            self.counts[pair] += 1
            rate = self.hypers.learning_rate / self.counts[pair] ** self.hypers.learning_rate_decay
            errors.append(abs(value - self.values[pair]))
            self.values[pair] += rate * (value - self.values[pair])
        return {"error": np.mean(errors) if errors else 0.0, "excluded": excluded}


def assert_it_is_the_book_s(experience, chunk, window, first_visit, **numbers):
    """Return the book after updates with each of which the agent agrees, and how many episodes were left out."""
    plain = monte_carlo_control.Hypers(**NUMBERS | numbers)
    num_envs = experience["reward"].shape[1]
    agent, update = made(window, first_visit, num_envs)
    hypers, book = cast_hypers(plain), Book(plain, window, first_visit, num_envs)
    state, excluded = agent.init(jax.random.key(0), hypers), 0
    for first in range(0, len(experience["reward"]), chunk):
        expected = book.update({name: leaf[first : first + chunk] for name, leaf in experience.items()})
        rollout = rollout_of(experience, first, first + chunk)
        state, metrics = update(jax.random.key(0), state, rollout, hypers)
        np.testing.assert_allclose(state.values, book.values, atol=2e-5)
        np.testing.assert_array_equal(state.counts, book.counts)
        assert float(metrics["error"]) == pytest.approx(expected["error"], abs=2e-5)
        assert int(metrics["excluded"]) == expected["excluded"]
        assert state.pending.age.tolist() == [len(episode) for episode in book.episodes]
        excluded += expected["excluded"]
    return book, excluded


def random_experience(seed):
    return record(LENGTH, NUM_ENVS, seed, (STATES, ACTIONS))


# --- the loop -------------------------------------------------------------------------------------------------------


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("first_visit", [True, False])
def test_it_is_the_book_s_however_the_experience_is_cut(first_visit, chunk, rate):
    for seed in SEEDS:
        _, excluded = assert_it_is_the_book_s(random_experience(seed), chunk, LONG, first_visit, **RATES[rate])
        assert excluded == 0


@pytest.mark.parametrize("chunk", CHUNKS[1:])
@pytest.mark.parametrize("first_visit", [True, False])
def test_episodes_that_do_not_fit_the_window_are_counted_and_not_learned_from(first_visit, chunk):
    excluded = [assert_it_is_the_book_s(random_experience(seed), chunk, SHORT, first_visit)[1] for seed in SEEDS]
    assert sum(excluded) > 0


def test_first_visits_and_all_are_different_things_here():
    counts = [assert_it_is_the_book_s(random_experience(0), 5, LONG, first_visit)[0].counts for first_visit in (1, 0)]
    assert (counts[0] <= counts[1]).all()
    assert counts[0].sum() < 0.9 * counts[1].sum()


@pytest.mark.parametrize("first_visit", [True, False])
def test_masked_actions_stay_masked_and_nothing_is_nan(first_visit):
    """The pair in the empty places of a window is (0, 0), which is masked here; with the clock's ends Q is read."""
    mask = np.array([[True, False], [False, True], [False, False]])
    agent, update = made(SHORT, first_visit)
    hypers = cast_hypers(monte_carlo_control.Hypers(**NUMBERS))
    start = agent.init(jax.random.key(0), hypers)
    start = dataclasses.replace(start, values=jnp.where(mask, -jnp.inf, start.values))
    experience = record(LENGTH, NUM_ENVS, 0, (STATES, ACTIONS), {(0, 0), (1, 1)})
    state, metrics = fed(update, start, experience, hypers, 5)
    np.testing.assert_array_equal(np.isneginf(state.values), mask)
    assert np.isfinite(np.asarray(state.values)[~mask]).all()
    assert np.isfinite([row["error"] for row in metrics]).all()


# --- by hand --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("first_visit", "expected"), [(True, [8.0, 4.0]), (False, [6.0, 4.0])])
def test_values_are_averages_of_first_returns_or_of_all(first_visit, expected):
    """Returns of (0, 0) are 10 and 6 in one episode, 6 and 2 in the next; of (1, 1) 4."""
    first = path((0, 0, 4), (0, 0, 2), (1, 1, 4), 0, terminated=True)
    second = path((0, 0, 4), (0, 0, 2), 0, terminated=True)
    book, _ = assert_it_is_the_book_s(joined(first, second), 1, SHORT, first_visit, discount=1.0)
    np.testing.assert_allclose([book.values[0, 0], book.values[1, 1]], expected)


@pytest.mark.parametrize("steps", [SHORT, SHORT + 1])
def test_as_many_steps_as_the_window_holds_may_wait_and_no_more(steps):
    """The last step comes in an update by itself: those before it waited."""
    walk = [(time % STATES, 0, 1) for time in range(steps)]
    experience = path(*walk, (0, 1, 1), 0, terminated=True)
    book, excluded = assert_it_is_the_book_s(experience, 1, SHORT, False, discount=1.0)
    assert excluded == (steps > SHORT)
    assert book.counts.sum() == (0 if excluded else steps + 1)


def test_an_episode_after_one_that_was_left_out_counts_again():
    experience = joined(
        path(*[(0, 0, 1)] * 6, 0, truncated=True), path((0, 0, 5), 0, terminated=True), path((1, 1, 2), 0)
    )
    book, excluded = assert_it_is_the_book_s(experience, 1, SHORT, True)
    assert excluded == 1
    assert book.counts.sum() == 1
    assert book.values[0, 0] == 5


@pytest.mark.parametrize("chunk", [1, 4])
def test_what_stands_in_empty_places_of_the_window_is_no_earlier_visit(chunk):
    """The one pair of each episode is also that of the episode before, and that which fills the places."""
    one = path((0, 0, 3), 0, terminated=True)
    several = joined(one, one, path((0, 0, 1), (0, 0, 3), 0, terminated=True))
    book, _ = assert_it_is_the_book_s(several, chunk, SHORT, True, discount=1.0)
    assert book.counts[0, 0] == 3
    assert book.values[0, 0] == pytest.approx(10 / 3)


def test_the_clock_s_end_goes_on_with_q_as_it_stood_before_the_update():
    """Not with what the same update learns: the first environment's episode, which raises Q(1, 0) to 10."""
    raising = path((1, 0, 10), 0, terminated=True)
    cut = path((0, 0, 1), 1, truncated=True)
    experience = joined(raising, cut, axis=1)
    book, _ = assert_it_is_the_book_s(experience, 1, SHORT, True)
    assert book.values[0, 0] == pytest.approx(1 + 0.9 * 0.5)
    again, _ = assert_it_is_the_book_s(joined(experience, experience), 1, SHORT, True)
    later = 1 + 0.9 * (0.85 * 10 + 0.15 * 0.5)
    assert again.values[0, 0] == pytest.approx((1 + 0.9 * 0.5 + later) / 2)


# --- what is refused ------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named():
    spec = spec_of(NUM_ENVS, STATES, ACTIONS)
    with pytest.raises(ValueError, match=r"^window is 0; it takes a whole number of at least 1$"):
        monte_carlo_control.monte_carlo_control(spec, window=0)
    box = Box((2,), np.dtype(np.float32), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"^monte_carlo_control needs a discrete observation space"):
        monte_carlo_control.monte_carlo_control(spec._replace(observation=box), window=1)
    with pytest.raises(ValueError, match=r"^monte_carlo_control needs a discrete action space"):
        monte_carlo_control.monte_carlo_control(spec._replace(action=box), window=1)
    agent, _ = made(SHORT, True)
    hypers = cast_hypers(monte_carlo_control.Hypers())
    fewer = rollout_of(record(4, NUM_ENVS - 1, 0, (STATES, ACTIONS)))
    sentence = r"^monte_carlo_control was made for 3 environments \(spec.num_envs\) and is handed a rollout of 2$"
    with pytest.raises(ValueError, match=sentence):
        agent.update(jax.random.key(0), agent.init(jax.random.key(0), hypers), fewer, hypers)
