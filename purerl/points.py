"""Points of a sweep: the values of hypers, of an environment's parameters, or of both, at which runs are made.

A `Batch` is what varies: values whose leaves are [P], and what each point is called.
"""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from purerl.base import require_key
from purerl.checks import require_count, require_kind, shown

Number = float | int


class Batch(NamedTuple):
    """P points of what varies."""

    values: PyTree  # leaves [P, ...]
    labels: dict[str, np.ndarray]  # of every axis its value at each point [P]

    @property
    def points(self) -> int:
        """How many they are."""
        return len(jax.tree.leaves(self.values)[0])


def grid(base: Any, **axes: Any) -> Batch:
    """Return every combination of the values, lists of numbers, of these fields of `base`, the last varying fastest.

    `base` is a dataclass of numbers: hypers, or an environment's parameters. Without axes it is the one point. Raises
    ValueError for a field that `base` lacks or that is no single number, and for values that are not finite numbers.
    """
    _require_base(base)
    columns = {name: _column(base, name, values) for name, values in axes.items()}
    combinations = np.array(list(itertools.product(*columns.values())))
    return _batch(base, {name: combinations[:, place] for place, name in enumerate(columns)})


def listed(base: Any, **columns: Any) -> Batch:
    """Return the points whose fields have these values, lists of equally many numbers: the first of each, and so on.

    Raises ValueError as `grid`, and for lists of other lengths, or none.
    """
    _require_base(base)
    checked = {name: np.array(_column(base, name, values)) for name, values in columns.items()}
    lengths = {name: len(column) for name, column in checked.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns have lengths {lengths}; it takes lists of one length, at least one list")
    return _batch(base, checked)


@runtime_checkable
class Distribution(Protocol):
    """How the values of an axis are drawn."""

    def draw(self, key: Key[Array, ""]) -> Float[Array, ""]: ...


class Uniform(NamedTuple):
    """The uniform distribution on [low, high)."""

    low: Number
    high: Number

    def draw(self, key: Key[Array, ""]) -> Float[Array, ""]:
        return jax.random.uniform(key, minval=self.low, maxval=self.high)


class LogUniform(NamedTuple):
    """The distribution of numbers whose logarithm is uniform."""

    low: Number
    high: Number

    def draw(self, key: Key[Array, ""]) -> Float[Array, ""]:
        return jnp.exp(jax.random.uniform(key, minval=jnp.log(self.low), maxval=jnp.log(self.high)))


class Choice(NamedTuple):
    """The distribution in which all values have the same probability."""

    values: tuple[Number, ...]

    def draw(self, key: Key[Array, ""]) -> Float[Array, ""]:
        return jnp.asarray(self.values, jnp.float32)[jax.random.randint(key, (), 0, len(self.values))]


def uniform(low: Number, high: Number) -> Uniform:
    """Return the uniform distribution on [low, high)."""
    _require_bounds(low, high)
    return Uniform(low, high)


def log_uniform(low: Number, high: Number) -> LogUniform:
    """Return the distribution of numbers whose logarithm is uniform, from `low` above 0 to `high`."""
    _require_bounds(low, high)
    if low <= 0:
        raise ValueError(f"low is {low}; a log-uniform distribution takes a positive number")
    return LogUniform(low, high)


def choice(*values: Number) -> Choice:
    """Return the distribution in which all of these have the same probability."""
    if not values:
        raise ValueError("choice takes at least one value")
    if not all(map(_is_finite, values)):
        raise ValueError(f"choice has {values}; it takes finite numbers")
    return Choice(values)


def require_within(base: Any, distributions: Mapping[str, Distribution]) -> None:
    """Raise a ValueError unless `base` has these fields and can hold all that searches may try of them.

    A search takes uniform, log-uniform and choice.
    """
    require_kind("distributions", distributions, Mapping, wanted="a dict: name of a hyper -> its distribution")
    for name, distribution in distributions.items():
        if not isinstance(distribution, Uniform | LogUniform | Choice):
            raise ValueError(f"the distribution of {name} is {distribution!r}; it takes uniform, log_uniform or choice")
        grid(base, **{name: distribution.values if isinstance(distribution, Choice) else list(distribution)})


def sample(key: Key[Array, ""], base: Any, n: int, **distributions: Distribution) -> Batch:
    """Return `n` points with these fields of `base` drawn at random.

    Each point and each field has a key of its own: more points, or more fields, leave those there are as they are.
    Raises ValueError as `grid`.
    """
    require_key("key", key)
    _require_base(base)
    require_count("n", n)
    columns = {}
    for name, distribution in distributions.items():
        require_kind(name, distribution, Distribution, wanted="a distribution, such as points.uniform(low, high)")
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        drawn = jax.vmap(lambda i, own=own, draw=distribution.draw: draw(jax.random.fold_in(own, i)))(jnp.arange(n))
        columns[name] = np.asarray(drawn).tolist()
    if columns:
        return listed(base, **columns)
    return Batch(jax.tree.map(lambda leaf: jnp.repeat(leaf, n, axis=0), _batch(base, {}).values), {})


def product(*batches: Batch) -> Batch:
    """Return every combination of the points of several batches, as tuples: of hypers and an environment's parameters.

    `train` is then handed (key, (hypers, env_params)). Raises ValueError for an axis that two of them have.
    """
    if len(batches) < 2:
        raise ValueError(f"product is of {len(batches)} batches; it takes at least two")
    for batch in batches:
        require_kind("a batch", batch, Batch, wanted="a points.Batch, such as points.grid(hypers, discount=[0.9, 1])")
    names = [name for batch in batches for name in batch.labels]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name} is an axis of two batches; each takes a name of its own")
    places = np.indices([batch.points for batch in batches]).reshape(len(batches), -1)
    taken = [
        (jax.tree.map(lambda leaf, place=place: leaf[place], batch.values), batch.labels, place)
        for batch, place in zip(batches, places, strict=True)
    ]
    labels = {name: column[place] for _, own, place in taken for name, column in own.items()}
    return Batch(tuple(values for values, _, _ in taken), labels)


def _batch(base: Any, columns: dict[str, np.ndarray]) -> Batch:
    points = len(next(iter(columns.values()))) if columns else 1
    whole = jax.tree.map(lambda leaf: jnp.broadcast_to(_array(leaf), (points, *np.shape(leaf))), base)
    changed = {name: jnp.asarray(column, getattr(whole, name).dtype) for name, column in columns.items()}
    return Batch(dataclasses.replace(whole, **changed), columns)


def _array(leaf: Any) -> Any:
    """Numbers of Python are float32, as in hypers; arrays, as in an environment's parameters, stay what they are."""
    if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind not in "biuf":
        raise TypeError(f"base has {shown(leaf)}; it takes numbers in all its fields")
    return jnp.asarray(leaf, jnp.float32) if isinstance(leaf, bool | int | float) else jnp.asarray(leaf)


def _column(base: Any, name: str, values: Any) -> list[Any]:
    fields = [field.name for field in dataclasses.fields(base)]
    if name not in fields:
        raise ValueError(f"{type(base).__name__} has no {name}; it has {', '.join(fields)}")
    if np.shape(getattr(base, name)) != ():
        raise ValueError(f"{name} is an array of shape {np.shape(getattr(base, name))}; an axis takes a single number")
    column = np.asarray(values)
    if column.ndim != 1 or not column.size or column.dtype.kind not in "biuf" or not np.isfinite(column).all():
        raise ValueError(f"{name} is {values!r}; an axis takes a list of finite numbers, at least one")
    dtype = _array(getattr(base, name)).dtype
    with np.errstate(over="ignore", invalid="ignore"):
        cast = column.astype(dtype)
    if dtype.kind in "iu" and (cast.astype(np.float64) != column).any():
        raise ValueError(f"{name} is {values!r}; {type(base).__name__} takes whole numbers of {dtype} there")
    if not np.isfinite(cast).all():
        raise ValueError(f"{name} is {values!r}; an axis takes numbers that {dtype} can hold")
    return column.tolist()


def _require_base(base: Any) -> None:
    """Raise a TypeError for what has no fields with values: a class has none."""
    if not dataclasses.is_dataclass(base) or isinstance(base, type):
        raise TypeError(f"base is {shown(base)}; it takes hypers, such as dqn.Hypers(), or an environment's parameters")


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(np.isfinite(value))


def _require_bounds(low: Number, high: Number) -> None:
    if not (_is_finite(low) and _is_finite(high) and low < high):
        raise ValueError(f"low is {low} and high is {high}; a distribution takes finite bounds, the lower first")
