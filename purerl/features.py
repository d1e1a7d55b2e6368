"""Binary features of observations, a fixed few of which are 1 at a time: tables and tile coding.

A function that is linear in them, v(s) = sum of the weights of the features that are 1 in s, costs as many additions as
there are such features, however many there are in all.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from purerl.base import Box, Discrete, Spec, require_spec
from purerl.checks import require_count, shown


@runtime_checkable
class ActiveFn(Protocol):
    def __call__(self, observation: Any) -> Int[Array, "*batch K"]:
        """Return which features are 1 in observations of any leading axes: K different ones."""
        ...


class Features(NamedTuple):
    """`size` features, of which `active` names the `count` that are 1."""

    size: int
    count: int
    active: ActiveFn


def table(spec: Spec) -> Features:
    """Return a feature for each state: v is then a table. Raises ValueError unless observations are discrete."""
    require_spec(spec, agent="a table")
    if not isinstance(spec.observation, Discrete):
        raise ValueError(
            f"a table needs a discrete observation space, and this environment's is {spec.observation}; "
            "for a box there is features.tile_coding"
        )
    return Features(spec.observation.n, 1, lambda observation: observation[..., None])


def tile_coding(
    spec: Spec,
    tiles: int | tuple[int, ...],
    tilings: int,
    *,
    low: ArrayLike | float | None = None,
    high: ArrayLike | float | None = None,
) -> Features:
    """Return the features of tile coding: in each of `tilings` grids, the tile that holds the observation (S&B 9.5.4).

    A tile is 1 / `tiles` of the space from `low` to `high`, the observation's own bounds if not given, in each
    dimension (`tiles` may give a number for each); what lies beyond the bounds counts as on them. Grid g of n is moved
    by g/n of a tile in the first dimension, 3g/n in the second, 5g/n in the third ..., less whole tiles (Miller & Glanz
    1996). There are tilings x (tiles + 1)^dimensions features. Raises ValueError for what is no flat box, for bounds
    that are infinite or empty, for counts below one, and for tilings that would lie on one another in a dimension (a
    power of two never does; take at least four times as many as there are dimensions).
    """
    require_spec(spec, agent="tile coding")
    space = spec.observation
    if not isinstance(space, Box) or len(space.shape) != 1:
        raise ValueError(f"tile coding needs a box of one axis as observation space, and this environment's is {space}")
    require_count("tilings", tilings)
    dimensions = space.shape[0]
    counts = tiles if isinstance(tiles, tuple) else (tiles,) * dimensions
    if len(counts) != dimensions:
        raise ValueError(f"tiles is {tiles}; observations have {dimensions} dimensions, and it takes a number for each")
    for count in counts:
        require_count("tiles", count)
    for dimension in range(dimensions):
        if math.gcd(tilings, 2 * dimension + 1) > 1:
            raise ValueError(
                f"tilings is {tilings}, and in dimension {dimension} several would lie on one another; "
                "it takes a power of two, or another number without a common divisor with 3, 5, 7 ..."
            )
    low = _bound("low", space.low if low is None else low, dimensions)
    high = _bound("high", space.high if high is None else high, dimensions)
    for dimension, (least, most) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        # gymnax writes float32's greatest numbers for no bound at all: a tile of such a width would tell nothing apart.
        if not (least < most and abs(least) < 1e30 and abs(most) < 1e30):
            raise ValueError(
                f"dimension {dimension} goes from {least:g} to {most:g}; tile coding takes finite bounds: give low= "
                "and high="
            )
    shift = np.arange(tilings)[:, None] * (2 * np.arange(dimensions) + 1) / tilings % 1.0
    shape = tuple(count + 1 for count in counts)
    strides = np.array([math.prod(shape[dimension + 1 :]) for dimension in range(dimensions)], np.int32)
    first = np.arange(tilings, dtype=np.int32) * math.prod(shape)

    def active(observation: Float[Array, "*batch D"]) -> Int[Array, "*batch K"]:
        place = (jnp.clip(observation, low, high) - low) / (high - low) * np.asarray(counts, np.float32)
        tile = jnp.floor(place[..., None, :] + shift.astype(np.float32)).astype(jnp.int32)
        tile = jnp.minimum(tile, np.array(counts, np.int32))  # on the upper bound the sum may be rounded up
        return jnp.sum(tile * strides, axis=-1, dtype=jnp.int32) + first

    return Features(tilings * math.prod(shape), tilings, active)


def _bound(name: str, given: Any, dimensions: int) -> np.ndarray:
    try:
        return np.broadcast_to(np.asarray(given, np.float32), (dimensions,))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {shown(given)}; it takes a number, or {dimensions}, one a dimension") from error
