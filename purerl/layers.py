"""Layers of networks: flax modules, an initialiser, and how an observation becomes what a network reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from purerl.base import Box, Discrete
from purerl.checks import require_count, require_number

Blocks = Literal["dense", "residual", "transformer"]  # what a torso's hidden layers are


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
    calls can wait for each other for ever when runs are vmapped on a machine with two cores. Raises ValueError for a
    scale that is not finite, and for less than one step.
    """
    require_number("scale", scale)
    require_count("steps", steps)

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


def outputs(size: int, **named: Any) -> nn.Dense:
    """Return a dense layer that sums in float32 at least, and returns that, whatever it computes in: a network's last.

    Values that differ by less than a part in 256 are one in bfloat16, and which of them is largest is lost.
    """

    def summed(rows: Array, kernel: Array, *arguments: Any, **options: Any) -> Array:
        dtype = jnp.promote_types(rows.dtype, jnp.float32)
        return jax.lax.dot_general(rows, kernel, *arguments, **(options | {"preferred_element_type": dtype}))

    return nn.Dense(size, dot_general=summed, **named)


class MLP(nn.Module):
    """A multilayer perceptron on vectors [*batch, features]: dense layers with an activation after all but the last.

    The last one's outputs are float32, unless they are `inner`: read by another layer.
    """

    sizes: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    inner: bool = False

    @nn.compact
    def __call__(self, vector: Float[Array, "*batch features"]) -> Float[Array, "*batch outputs"]:
        """Return the last layer's outputs."""
        # One leading axis: with two of them XLA's CPU takes twice as long for the product that is a matrix's gradient.
        rows = vector.reshape(-1, vector.shape[-1])
        for layer, size in enumerate(self.sizes):
            if layer:
                rows = self.activation(rows)
            inner = self.inner or layer < len(self.sizes) - 1
            rows = (nn.Dense if inner else outputs)(size, kernel_init=self.kernel_init, name=f"Dense_{layer}")(rows)
        return rows.reshape(*vector.shape[:-1], rows.shape[-1])


class Convolutions(nn.Module):
    """Layers of 3 x 3 filters on images [*batch, height, width, channels], each with an activation after it.

    Without padding: every layer takes two rows and two columns off. All leading axes are kept.
    """

    filters: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    dtype: Any = None  # of patches, products and activations; the image's if not given

    @nn.compact
    def __call__(
        self, image: Float[Array, "*batch height width channels"]
    ) -> Float[Array, "*batch rows columns depth"]:
        """Return the last layer's outputs."""
        image = image if self.dtype is None else jnp.asarray(image, self.dtype)
        for filters in self.filters:
            rows, columns = image.shape[-3] - 2, image.shape[-2] - 2
            # One product with the patches laid out: on a CPU up to twice as fast as XLA's convolution (batch 128).
            patches = [image[..., row : row + rows, column : column + columns, :] for row, column in np.ndindex(3, 3)]
            image = self.activation(nn.Dense(filters, kernel_init=self.kernel_init)(jnp.concatenate(patches, axis=-1)))
        return image


class ResidualBlock(nn.Module):
    """Two dense layers beside the stream that they add to: [*batch, width] -> [*batch, width].

        x + down(activation(up(LayerNorm(x))))        four times as wide inside

    He et al. 2016; the normalisation comes first, and the stream itself is only added to (Xiong et al. 2020). It is
    float32, as are the sums that are added, whatever the layers compute in. Split over devices, `up` by its columns
    and `down` by its rows, a block takes one sum over them each way (Shoeybi et al. 2019, section 3).
    """

    activation: Callable[[Array], Array] = nn.relu
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, stream: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Return the stream after the block."""
        width = stream.shape[-1]
        rows = stream.reshape(-1, width)  # for the gradient's sake, as in an MLP
        inside = nn.Dense(4 * width, kernel_init=self.kernel_init, name="mlp_up")(nn.LayerNorm()(rows))
        rows += outputs(width, kernel_init=self.kernel_init, name="mlp_down")(self.activation(inside))
        return rows.reshape(stream.shape)


class TransformerBlock(nn.Module):
    """Self-attention among tokens, then a residual block for each: [*batch, tokens, width] -> the same shape.

        x + attention(LayerNorm(x)),   attention = concat_h(softmax(Q_h K_h' / sqrt(width / heads)) V_h) W

    Vaswani et al. 2017, section 3.2, with the softmax in float32. Every token sees all others.
    """

    heads: int
    activation: Callable[[Array], Array] = nn.relu
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, stream: Float[Array, "*batch tokens width"]) -> Float[Array, "*batch tokens width"]:
        """Return the stream after the block."""
        # Of flax's own function a softmax in float32 makes float32 of the product with the values, too.
        attention = nn.MultiHeadDotProductAttention(
            self.heads, kernel_init=self.kernel_init, attention_fn=jax.nn.dot_product_attention, name="attention"
        )
        rows = stream.reshape(-1, *stream.shape[-2:])  # jax's takes one leading axis
        rows += attention(nn.LayerNorm()(rows))
        return ResidualBlock(self.activation, self.kernel_init)(rows).reshape(stream.shape)


class PixelTokens(nn.Module):
    """One token for each pixel: a linear map of its channels, and a vector that is learned for its place."""

    width: int
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, image: Float[Array, "*batch height width channels"]
    ) -> Float[Array, "*batch tokens {self.width}"]:
        """Return the tokens, row by row."""
        pixels = image.reshape(*image.shape[:-3], -1, image.shape[-1])
        place = self.param("place", nn.initializers.normal(1.0), (pixels.shape[-2], self.width))
        return outputs(self.width, kernel_init=self.kernel_init, name="embed")(pixels) + place


class FeatureTokens(nn.Module):
    """One token for each feature: x_i weight_i + bias_i (Gorishniy et al. 2021, section 3.3)."""

    width: int

    @nn.compact
    def __call__(self, features: Float[Array, "*batch tokens"]) -> Float[Array, "*batch tokens {self.width}"]:
        """Return the tokens."""
        shape = features.shape[-1], self.width
        weight, bias = (self.param(name, nn.initializers.normal(1.0), shape) for name in ("weight", "bias"))
        return features[..., None] * weight + bias


class Torso(nn.Module):
    """What comes before the heads: observations of `space` [*batch, ...] -> features [*batch, hidden[-1]].

    Convolutions, if there are `filters`, then the hidden layers: `dense` ones, with an activation after each, or as
    many blocks of one width, `residual` or `transformer`, normalised at the end. The tokens of transformers are the
    pixels of images [height, width, channels], and otherwise the features of `encode`; their mean is returned.
    """

    space: Any
    hidden: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu
    filters: Sequence[int] = ()
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    blocks: Blocks = "dense"
    heads: int = 4  # of transformers' attention

    @nn.compact
    def __call__(self, observation: PyTree) -> Float[Array, "*batch features"]:
        """Return the features."""
        made_with = self.activation, self.kernel_init
        pixels = self.blocks == "transformer" and isinstance(self.space, Box) and len(self.space.shape) == 3
        image = None
        if self.filters or pixels:
            image = Convolutions(self.filters, *made_with)(jnp.asarray(observation, jnp.float32))

        if self.blocks == "transformer":
            width = self.hidden[-1]
            if image is None:
                tokens = FeatureTokens(width)(encode(self.space, observation))
            else:
                tokens = PixelTokens(width, self.kernel_init)(image)
            for _ in self.hidden:
                tokens = TransformerBlock(self.heads, *made_with)(tokens)
            return jnp.mean(nn.LayerNorm()(tokens), axis=-2)

        features = encode(self.space, observation) if image is None else image.reshape(*image.shape[:-3], -1)
        if not self.hidden:
            return features
        if self.blocks == "dense":
            return self.activation(MLP(self.hidden, *made_with, inner=True)(features))
        stream = outputs(self.hidden[0], kernel_init=self.kernel_init, name="embed")(features)
        for _ in self.hidden:
            stream = ResidualBlock(*made_with)(stream)
        return nn.LayerNorm()(stream)
