"""REINFORCE: the policy gradient from whole episodes, with a baseline or without (Williams 1992; S&B 13.3 and 13.4)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import actor_critic, losses, optimizers, whole_episodes
from purerl.actor_critic import ActorCritic, Params
from purerl.base import Agent, Network, Spec, no_memory, pytree_dataclass, require_hypers, require_num_envs
from purerl.checks import require_count, require_flag


@pytree_dataclass
class Hypers(optimizers.Hypers):
    """The numbers of REINFORCE."""

    learning_rate: float = 2e-3
    discount: float = 0.99  # gamma, [0, 1]
    value_weight: float = 0.5  # of the baseline's loss
    entropy_weight: float = 0.0


@pytree_dataclass
class State:
    """What REINFORCE learns, counts and keeps."""

    params: Params
    optimizer: Any
    updates: Any  # int32: rollouts
    pending: whole_episodes.Pending


def reinforce(
    spec: Spec, actor: Network, critic: Network | None = None, *, window: int, discount_states: bool = True
) -> Agent:
    """Return REINFORCE; `actor` maps an observation to a distribution over actions, `critic`, the baseline, to V(s).

        minimise  -mean over episodes of  sum_t gamma^t (G_t - V(s_t)) log pi(a_t|s_t)

    Without a critic V is 0; without `discount_states` the gamma^t that the theorem asks for is left out, as is
    customary. The baseline's loss, (G_t - V)^2 / 2, and the entropy are means over steps. Episodes count whole and
    once, in the update after they ended: what a rollout's end cuts waits in the state. (The policy has then moved since
    such an episode began; the gradient is that of the policy as it is.) Only an episode of which more than `window`
    steps would have to wait is left out, and counted in the metric `excluded`. Where the clock ended the episode G goes
    on with V; without a critic, for want of it, G is what was seen. Raises ValueError for a window below one, and
    for networks that do not fit the spec.
    """
    require_count("window", window)
    require_flag("discount_states", discount_states)
    values = None if critic is None else ()
    network = actor_critic.checked(ActorCritic(actor, critic), spec, agent="reinforce", critic=values)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="reinforce")
        params = network.init(key, spec)
        return State(
            params=params,
            optimizer=optimizers.start(params),
            updates=jnp.int32(0),
            pending=whole_episodes.nothing_pends(spec, window),
        )

    def loss(params, stretch, hypers):
        policy = network.policy(params, stretch.observation)
        value = network.value(params, stretch.observation) if critic is not None else jnp.zeros_like(stretch.target)
        weight = jnp.where(stretch.included, 1.0, 0.0)
        steps = jnp.maximum(jnp.sum(weight), 1.0)
        advantage = stretch.target - jax.lax.stop_gradient(value)
        if discount_states:
            advantage *= hypers.discount ** jnp.maximum(stretch.time, 0)
        gains = losses.policy_gradient(policy.log_prob(stretch.action), advantage)
        policy_loss = jnp.sum(weight * gains) / jnp.maximum(stretch.episodes, 1)
        value_loss = jnp.sum(weight * losses.squared(value - stretch.target)) / steps
        entropy = jnp.sum(weight * policy.entropy()) / steps
        total = policy_loss + hypers.value_weight * value_loss - hypers.entropy_weight * entropy
        return total, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="reinforce")
        next_value = jnp.zeros_like(rollout.steps.reward)
        if critic is not None:
            next_value = network.value(state.params, rollout.steps.next_observation)
        stretch, pending = whole_episodes.extend(state.pending, rollout.steps, next_value, hypers.discount)
        gradient, metrics = jax.grad(loss, has_aux=True)(state.params, stretch, hypers)
        learned = optimizers.descend(state.params, gradient, state.optimizer, hypers, state.updates)
        # Without an episode the gradient is zero, but Adam would go on by its momentum.
        params, optimizer = jax.tree.map(
            lambda new, old: jnp.where(stretch.episodes > 0, new, old), learned, (state.params, state.optimizer)
        )
        state = State(params=params, optimizer=optimizer, updates=state.updates + 1, pending=pending)
        return state, metrics | {"excluded": jnp.float32(stretch.excluded)}

    return Agent(init=init, start=no_memory, act=network.act(), update=update)
