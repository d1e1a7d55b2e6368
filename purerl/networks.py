"""Networks for agents: flax modules, initialisers, and how an observation becomes what a network reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from purerl.base import Discrete, Network, Spec, from_linen, require_discrete


def encode(space: PyTree, observation: PyTree) -> Float[Array, "*batch features"]:
    """Return an observation of `space` as one float32 vector: integers one-hot, arrays flattened, parts joined.

    Any leading axes are kept: [*batch, *space.shape] -> [*batch, features].
    """

    def one(leaf: Any, value: Array) -> Array:
        if isinstance(leaf, Discrete):
            return jax.nn.one_hot(value, leaf.n, dtype=jnp.float32)
        batch = value.shape[: value.ndim - len(leaf.shape)]
        return jnp.asarray(value, jnp.float32).reshape(*batch, math.prod(leaf.shape))

    # Leaf by leaf: flax makes the dicts in a module's attributes frozen ones, which are other pytree nodes.
    parts = [one(*pair) for pair in zip(jax.tree.leaves(space), jax.tree.leaves(observation), strict=True)]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)


def orthogonal(scale: float = 1.0, *, steps: int = 40) -> Callable[..., Float[Array, "rows columns"]]:
    """Return an initialiser of matrices with orthonormal rows or columns, whichever are fewer, times `scale`.

    The polar factor of a Gaussian matrix is uniform among such matrices, and the Newton-Schulz iteration
    X <- X (3 I - X'X) / 2 finds it by matrix products alone. jax's own initialiser calls LAPACK, of which two batched
    calls can wait for each other for ever when runs are vmapped on a machine with two cores.
    """

    def init(key: Key[Array, ""], shape: Sequence[int], dtype: Any = jnp.float32, **_: Any) -> Array:
        rows, columns = math.prod(shape[:-1]), shape[-1]
        gaussian = jax.random.normal(key, (max(rows, columns), min(rows, columns)), jnp.float32)
        # All singular values below sqrt(3), or the iteration diverges: the Frobenius norm bounds them.
        matrix = gaussian / jnp.linalg.norm(gaussian)
        identity = jnp.eye(matrix.shape[1], dtype=jnp.float32)

        def step(_, matrix):
            gram = jnp.matmul(matrix.T, matrix, precision="highest")
            return jnp.matmul(matrix, 1.5 * identity - 0.5 * gram, precision="highest")

        matrix = jax.lax.fori_loop(0, steps, step, matrix)
        matrix = matrix if rows >= columns else matrix.T
        return (scale * matrix).reshape(shape).astype(dtype)

    return init


class MLP(nn.Module):
    """A multilayer perceptron on vectors [*batch, features]: dense layers with an activation after all but the last."""

    sizes: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, vector: Float[Array, "*batch features"]) -> Float[Array, "*batch outputs"]:
        """Return the last layer's outputs."""
        for layer, size in enumerate(self.sizes):
            if layer:
                vector = self.activation(vector)
            vector = nn.Dense(size, kernel_init=self.kernel_init)(vector)
        return vector


class ActionValues(nn.Module):
    """Q(s, .) of every discrete action, from observations of `space`: [*batch, ...] -> [*batch, actions]."""

    space: Any
    actions: int
    hidden: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(self, observation: PyTree) -> Float[Array, "*batch actions"]:
        """Return the action values."""
        return MLP((*self.hidden, self.actions), self.activation)(encode(self.space, observation))


def action_values(
    spec: Spec, hidden: Sequence[int] = (120, 84), activation: Callable[[Array], Array] = nn.relu
) -> Network:
    """Return a network (observation) -> Q(s, .) with these hidden layers; ValueError unless actions are discrete."""
    actions = require_discrete(spec.action, what="action", agent="an action-value network")
    if any(width < 1 for width in hidden):
        raise ValueError(f"hidden is {tuple(hidden)}; each hidden layer takes at least 1 unit")
    return from_linen(ActionValues(spec.observation, actions, tuple(hidden), activation))
