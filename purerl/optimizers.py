"""How parameters descend a gradient: Adam with a rate that anneals, every number of it traced."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from purerl import exploration, loss_scale
from purerl.base import pytree_dataclass


@pytree_dataclass
class Hypers:
    """The numbers of Adam; agents that use it inherit them, with defaults of their own."""

    learning_rate: float = 3e-4  # before the first update
    learning_rate_end_fraction: float = 1.0  # of that rate is what is left from update `learning_rate_horizon` on
    learning_rate_horizon: float = 1000.0  # updates
    max_gradient_norm: float = 0.5  # gradients of a larger global norm are scaled down to it
    adam_b1: float = 0.9
    adam_b2: float = 0.999
    adam_eps: float = 1e-8


def start(params: PyTree) -> Any:
    """Return the optimizer's state before the first step; it depends on no number."""
    return _adam(Hypers(), 0.0).init(loss_scale.without(params))


def descend(
    params: PyTree,
    gradient: PyTree,
    state: Any,
    hypers: Hypers,
    updates: Int[Array, ""],
    *,
    scale: Float[Array, ""] | float = 1.0,
) -> tuple[Any, Any]:
    """Return (parameters, state) after one step of Adam (Kingma & Ba 2015) down the gradient, clipped by its norm.

    The rate is `scale` times the one that is due after so many `updates`: `learning_rate`, and in a straight line down
    to its `learning_rate_end_fraction`. Parameters of networks with a loss scale stay as they are if the gradient is
    not finite, and the scale takes note.
    """
    left = exploration.linear_schedule(
        updates, start=1.0, end=hypers.learning_rate_end_fraction, horizon=hypers.learning_rate_horizon
    )
    learned, gradient = loss_scale.without(params), loss_scale.without(gradient)
    step, after = _adam(hypers, scale * left * hypers.learning_rate).update(gradient, state, learned)
    moved = optax.apply_updates(learned, step)
    if not loss_scale.is_in(params):
        return moved, after
    good = jnp.isfinite(optax.global_norm(gradient))
    moved, after = jax.tree.map(lambda new, old: jnp.where(good, new, old), (moved, after), (learned, state))
    return loss_scale.adapted(params, moved, good), after


def _adam(hypers: Hypers, rate: Any) -> optax.GradientTransformation:
    return optax.chain(
        optax.stateless(lambda gradient, _: _clipped(gradient, hypers.max_gradient_norm)),
        optax.adam(rate, b1=hypers.adam_b1, b2=hypers.adam_b2, eps=hypers.adam_eps),
    )


def _clipped(gradient: PyTree, most: Any) -> PyTree:
    """Clip by the global norm as optax does, which divides zeros by zero: unused, but NaN to whoever looks for it."""
    norm = optax.global_norm(gradient)
    least = jnp.finfo(jnp.float32).tiny
    return jax.tree.map(lambda leaf: jnp.where(norm < most, leaf, leaf / jnp.maximum(norm, least) * most), gradient)
