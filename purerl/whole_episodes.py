"""Steps that wait in an agent's state until their episode ends: for agents that learn from whole episodes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from purerl import base, returns
from purerl.base import Spec, Transition, pytree_dataclass, zeros


@pytree_dataclass
class Pending:
    """The last W steps in every environment: those of the episode under way are yet to be learned from."""

    observation: Any  # [W, N, ...]
    action: Any  # [W, N, ...]
    reward: Any  # [W, N]
    age: Any  # int32 [N]: steps so far of the episode under way


@pytree_dataclass
class Stretch:
    """The pending steps and the new ones, [W + T, N]."""

    observation: Any
    action: Any
    time: Any  # int32: steps since the episode's start
    target: Any  # G_t
    included: Any  # bool: whether the step's episode is here from its start to its end
    episodes: Any  # int32 []: how many episodes ended and are here whole ...
    excluded: Any  # int32 []: ... and how many ended of which more steps would have had to wait


def nothing_pends(spec: Spec, window: int) -> Pending:
    """Return the places of `window` steps in every environment, empty."""
    shape = window, spec.num_envs
    return Pending(
        observation=zeros(spec.observation, shape),
        action=zeros(spec.action, shape),
        reward=jnp.zeros(shape, jnp.float32),
        age=jnp.zeros(spec.num_envs, jnp.int32),
    )


def extend(
    pending: Pending, steps: Transition, next_value: Float[Array, "T N"], discount: Float[Array, ""]
) -> tuple[Stretch, Pending]:
    """Return the stretch of what waited and the new steps [T, N], and what of it waits now.

    G_t is the sum of discounted rewards to the episode's end; where the clock ended it, it goes on with `next_value`.
    """
    window = len(pending.reward)
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
        target=returns.lambda_returns(reward, terminated, truncated, next_value, discount, jnp.ones_like(discount)),
        included=begun & completed,
        episodes=jnp.sum(ended & begun),
        excluded=jnp.sum(ended & ~begun),
    )
    observation, action, reward = jax.tree.map(lambda leaf: leaf[-window:], joined[:3])
    return stretch, Pending(observation=observation, action=action, reward=reward, age=age)
