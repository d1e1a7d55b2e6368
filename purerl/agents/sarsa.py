"""SARSA: on-policy temporal-difference control on a table (Rummery & Niranjan 1994; Sutton & Barto, section 6.4)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import exploration, losses
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_discrete


@pytree_dataclass
class Hypers:
    """The numbers of SARSA."""

    learning_rate: float = 0.5  # alpha, (0, 1]
    discount: float = 1.0  # gamma, [0, 1]
    epsilon: float = 0.1  # probability of a random action, [0, 1]
    initial_value: float = 0.0  # what Q starts from; above the true values it makes the agent explore


@pytree_dataclass
class Waiting:
    """The last transition of every environment, which waits for the action that is executed next; leaves [N]."""

    observation: Any  # int32
    action: Any  # int32
    reward: Any  # float32
    open: Any  # bool: whether one waits; none does at an episode's start


@pytree_dataclass
class State:
    """The table Q, and the transitions not yet learned from."""

    values: Any  # float32 [S, A]
    waiting: Waiting  # [N]


def sarsa(spec: Spec) -> Agent:
    """Return tabular SARSA for discrete observations and actions.

        Q(s, a) <- Q(s, a) + alpha [r + gamma Q(s', a') - Q(s, a)]

    a' is the action then executed in s': a transition waits in the state until that action is known. Where the episode
    terminated the target is r, at once. Where the clock ended it no action follows s', and the expectation of Q(s', .)
    under the policy stands in (the same mean, less variance). Raises ValueError for other spaces.
    """
    states = require_discrete(spec.observation, what="observation", agent="sarsa")
    actions = require_discrete(spec.action, what="action", agent="sarsa")

    def init(key, hypers):
        def nothing(dtype):
            return jnp.zeros(spec.num_envs, dtype)

        return State(
            values=jnp.full((states, actions), hypers.initial_value, jnp.float32),
            waiting=Waiting(
                observation=nothing(jnp.int32),
                action=nothing(jnp.int32),
                reward=nothing(jnp.float32),
                open=nothing(bool),
            ),
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        epsilon = 0.0 if greedy else hypers.epsilon
        return exploration.epsilon_greedy(key, state.values[observation], epsilon), memory

    def learn(values, transition, hypers):
        """Learn, in one environment, from the transition that waited, and from the new one if the episode ended."""
        waiting, step = transition
        target = losses.sarsa_target(
            waiting.reward, hypers.discount, losses.select(values[step.observation], step.action)
        )
        values, waited_error = move(values, waiting, target, waiting.open, hypers)

        ended = step.terminated | step.truncated
        bootstrap = losses.bootstrap_weight(hypers.discount, step.terminated)
        next_values = values[step.next_observation]
        policy = exploration.epsilon_greedy_policy(next_values, hypers.epsilon)
        target = losses.expected_sarsa_target(step.reward, bootstrap, next_values, policy)
        values, last_error = move(values, step, target, ended, hypers)

        waiting = Waiting(observation=step.observation, action=step.action, reward=step.reward, open=~ended)
        return values, (waiting, jnp.abs(waited_error) + jnp.abs(last_error))

    def move(values, step, target, where, hypers):
        """Move Q(s, a) towards the target, `where` it holds."""
        # Not indexed directly: XLA would read it twice, before and after the write, and copy the table for that.
        value = losses.select(values[step.observation], step.action)
        error = jnp.where(where, target - value, 0.0)
        return values.at[step.observation, step.action].set(value + hypers.learning_rate * error), error

    def update(key, state, rollout, hypers):
        if rollout.steps.reward.shape[1] != spec.num_envs:
            raise ValueError(
                f"sarsa was made for {spec.num_envs} environments (spec.num_envs) and is handed a rollout of "
                f"{rollout.steps.reward.shape[1]}"
            )

        def at_time(state, step):
            values, (waiting, errors) = jax.lax.scan(
                lambda values, transition: learn(values, transition, hypers),
                state.values,
                (state.waiting, step),
            )
            return State(values=values, waiting=waiting), errors

        state, errors = jax.lax.scan(at_time, state, rollout.steps)
        return state, {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update)
