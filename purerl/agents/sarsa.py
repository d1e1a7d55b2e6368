"""SARSA: on-policy temporal-difference control on a table (Rummery & Niranjan 1994; Sutton & Barto, section 6.4)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from purerl import exploration, losses, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers, require_num_envs
from purerl.exploration import Explore

Hypers = tables.Hypers


@pytree_dataclass
class State:
    """The table Q, and the transitions not yet learned from."""

    values: Any  # float32 [S, A]
    waiting: tables.Waiting  # [N] the last transition of every environment; it waits for the action executed next
    visits: Any  # what exploration remembers


def sarsa(spec: Spec, *, explore: Explore = exploration.epsilon_greedy) -> Agent:
    """Return tabular SARSA for discrete observations and actions.

        Q(s, a) <- Q(s, a) + alpha [r + gamma Q(s', a') - Q(s, a)]

    a' is the action then executed in s': a transition waits in the state until that action is known. Where the episode
    terminated the target is r, at once. Where the clock ended it no action follows s', and the expectation of Q(s', .)
    under the policy stands in (the same mean, less variance). Not for replay: it learns from rollouts that follow one
    another. Raises ValueError for other spaces.
    """
    states, actions = tables.sizes(spec, agent="sarsa")
    strategy = exploration.made(explore, spec)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="sarsa")
        values = jnp.full((states, actions), hypers.initial_value, jnp.float32)
        return State(values=values, waiting=tables.nothing_waits((spec.num_envs,)), visits=strategy.init())

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values, visits = state.values[observation], state.visits
        return exploration.act(key, strategy, values, visits, observation, hypers.exploration, greedy=greedy), memory

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="sarsa")

        def learn(values, waiting, step):
            """Learn, in one environment, from the transition that waited, and from the new one if the episode ended."""
            next_value = tables.value_of(values, step.observation, step.action)
            target = losses.sarsa_target(waiting.reward, hypers.discount, next_value)
            values, waited_error = tables.move(
                values, waiting.observation, waiting.action, target, hypers.learning_rate, where=waiting.open
            )
            ended = step.terminated | step.truncated
            last_value = tables.value_after(values, step, strategy, state.visits, hypers.exploration)
            target = losses.sarsa_target(step.reward, hypers.discount, last_value)
            values, last_error = tables.move(
                values, step.observation, step.action, target, hypers.learning_rate, where=ended
            )
            return values, tables.wait(step), jnp.abs(waited_error) + jnp.abs(last_error)

        values, waiting, errors = tables.one_at_a_time(learn, state.values, state.waiting, rollout)
        return State(values=values, waiting=waiting, visits=state.visits), {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
