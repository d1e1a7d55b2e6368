"""TD(lambda): the value of a policy, by temporal differences and eligibility traces (Sutton 1988; S&B section 12.2)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from purerl import losses, prediction, tables
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers, require_num_envs
from purerl.features import Features
from purerl.prediction import Policy


@pytree_dataclass
class Hypers(prediction.Hypers):
    """The numbers of TD(lambda)."""

    trace_decay: float = 0.9  # lambda, [0, 1]


@pytree_dataclass
class State:
    """The weights of V, and what each environment's episode has left behind."""

    weights: Any  # float32 [D]; of `features.table`, V itself
    traces: Any  # float32 [N, D]: how much a feature still shares in what is learned


def td_lambda(spec: Spec, features: Features, policy: Policy) -> Agent:
    """Return TD(lambda) for the value V of `policy`, linear in binary `features`: a table, or tile coding.

        delta = r + gamma V(s') - V(s)
        e <- gamma lambda e + features of s
        w <- w + alpha / (features that are 1) delta e

    Each environment has its own traces, which an episode's end cuts; they learn in turn. Not for replay: it learns from
    rollouts that follow one another. Raises ValueError for features or a policy of another spec.
    """
    prediction.require_parts(spec, features, policy, agent="td_lambda")

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="td_lambda")
        traces = jnp.zeros((spec.num_envs, features.size), jnp.float32)
        return State(weights=prediction.start(features, hypers), traces=traces)

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="td_lambda")
        decay = hypers.discount * hypers.trace_decay

        def learn(weights, traces, step, active, next_active):
            bootstrap = losses.bootstrap_weight(hypers.discount, step.terminated)
            target = step.reward + bootstrap * prediction.value(weights, next_active)
            error = target - prediction.value(weights, active)
            traces = traces.at[active].add(1.0)
            weights = weights + hypers.learning_rate / features.count * error * traces
            ended = step.terminated | step.truncated
            return weights, jnp.where(ended, 0.0, decay * traces), jnp.abs(error)

        also = features.active(rollout.steps.observation), features.active(rollout.steps.next_observation)
        weights, traces, errors = tables.one_at_a_time(learn, state.weights, state.traces, rollout, *also)
        return State(weights=weights, traces=traces), {"td_error": jnp.mean(errors)}

    return Agent(init=init, start=no_memory, act=prediction.acting(policy), update=update)
