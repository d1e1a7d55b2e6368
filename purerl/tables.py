"""What agents that learn a table Q [S, A] share: their numbers, and how transitions are taken one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from purerl import losses
from purerl.base import Rollout, Spec, Transition, pytree_dataclass, require_discrete, require_spec, select
from purerl.exploration import Exploration

Own = TypeVar("Own")


@pytree_dataclass
class Hypers:
    """The numbers of an agent that learns a table."""

    learning_rate: float = 0.5  # alpha, (0, 1]
    discount: float = 1.0  # gamma, [0, 1]
    exploration: float = 0.1  # epsilon, or what another way to explore takes: a temperature, UCB's c
    initial_value: float = 0.0  # what Q starts from; above the true values it makes the agent explore


@pytree_dataclass
class Model:
    """What followed each pair of state and action when it was last seen, and what has been seen."""

    reward: Any  # float32 [S, A]
    next_observation: Any  # int32 [S, A]
    terminated: Any  # bool [S, A]
    seen: Any  # bool [S, A]


def unknown_model(states: int, actions: int) -> Model:
    """Return a model of which nothing has been seen."""
    table = states, actions
    return Model(
        reward=jnp.zeros(table, jnp.float32),
        next_observation=jnp.zeros(table, jnp.int32),
        terminated=jnp.zeros(table, bool),
        seen=jnp.zeros(table, bool),
    )


def remember(model: Model, step: Transition) -> Model:
    """Return the model with one transition, in the place of what followed its pair before."""
    pair = step.observation, step.action
    return Model(
        reward=model.reward.at[pair].set(step.reward),
        next_observation=model.next_observation.at[pair].set(step.next_observation),
        terminated=model.terminated.at[pair].set(step.terminated),
        seen=model.seen.at[pair].set(True),
    )


@pytree_dataclass
class Waiting:
    """Transitions that wait for what comes after them; leaves [...]."""

    observation: Any  # int32
    action: Any  # int32
    reward: Any  # float32
    open: Any  # bool: whether one waits at all


def nothing_waits(shape: tuple[int, ...]) -> Waiting:
    """Return the places of waiting transitions, empty."""
    return Waiting(
        observation=jnp.zeros(shape, jnp.int32),
        action=jnp.zeros(shape, jnp.int32),
        reward=jnp.zeros(shape, jnp.float32),
        open=jnp.zeros(shape, bool),
    )


def wait(step: Transition) -> Waiting:
    """Let a transition wait, unless its episode ended."""
    ended = step.terminated | step.truncated
    return Waiting(observation=step.observation, action=step.action, reward=step.reward, open=~ended)


def sizes(spec: Spec, *, agent: str) -> tuple[int, int]:
    """Return the numbers of states and actions (S, A); a ValueError that names `agent` unless both are discrete."""
    require_spec(spec, agent=agent)
    return (
        require_discrete(spec.observation, what="observation", agent=agent),
        require_discrete(spec.action, what="action", agent=agent),
    )


def value_of(values: Float[Array, "S A"], observation: Int[Array, ""], action: Int[Array, ""]) -> Float[Array, ""]:
    """Return Q(s, a).

    Not indexed directly: XLA would read a cell that is written next twice, before and after, and copy the table for it.
    """
    return select(values[observation], action)


def value_after(
    values: Float[Array, "S A"], step: Transition, strategy: Exploration, visits: PyTree, number: Float[Array, ""]
) -> Float[Array, ""]:
    """Return what follows the last transition of an episode: 0 where it terminated; else sum_a pi(a|s') Q(s', a).

    No action follows it, so the mean under the policy that acts stands in for one.
    """
    next_values = values[step.next_observation]
    policy = strategy.policy(next_values, visits, step.next_observation, number)
    goes_on = losses.bootstrap_weight(jnp.float32(1.0), step.terminated)
    return losses.expected_sarsa_target(jnp.float32(0.0), goes_on, next_values, policy)


def move(
    values: Float[Array, "S A"],
    observation: Int[Array, ""],
    action: Int[Array, ""],
    target: Float[Array, ""],
    rate: Float[Array, ""],
    *,
    where: Bool[Array, ""] | bool = True,
) -> tuple[Float[Array, "S A"], Float[Array, ""]]:
    """Return (Q with Q(s, a) <- Q(s, a) + rate [target - Q(s, a)], that error); as it was, and 0, unless `where`."""
    value = value_of(values, observation, action)
    error = jnp.where(where, target - value, 0.0)
    # Set and not added to: so written, runs are equal to the bit, batched or alone, in whatever chunks.
    return values.at[observation, action].set(value + rate * error), error


def move_and_count(
    values: Float[Array, "S A"],
    counts: Float[Array, "S A"],
    observation: Int[Array, ""],
    action: Int[Array, ""],
    target: Float[Array, ""],
    hypers: Any,
    *,
    where: Bool[Array, ""] | bool = True,
) -> tuple[Float[Array, "S A"], Float[Array, "S A"], Float[Array, ""]]:
    """Return (Q, N, error) after N(s, a) <- N(s, a) + 1, Q(s, a) <- Q(s, a) + alpha N(s, a)^-omega [target - Q(s, a)].

    Alpha and omega are the `learning_rate` and `learning_rate_decay` of `hypers`: 1 and 1 make Q the average of its
    targets, omega 0 a constant rate (S&B section 2.5; Even-Dar & Mansour 2003). As it was, and 0, unless `where`.
    """
    count = value_of(counts, observation, action) + where
    rate = hypers.learning_rate * jnp.maximum(count, 1.0) ** -hypers.learning_rate_decay
    values, error = move(values, observation, action, target, rate, where=where)
    return values, counts.at[observation, action].set(count), error


def one_at_a_time(
    learn: Callable[..., tuple[PyTree, Own, Float[Array, ""]]],
    values: PyTree,
    own: Own,
    rollout: Rollout,
    *also: PyTree,
) -> tuple[PyTree, Own, Float[Array, "T N"]]:
    """Learn from each transition of a rollout by itself, in the order of time and then of environments.

    `learn(values, own, transition, *also) -> (values, own, error)` sees one environment: its transition, the rows of
    `also` [T, N, ...] that go with it, and what it has to itself, the rows of `own` [N, ...]. Transitions that meet in
    one cell each count. Returns the last values and `own`, and every error [T, N].
    """

    def in_environment(values, inputs):
        own, transition, *also = inputs
        values, own, error = learn(values, own, transition, *also)
        return values, (own, error)

    def at_time(carry, inputs):
        values, own = carry
        values, (own, errors) = jax.lax.scan(in_environment, values, (own, *inputs))
        return (values, own), errors

    (values, own), errors = jax.lax.scan(at_time, (values, own), (rollout.steps, *also))
    return values, own, errors
