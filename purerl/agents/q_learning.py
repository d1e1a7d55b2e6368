"""Q-learning: off-policy temporal-difference control on a table (Watkins 1989; Sutton & Barto, section 6.5)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import exploration, losses
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_discrete


@pytree_dataclass
class Hypers:
    """The numbers of Q-learning."""

    learning_rate: float = 0.5  # alpha, (0, 1]
    discount: float = 1.0  # gamma, [0, 1]
    epsilon: float = 0.1  # probability of a random action, [0, 1]
    initial_value: float = 0.0  # what Q starts from; above the true values it makes the agent explore


@pytree_dataclass
class State:
    """The table Q."""

    values: Any  # float32 [S, A]


def q_learning(spec: Spec) -> Agent:
    """Return tabular Q-learning for discrete observations and actions.

        Q(s, a) <- Q(s, a) + alpha [r + gamma max_a' Q(s', a') - Q(s, a)]

    Transitions are learned from one at a time, in the order of time and then of environments: those that meet in one
    cell of the table each count. Raises ValueError for other spaces.
    """
    states = require_discrete(spec.observation, what="observation", agent="q_learning")
    actions = require_discrete(spec.action, what="action", agent="q_learning")

    def init(key, hypers):
        return State(values=jnp.full((states, actions), hypers.initial_value, jnp.float32))

    def act(key, state, memory, observation, hypers, *, greedy=False):
        epsilon = 0.0 if greedy else hypers.epsilon
        return exploration.epsilon_greedy(key, state.values[observation], epsilon), memory

    def learn(values, step, hypers):
        bootstrap = losses.bootstrap_weight(hypers.discount, step.terminated)
        target = losses.q_learning_target(step.reward, bootstrap, values[step.next_observation])
        # Not indexed directly: XLA would read it twice, before and after the write, and copy the table for that.
        value = losses.select(values[step.observation], step.action)
        error = target - value
        return values.at[step.observation, step.action].set(value + hypers.learning_rate * error), error

    def update(key, state, rollout, hypers):
        steps = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rollout.steps)
        values, errors = jax.lax.scan(lambda values, step: learn(values, step, hypers), state.values, steps)
        return State(values=values), {"td_error": jnp.mean(jnp.abs(errors))}

    return Agent(init=init, start=no_memory, act=act, update=update)
