"""Q-learning: off-policy temporal-difference control on a table (Watkins 1989; Sutton & Barto, section 6.5)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from purerl import exploration, losses, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers
from purerl.exploration import Explore

Hypers = tables.Hypers


@pytree_dataclass
class State:
    """The table Q."""

    values: Any  # float32 [S, A]
    visits: Any  # what exploration remembers


def q_learning(spec: Spec, *, explore: Explore = exploration.epsilon_greedy) -> Agent:
    """Return tabular Q-learning for discrete observations and actions.

        Q(s, a) <- Q(s, a) + alpha [r + gamma max_a' Q(s', a') - Q(s, a)]

    Transitions are learned from one at a time, in the order of time and then of environments: those that meet in one
    cell of the table each count. Raises ValueError for other spaces.
    """
    states, actions = tables.sizes(spec, agent="q_learning")
    strategy = exploration.made(explore, spec)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="q_learning")
        values = jnp.full((states, actions), hypers.initial_value, jnp.float32)
        return State(values=values, visits=strategy.init())

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values, visits = state.values[observation], state.visits
        return exploration.act(key, strategy, values, visits, observation, hypers.exploration, greedy=greedy), memory

    def update(key, state, rollout, hypers):
        def learn(values, own, step):
            bootstrap = losses.bootstrap_weight(hypers.discount, step.terminated)
            target = losses.q_learning_target(step.reward, bootstrap, values[step.next_observation])
            values, error = tables.move(values, step.observation, step.action, target, hypers.learning_rate)
            return values, own, jnp.abs(error)

        values, _, errors = tables.one_at_a_time(learn, state.values, (), rollout)
        return dataclasses.replace(state, values=values), {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
