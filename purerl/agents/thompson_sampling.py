"""Thompson sampling: act as if a draw from what is believed were true (Thompson 1933; Russo et al. 2018, ch. 4)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import exploration, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers


@pytree_dataclass
class Hypers:
    """What is believed of a bandit before its first reward; as it stands, what is true of the testbed."""

    prior_mean: float = 0.0
    prior_deviation: float = 1.0
    reward_deviation: float = 1.0  # of a reward from the value of its action


@pytree_dataclass
class State:
    """The belief: the value of each action is Normal(mean, precision^-1/2); a row per context."""

    mean: Any  # float32 [S, A]
    precision: Any  # float32 [S, A]


def thompson_sampling(spec: Spec) -> Agent:
    """Return Thompson sampling with normal rewards for discrete observations (contexts) and actions.

        act:     argmax_a q(a),  q(a) ~ Normal(mean(a), precision(a)^-1/2)
        update:  precision(a) <- precision(a) + 1 / reward_deviation^2
                 mean(a) <- mean(a) + [R - mean(a)] / (reward_deviation^2 precision(a))

    the second of which is Bayes' rule. Greedy is the action with the best mean. How an episode ends does not matter.
    Raises ValueError for other spaces.
    """
    states, actions = tables.sizes(spec, agent="thompson_sampling")

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="thompson_sampling")
        table = states, actions
        return State(
            mean=jnp.full(table, hypers.prior_mean, jnp.float32),
            precision=jnp.full(table, hypers.prior_deviation**-2, jnp.float32),
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        mean = state.mean[observation]
        if greedy:
            return exploration.draw(key, exploration.greedy_policy(mean)), memory
        imagined = mean + jax.random.normal(key, mean.shape) * jax.lax.rsqrt(state.precision[observation])
        return jnp.argmax(imagined, axis=-1).astype(jnp.int32), memory

    def update(key, state, rollout, hypers):
        certainty = hypers.reward_deviation**-2

        def learn(belief, own, step):
            mean, precision = belief
            here = step.observation, step.action
            precise = tables.value_of(precision, *here) + certainty
            mean, error = tables.move(mean, *here, step.reward, certainty / precise)
            return (mean, precision.at[here].set(precise)), own, jnp.abs(error)

        (mean, precision), _, errors = tables.one_at_a_time(learn, (state.mean, state.precision), (), rollout)
        return State(mean=mean, precision=precision), {"error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=act, update=update)
