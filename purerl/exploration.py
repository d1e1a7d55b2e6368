"""How a value becomes an action."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def epsilon_greedy(
    key: Key[Array, ""], values: Float[Array, "*batch A"], epsilon: Float[Array, ""] | float
) -> Int[Array, "*batch"]:
    """Draw a ~ (1 - epsilon) Uniform(argmax values) + epsilon Uniform(A): ties are broken evenly (S&B section 2.2).

    One uniform number u decides all: below epsilon it explores, and u / epsilon, again uniform, is the action; above,
    the rest of it, stretched likewise, breaks the tie. (A second draw would double what a tabular step costs.) u has 23
    bits, so an action's share of the exploration is off by up to 2^-23 / epsilon. Values beyond [0, 1] count as 0 or 1.
    """
    epsilon = jnp.clip(epsilon, 0.0, 1.0)
    uniform = jax.random.uniform(key, values.shape[:-1])
    explore = uniform < epsilon
    tiny = jnp.finfo(jnp.float32).tiny
    exploring, exploiting = jnp.maximum(epsilon, tiny), jnp.maximum(1.0 - epsilon, tiny)
    stretched = jnp.where(explore, uniform / exploring, (uniform - epsilon) / exploiting)
    candidates = explore[..., None] | (values >= jnp.max(values, axis=-1, keepdims=True))
    count = jnp.sum(candidates, axis=-1, dtype=jnp.int32)
    # float32 arithmetic can round the product up to the count itself
    chosen = jnp.minimum(jnp.int32(stretched * count), count - 1)
    return jnp.argmax(jnp.cumsum(candidates, axis=-1, dtype=jnp.int32) > chosen[..., None], axis=-1).astype(jnp.int32)


def epsilon_greedy_policy(
    values: Float[Array, "*batch A"], epsilon: Float[Array, ""] | float
) -> Float[Array, "*batch A"]:
    """Return the probabilities [..., A] with which `epsilon_greedy` draws."""
    best = values >= jnp.max(values, axis=-1, keepdims=True)
    return (1.0 - epsilon) * best / jnp.sum(best, axis=-1, keepdims=True) + epsilon / values.shape[-1]


def linear_schedule(
    count: Int[Array, ""],
    *,
    start: Float[Array, ""] | float,
    end: Float[Array, ""] | float,
    horizon: Float[Array, ""] | float,
) -> Float[Array, ""]:
    """Go from `start` at count 0 to `end` at count `horizon` in a straight line, and stay there."""
    return start + (end - start) * jnp.clip(count / jnp.maximum(horizon, 1.0), 0.0, 1.0)
