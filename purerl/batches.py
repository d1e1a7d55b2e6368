"""Rollouts as batches: flattened, shuffled, and cut into parts, each group of environments by itself.

Groups are neighbouring environments (`base.Spec.groups`). What lies on one device of a mesh is whole groups, and of
what is done here none of them needs to leave it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree


def require_parts(name: str, parts: int, size: int, groups: int) -> None:
    """Raise a ValueError unless so many `parts` divide a rollout's steps, of each group as many."""
    if size // groups % parts:
        what = f"{size} steps of a rollout" if groups == 1 else f"{size // groups} steps that a rollout has of a group"
        raise ValueError(f"{name} is {parts}, which does not divide the {what}")


def flat(rollout: PyTree, groups: int = 1) -> PyTree:
    """Return leaves [T, N, ...] as [T N, ...], group by group."""

    def merged(leaf: Array) -> Array:
        if groups > 1:
            leaf = jnp.moveaxis(leaf.reshape(len(leaf), groups, -1, *leaf.shape[2:]), 1, 0)
        return leaf.reshape(-1, *leaf.shape[2 + (groups > 1) :])

    return jax.tree.map(merged, rollout)


def by_rows(apply: Callable[[PyTree], PyTree], rollout: PyTree, groups: int) -> PyTree:
    """Return what a network makes of leaves [T, N, ...], as [T, N, ...].

    Of groups it reads them one after another, for which none needs to leave its device; networks merge T and N.
    """
    if groups == 1:
        return apply(rollout)
    length, num_envs = jax.tree.leaves(rollout)[0].shape[:2]

    def apart(leaf: Array) -> Array:
        leaf = leaf.reshape(groups, length, num_envs // groups, *leaf.shape[1:])
        return jnp.moveaxis(leaf, 0, 1).reshape(length, num_envs, *leaf.shape[3:])

    return jax.tree.map(apart, apply(flat(rollout, groups)))


def shuffled(key: Key[Array, ""], batch: PyTree, minibatches: int, groups: int = 1) -> PyTree:
    """Return a batch [size, ...] in random order, cut into [minibatches, size / minibatches, ...].

    Each minibatch has as many of every group as of any other, which are shuffled by themselves: so those that lie on
    other devices stay there.
    """
    size = len(jax.tree.leaves(batch)[0])
    if groups == 1:
        order = permutation(key, size).reshape(minibatches, -1)
        return jax.tree.map(lambda leaf: leaf[order], batch)
    keys = jax.random.split(key, groups)
    order = jax.vmap(lambda key: permutation(key, size // groups).reshape(minibatches, -1))(keys)

    def cut(leaf: Array) -> Array:
        chosen = jax.vmap(lambda own, order: own[order], out_axes=1)(leaf.reshape(groups, -1, *leaf.shape[1:]), order)
        return chosen.reshape(minibatches, -1, *leaf.shape[1:])

    return jax.tree.map(cut, batch)


def permutation(key: Key[Array, ""], size: int) -> Int[Array, " size"]:
    """Return 0 .. size - 1 in random order, on a CPU ten times as fast as `jax.random.permutation`.

    Random numbers are sorted with the places in their low bits: one array, no comparison of pairs. Two equal numbers
    (of 32 bits less those of the places) leave their places in order, so sizes go up to 2^16 here and then to jax.
    """
    bits = max(size - 1, 1).bit_length()
    if bits > 16:
        return jax.random.permutation(key, size)
    places = jnp.arange(size, dtype=jnp.uint32)
    drawn = jax.random.bits(key, (size,), jnp.uint32) >> bits << bits
    return jnp.asarray(jnp.sort(drawn | places) & (2**bits - 1), jnp.int32)
