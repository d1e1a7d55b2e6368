"""Double Q-learning: two tables, one chooses and the other judges (van Hasselt 2010; Sutton & Barto, section 6.7)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import exploration, losses, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers, select
from purerl.exploration import Explore

Hypers = tables.Hypers


@pytree_dataclass
class State:
    """The tables Q1 and Q2."""

    first: Any  # float32 [S, A]
    second: Any  # float32 [S, A]
    visits: Any  # what exploration remembers


def double_q_learning(spec: Spec, *, explore: Explore = exploration.epsilon_greedy) -> Agent:
    """Return tabular double Q-learning for discrete observations and actions.

        with probability 1/2:  Q1(s, a) <- Q1(s, a) + alpha [r + gamma Q2(s', argmax_a' Q1(s', a')) - Q1(s, a)]
        else the same with Q1 and Q2 exchanged

    It acts by the mean of both (the book's sum has the same greedy actions). Transitions are learned from one at a
    time, in the order of time and then of environments. Raises ValueError for other spaces.
    """
    states, actions = tables.sizes(spec, agent="double_q_learning")
    strategy = exploration.made(explore, spec)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="double_q_learning")
        values = jnp.full((states, actions), hypers.initial_value, jnp.float32)
        return State(first=values, second=jnp.copy(values), visits=strategy.init())

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values, visits = (state.first[observation] + state.second[observation]) / 2, state.visits
        return exploration.act(key, strategy, values, visits, observation, hypers.exploration, greedy=greedy), memory

    def update(key, state, rollout, hypers):
        uniform = jax.random.uniform(key, rollout.steps.reward.shape)

        def learn(both, own, step, uniform):
            first, second = both
            # One number tosses the coin and, stretched, breaks the ties of the argmax evenly: at first all are equal.
            heads, rest = uniform < 0.5, 2.0 * uniform % 1.0
            bootstrap = losses.bootstrap_weight(hypers.discount, step.terminated)
            next_first, next_second = first[step.next_observation], second[step.next_observation]
            chooses, judges = jnp.where(heads, next_first, next_second), jnp.where(heads, next_second, next_first)
            best = exploration.pick(rest, exploration.greedy_policy(chooses))
            target = losses.sarsa_target(step.reward, bootstrap, select(judges, best))
            cell = step.observation, step.action, target, hypers.learning_rate
            first, first_error = tables.move(first, *cell, where=heads)
            second, second_error = tables.move(second, *cell, where=~heads)
            return (first, second), own, jnp.abs(first_error + second_error)

        (first, second), _, errors = tables.one_at_a_time(learn, (state.first, state.second), (), rollout, uniform)
        return State(first=first, second=second, visits=state.visits), {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
