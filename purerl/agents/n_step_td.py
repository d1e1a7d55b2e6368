"""n-step TD: the value of a policy by n rewards and a value, from TD(0) to Monte Carlo (Sutton & Barto, 7.1)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import losses, prediction, returns, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers, require_num_envs
from purerl.checks import require_count
from purerl.features import Features
from purerl.prediction import Policy

Hypers = prediction.Hypers


@pytree_dataclass
class Waiting:
    """The last n steps of every environment, the oldest first."""

    active: Any  # int32 [N, n, K]: the features of where it was
    reward: Any  # float32 [N, n]
    open: Any  # bool [N, n]: whether it is still to be learned from


@pytree_dataclass
class State:
    """The weights of V, and the steps not yet learned from."""

    weights: Any  # float32 [D]; of `features.table`, V itself
    waiting: Waiting


def n_step_td(spec: Spec, features: Features, policy: Policy, *, n: int) -> Agent:
    """Return n-step TD for the value V of `policy`, linear in binary `features`: a table, or tile coding.

        G = r_t+1 + gamma r_t+2 + ... + gamma^(n-1) r_t+n + gamma^n V(s_t+n)
        V(s_t) <- V(s_t) + alpha [G - V(s_t)]

    n = 1 is TD(0); with n at least as long as episodes it is every-visit, constant-alpha Monte Carlo. At an episode's
    end the steps that wait are learned from in their order, by the rewards there are, and V(next_observation) unless it
    terminated. Not for replay: it learns from rollouts that follow one another. Raises ValueError for n below 1, and
    for features or a policy of another spec.
    """
    require_count("n", n)
    prediction.require_parts(spec, features, policy, agent="n_step_td")

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="n_step_td")
        places = spec.num_envs, n
        waiting = Waiting(
            active=jnp.zeros((*places, features.count), jnp.int32),
            reward=jnp.zeros(places, jnp.float32),
            open=jnp.zeros(places, bool),
        )
        return State(weights=prediction.start(features, hypers), waiting=waiting)

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="n_step_td")

        def learn(weights, waiting, step, active, next_active):
            newest = Waiting(active=active, reward=step.reward, open=jnp.bool_(True))
            waiting = jax.tree.map(lambda leaf, new: jnp.append(leaf[1:], new[None], axis=0), waiting, newest)
            goes_on = losses.bootstrap_weight(jnp.float32(1.0), step.terminated)
            targets = returns.discounted(
                waiting.reward, hypers.discount, goes_on * prediction.value(weights, next_active)
            )

            def move(weights, one):
                active, target, where = one
                return prediction.move(weights, active, target, hypers.learning_rate, where=where)

            # At every step all that wait, most for nothing: a condition would copy the weights under vmap.
            ended = step.terminated | step.truncated
            due = waiting.open & (ended | (jnp.arange(n) == 0))
            weights, errors = jax.lax.scan(move, weights, (waiting.active, targets, due))
            waiting = Waiting(active=waiting.active, reward=waiting.reward, open=waiting.open & ~due)
            return weights, waiting, jnp.sum(jnp.abs(errors))

        also = features.active(rollout.steps.observation), features.active(rollout.steps.next_observation)
        weights, waiting, errors = tables.one_at_a_time(learn, state.weights, state.waiting, rollout, *also)
        return State(weights=weights, waiting=waiting), {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=prediction.acting(policy), update=update)
