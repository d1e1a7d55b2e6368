"""Returns: sums of discounted rewards, time first, any trailing axes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class NStep(NamedTuple):
    """What transitions followed by n - 1 others are worth, but for one value: `reward + bootstrap * V(successor)`.

    The successor is the `next_observation` of transition `last`: n steps on, or fewer where the episode ended.
    """

    reward: Float[Array, "windows *batch"]  # sum of the discounted rewards up to that of `last`
    bootstrap: Float[Array, "windows *batch"]  # gamma^(number of rewards), or zero where the episode terminated
    last: Int[Array, "windows *batch"]  # index in time


def n_step(
    reward: Float[Array, "T *batch"],
    terminated: Bool[Array, "T *batch"],
    truncated: Bool[Array, "T *batch"],
    discount: Float[Array, ""],
    *,
    n: int,
) -> NStep:
    """Return the n-step returns of the first T - n + 1 transitions, those that n - 1 others follow (S&B 7.1).

        r_t + gamma r_t+1 + ... + gamma^(m-1) r_t+m-1 + gamma^m (1 - terminated) V(successor)

    with m = n, or fewer where the episode ended, by termination or by its clock: nothing of the next one counts.
    Raises ValueError unless 1 <= n <= T.
    """
    if not 1 <= n <= len(reward):
        raise ValueError(f"n is {n}; for {len(reward)} steps it takes 1 to {len(reward)}")
    windows = len(reward) - n + 1
    first = jnp.arange(windows).reshape(-1, *(1,) * (reward.ndim - 1))
    goes_on = jnp.ones_like(terminated[:windows])
    result = NStep(
        reward=jnp.zeros_like(reward[:windows]),
        bootstrap=jnp.zeros_like(reward[:windows]),
        last=jnp.broadcast_to(first, goes_on.shape),
    )
    weight = 1.0
    for step in range(n):
        now = slice(step, step + windows)
        following = weight * discount
        result = NStep(
            reward=result.reward + jnp.where(goes_on, weight * reward[now], 0.0),
            bootstrap=jnp.where(goes_on, following * (1.0 - terminated[now]), result.bootstrap),
            last=jnp.where(goes_on, first + step, result.last),
        )
        goes_on &= ~(terminated[now] | truncated[now])
        weight = following
    return result


def discounted(
    reward: Float[Array, "T *batch"], discount: Float[Array, ""], last_value: Float[Array, "*batch"]
) -> Float[Array, "T *batch"]:
    """Return G_t = r_t + gamma G_t+1 of one stretch of an episode, G_T being `last_value` (S&B 3.9)."""

    def back(following, reward):
        value = reward + discount * following
        return value, value

    return jax.lax.scan(back, last_value, reward, reverse=True)[1]
