"""DQN: Q-learning with a network, replay and a target network (Mnih et al. 2015; double: van Hasselt et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from purerl import exploration, losses, optimizers, returns
from purerl.base import (
    Agent,
    Network,
    Spec,
    no_memory,
    pytree_dataclass,
    require_discrete,
    require_hypers,
    require_spec,
    require_values,
    select,
    zeros,
)
from purerl.checks import require_count, require_flag, require_function
from purerl.exploration import Explore


@pytree_dataclass
class Hypers(optimizers.Hypers):
    """The numbers of DQN."""

    learning_rate: float = 5e-4
    learning_rate_end_fraction: float = 0.05
    learning_rate_horizon: float = 40_000.0  # updates
    max_gradient_norm: float = 1000.0  # gradients of a larger global norm are scaled down to it
    discount: float = 0.99  # gamma, [0, 1]
    exploration_start: float = 1.0  # epsilon (a temperature, UCB's c) before the first update ...
    exploration_end: float = 0.05  # ... and at the end of its schedule
    exploration_horizon: float = 10_000.0  # updates
    target_period: float = 50.0  # updates between those of the target network
    target_rate: float = 1.0  # tau, how far it then goes towards the network; 1 copies. Polyak: period 1, rate .005
    # Error beyond which the loss is linear. The paper's 1 supposes clipped rewards and slow targets: where errors are
    # tens, all gradients are then alike, the targets outrun the network, and the values diverge.
    huber_delta: float = 100.0


@pytree_dataclass
class State:
    """What DQN learns and counts."""

    params: Any
    target_params: Any
    optimizer: Any
    updates: Any  # int32
    visits: Any  # what exploration remembers


def dqn(
    spec: Spec,
    network: Network,
    *,
    double: bool = True,
    n_step: int = 1,
    explore: Explore = exploration.epsilon_greedy,
    schedule: Callable[..., Float[Array, ""]] = exploration.linear_schedule,
) -> Agent:
    """Return DQN for discrete actions; `network` maps an observation to Q(s, .) [A].

        minimise huber(r_1 + ... + gamma^(n-1) r_n + gamma^n Q_target(s_n, a*) - Q(s, a))
        a* = argmax Q(s_n, .) if double, else argmax Q_target(s_n, .)

    with fewer than n = `n_step` rewards where the episode ended before. It learns from whatever rollout it is handed,
    at least `n_step` long: wrap it in `replay.with_replay` for the algorithm of the paper. `schedule` is how
    exploration goes from its start to its end. Raises ValueError unless the actions are discrete, for `n_step` below
    1, and for a network of other sizes.
    """
    require_spec(spec, agent="dqn")
    actions = require_discrete(spec.action, what="action", agent="dqn")
    require_count("n_step", n_step)
    require_flag("double", double)
    require_function("schedule", schedule, wanted="a function such as exploration.linear_schedule")
    require_values("network", network, zeros(spec.observation), (actions,), agent="dqn")
    strategy = exploration.made(explore, spec)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="dqn")
        params = network.init(key, zeros(spec.observation))
        return State(
            params=params,
            target_params=jax.tree.map(jnp.copy, params),
            optimizer=optimizers.start(params),
            updates=jnp.int32(0),
            visits=strategy.init(),
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values = network.apply(state.params, observation)
        number = schedule(
            state.updates,
            start=hypers.exploration_start,
            end=hypers.exploration_end,
            horizon=hypers.exploration_horizon,
        )
        return exploration.act(key, strategy, values, state.visits, observation, number, greedy=greedy), memory

    def target(state, steps, hypers):
        sums = returns.n_step(steps.reward, steps.terminated, steps.truncated, hypers.discount, n=n_step)
        successor = steps.next_observation
        if n_step > 1:
            successor = jax.tree.map(lambda leaf: leaf[sums.last, jnp.arange(leaf.shape[1])], successor)
        next_values = network.apply(state.target_params, successor)
        if not double:
            return losses.q_learning_target(sums.reward, sums.bootstrap, next_values)
        next_selector = network.apply(state.params, successor)
        return losses.double_q_learning_target(sums.reward, sums.bootstrap, next_values, next_selector)

    def loss(params, steps, target, hypers):
        observation, action = jax.tree.map(lambda leaf: leaf[: len(target)], (steps.observation, steps.action))
        value = select(network.apply(params, observation), action)
        return jnp.mean(losses.huber(target - value, hypers.huber_delta)), jnp.mean(value)

    def update(key, state, rollout, hypers):
        if len(rollout.steps.reward) < n_step:
            raise ValueError(
                f"dqn was made for n_step {n_step} and is handed {len(rollout.steps.reward)} steps at a time; "
                f"replay.uniform takes length={n_step} for it"
            )
        targets = target(state, rollout.steps, hypers)
        (error, value), gradient = jax.value_and_grad(loss, has_aux=True)(state.params, rollout.steps, targets, hypers)
        params, optimizer = optimizers.descend(state.params, gradient, state.optimizer, hypers, state.updates)
        updates = state.updates + 1
        due = updates % jnp.maximum(jnp.int32(hypers.target_period), 1) == 0
        moved = optax.incremental_update(params, state.target_params, hypers.target_rate)
        target_params = jax.tree.map(lambda new, old: jnp.where(due, new, old), moved, state.target_params)
        state = State(
            params=params,
            target_params=target_params,
            optimizer=optimizer,
            updates=updates,
            visits=state.visits,
        )
        return state, {"loss": error, "value": value}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
