"""Dyna-Q: Q-learning from experience, and again from what a learned model says (Sutton 1990; S&B section 8.2)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import exploration, losses, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_count
from purerl.exploration import Explore

Hypers = tables.Hypers


@pytree_dataclass
class Model:
    """What followed each pair of state and action when it was last seen, and what has been seen."""

    reward: Any  # float32 [S, A]
    next_observation: Any  # int32 [S, A]
    terminated: Any  # bool [S, A]
    seen: Any  # bool [S, A]
    states: Any  # int32 [S]: the states in which an action has been seen, in the order in which they first were ...
    count: Any  # int32: ... and how many they are


@pytree_dataclass
class State:
    """The table Q, and the model."""

    values: Any  # float32 [S, A]
    model: Model
    visits: Any  # what exploration remembers


def dyna_q(spec: Spec, *, planning_steps: int, explore: Explore = exploration.epsilon_greedy) -> Agent:
    """Return tabular Dyna-Q for discrete observations and actions.

        Q(s, a) <- Q(s, a) + alpha [r + gamma max_a' Q(s', a') - Q(s, a)]

    for each transition, which the model then remembers; and after it `planning_steps` times for a state drawn evenly
    from those seen and an action drawn evenly from those taken in it, with what the model says of them. The model is
    the book's: it takes the environment to be deterministic, and says what came last. Transitions are learned from one
    at a time, as by `q_learning`, which this is with 0 planning steps. Raises ValueError for other spaces, and for a
    negative count.
    """
    states, actions = tables.sizes(spec, agent="dyna_q")
    require_count("planning_steps", planning_steps, least=0)
    strategy = explore(spec)

    def init(key, hypers):
        table = states, actions
        model = Model(
            reward=jnp.zeros(table, jnp.float32),
            next_observation=jnp.zeros(table, jnp.int32),
            terminated=jnp.zeros(table, bool),
            seen=jnp.zeros(table, bool),
            states=jnp.zeros(states, jnp.int32),
            count=jnp.int32(0),
        )
        values = jnp.full(table, hypers.initial_value, jnp.float32)
        return State(values=values, model=model, visits=strategy.init())

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values, visits = state.values[observation], state.visits
        return exploration.act(key, strategy, values, visits, observation, hypers.exploration, greedy=greedy), memory

    def remember(model, step):
        pair = step.observation, step.action
        new = ~jnp.any(model.seen[step.observation])
        place = jnp.where(new, model.count, states)  # past the end, and so dropped, unless it is new
        return Model(
            reward=model.reward.at[pair].set(step.reward),
            next_observation=model.next_observation.at[pair].set(step.next_observation),
            terminated=model.terminated.at[pair].set(step.terminated),
            seen=model.seen.at[pair].set(True),
            states=model.states.at[place].set(step.observation, mode="drop"),
            count=model.count + new,
        )

    def update(key, state, rollout, hypers):
        def back_up(values, pair, reward, terminated, next_observation):
            bootstrap = losses.bootstrap_weight(hypers.discount, terminated)
            target = losses.q_learning_target(reward, bootstrap, values[next_observation])
            observation, action = pair
            return tables.move(values, observation, action, target, hypers.learning_rate)

        def learn(learned, own, step, key):
            values, model = learned
            pair = step.observation, step.action
            values, error = back_up(values, pair, step.reward, step.terminated, step.next_observation)
            model = remember(model, step)

            def plan(values, uniform):
                observation = model.states[jnp.int32(uniform[0] * model.count)]
                taken = jnp.asarray(model.seen[observation], jnp.float32)
                pair = observation, exploration.pick(uniform[1], taken / jnp.sum(taken))
                reward, ended, following = model.reward[pair], model.terminated[pair], model.next_observation[pair]
                return back_up(values, pair, reward, ended, following)[0], None

            uniform = jax.random.uniform(key, (planning_steps, 2))
            return (jax.lax.scan(plan, values, uniform)[0], model), own, jnp.abs(error)

        keys = jax.random.split(key, rollout.steps.reward.shape)
        (values, model), _, errors = tables.one_at_a_time(learn, (state.values, state.model), (), rollout, keys)
        return State(values=values, model=model, visits=state.visits), {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
