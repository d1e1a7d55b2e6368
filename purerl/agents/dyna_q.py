"""Dyna-Q: Q-learning from experience, and again from what a learned model says (Sutton 1990; S&B section 8.2)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import exploration, losses, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers
from purerl.checks import require_count
from purerl.exploration import Explore

Hypers = tables.Hypers


@pytree_dataclass
class State:
    """The table Q, and the model."""

    values: Any  # float32 [S, A]
    model: tables.Model
    states: Any  # int32 [S]: the states in which an action has been seen, in the order in which they first were ...
    count: Any  # int32: ... and how many they are
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
    strategy = exploration.made(explore, spec)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="dyna_q")
        return State(
            values=jnp.full((states, actions), hypers.initial_value, jnp.float32),
            model=tables.unknown_model(states, actions),
            states=jnp.zeros(states, jnp.int32),
            count=jnp.int32(0),
            visits=strategy.init(),
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values, visits = state.values[observation], state.visits
        return exploration.act(key, strategy, values, visits, observation, hypers.exploration, greedy=greedy), memory

    def update(key, state, rollout, hypers):
        def back_up(values, pair, reward, terminated, next_observation):
            bootstrap = losses.bootstrap_weight(hypers.discount, terminated)
            target = losses.q_learning_target(reward, bootstrap, values[next_observation])
            observation, action = pair
            return tables.move(values, observation, action, target, hypers.learning_rate)

        def learn(learned, own, step, key):
            values, model, known, count = learned
            pair = step.observation, step.action
            values, error = back_up(values, pair, step.reward, step.terminated, step.next_observation)
            new = ~jnp.any(model.seen[step.observation])
            place = jnp.where(new, count, states)  # past the end, and so dropped, unless it is new
            known, count = known.at[place].set(step.observation, mode="drop"), count + new
            model = tables.remember(model, step)

            def plan(values, uniform):
                observation = known[jnp.int32(uniform[0] * count)]
                taken = jnp.asarray(model.seen[observation], jnp.float32)
                pair = observation, exploration.pick(uniform[1], taken / jnp.sum(taken))
                reward, ended, following = model.reward[pair], model.terminated[pair], model.next_observation[pair]
                return back_up(values, pair, reward, ended, following)[0], None

            uniform = jax.random.uniform(key, (planning_steps, 2))
            values, _ = jax.lax.scan(plan, values, uniform)
            return (values, model, known, count), own, jnp.abs(error)

        keys = jax.random.split(key, rollout.steps.reward.shape)
        learned = state.values, state.model, state.states, state.count
        (values, model, known, count), _, errors = tables.one_at_a_time(learn, learned, (), rollout, keys)
        state = State(values=values, model=model, states=known, count=count, visits=state.visits)
        return state, {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
