"""PPO: proximal policy optimisation by a clipped surrogate (Schulman et al. 2017)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import actor_critic, batches, losses, optimizers, returns
from purerl.actor_critic import ActorCritic, Params
from purerl.base import Agent, Network, Spec, no_memory, pytree_dataclass, require_hypers, require_num_envs
from purerl.checks import require_count, require_flag


@pytree_dataclass
class Hypers(optimizers.Hypers):
    """The numbers of PPO."""

    learning_rate: float = 2.5e-4  # a rollout is one update
    adam_eps: float = 1e-5
    discount: float = 0.99  # gamma, [0, 1]
    trace_decay: float = 0.95  # lambda of the advantages, [0, 1]
    clip: float = 0.2  # how far a ratio of probabilities pays to be from 1
    value_clip: float = 1000.0  # the same for values; so large it does not bite
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    # No further epoch once KL(old‖new) is beyond: the mean over an epoch's minibatches, each before its own step (so it
    # is 0 with one epoch of one minibatch, and neither this nor adaptation means anything). Where it shall bite .02 is
    # usual.
    max_kl: float = 1.0
    # The rate is divided by `rate_adaptation` after an update whose last epoch had KL > 2 target_kl, multiplied after
    # one of KL < target_kl / 2, up to a hundredfold either way; 1 leaves it alone, 1.5 is usual.
    rate_adaptation: float = 1.0
    target_kl: float = 0.01


@pytree_dataclass
class State:
    """What PPO learns and counts."""

    params: Params
    optimizer: Any
    updates: Any  # int32: rollouts learned from
    rate_scale: Any  # float32: what adaptation has made of the learning rate


@pytree_dataclass
class Batch:
    """What is learned from a rollout; leaves [T N, ...]."""

    observation: Any
    action: Any
    log_prob: Any  # log pi_old(a|s)
    value: Any  # V_old(s)
    advantage: Any
    target: Any  # for V(s)


def ppo(
    spec: Spec,
    actor: Network,
    critic: Network,
    *,
    torso: Network | None = None,
    epochs: int = 4,
    minibatches: int = 4,
    normalize_advantages: bool = True,
) -> Agent:
    """Return PPO; `actor` maps an observation to a distribution over actions, `critic` to V(s).

        minimise  -min(r A, clip(r, 1 - c, 1 + c) A) + c_v (V - target)^2 / 2 - c_e entropy,   r = pi(a|s) / pi_old(a|s)

    by `epochs` passes over each rollout, shuffled anew into `minibatches`, with generalised advantage estimates A
    (of mean 0 and deviation 1 in each minibatch if `normalize_advantages`). With a `torso` both networks read its
    features. Raises ValueError for counts below one, for networks that do not fit the spec, and while tracing for
    rollouts that minibatches do not divide, or divide into steps by themselves if their advantages are to be
    normalised.
    """
    require_count("epochs", epochs)
    require_count("minibatches", minibatches)
    require_flag("normalize_advantages", normalize_advantages)
    network = actor_critic.checked(ActorCritic(actor, critic, torso), spec, agent="ppo")

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="ppo")
        params = network.init(key, spec)
        return State(
            params=params,
            optimizer=optimizers.start(params),
            updates=jnp.int32(0),
            rate_scale=jnp.float32(1.0),
        )

    def batch_of(params, steps, hypers):
        advantage, value = network.advantages(params, steps, hypers.discount, hypers.trace_decay, spec.groups)
        policy = batches.by_rows(lambda rows: network.policy(params, rows), steps.observation, spec.groups)
        batch = Batch(
            observation=steps.observation,
            action=steps.action,
            log_prob=policy.log_prob(steps.action),
            value=value,
            advantage=advantage,
            target=advantage + value,
        )
        return batches.flat(batch, spec.groups)

    def loss(params, batch, hypers):
        policy, value = network.both(params, batch.observation)
        advantage = returns.standardized(batch.advantage) if normalize_advantages else batch.advantage
        log_ratio = policy.log_prob(batch.action) - batch.log_prob
        surrogate = jnp.mean(losses.clipped_surrogate(log_ratio, advantage, hypers.clip))
        value_loss = jnp.mean(losses.clipped_value(value, batch.target, batch.value, hypers.value_clip))
        entropy = jnp.mean(policy.entropy())
        total = surrogate + hypers.value_weight * value_loss - hypers.entropy_weight * entropy
        return total, {
            "surrogate": -surrogate,
            "value_loss": value_loss,
            "entropy": entropy,
            "kl": jnp.mean(losses.kl_estimate(log_ratio)),
            "clipped": jnp.mean(jnp.abs(jnp.expm1(log_ratio)) > hypers.clip, dtype=jnp.float32),
        }

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="ppo")
        size = rollout.steps.reward.size
        batches.require_parts("minibatches", minibatches, size, spec.groups)
        if normalize_advantages and size == minibatches:
            raise ValueError(f"minibatches is {minibatches}, of one step each: normalize_advantages takes two or more")
        batch = batch_of(state.params, rollout.steps, hypers)

        def descend(carry, minibatch):
            params, optimizer = carry
            gradient, metrics = jax.grad(loss, has_aux=True)(params, minibatch, hypers)
            carry = optimizers.descend(params, gradient, optimizer, hypers, state.updates, scale=state.rate_scale)
            return carry, metrics

        def unfinished(carry):
            epoch, _, metrics = carry
            return (epoch < epochs) & (metrics["kl"] <= hypers.max_kl)

        def one_epoch(carry):
            epoch, learner, _ = carry
            order_key = jax.random.fold_in(key, epoch)
            order = batches.shuffled(order_key, batch, minibatches, spec.groups)
            learner, metrics = jax.lax.scan(descend, learner, order)
            return epoch + 1, learner, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0, dtype=jnp.float32), metrics)

        nothing = {name: jnp.float32(0.0) for name in ("surrogate", "value_loss", "entropy", "kl", "clipped")}
        learner = state.params, state.optimizer
        epoch, (params, optimizer), metrics = jax.lax.while_loop(
            unfinished, one_epoch, (jnp.int32(0), learner, nothing)
        )
        down, up = metrics["kl"] > 2.0 * hypers.target_kl, metrics["kl"] < 0.5 * hypers.target_kl
        factor = jnp.where(down, 1.0 / hypers.rate_adaptation, jnp.where(up, hypers.rate_adaptation, 1.0))
        state = State(
            params=params,
            optimizer=optimizer,
            updates=state.updates + 1,
            rate_scale=jnp.clip(state.rate_scale * factor, 1e-2, 1e2),
        )
        metrics |= {"epochs": jnp.asarray(epoch, jnp.float32), "rate_scale": state.rate_scale}
        return state, metrics

    return Agent(init=init, start=no_memory, act=network.act(), update=update)
