"""Action-value methods for bandits: epsilon-greedy, UCB and optimistic values (Sutton & Barto, sections 2.2 to 2.7)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from purerl import exploration, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers
from purerl.exploration import Explore


@pytree_dataclass
class Hypers:
    """The numbers of an action-value method; as they stand, values are sample averages."""

    learning_rate: float = 1.0  # alpha: the n-th reward of an action counts for alpha n^-omega ...
    learning_rate_decay: float = 1.0  # ... omega, [0, 1]: 1 makes an average, 0 a constant rate, for what changes
    exploration: float = 0.1  # epsilon, or UCB's c, or a temperature
    initial_value: float = 0.0  # what Q starts from; above the true values it makes the agent explore


@pytree_dataclass
class State:
    """The values Q and how often each was moved; a row per context, of which the testbed has one."""

    values: Any  # float32 [S, A]
    counts: Any  # float32 [S, A]
    visits: Any  # what exploration remembers


def action_value_bandit(spec: Spec, *, explore: Explore = exploration.epsilon_greedy) -> Agent:
    """Return the simple bandit algorithm for discrete observations (contexts) and actions.

        N(a) <- N(a) + 1
        Q(a) <- Q(a) + alpha N(a)^-omega [R - Q(a)]

    `explore=exploration.ucb` makes it UCB. What follows a reward counts for nothing: there is no discount, and how an
    episode ends does not matter. Rewards that meet in one cell each count. Raises ValueError for other spaces.
    """
    states, actions = tables.sizes(spec, agent="action_value_bandit")
    strategy = exploration.made(explore, spec)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="action_value_bandit")
        values = jnp.full((states, actions), hypers.initial_value, jnp.float32)
        return State(values=values, counts=jnp.zeros((states, actions), jnp.float32), visits=strategy.init())

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values, visits = state.values[observation], state.visits
        return exploration.act(key, strategy, values, visits, observation, hypers.exploration, greedy=greedy), memory

    def update(key, state, rollout, hypers):
        def learn(learned, own, step):
            values, counts = learned
            cell = step.observation, step.action
            values, counts, error = tables.move_and_count(values, counts, *cell, step.reward, hypers)
            return (values, counts), own, jnp.abs(error)

        (values, counts), _, errors = tables.one_at_a_time(learn, (state.values, state.counts), (), rollout)
        return dataclasses.replace(state, values=values, counts=counts), {"error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
