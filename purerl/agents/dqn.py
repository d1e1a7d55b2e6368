"""DQN: Q-learning with a network, replay and a target network (Mnih et al. 2015; double: van Hasselt et al. 2016)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from purerl import exploration, losses
from purerl.base import Agent, Network, Spec, no_memory, pytree_dataclass, require_discrete, zeros


@pytree_dataclass
class Hypers:
    """The numbers of DQN."""

    learning_rate: float = 5e-4  # Adam's before the first update ...
    learning_rate_end: float = 2.5e-5  # ... and from update `learning_rate_horizon` on
    learning_rate_horizon: float = 40_000.0  # updates
    discount: float = 0.99  # gamma, [0, 1]
    epsilon_start: float = 1.0  # probability of a random action before the first update ...
    epsilon_end: float = 0.05  # ... and from update `epsilon_horizon` on
    epsilon_horizon: float = 10_000.0  # updates
    target_period: float = 50.0  # updates between copies of the parameters to the target network
    # Error beyond which the loss is linear. The paper's 1 supposes clipped rewards and slow targets: where errors are
    # tens, all gradients are then alike, the targets outrun the network, and the values diverge.
    huber_delta: float = 100.0
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    adam_eps: float = 1e-8


@pytree_dataclass
class State:
    """What DQN learns and counts."""

    params: Any
    target_params: Any
    optimizer: Any
    updates: Any  # int32


def optimizer(hypers: Hypers, updates: Int[Array, ""]) -> optax.GradientTransformation:
    """Return Adam with the numbers of `hypers`, and the learning rate that is due after so many updates."""
    rate = exploration.linear_schedule(
        updates, start=hypers.learning_rate, end=hypers.learning_rate_end, horizon=hypers.learning_rate_horizon
    )
    return optax.adam(rate, b1=hypers.adam_b1, b2=hypers.adam_b2, eps=hypers.adam_eps)


def dqn(spec: Spec, network: Network, *, double: bool = True) -> Agent:
    """Return DQN for discrete actions; `network` maps an observation to Q(s, .) [A].

        minimise huber(r + gamma Q_target(s', a*) - Q(s, a))
        a* = argmax Q(s', .) if double, else argmax Q_target(s', .)

    It learns from whatever rollout it is handed: wrap it in `replay.with_replay` for the algorithm of the paper.
    Raises ValueError unless the actions are discrete.
    """
    require_discrete(spec.action, what="action", agent="dqn")

    def init(key, hypers):
        params = network.init(key, zeros(spec.observation))
        return State(
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            optimizer=optimizer(hypers, jnp.int32(0)).init(params),
            updates=jnp.int32(0),
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        epsilon = exploration.linear_schedule(
            state.updates,
            start=hypers.epsilon_start,
            end=hypers.epsilon_end,
            horizon=hypers.epsilon_horizon,
        )
        values = network.apply(state.params, observation)
        return exploration.epsilon_greedy(key, values, 0.0 if greedy else epsilon), memory

    def target(state, steps, hypers):
        next_values = network.apply(state.target_params, steps.next_observation)
        bootstrap = losses.bootstrap_weight(hypers.discount, steps.terminated)
        if not double:
            return losses.q_learning_target(steps.reward, bootstrap, next_values)
        next_selector = network.apply(state.params, steps.next_observation)
        return losses.double_q_learning_target(steps.reward, bootstrap, next_values, next_selector)

    def loss(params, steps, target, hypers):
        value = losses.select(network.apply(params, steps.observation), steps.action)
        return jnp.mean(losses.huber(target - value, hypers.huber_delta)), jnp.mean(value)

    def update(key, state, rollout, hypers):
        targets = target(state, rollout.steps, hypers)
        (error, value), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, rollout.steps, targets, hypers)
        step, optimizer_state = optimizer(hypers, state.updates).update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, step)
        updates = state.updates + 1
        copy = updates % jnp.maximum(jnp.int32(hypers.target_period), 1) == 0
        target_params = jax.tree.map(lambda new, old: jnp.where(copy, new, old), params, state.target_params)
        state = State(params=params, target_params=target_params, optimizer=optimizer_state, updates=updates)
        return state, {"loss": error, "value": value}

    return Agent(init=init, start=no_memory, act=act, update=update)
