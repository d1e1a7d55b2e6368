"""Dynamic loss scaling (Micikevicius et al. 2018), kept among a network's parameters.

Derivatives that float16 would round to zero are multiplied by a scale where they come into a network, backwards by its
outputs, and divided by it where they leave, by its parameters and inputs. Who differentiates sees neither. An update
whose gradient overflowed is skipped and halves the scale; after so many good ones it is doubled.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from purerl.base import pytree_dataclass

FIRST = 2.0**15
LEAST, MOST = 2.0**0, 2.0**24
GOOD_UPDATES = 2_000  # after which the scale is doubled


@pytree_dataclass
class LossScale:
    """The scale of one network's derivatives. Its own gradient is zero."""

    scale: Any  # float32
    good_updates: Any  # float32, as all that is differentiated: updates since it last changed


def start() -> LossScale:
    """Return the scale with which a run begins."""
    return LossScale(scale=jnp.float32(FIRST), good_updates=jnp.float32(0.0))


def entering(tree: PyTree, scale: Float[Array, ""]) -> PyTree:
    """Return parameters or inputs as they are, their derivatives divided by the scale."""
    scale = jax.lax.stop_gradient(scale)
    return jax.tree.map(lambda leaf: _entering(leaf, scale) if _is_float(leaf) else leaf, tree)


def leaving(tree: PyTree, scale: Float[Array, ""]) -> PyTree:
    """Return outputs as they are, their derivatives multiplied by the scale."""
    scale = jax.lax.stop_gradient(scale)
    return jax.tree.map(lambda leaf: _leaving(leaf, scale) if _is_float(leaf) else leaf, tree)


@jax.custom_jvp
def _entering(leaf: Array, scale: Array) -> Array:
    return leaf


@_entering.defjvp
def _entering_jvp(primals: Any, tangents: Any) -> Any:
    return primals[0], (tangents[0] / primals[1]).astype(primals[0].dtype)


@jax.custom_jvp
def _leaving(leaf: Array, scale: Array) -> Array:
    return leaf


@_leaving.defjvp
def _leaving_jvp(primals: Any, tangents: Any) -> Any:
    return primals[0], (tangents[0] * primals[1]).astype(primals[0].dtype)


def without(tree: PyTree) -> PyTree:
    """Return a tree without its scales: what is learned."""
    return jax.tree.map(lambda leaf: None if _is_scale(leaf) else leaf, tree, is_leaf=_is_scale)


def is_in(tree: PyTree) -> bool:
    """Return whether there is a scale in a tree."""
    return any(map(_is_scale, jax.tree.leaves(tree, is_leaf=_is_scale)))


def adapted(params: PyTree, learned: PyTree, good: Bool[Array, ""]) -> PyTree:
    """Return `params` with what was `learned` of them, and with their scales as they are after an update."""
    after = functools.partial(_after, good=good)
    return jax.tree.map(lambda old, new: after(old) if _is_scale(old) else new, params, learned, is_leaf=_is_scale)


def _after(old: LossScale, *, good: Bool[Array, ""]) -> LossScale:
    count = old.good_updates + 1.0
    grows = count >= GOOD_UPDATES
    scale = jnp.where(good, jnp.where(grows, old.scale * 2.0, old.scale), old.scale / 2.0)
    return LossScale(scale=jnp.clip(scale, LEAST, MOST), good_updates=jnp.where(good & ~grows, count, 0.0))


def _is_scale(node: Any) -> bool:
    return isinstance(node, LossScale)


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
