"""SARSA(lambda): SARSA with eligibility traces on a table (Rummery & Niranjan 1994; Singh & Sutton 1996; S&B 12.7)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from purerl import exploration, losses, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers, require_num_envs
from purerl.checks import require_flag
from purerl.exploration import Explore


@pytree_dataclass
class Hypers(tables.Hypers):
    """The numbers of SARSA(lambda)."""

    trace_decay: float = 0.9  # lambda, [0, 1]


@pytree_dataclass
class State:
    """The table Q, and what each environment's episode has left behind."""

    values: Any  # float32 [S, A]
    traces: Any  # float32 [N, S, A] how much a pair still shares in what is learned
    waiting: tables.Waiting  # [N] the last transition of every environment; it waits for the action executed next
    visits: Any  # what exploration remembers


def sarsa_lambda(spec: Spec, *, replacing: bool = False, explore: Explore = exploration.epsilon_greedy) -> Agent:
    """Return tabular SARSA(lambda) for discrete observations and actions.

        delta = r + gamma Q(s', a') - Q(s, a)
        e(s, a) <- e(s, a) + 1, or 1 if `replacing`
        Q <- Q + alpha delta e
        e <- gamma lambda e

    a' is the action then executed in s'; at an episode's end the target is that of `sarsa`, and its traces are cut.
    With several environments each has its own traces, and they learn in turn. Not for replay: it learns from rollouts
    that follow one another. Raises ValueError for other spaces.
    """
    states, actions = tables.sizes(spec, agent="sarsa_lambda")
    require_flag("replacing", replacing)
    strategy = exploration.made(explore, spec)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="sarsa_lambda")
        return State(
            values=jnp.full((states, actions), hypers.initial_value, jnp.float32),
            traces=jnp.zeros((spec.num_envs, states, actions), jnp.float32),
            waiting=tables.nothing_waits((spec.num_envs,)),
            visits=strategy.init(),
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values, visits = state.values[observation], state.visits
        return exploration.act(key, strategy, values, visits, observation, hypers.exploration, greedy=greedy), memory

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="sarsa_lambda")

        def move(values, traces, observation, action, target, where):
            """Move all of Q by the error of one pair, as far as their traces reach, `where` there is something to."""
            error = jnp.where(where, target - tables.value_of(values, observation, action), 0.0)
            here = (jnp.arange(states) == observation)[:, None] & (jnp.arange(actions) == action)
            traces = jnp.where(here & where, 1.0 if replacing else traces + 1.0, traces)
            values = values + hypers.learning_rate * error * traces
            return values, jnp.where(where, hypers.discount * hypers.trace_decay, 1.0) * traces, jnp.abs(error)

        def learn(values, own, step):
            """Learn, in one environment, from the transition that waited, and from the new one if the episode ended."""
            waiting, traces = own
            next_value = tables.value_of(values, step.observation, step.action)
            target = losses.sarsa_target(waiting.reward, hypers.discount, next_value)
            values, traces, waited_error = move(
                values, traces, waiting.observation, waiting.action, target, waiting.open
            )
            ended = step.terminated | step.truncated
            last_value = tables.value_after(values, step, strategy, state.visits, hypers.exploration)
            target = losses.sarsa_target(step.reward, hypers.discount, last_value)
            values, traces, last_error = move(values, traces, step.observation, step.action, target, ended)
            return values, (tables.wait(step), jnp.where(ended, 0.0, traces)), waited_error + last_error

        own = state.waiting, state.traces
        values, (waiting, traces), errors = tables.one_at_a_time(learn, state.values, own, rollout)
        state = State(values=values, traces=traces, waiting=waiting, visits=state.visits)
        return state, {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
