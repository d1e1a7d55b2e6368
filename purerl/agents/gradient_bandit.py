"""The gradient bandit: a softmax of preferences that follow the reward's gradient (Sutton & Barto, section 2.8)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import exploration, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers


@pytree_dataclass
class Hypers:
    """The numbers of the gradient bandit."""

    learning_rate: float = 0.1  # alpha
    baseline: float = 1.0  # how much of the average reward is taken off: 1, or 0 for no baseline


@pytree_dataclass
class State:
    """Preferences, and what rewards average to; a row per context, of which the testbed has one."""

    preferences: Any  # float32 [S, A]
    average: Any  # float32 [S]
    count: Any  # float32 [S]: rewards so far


def gradient_bandit(spec: Spec) -> Agent:
    """Return the gradient bandit algorithm for discrete observations (contexts) and actions.

        pi(b) = exp H(b) / sum_c exp H(c)
        H(b) <- H(b) + alpha (R - R_average) (1[b = a] - pi(b))        for all b

    R_average is that of the rewards before R, and for the first reward R itself. Rewards are learned from one at a
    time, with the policy as it then is. How an episode ends does not matter. Raises ValueError for other spaces.
    """
    states, actions = tables.sizes(spec, agent="gradient_bandit")

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="gradient_bandit")
        return State(
            preferences=jnp.zeros((states, actions), jnp.float32),
            average=jnp.zeros(states, jnp.float32),
            count=jnp.zeros(states, jnp.float32),
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        preferences = state.preferences[observation]
        policy = exploration.greedy_policy(preferences) if greedy else jax.nn.softmax(preferences)
        return exploration.draw(key, policy), memory

    def update(key, state, rollout, hypers):
        def learn(state, own, step):
            context = step.observation
            count = state.count[context] + 1.0
            average = jnp.where(count > 1.0, state.average[context], step.reward)
            error = step.reward - hypers.baseline * average
            here = state.preferences[context]
            gradient = jax.nn.one_hot(step.action, actions) - jax.nn.softmax(here)
            state = State(
                preferences=state.preferences.at[context].set(here + hypers.learning_rate * error * gradient),
                average=state.average.at[context].set(average + (step.reward - average) / count),
                count=state.count.at[context].set(count),
            )
            return state, own, jnp.abs(error)

        state, _, errors = tables.one_at_a_time(learn, state, (), rollout)
        return state, {"error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update)
