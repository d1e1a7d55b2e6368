"""The agents that learn a table as slow loops written from Sutton & Barto, in float64, and experience to learn from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl import exploration, tables
from purerl.agents import double_q_learning, expected_sarsa, n_step_sarsa, q_learning, sarsa, sarsa_lambda
from purerl.base import Discrete, Rollout, Spec, Transition, cast_hypers

STATES, ACTIONS = 3, 2

# --- experience -----------------------------------------------------------------------------------------------------


def spec_of(num_envs, states=STATES, actions=ACTIONS):
    return Spec(observation=Discrete(states), action=Discrete(actions), num_envs=num_envs)


def record(length, num_envs, seed, sizes=(STATES, ACTIONS), masked=()):
    """Random experience [T, N] over few states, so that environments meet; after an end a new episode begins.

    Every episode's end is a termination, a truncation or both. The pairs (s, a) in `masked` are never tried.
    """
    (states, actions), rng = sizes, np.random.default_rng(seed)
    possible = [[action for action in range(actions) if (state, action) not in masked] for state in range(states)]
    observation = rng.integers(states, size=num_envs)
    steps = []
    for _ in range(length):
        ended, kind = rng.random(num_envs) < 0.2, rng.integers(3, size=num_envs)
        successor = rng.integers(states, size=num_envs)
        steps.append(
            {
                "observation": np.int32(observation),
                "action": np.int32([rng.choice(possible[state]) for state in observation]),
                "reward": np.float32(rng.normal(size=num_envs)),
                "terminated": ended & (kind != 1),
                "truncated": ended & (kind != 0),
                "next_observation": np.int32(successor),
            }
        )
        observation = np.where(ended, rng.integers(states, size=num_envs), successor)
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def path(*steps, terminated=False, truncated=False):
    """The experience [T, 1] of one environment: steps (s, a, r), the state after the last, and how it ended, if so."""
    *steps, last = steps
    states, actions, rewards = np.array(steps, object).T
    end = np.arange(len(steps)) == len(steps) - 1
    return {
        "observation": np.int32(states)[:, None],
        "action": np.int32(actions)[:, None],
        "reward": np.float32(rewards)[:, None],
        "terminated": (end & terminated)[:, None],
        "truncated": (end & truncated)[:, None],
        "next_observation": np.int32([*states[1:], last])[:, None],
    }


def joined(*experiences, axis=0):
    """One experience after the other, or with axis=1 side by side."""
    return {name: np.concatenate([one[name] for one in experiences], axis) for name in experiences[0]}


def rollout_of(experience, first=0, last=None):
    return Rollout(
        steps=Transition(**{name: jnp.asarray(leaf[first:last]) for name, leaf in experience.items()}), memory=()
    )


# --- the loops ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Book:
    """What a loop learns: `waiting[environment]` are the (s, a, r) of transitions that it has not learned from."""

    tables: list[np.ndarray]
    waiting: list[list[tuple[int, int, float]]]
    traces: np.ndarray
    errors: np.ndarray  # [T, N] absolute TD errors, summed over what one step let it learn


def _move(book, step, cell, target, rate, table=0):
    error = target - book.tables[table][cell]
    book.tables[table][cell] += rate * error
    book.errors[step.time, step.environment] += abs(error)


def _rows(experience):
    """The transitions one at a time, in the order of time and then of environments."""
    for time, environment in np.ndindex(*experience["reward"].shape):
        leaves = {name: leaf[time, environment].item() for name, leaf in experience.items()}
        yield SimpleNamespace(time=time, environment=environment, **leaves)


def _epsilon_greedy(values, epsilon):
    best, possible = values == max(values), values > -np.inf
    return (1 - epsilon) * best / best.sum() + epsilon * possible / possible.sum()


def _expectation(values, epsilon):
    """The mean of the values under the policy that is epsilon-greedy in them; impossible actions are worth -inf."""
    return sum(chance * value for chance, value in zip(_epsilon_greedy(values, epsilon), values, strict=True) if chance)


def _q_learning(book, experience, hypers, coins):
    """S&B 6.5."""
    (values,) = book.tables
    for step in _rows(experience):
        target = step.reward
        if not step.terminated:
            target += hypers.discount * max(values[step.next_observation])
        _move(book, step, (step.observation, step.action), target, hypers.learning_rate)


def _expected_sarsa(book, experience, hypers, coins):
    """S&B 6.6."""
    (values,) = book.tables
    for step in _rows(experience):
        target = step.reward
        if not step.terminated:
            target += hypers.discount * _expectation(values[step.next_observation], hypers.exploration)
        _move(book, step, (step.observation, step.action), target, hypers.learning_rate)


def _double_q_learning(book, experience, hypers, coins):
    """S&B 6.7; a coin below a half says that the first table learns, and its place in that half which best is taken."""
    for step in _rows(experience):
        coin = 2 * float(coins[step.time, step.environment])
        learner = 0 if coin < 1 else 1
        selector, judge = book.tables[learner], book.tables[1 - learner]
        target = step.reward
        if not step.terminated:
            ties = np.flatnonzero(selector[step.next_observation] == max(selector[step.next_observation]))
            best = ties[int(coin % 1 * len(ties))]
            target += hypers.discount * judge[step.next_observation, best]
        _move(book, step, (step.observation, step.action), target, hypers.learning_rate, table=learner)


def _sarsa(book, experience, hypers, coins):
    """S&B 6.4: S, A, R, S', then the A' that is executed in S'; the table is shared, in order of time."""
    (values,) = book.tables
    for step in _rows(experience):
        waiting = book.waiting[step.environment]
        if waiting:
            state, action, reward = waiting.pop()
            target = reward + hypers.discount * values[step.observation, step.action]
            _move(book, step, (state, action), target, hypers.learning_rate)
        here = step.observation, step.action
        if step.terminated:
            _move(book, step, here, step.reward, hypers.learning_rate)
        elif step.truncated:
            successor = _expectation(values[step.next_observation], hypers.exploration)
            _move(book, step, here, step.reward + hypers.discount * successor, hypers.learning_rate)
        else:
            waiting.append((*here, step.reward))


def _n_step_sarsa(book, experience, hypers, coins, *, n):
    """S&B 7.2: the oldest transition of an episode learns when there are n rewards, the others at the episode's end."""
    (values,) = book.tables
    for step in _rows(experience):
        waiting = book.waiting[step.environment]

        def learn_oldest(value_after, step=step, waiting=waiting):
            target = hypers.discount ** len(waiting) * value_after
            for power, (_, _, reward) in enumerate(waiting):
                target += hypers.discount**power * reward
            state, action, _ = waiting.pop(0)
            _move(book, step, (state, action), target, hypers.learning_rate)

        if len(waiting) == n:
            learn_oldest(values[step.observation, step.action])
        waiting.append((step.observation, step.action, step.reward))
        if step.terminated or step.truncated:
            last = 0.0 if step.terminated else _expectation(values[step.next_observation], hypers.exploration)
            while waiting:
                learn_oldest(last)


def _sarsa_lambda(book, experience, hypers, coins, *, replacing):
    """The backward view on a table: the figure "Sarsa(lambda)" of the book's first edition, section 7.5."""
    (values,) = book.tables
    for step in _rows(experience):
        waiting, traces = book.waiting[step.environment], book.traces[step.environment]

        def learn(cell, target, step=step, traces=traces):
            error = target - values[cell]
            traces[cell] = 1.0 if replacing else traces[cell] + 1.0
            for pair in np.ndindex(*values.shape):
                values[pair] += hypers.learning_rate * error * traces[pair]
                traces[pair] *= hypers.discount * hypers.trace_decay
            book.errors[step.time, step.environment] += abs(error)

        if waiting:
            state, action, reward = waiting.pop()
            learn((state, action), reward + hypers.discount * values[step.observation, step.action])
        here = step.observation, step.action
        if step.terminated:
            learn(here, step.reward)
        elif step.truncated:
            successor = _expectation(values[step.next_observation], hypers.exploration)
            learn(here, step.reward + hypers.discount * successor)
        else:
            waiting.append((*here, step.reward))
        if step.terminated or step.truncated:
            traces[:] = 0.0


# --- the agents -----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """An agent, its numbers and its loop."""

    make: Callable[..., Any]  # (spec, explore=) -> Agent
    hypers: Any
    book: Callable[..., None]


def _n_step(n):
    return Case(
        functools.partial(n_step_sarsa.n_step_sarsa, n=n), n_step_sarsa.Hypers, functools.partial(_n_step_sarsa, n=n)
    )


def _with_traces(replacing):
    return Case(
        functools.partial(sarsa_lambda.sarsa_lambda, replacing=replacing),
        sarsa_lambda.Hypers,
        functools.partial(_sarsa_lambda, replacing=replacing),
    )


AGENTS = {
    "q_learning": Case(q_learning.q_learning, tables.Hypers, _q_learning),
    "sarsa": Case(sarsa.sarsa, tables.Hypers, _sarsa),
    "expected_sarsa": Case(expected_sarsa.expected_sarsa, tables.Hypers, _expected_sarsa),
    "double_q_learning": Case(double_q_learning.double_q_learning, tables.Hypers, _double_q_learning),
    "n_step_sarsa": _n_step(3),
    "sarsa_lambda": _with_traces(replacing=False),
}
WAITING = ["sarsa", "n_step_sarsa", "sarsa_lambda"]  # those that keep something of every environment
VARIANTS = AGENTS | {
    "1_step_sarsa": _n_step(1),
    "2_step_sarsa": _n_step(2),
    "5_step_sarsa": _n_step(5),
    "sarsa_lambda, replacing": _with_traces(replacing=True),
}


@functools.cache
def made(name, spec, explore=exploration.epsilon_greedy):
    """An agent and its compiled update, made once: an agent made anew is a new program."""
    agent = VARIANTS[name].make(spec, explore=explore)
    return agent, jax.jit(agent.update)


def tables_of(state):
    """What an agent's state has learned: one table, or the two of double Q-learning."""
    return [state.first, state.second] if isinstance(state, double_q_learning.State) else [state.values]


def with_tables(state, values):
    """The state with all its tables set to `values` [S, A], or each to its own of [2, S, A]."""
    values = jnp.asarray(values, jnp.float32)
    if isinstance(state, double_q_learning.State):
        first, second = values if values.ndim == 3 else (values, values)
        return dataclasses.replace(state, first=first, second=second)
    return dataclasses.replace(state, values=values)


def heads(length, num_envs):
    """A key by which double Q-learning's first table learns from every transition."""
    keys = map(jax.random.key, range(1000))
    return next(key for key in keys if (jax.random.uniform(key, (length, num_envs)) < 0.5).all())


def _key(first):
    return jax.random.fold_in(jax.random.key(1), first)


def learn(
    name,
    experience,
    chunk,
    *,
    values=None,
    sizes=(STATES, ACTIONS),
    explore=exploration.epsilon_greedy,
    key=None,
    observe=False,
    **hypers,
):
    """The state after feeding recorded experience in chunks, and the td_error of each update.

    A table starts as `values`, or has these sizes and the initial value.
    """
    length, num_envs = experience["reward"].shape
    *_, states, actions = sizes if values is None else np.shape(values)
    agent, update = made(name, spec_of(num_envs, states, actions), explore)
    hypers = cast_hypers(VARIANTS[name].hypers(**hypers))
    state, errors = agent.init(jax.random.key(0), hypers), []
    if values is not None:
        state = with_tables(state, values)
    for first in range(0, length, chunk):
        rollout = rollout_of(experience, first, first + chunk)
        if observe:
            state = agent.observe(state, rollout, hypers)
        state, metrics = update(_key(first) if key is None else key, state, rollout, hypers)
        errors.append(float(metrics["td_error"]))
    return state, errors


def by_the_book(name, experience, chunk, *, values=None, sizes=(STATES, ACTIONS), **hypers):
    """What the loop makes of what `learn` is given; the chunks matter only to the coins, drawn for each."""
    length, num_envs = experience["reward"].shape
    hypers = VARIANTS[name].hypers(**hypers)
    if values is None:
        values = np.full(sizes, hypers.initial_value)
    states, actions = np.shape(values)
    count = 2 if name == "double_q_learning" else 1
    coins = [
        jax.random.uniform(_key(first), (min(chunk, length - first), num_envs)) for first in range(0, length, chunk)
    ]
    book = Book(
        tables=list(np.array(np.broadcast_to(values, (count, states, actions)), np.float64)),
        waiting=[[] for _ in range(num_envs)],
        traces=np.zeros((num_envs, states, actions)),
        errors=np.zeros((length, num_envs)),
    )
    VARIANTS[name].book(book, experience, hypers, np.concatenate(coins))
    return book


def assert_by_the_book(state, errors, book, chunk, atol=1e-5):
    """Compare all that was learned, what is left to learn, and the errors that were reported."""
    for table, expected in zip(tables_of(state), book.tables, strict=True):
        assert table.dtype == jnp.float32
        np.testing.assert_allclose(table, expected, atol=atol)
    if hasattr(state, "waiting"):
        for environment, expected in enumerate(book.waiting):
            one = jax.tree.map(lambda leaf, environment=environment: leaf[environment].ravel(), state.waiting)
            kept = [leaf[one.open].tolist() for leaf in (one.observation, one.action, one.reward)]
            assert list(zip(*kept, strict=True)) == expected
    if hasattr(state, "traces"):
        np.testing.assert_allclose(state.traces, book.traces, atol=atol)
    means = [book.errors[first : first + chunk].mean() for first in range(0, len(book.errors), chunk)]
    np.testing.assert_allclose(errors, means, atol=atol)
