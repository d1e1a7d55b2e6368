"""TRPO: trust-region policy optimisation (Schulman et al. 2015), with generalised advantage estimates (2016)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import actor_critic, batches, loss_scale, losses, optimizers, returns, trust_region
from purerl.actor_critic import ActorCritic, Params
from purerl.base import Agent, Network, Spec, no_memory, pytree_dataclass, require_hypers, require_num_envs
from purerl.checks import require_count


@pytree_dataclass
class Hypers(optimizers.Hypers):
    """The numbers of TRPO. Those of Adam are the critic's: the policy has no learning rate."""

    learning_rate: float = 1e-3
    max_gradient_norm: float = 1000.0
    discount: float = 0.99  # gamma, [0, 1]
    trace_decay: float = 0.98  # lambda of the advantages, [0, 1]
    delta: float = 0.01  # most KL(old‖new) a step may cost, averaged over states, in nats
    damping: float = 1e-3  # added to the diagonal of the Fisher matrix
    backtrack_coefficient: float = 0.8  # what a step that is refused is multiplied by


@pytree_dataclass
class State:
    """What TRPO learns and counts."""

    params: Params
    optimizer: Any  # the critic's
    updates: Any  # int32: rollouts learned from


def trpo(
    spec: Spec,
    actor: Network,
    critic: Network,
    *,
    torso: Network | None = None,
    cg_iterations: int = 15,
    max_backtracks: int = 10,
    critic_epochs: int = 20,
    critic_minibatches: int = 8,
) -> Agent:
    """Return TRPO; `actor` maps an observation to a distribution over actions, `critic` to V(s).

        maximise  mean r A  subject to  mean KL(old‖new) < delta,   r = pi(a|s) / pi_old(a|s)

    by one natural-gradient step with a line search (`trust_region.natural_step`); A is of mean 0 and deviation 1. The
    critic is then fitted to the lambda-returns by `critic_epochs` passes over the rollout, shuffled into
    `critic_minibatches`. With a `torso` both networks read its features; it belongs to the policy, and moves by the
    trust-region step alone: a critic that moved it would move the policy out of the region. Raises ValueError for
    counts below one, for networks that do not fit the spec, for a policy in float16, and while tracing for rollouts
    that minibatches do not divide.
    """
    counts = {"cg_iterations": cg_iterations, "max_backtracks": max_backtracks}
    for name, count in (counts | {"critic_epochs": critic_epochs, "critic_minibatches": critic_minibatches}).items():
        require_count(name, count)
    network = actor_critic.checked(ActorCritic(actor, critic, torso), spec, agent="trpo")
    params = jax.eval_shape(lambda key: network.init(key, spec), jax.random.key(0))
    if loss_scale.is_in((params.torso, params.actor)):
        raise ValueError(
            "actor or torso computes in float16 with a loss scale; trpo takes float32 or bfloat16 for them: of its "
            "products with the Fisher matrix float16 loses the most"
        )

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="trpo")
        params = network.init(key, spec)
        return State(params=params, optimizer=optimizers.start(params.critic), updates=jnp.int32(0))

    def improve(params, steps, advantage, hypers):
        """Return the torso and actor after a trust-region step, and what came of it."""
        observation, action = batches.flat((steps.observation, steps.action), spec.groups)
        advantage = returns.standardized(advantage)

        def policy_of(parts):
            torso, actor = parts
            return network.policy(Params(torso=torso, actor=actor, critic=()), observation)

        def surrogate(parts):
            log_ratio = policy_of(parts).log_prob(action) - old_log_prob
            return -jnp.mean(losses.surrogate(log_ratio, advantage))

        def divergence(policy):
            return jnp.mean(old.kl(policy))

        parts = params.torso, params.actor
        old = policy_of(parts)
        old_log_prob = old.log_prob(action)
        parts, info = trust_region.natural_step(
            parts,
            surrogate,
            lambda parts: divergence(policy_of(parts)),
            delta=hypers.delta,
            damping=hypers.damping,
            cg_iterations=cg_iterations,
            max_backtracks=max_backtracks,
            backtrack_coefficient=hypers.backtrack_coefficient,
            fisher_product=trust_region.gauss_newton_product(policy_of, divergence, parts),
        )
        return parts, info, jnp.mean(old.entropy())

    def fit(key, state, batch, hypers):
        """Return the critic's parameters and optimizer after its passes, and the mean loss of the last one."""

        def loss(params, features, target):
            return jnp.mean(losses.squared(critic.apply(params, features) - target))

        def descend(carry, minibatch):
            params, optimizer = carry
            error, gradient = jax.value_and_grad(loss)(params, *minibatch)
            return optimizers.descend(params, gradient, optimizer, hypers, state.updates), error

        def one_pass(carry, key):
            order = batches.shuffled(key, batch, critic_minibatches, spec.groups)
            carry, errors = jax.lax.scan(descend, carry, order)
            return carry, jnp.mean(errors)

        carry, errors = jax.lax.scan(
            one_pass, (state.params.critic, state.optimizer), jax.random.split(key, critic_epochs)
        )
        return *carry, errors[-1]

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="trpo")
        steps, params = rollout.steps, state.params
        batches.require_parts("critic_minibatches", critic_minibatches, steps.reward.size, spec.groups)
        advantage, value = network.advantages(params, steps, hypers.discount, hypers.trace_decay, spec.groups)
        learned = advantage, advantage + value, steps.observation
        advantage, target, observation = batches.flat(learned, spec.groups)
        (torso, actor), info, entropy = improve(params, steps, advantage, hypers)
        batch = network.features(torso, observation), target
        critic_params, optimizer, value_loss = fit(key, state, batch, hypers)
        params = Params(torso=torso, actor=actor, critic=critic_params)
        state = State(params=params, optimizer=optimizer, updates=state.updates + 1)
        metrics = {name: jnp.float32(value) for name, value in vars(info).items()}
        return state, metrics | {"entropy": entropy, "value_loss": value_loss}

    return Agent(init=init, start=no_memory, act=network.act(), update=update)
