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
    return _backwards(reward, jnp.broadcast_to(discount, reward.shape), last_value)


def lambda_returns(
    reward: Float[Array, "T *batch"],
    terminated: Bool[Array, "T *batch"],
    truncated: Bool[Array, "T *batch"],
    next_value: Float[Array, "T *batch"],
    discount: Float[Array, ""],
    trace_decay: Float[Array, ""],
) -> Float[Array, "T *batch"]:
    """Return the lambda-returns of T steps, `next_value` being V(next_observation) (S&B 12.3).

        G_t = r_t + gamma (1 - terminated) [(1 - lambda) V(s_t+1) + lambda G_t+1]

    lambda is `trace_decay`. Where the episode was truncated, and at the last step, V(s_t+1) stands for G_t+1: nothing
    of the next episode counts.
    """
    weight, next_value = discount * (1.0 - terminated), jnp.where(terminated, 0.0, next_value)
    trace = trace_decay * ~(terminated | truncated)
    return _backwards(reward + weight * (1.0 - trace) * next_value, weight * trace, next_value[-1])


def gae(
    reward: Float[Array, "T *batch"],
    terminated: Bool[Array, "T *batch"],
    truncated: Bool[Array, "T *batch"],
    value: Float[Array, "T *batch"],
    next_value: Float[Array, "T *batch"],
    discount: Float[Array, ""],
    trace_decay: Float[Array, ""],
) -> Float[Array, "T *batch"]:
    """Return generalised advantage estimates: the lambda-returns less V(s_t) (Schulman et al. 2016, equation 16).

        A_t = delta_t + gamma lambda A_t+1,   delta_t = r_t + gamma (1 - terminated) V(s_t+1) - V(s_t)

    `value` is V(observation) and `next_value` V(next_observation), within an episode the same numbers. A_t+1 counts as
    0 where an episode ended, and after the last step. lambda = 0 gives the TD errors, lambda = 1 the Monte-Carlo
    returns (from the last value on) less V.
    """
    weight, next_value = discount * (1.0 - terminated), jnp.where(terminated, 0.0, next_value)
    error = reward + weight * next_value - value
    return _backwards(error, weight * trace_decay * ~truncated, jnp.zeros_like(value[-1]))


def standardized(advantage: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return advantages less their mean and divided by their standard deviation, both over all axes.

    Where they are all the same but for rounding they count as zero: no step is taken on noise.
    """
    deviation = jnp.std(advantage)
    same = deviation <= 1e-6 * jnp.max(jnp.abs(advantage))
    return jnp.where(same, 0.0, (advantage - jnp.mean(advantage)) / (deviation + 1e-8))


class VTrace(NamedTuple):
    """Targets for the values, and advantages for the policy gradient, of a policy other than the one that acted."""

    target: Float[Array, "T *batch"]  # v_t
    advantage: Float[Array, "T *batch"]  # rho_t (r_t + gamma q_t+1 - V(s_t))


def vtrace(
    reward: Float[Array, "T *batch"],
    terminated: Bool[Array, "T *batch"],
    truncated: Bool[Array, "T *batch"],
    value: Float[Array, "T *batch"],
    next_value: Float[Array, "T *batch"],
    log_ratio: Float[Array, "T *batch"],
    discount: Float[Array, ""],
    trace_decay: Float[Array, ""],
    clip_rho: Float[Array, ""],
    clip_c: Float[Array, ""],
) -> VTrace:
    """Return V-trace's targets and advantages (Espeholt et al. 2018, equation 1 and section 4.2).

        v_t = V(s_t) + delta_t + gamma c_t (v_t+1 - V(s_t+1)),   delta_t = rho_t (r_t + gamma V(s_t+1) - V(s_t))
        rho_t = min(clip_rho, ratio),   c_t = lambda min(clip_c, ratio),   q_t+1 = lambda v_t+1 + (1 - lambda) V(s_t+1)

    `log_ratio` is log pi(a|s) - log mu(a|s), mu having acted, and lambda `trace_decay`; gamma counts as 0 where the
    episode terminated. Where it was truncated, and at the last step, V(s_t+1) stands for v_t+1. Within an episode
    `next_value` holds the same numbers as `value`, a step earlier.
    """
    ratio = jnp.exp(log_ratio)
    rho = jnp.minimum(clip_rho, ratio)
    weight, next_value = discount * (1.0 - terminated), jnp.where(terminated, 0.0, next_value)
    goes_on = ~(terminated | truncated)
    error = rho * (reward + weight * next_value - value)
    trace = weight * trace_decay * jnp.minimum(clip_c, ratio) * goes_on
    correction = _backwards(error, trace, jnp.zeros_like(value[-1]))
    following = jnp.concatenate([correction[1:], jnp.zeros_like(correction[:1])])
    following = jnp.where(goes_on, following, 0.0)
    estimate = reward + weight * (next_value + trace_decay * following)
    return VTrace(target=value + correction, advantage=rho * (estimate - value))


def _backwards(
    term: Float[Array, "T *batch"], weight: Float[Array, "T *batch"], last: Float[Array, "*batch"]
) -> Float[Array, "T *batch"]:
    """Return x_t = term_t + weight_t x_t+1, x_T being `last`; where the weight is 0 whatever x_t+1 is."""

    def back(following, inputs):
        term, weight = inputs
        value = term + weight * jnp.where(weight == 0, 0.0, following)
        return value, value

    return jax.lax.scan(back, last, (term, weight), reverse=True)[1]
