"""Targets and errors of temporal-difference learning, elementwise: any leading axes, nothing averaged, nothing stopped.

`bootstrap` is the discount where the episode goes on or was only cut short, and zero where it terminated:
`discount * (1 - terminated)`.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def bootstrap_weight(discount: Float[Array, ""], terminated: Bool[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return what the value of the successor counts for: the discount, or zero where the episode terminated."""
    return discount * (1.0 - terminated)


def following(bootstrap: Float[Array, "*batch"], value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return b V(s'), and 0 where b is 0 whatever the value: of a last state in which no action is legal it is -inf."""
    # Not the product: where a select stands between it and the sum, XLA rounds twice or once as it happens to fuse.
    return bootstrap * jnp.where(bootstrap == 0, 0.0, value)


def select(values: Float[Array, "*batch A"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return values[..., action] as a masked sum: unlike that of indexing, its gradient is no scatter."""
    chosen = action[..., None] == jnp.arange(values.shape[-1])
    return jnp.sum(jnp.where(chosen, values, 0.0), axis=-1)


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


def huber(error: Float[Array, "*batch"], delta: Float[Array, ""]) -> Float[Array, "*batch"]:
    """Return e^2 / 2 up to |e| = delta and delta (|e| - delta / 2) beyond (Huber 1964)."""
    return jnp.where(jnp.abs(error) <= delta, 0.5 * error**2, delta * (jnp.abs(error) - 0.5 * delta))
