"""Networks for agents: flax modules, initialisers, and how an observation becomes what a network reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
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


class Convolutions(nn.Module):
    """Layers of 3 x 3 filters on images [*batch, height, width, channels], each with an activation after it.

    Without padding: every layer takes two rows and two columns off. All leading axes are kept.
    """

    filters: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu

    @nn.compact
    def __call__(
        self, image: Float[Array, "*batch height width channels"]
    ) -> Float[Array, "*batch rows columns depth"]:
        """Return the last layer's outputs."""
        for filters in self.filters:
            rows, columns = image.shape[-3] - 2, image.shape[-2] - 2
            # One product with the patches laid out: on a CPU up to twice as fast as XLA's convolution (batch 128).
            patches = [image[..., row : row + rows, column : column + columns, :] for row, column in np.ndindex(3, 3)]
            image = self.activation(nn.Dense(filters)(jnp.concatenate(patches, axis=-1)))
        return image


class ActionValues(nn.Module):
    """Q(s, .) of every discrete action, from observations of `space`: [*batch, ...] -> [*batch, actions].

    With `filters`, convolutions come before the hidden layers. If `dueling`, the last hidden layer is there twice, for
    V(s) and for the advantages A(s, .), and Q(s, a) = V(s) + A(s, a) - mean A(s, .) (Wang et al. 2016, equation 9).
    """

    space: Any
    actions: int
    hidden: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu
    filters: Sequence[int] = ()
    dueling: bool = False

    @nn.compact
    def __call__(self, observation: PyTree) -> Float[Array, "*batch actions"]:
        """Return the action values."""
        if self.filters:
            features = Convolutions(self.filters, self.activation)(jnp.asarray(observation, jnp.float32))
            features = features.reshape(*features.shape[:-3], -1)
        else:
            features = encode(self.space, observation)
        if not self.dueling:
            return MLP((*self.hidden, self.actions), self.activation)(features)
        if self.hidden[:-1]:
            features = self.activation(MLP(self.hidden[:-1], self.activation)(features))
        value = MLP((*self.hidden[-1:], 1), self.activation)(features)
        advantage = MLP((*self.hidden[-1:], self.actions), self.activation)(features)
        return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


def action_values(
    spec: Spec,
    hidden: Sequence[int] = (120, 84),
    activation: Callable[[Array], Array] = nn.relu,
    *,
    filters: Sequence[int] = (),
    dueling: bool = False,
) -> Network:
    """Return a network (observation) -> Q(s, .) with these hidden layers.

    `filters` puts layers of so many 3 x 3 convolutions before them, for images [height, width, channels]; `dueling`
    ends in V(s) and advantages. Raises ValueError unless actions are discrete, widths at least 1, and images large
    enough.
    """
    actions = require_discrete(spec.action, what="action", agent="an action-value network")
    for name, widths in {"hidden": hidden, "filters": filters}.items():
        if any(width < 1 for width in widths):
            raise ValueError(f"{name} is {tuple(widths)}; each layer takes at least 1")
    if filters:
        shape = getattr(spec.observation, "shape", None)
        least = 2 * len(filters) + 1
        if shape is None or len(shape) != 3 or min(shape[:2]) < least:
            raise ValueError(
                f"filters is {tuple(filters)}, and observations are {spec.observation}; convolutions take images "
                f"[height, width, channels] of at least {least} x {least}"
            )
    return from_linen(ActionValues(spec.observation, actions, tuple(hidden), activation, tuple(filters), dueling))
