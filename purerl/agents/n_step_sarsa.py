"""n-step SARSA: on-policy control on a table by n rewards and a value (Sutton & Barto, section 7.2)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from purerl import exploration, returns, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers, require_num_envs
from purerl.checks import require_count
from purerl.exploration import Explore

Hypers = tables.Hypers


@pytree_dataclass
class State:
    """The table Q, and the transitions not yet learned from."""

    values: Any  # float32 [S, A]
    waiting: tables.Waiting  # [N, n] the last n transitions of every environment, the oldest first
    visits: Any  # what exploration remembers


def n_step_sarsa(spec: Spec, *, n: int, explore: Explore = exploration.epsilon_greedy) -> Agent:
    """Return tabular n-step SARSA for discrete observations and actions.

        G = r_t+1 + gamma r_t+2 + ... + gamma^(n-1) r_t+n + gamma^n Q(s_t+n, a_t+n)
        Q(s_t, a_t) <- Q(s_t, a_t) + alpha [G - Q(s_t, a_t)]

    A transition waits in the state until n rewards and the action after them are known. At an episode's end those that
    wait are learned from in their order, by the rewards there are: with nothing after them where it terminated; where
    the clock ended it, with the expectation of Q under the policy. Not for replay: it learns from rollouts that follow
    one another. Raises ValueError for other spaces or n below 1.
    """
    states, actions = tables.sizes(spec, agent="n_step_sarsa")
    strategy = exploration.made(explore, spec)
    require_count("n", n)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="n_step_sarsa")
        values = jnp.full((states, actions), hypers.initial_value, jnp.float32)
        return State(values=values, waiting=tables.nothing_waits((spec.num_envs, n)), visits=strategy.init())

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values, visits = state.values[observation], state.visits
        return exploration.act(key, strategy, values, visits, observation, hypers.exploration, greedy=greedy), memory

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="n_step_sarsa")

        def move(values, transition_and_target):
            one, target = transition_and_target
            return tables.move(values, one.observation, one.action, target, hypers.learning_rate, where=one.open)

        def learn(values, waiting, step):
            """Learn, in one environment, from the transition n steps ago; from all that wait if the episode ended."""
            next_value = tables.value_of(values, step.observation, step.action)
            targets = returns.discounted(waiting.reward, hypers.discount, next_value)
            oldest = jax.tree.map(lambda leaf: leaf[0], waiting)
            values, error = move(values, (oldest, targets[0]))

            newest = dataclasses.replace(tables.wait(step), open=jnp.bool_(True))
            waiting = jax.tree.map(lambda leaf, new: jnp.append(leaf[1:], new), waiting, newest)
            last_value = tables.value_after(values, step, strategy, state.visits, hypers.exploration)
            targets = returns.discounted(waiting.reward, hypers.discount, last_value)

            # At every step, for nothing where the episode goes on: a condition would copy whole tables under vmap.
            ended = step.terminated | step.truncated
            last = dataclasses.replace(waiting, open=waiting.open & ended)
            values, errors = jax.lax.scan(move, values, (last, targets))
            waiting = dataclasses.replace(waiting, open=waiting.open & ~ended)
            return values, waiting, jnp.abs(error) + jnp.sum(jnp.abs(errors))

        values, waiting, errors = tables.one_at_a_time(learn, state.values, state.waiting, rollout)
        return State(values=values, waiting=waiting, visits=state.visits), {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
