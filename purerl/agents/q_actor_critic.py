"""QAC: an actor taught by action values, which SARSA learns (Sutton et al. 2000; the actor-critic of the textbooks)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from purerl import actor_critic, base, losses, optimizers
from purerl.actor_critic import ActorCritic, Params
from purerl.base import (
    Agent,
    Network,
    Spec,
    no_memory,
    pytree_dataclass,
    require_discrete,
    require_hypers,
    require_num_envs,
    require_spec,
    select,
    zeros,
)


@pytree_dataclass
class Hypers(optimizers.Hypers):
    """The numbers of QAC."""

    learning_rate: float = 5e-4
    critic_speed: float = 10.0  # times as fast learns the critic
    max_gradient_norm: float = 10.0  # gradients of a larger norm, actor's and critic's each, are scaled down to it
    # A policy gradient without a baseline is noise times Q: small values, so a short horizon, keep it down.
    discount: float = 0.95  # gamma, [0, 1]
    entropy_weight: float = 0.3  # beside Q, so in units of reward


@pytree_dataclass
class Waiting:
    """The last step in every environment, which waits for the action that comes after it; leaves [N, ...]."""

    observation: Any
    action: Any  # int32
    reward: Any
    open: Any  # bool: whether one waits at all


@pytree_dataclass
class State:
    """What QAC learns, counts and keeps."""

    params: Params
    actor_optimizer: Any
    critic_optimizer: Any
    updates: Any  # int32
    waiting: Waiting


def q_actor_critic(spec: Spec, actor: Network, critic: Network) -> Agent:
    """Return QAC for discrete actions; `actor` maps an observation to a `Categorical`, `critic` to Q(s, .) [A].

        minimise  -Q(s, a) log pi(a|s) - c_e entropy        (the actor, Q being held)
                  [r + gamma Q(s', a') - Q(s, a)]^2 / 2     (the critic, the target being held)

    by one step per rollout, in the mean over its transitions. a' is the action then executed in s': the last transition
    of a rollout waits in the state until it is known. States are not weighed by gamma^t, as is customary: below 1,
    gamma only shortens what Q looks ahead. Where the episode terminated the target is r, and where the clock
    ended it no action follows: the expectation of Q(s', .) under the policy stands in. Not for replay. Raises
    ValueError unless actions are discrete and the networks fit the spec.
    """
    require_spec(spec, agent="q_actor_critic")
    actions = require_discrete(spec.action, what="action", agent="q_actor_critic")
    network = actor_critic.checked(ActorCritic(actor, critic), spec, agent="q_actor_critic", critic=(actions,))

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="q_actor_critic")
        params = network.init(key, spec)
        size = (spec.num_envs,)
        waiting = Waiting(
            observation=zeros(spec.observation, size),
            action=zeros(spec.action, size),
            reward=jnp.zeros(size, jnp.float32),
            open=jnp.zeros(size, bool),
        )
        return State(
            params=params,
            actor_optimizer=optimizers.start(params.actor),
            critic_optimizer=optimizers.start(params.critic),
            updates=jnp.int32(0),
            waiting=waiting,
        )

    def joined(waiting, steps):
        """Return what waited and the new steps, [T + 1, N]: observation, action, reward; and which can be learned."""
        ended = steps.terminated | steps.truncated
        old = waiting.observation, waiting.action, waiting.reward
        new = steps.observation, steps.action, steps.reward
        parts = jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), old, new)
        known = jnp.concatenate([waiting.open[None], jnp.ones_like(ended[:-1]), ended[-1:]])
        # Where none waited, a real step stands in: what weighs nothing must still be a number.
        parts = jax.tree.map(lambda leaf: leaf.at[0].set(base.where(waiting.open, leaf[0], leaf[1])), parts)
        observation, action, reward = jax.tree.map(lambda leaf: leaf[-1], new)
        return parts, known, Waiting(observation=observation, action=action, reward=reward, open=~ended[-1])

    def targets(params, observation, action, reward, steps, hypers):
        """Return r + gamma Q(s', a') of what waited and of the new steps, [T + 1, N]."""
        first = jax.tree.map(lambda leaf: leaf[1:], observation)
        successors = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), first, steps.next_observation)
        executed, expected = jnp.split(network.value(params, successors), 2)
        policy = jax.nn.softmax(actor.apply(params.actor, steps.next_observation).logits)
        surely = jnp.ones(steps.reward.shape, jnp.float32)
        terminated, truncated = (
            jnp.concatenate([jnp.zeros_like(flag[:1]), flag]) for flag in (steps.terminated, steps.truncated)
        )
        # Of step i the action executed next is i + 1; of the last there is none here, but where it ended the episode.
        following = jnp.pad(select(executed, action[1:]), ((0, 1), (0, 0)))
        expectation = losses.expected_sarsa_target(jnp.zeros_like(steps.reward), surely, expected, policy)
        expectation = jnp.pad(expectation, ((1, 0), (0, 0)))
        next_value = jnp.where(truncated, expectation, following)
        return losses.sarsa_target(reward, losses.bootstrap_weight(hypers.discount, terminated), next_value)

    def loss(params, observation, action, target, known, hypers):
        policy, values = network.both(params, observation)
        value = select(values, action)
        weight = jnp.where(known, 1.0, 0.0) / jnp.maximum(jnp.sum(known), 1)
        gains = losses.policy_gradient(policy.log_prob(action), jax.lax.stop_gradient(value))
        policy_loss = jnp.sum(weight * gains)
        value_loss = jnp.sum(weight * losses.squared(target - value))
        entropy = jnp.sum(weight * policy.entropy())
        total = policy_loss + value_loss - hypers.entropy_weight * entropy
        return total, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="q_actor_critic")
        (observation, action, reward), known, waiting = joined(state.waiting, rollout.steps)
        target = targets(state.params, observation, action, reward, rollout.steps, hypers)
        gradient, metrics = jax.grad(loss, has_aux=True)(state.params, observation, action, target, known, hypers)
        params, actor_optimizer = optimizers.descend(
            state.params.actor, gradient.actor, state.actor_optimizer, hypers, state.updates
        )
        critic_params, critic_optimizer = optimizers.descend(
            state.params.critic,
            gradient.critic,
            state.critic_optimizer,
            hypers,
            state.updates,
            scale=hypers.critic_speed,
        )
        learned = State(
            params=Params(torso=(), actor=params, critic=critic_params),
            actor_optimizer=actor_optimizer,
            critic_optimizer=critic_optimizer,
            updates=state.updates + 1,
            waiting=waiting,
        )
        # Where every step must wait the gradient is zero, but Adam would go on by its momentum.
        idle = dataclasses.replace(state, waiting=waiting)
        return jax.tree.map(lambda new, old: jnp.where(jnp.any(known), new, old), learned, idle), metrics

    return Agent(init=init, start=no_memory, act=network.act(), update=update)
