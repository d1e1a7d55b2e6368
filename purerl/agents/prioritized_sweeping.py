"""Prioritized sweeping: planning backwards from where errors are greatest (Moore & Atkeson 1993; S&B 8.4)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import exploration, losses, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers
from purerl.checks import require_count
from purerl.exploration import Explore


@pytree_dataclass
class Hypers(tables.Hypers):
    """The numbers of prioritized sweeping."""

    threshold: float = 1e-4  # theta: only pairs with a greater error queue


@pytree_dataclass
class State:
    """The table Q, the model, and the queue."""

    values: Any  # float32 [S, A]
    model: tables.Model
    priority: Any  # float32 [S, A]: the error of the pairs that queue; 0 for those that do not
    visits: Any  # what exploration remembers


def prioritized_sweeping(spec: Spec, *, planning_steps: int, explore: Explore = exploration.epsilon_greedy) -> Agent:
    """Return tabular prioritized sweeping for discrete observations and actions.

        P = |r + gamma max_a' Q(s', a') - Q(s, a)|

    Each transition is remembered by the model, and its pair queues with priority P if that is above theta. Then, at
    most `planning_steps` times while any queue, the first of them is moved by alpha of its error, as the model says,
    and the pairs that the model takes to the state just moved queue in their turn: a pair that queues already keeps the
    higher priority. The model is the book's: it takes the environment to be deterministic. The queue is a table, of
    which each planning step reads all, S x A numbers. Raises ValueError for other spaces, and for a count below one.
    """
    states, actions = tables.sizes(spec, agent="prioritized_sweeping")
    require_count("planning_steps", planning_steps)
    strategy = exploration.made(explore, spec)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="prioritized_sweeping")
        return State(
            values=jnp.full((states, actions), hypers.initial_value, jnp.float32),
            model=tables.unknown_model(states, actions),
            priority=jnp.zeros((states, actions), jnp.float32),
            visits=strategy.init(),
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values, visits = state.values[observation], state.visits
        return exploration.act(key, strategy, values, visits, observation, hypers.exploration, greedy=greedy), memory

    def update(key, state, rollout, hypers):
        def target_of(values, step):
            bootstrap = losses.bootstrap_weight(hypers.discount, step.terminated)
            return losses.q_learning_target(step.reward, bootstrap, values[step.next_observation])

        def queued(priority, error):
            return jnp.maximum(priority, jnp.where(error > hypers.threshold, error, 0.0))

        def learn(learned, own, step):
            values, model, priority = learned
            pair = step.observation, step.action
            model = tables.remember(model, step)
            error = jnp.abs(target_of(values, step) - tables.value_of(values, *pair))
            priority = priority.at[pair].set(queued(priority[pair], error))

            def plan(carry, _):
                values, priority = carry
                first = jnp.argmax(priority)
                pair = first // actions, first % actions
                some = priority[pair] > 0
                priority = priority.at[pair].set(0.0)
                said = jax.tree.map(lambda leaf: leaf[pair], model)
                values, _ = tables.move(values, *pair, target_of(values, said), hypers.learning_rate, where=some)
                # What leads here, all pairs at once.
                leads = model.seen & (model.next_observation == pair[0]) & ~model.terminated & some
                worth = hypers.discount * jnp.max(values[pair[0]])
                errors = jnp.where(leads, jnp.abs(model.reward + worth - values), 0.0)
                return (values, queued(priority, errors)), None

            (values, priority), _ = jax.lax.scan(plan, (values, priority), length=planning_steps)
            return (values, model, priority), own, error

        learned = state.values, state.model, state.priority
        (values, model, priority), _, errors = tables.one_at_a_time(learn, learned, (), rollout)
        state = State(values=values, model=model, priority=priority, visits=state.visits)
        return state, {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
