"""REINFORCE: the policy gradient from whole episodes, with a baseline or without (Williams 1992; S&B 13.3 and 13.4)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import base, losses, optimizers, returns
from purerl.actor_critic import ActorCritic, Params
from purerl.base import (
    Agent,
    Network,
    Spec,
    no_memory,
    pytree_dataclass,
    require_count,
    require_num_envs,
    zeros,
)


@pytree_dataclass
class Hypers(optimizers.Hypers):
    """The numbers of REINFORCE."""

    learning_rate: float = 2e-3  # before the first update ...
    learning_rate_end: float = 2e-3  # ... and from update `learning_rate_horizon` on
    discount: float = 0.99  # gamma, [0, 1]
    value_weight: float = 0.5  # of the baseline's loss
    entropy_weight: float = 0.0


@pytree_dataclass
class Pending:
    """The last W steps in every environment: those of the episode under way are yet to be learned from."""

    observation: Any  # [W, N, ...]
    action: Any  # [W, N, ...]
    reward: Any  # [W, N]
    age: Any  # int32 [N]: steps so far of the episode under way


@pytree_dataclass
class State:
    """What REINFORCE learns, counts and keeps."""

    params: Params
    optimizer: Any
    updates: Any  # int32: rollouts
    pending: Pending


@pytree_dataclass
class Stretch:
    """The pending steps and the new ones, [W + T, N]."""

    observation: Any
    action: Any
    time: Any  # int32: steps since the episode's start
    target: Any  # G_t
    included: Any  # bool: whether the step's episode is here from its start to its end


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
    on with V; without a critic, for want of it, G is what was seen. Raises ValueError for a window below one.
    """
    require_count("window", window)
    network = ActorCritic(actor, critic)

    def init(key, hypers):
        params = network.init(key, spec)
        shape = window, spec.num_envs
        pending = Pending(
            observation=zeros(spec.observation, shape),
            action=zeros(spec.action, shape),
            reward=jnp.zeros(shape, jnp.float32),
            age=jnp.zeros(spec.num_envs, jnp.int32),
        )
        return State(params=params, optimizer=optimizers.start(params), updates=jnp.int32(0), pending=pending)

    def stretch_of(params, pending, steps, hypers):
        """Return the stretch, what of it waits now, and how many episodes ended in it and how many are excluded."""
        next_value = jnp.zeros_like(steps.reward)
        if critic is not None:
            next_value = network.value(params, steps.next_observation)
        none = jnp.zeros_like(pending.reward)
        past = pending.observation, pending.action, pending.reward, none > 0, none > 0, none
        new = steps.observation, steps.action, steps.reward, steps.terminated, steps.truncated, next_value
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), past, new)
        observation, action, reward, terminated, truncated, next_value = joined

        def after(age, ended):
            return jnp.where(ended, 0, age + 1), age

        age, ages = jax.lax.scan(after, pending.age, steps.terminated | steps.truncated)
        time = jnp.concatenate([jnp.arange(window)[:, None] - window + pending.age, ages])
        # In the places of what is learned already, and of what never was, stands a real step: nothing infinite there.
        last = jax.tree.map(lambda leaf: leaf[-1], (observation, action))
        observation, action = jax.vmap(base.where, (0, None, 0))(time < 0, last, (observation, action))
        ended = terminated | truncated
        begun = jnp.cumsum(time == 0, axis=0) > 0
        completed = jnp.cumsum(ended[::-1], axis=0)[::-1] > 0
        stretch = Stretch(
            observation=observation,
            action=action,
            time=time,
            target=returns.lambda_returns(
                reward, terminated, truncated, next_value, hypers.discount, jnp.ones_like(hypers.discount)
            ),
            included=begun & completed,
        )
        observation, action, reward = jax.tree.map(lambda leaf: leaf[-window:], joined[:3])
        pending = Pending(observation=observation, action=action, reward=reward, age=age)
        return stretch, pending, jnp.sum(ended & begun), jnp.sum(ended & ~begun)

    def loss(params, stretch, episodes, hypers):
        policy = network.policy(params, stretch.observation)
        value = network.value(params, stretch.observation) if critic is not None else jnp.zeros_like(stretch.target)
        weight = jnp.where(stretch.included, 1.0, 0.0)
        steps = jnp.maximum(jnp.sum(weight), 1.0)
        advantage = stretch.target - jax.lax.stop_gradient(value)
        if discount_states:
            advantage *= hypers.discount ** jnp.maximum(stretch.time, 0)
        gains = losses.policy_gradient(policy.log_prob(stretch.action), advantage)
        policy_loss = jnp.sum(weight * gains) / jnp.maximum(episodes, 1)
        value_loss = jnp.sum(weight * losses.squared(value - stretch.target)) / steps
        entropy = jnp.sum(weight * policy.entropy()) / steps
        total = policy_loss + hypers.value_weight * value_loss - hypers.entropy_weight * entropy
        return total, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="reinforce")
        stretch, pending, episodes, excluded = stretch_of(state.params, state.pending, rollout.steps, hypers)
        gradient, metrics = jax.grad(loss, has_aux=True)(state.params, stretch, episodes, hypers)
        learned = optimizers.descend(state.params, gradient, state.optimizer, hypers, state.updates)
        # Without an episode the gradient is zero, but Adam would go on by its momentum.
        params, optimizer = jax.tree.map(
            lambda new, old: jnp.where(episodes > 0, new, old), learned, (state.params, state.optimizer)
        )
        state = State(params=params, optimizer=optimizer, updates=state.updates + 1, pending=pending)
        return state, metrics | {"excluded": jnp.float32(excluded)}

    return Agent(init=init, start=no_memory, act=network.act(), update=update)
