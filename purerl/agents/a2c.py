"""A2C: advantage actor-critic, synchronous (Mnih et al. 2016; Sutton & Barto, section 13.5)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import actor_critic, batches, losses, optimizers
from purerl.actor_critic import ActorCritic, Params
from purerl.base import Agent, Network, Spec, no_memory, pytree_dataclass, require_hypers, require_num_envs


@pytree_dataclass
class Hypers(optimizers.Hypers):
    """The numbers of A2C."""

    learning_rate: float = 1e-3
    adam_eps: float = 1e-5
    discount: float = 0.99  # gamma, [0, 1]
    trace_decay: float = 1.0  # lambda of the advantages; 1 for the n-step returns of the paper
    value_weight: float = 0.5
    entropy_weight: float = 0.01


@pytree_dataclass
class State:
    """What A2C learns and counts."""

    params: Params
    optimizer: Any
    updates: Any  # int32


def a2c(spec: Spec, actor: Network, critic: Network, *, torso: Network | None = None) -> Agent:
    """Return A2C; `actor` maps an observation to a distribution over actions, `critic` to V(s).

        minimise  -A log pi(a|s) + c_v (V(s) - target)^2 / 2 - c_e entropy,   A = target - V(s)

    by one step per rollout. The target sums the rewards up to the rollout's or the episode's end and adds the value
    there: n-step, n falling from the rollout's length to 1 (mixed with shorter ones by lambda). With a `torso` both
    networks read its features. Raises ValueError for networks that do not fit the spec.
    """
    network = actor_critic.checked(ActorCritic(actor, critic, torso), spec, agent="a2c")

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="a2c")
        params = network.init(key, spec)
        return State(params=params, optimizer=optimizers.start(params), updates=jnp.int32(0))

    def loss(params, steps, advantage, target, hypers):
        policy, value = network.both(params, steps.observation)
        policy_loss = jnp.mean(losses.policy_gradient(policy.log_prob(steps.action), advantage))
        value_loss = jnp.mean(losses.squared(value - target))
        entropy = jnp.mean(policy.entropy())
        total = policy_loss + hypers.value_weight * value_loss - hypers.entropy_weight * entropy
        return total, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="a2c")
        steps = rollout.steps
        advantage, value = network.advantages(state.params, steps, hypers.discount, hypers.trace_decay, spec.groups)
        batch = batches.flat((steps, advantage, advantage + value), spec.groups)
        gradient, metrics = jax.grad(loss, has_aux=True)(state.params, *batch, hypers)
        params, optimizer = optimizers.descend(state.params, gradient, state.optimizer, hypers, state.updates)
        return State(params=params, optimizer=optimizer, updates=state.updates + 1), metrics

    return Agent(init=init, start=no_memory, act=network.act(), update=update)
