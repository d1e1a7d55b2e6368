"""Targets and losses, elementwise: any leading axes, nothing averaged, no gradient stopped.

`bootstrap` is the discount where the episode goes on or was only cut short, and zero where it terminated:
`discount * (1 - terminated)`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from purerl.base import select


def bootstrap_weight(discount: Float[Array, ""], terminated: Bool[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return what the value of the successor counts for: the discount, or zero where the episode terminated."""
    return discount * (1.0 - terminated)


def following(bootstrap: Float[Array, "*batch"], value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return b V(s'), and 0 where b is 0 whatever the value: of a last state in which no action is legal it is -inf."""
    # Not the product: where a select stands between it and the sum, XLA rounds twice or once as it happens to fuse.
    return bootstrap * jnp.where(bootstrap == 0, 0.0, value)


def q_learning_target(
    reward: Float[Array, "*batch"],
    bootstrap: Float[Array, "*batch"],
    next_values: Float[Array, "*batch A"],
) -> Float[Array, "*batch"]:
    """Return r + b max_a Q(s', a) (Watkins 1989; S&B 6.8)."""
    return reward + following(bootstrap, jnp.max(next_values, axis=-1))


def double_q_learning_target(
    reward: Float[Array, "*batch"],
    bootstrap: Float[Array, "*batch"],
    next_values: Float[Array, "*batch A"],
    next_selector: Float[Array, "*batch A"],
) -> Float[Array, "*batch"]:
    """Return r + b Q(s', argmax_a S(s', a)): one estimate chooses, the other one judges (van Hasselt 2010, 2016)."""
    return reward + following(bootstrap, select(next_values, jnp.argmax(next_selector, axis=-1)))


def sarsa_target(
    reward: Float[Array, "*batch"],
    bootstrap: Float[Array, "*batch"],
    next_value: Float[Array, "*batch"],
) -> Float[Array, "*batch"]:
    """Return r + b Q(s', a'), a' being the action executed in s' (Rummery & Niranjan 1994; S&B 6.7)."""
    return reward + following(bootstrap, next_value)


def expected_sarsa_target(
    reward: Float[Array, "*batch"],
    bootstrap: Float[Array, "*batch"],
    next_values: Float[Array, "*batch A"],
    policy: Float[Array, "*batch A"],
) -> Float[Array, "*batch"]:
    """Return r + b sum_a pi(a|s') Q(s', a) (van Seijen 2009; S&B 6.9)."""
    expectation = jnp.sum(jnp.where(policy > 0, policy * next_values, 0.0), axis=-1)
    return reward + following(bootstrap, expectation)


def squared(error: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return e^2 / 2: the loss of a value that is regressed on its target."""
    return 0.5 * error**2


def huber(error: Float[Array, "*batch"], delta: Float[Array, ""]) -> Float[Array, "*batch"]:
    """Return e^2 / 2 up to |e| = delta and delta (|e| - delta / 2) beyond (Huber 1964)."""
    return jnp.where(jnp.abs(error) <= delta, 0.5 * error**2, delta * (jnp.abs(error) - 0.5 * delta))


def clipped_value(
    value: Float[Array, "*batch"],
    target: Float[Array, "*batch"],
    old_value: Float[Array, "*batch"],
    clip: Float[Array, ""],
) -> Float[Array, "*batch"]:
    """Return max(e^2, e_clipped^2) / 2: no reward for moving a value more than `clip` from what it was.

    e = V - target, and e_clipped the same with V held within V_old +- clip (from the code of Schulman et al. 2017).
    """
    clipped = jnp.clip(value, old_value - clip, old_value + clip)
    return jnp.maximum(squared(value - target), squared(clipped - target))


def policy_gradient(log_prob: Float[Array, "*batch"], advantage: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return -log pi(a|s) A, of which the gradient is that of the negative return (S&B 13.3)."""
    return -log_prob * advantage


def surrogate(log_ratio: Float[Array, "*batch"], advantage: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return -r A, r = pi(a|s) / pi_old(a|s) given as its logarithm (Schulman et al. 2015, equation 14)."""
    return -_ratio(log_ratio) * advantage


def clipped_surrogate(
    log_ratio: Float[Array, "*batch"], advantage: Float[Array, "*batch"], clip: Float[Array, ""]
) -> Float[Array, "*batch"]:
    """Return -min(r A, clip(r, 1 - clip, 1 + clip) A), r as in `surrogate` (Schulman et al. 2017, equation 7)."""
    ratio = _ratio(log_ratio)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip) * advantage)


def kl_estimate(log_ratio: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return r - 1 - log r, whose mean over actions drawn from pi_old is KL(pi_old‖pi); r as in `surrogate`.

    Never negative, and of less variance than -log r (Schulman 2020, "Approximating KL divergence").
    """
    # expm1: near r = 1, where it is of use, r - 1 would be all rounding.
    return jnp.expm1(log_ratio) - log_ratio


def _ratio(log_ratio: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return exp, held below 10^18: a gradient of 0 times infinity, of one sample, would be the end of all weights."""
    return jnp.exp(jnp.minimum(log_ratio, 40.0))
