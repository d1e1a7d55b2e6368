"""Sweeps: any pure `train(key, hypers)` over points of hypers and seeds, in one compile and on all devices.

A `Batch` is what varies: values whose leaves are [P], and what each point is called. `grid`, `sample` and `product`
make them of hypers, of an environment's parameters, or of both.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from purerl import evaluate, loop
from purerl import spread as spreading
from purerl.archive import Archive
from purerl.base import Agent, pytree_dataclass, require_count
from purerl.loop import Phase
from purerl.metrics import Progress
from purerl.spread import Spread

SECONDS_PER_CHUNK = 5.0  # about how long runs are computed before their results are fetched ...
MOST_IN_CHUNK = 64  # ... and how many on a device at most, one after another


Number = float | int


class Batch(NamedTuple):
    """P points of what varies."""

    values: PyTree  # leaves [P, ...]
    labels: dict[str, np.ndarray]  # of every axis its value at each point [P]

    @property
    def points(self) -> int:
        """How many they are."""
        return len(jax.tree.leaves(self.values)[0])


# --- points ---------------------------------------------------------------------------------------------------------


def grid(base: Any, **axes: Any) -> Batch:
    """Return every combination of the values, lists of numbers, of these fields of `base`, the last varying fastest.

    `base` is a dataclass of numbers: hypers, or an environment's parameters. Without axes it is the one point. Raises
    ValueError for a field that `base` lacks or that is no single number, and for values that are not finite numbers.
    """
    columns = {name: _column(base, name, values) for name, values in axes.items()}
    combinations = np.array(list(itertools.product(*columns.values())))
    return _batch(base, {name: combinations[:, place] for place, name in enumerate(columns)})


class Distribution(NamedTuple):
    """How the values of an axis are drawn: `draw(key) -> number`."""

    draw: Callable[[Key[Array, ""]], Float[Array, ""]]


def uniform(low: Number, high: Number) -> Distribution:
    """Return the uniform distribution on [low, high)."""
    _require_bounds(low, high)
    return Distribution(lambda key: jax.random.uniform(key, minval=low, maxval=high))


def log_uniform(low: Number, high: Number) -> Distribution:
    """Return the distribution of numbers whose logarithm is uniform, from `low` above 0 to `high`."""
    _require_bounds(low, high)
    if low <= 0:
        raise ValueError(f"low is {low}; a log-uniform distribution takes a positive number")
    return Distribution(lambda key: jnp.exp(jax.random.uniform(key, minval=math.log(low), maxval=math.log(high))))


def choice(*values: Number) -> Distribution:
    """Return the distribution in which all of these have the same probability."""
    if not values:
        raise ValueError("choice takes at least one value")
    return Distribution(lambda key: jnp.asarray(values, jnp.float32)[jax.random.randint(key, (), 0, len(values))])


def sample(key: Key[Array, ""], base: Any, n: int, **distributions: Distribution) -> Batch:
    """Return `n` points with these fields of `base` drawn at random.

    Each point and each field has a key of its own: more points, or more fields, leave those there are as they are.
    Raises ValueError as `grid`.
    """
    require_count("n", n)
    columns = {}
    for name, distribution in distributions.items():
        own = jax.random.fold_in(key, zlib.crc32(name.encode()))
        drawn = jax.vmap(lambda i, own=own, draw=distribution.draw: draw(jax.random.fold_in(own, i)))(jnp.arange(n))
        columns[name] = _column(base, name, np.asarray(drawn).tolist())
    batch = _batch(base, {name: np.array(column) for name, column in columns.items()})
    return batch if columns else Batch(jax.tree.map(lambda leaf: jnp.repeat(leaf, n, axis=0), batch.values), {})


def product(*batches: Batch) -> Batch:
    """Return every combination of the points of several batches, as tuples: of hypers and an environment's parameters.

    `train` is then handed (key, (hypers, env_params)). Raises ValueError for an axis that two of them have.
    """
    if len(batches) < 2:
        raise ValueError(f"product is of {len(batches)} batches; it takes at least two")
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


def _require_bounds(low: Number, high: Number) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low is {low} and high is {high}; a distribution takes finite bounds, the lower first")


# --- runs -----------------------------------------------------------------------------------------------------------


@runtime_checkable
class Train(Protocol):
    def __call__(self, key: Key[Array, ""], hypers: Any) -> PyTree:
        """Return what one run leaves: arrays of fixed shapes. To be hashable, as functions are: it is compiled once."""
        ...


class Results(NamedTuple):
    """What all runs left."""

    outputs: PyTree  # of NumPy arrays, leaves [P, S, ...]
    labels: dict[str, np.ndarray]  # [P]
    diverged: np.ndarray  # bool [P, S]


def run(
    train: Train,
    keys: Key[Array, " S"],
    batch: Batch,
    *,
    spread: Spread | None = None,
    archive: Archive | None = None,
    progress: Progress | None = None,
) -> Results:
    """Run `train(key, hypers)` at every point with every key, all with one compilation, and return what they left.

    Point p with seed s is run p S + s, and has the key of its seed: points are compared on the same seeds. Runs are
    spread over the devices as `spread` says (by default as suits them: `spread.choose`). One after another, a run's
    bits do not depend on what else is run, nor where; together, they depend on how many are. With an `archive`
    every finished run is kept on disk as it goes, and those that are there already are not run again; `train` then
    returns a dict of arrays. `progress` is told of runs. Raises ValueError for no keys.
    """
    points, seeds = batch.points, len(keys)
    require_count("the number of keys", seeds)
    total = points * seeds
    spread = spreading.choose(total) if spread is None else spread
    missing = np.arange(total) if archive is None else archive.missing()
    left: list[Any] = [None] * total
    done = total - len(missing)
    for numbers, outputs in each(train, keys, batch, missing, spread) if len(missing) else ():
        if archive is not None:
            archive.add(numbers, outputs, diverged(outputs, (len(numbers),)))
        else:
            for place, number in enumerate(numbers):
                left[number] = jax.tree.map(lambda leaf, place=place: leaf[place], outputs)
        done += len(numbers)
        if progress:
            progress.update(done)
    if archive is not None:
        outputs: Any = archive.read()
    else:
        outputs = jax.tree.map(lambda *leaves: np.stack(leaves).reshape(points, seeds, *leaves[0].shape), *left)
    return Results(outputs, batch.labels, diverged(outputs, (points, seeds)))


def each(
    train: Train, keys: Key[Array, " S"], batch: Batch, numbers: Int[np.ndarray, " R"], spread: Spread
) -> Iterator[tuple[np.ndarray, PyTree]]:
    """Compute runs of these numbers, and yield (their numbers [k], what they left, leaves [k, ...]) as they finish."""
    devices, seeds = len(spread.devices), len(keys)
    # Of the whole sweep, not of what is missing of it: a batch of another width would have other roundings.
    most = math.ceil(batch.points * seeds / devices)
    width = min(spread.together, most)
    # Together it is one batch a device. One after another it is as many as about five seconds hold; how many is a
    # traced number, so that no chunk is another program, and no run's bits depend on the chunk that it is in.
    capacity = width if width > 1 else min(MOST_IN_CHUNK, 1 << (most - 1).bit_length())
    program = _program(train, spread, capacity, width)
    waiting, size, began = list(numbers), 1 if width == 1 else width, time.perf_counter()
    unread: list[tuple[list[int], list[int], Any]] = []
    while waiting or unread:
        if waiting:
            now, waiting = waiting[: devices * size], waiting[devices * size :]
            counts = [len(range(device, len(now), devices)) for device in range(devices)]
            # Dealt out in turn, and then in consecutive shares: device d has the runs d, d + devices, ...
            dealt = [now[device::devices] for device in range(devices)]
            places = [number for own in dealt for number in (own + [now[0]] * capacity)[:capacity]]
            point, seed = np.divmod(np.array(places), seeds)
            runs = keys[seed], jax.tree.map(lambda leaf, point=point: leaf[point], batch.values)
            placed = spreading.place(spread, (jnp.asarray(counts, jnp.int32), runs))
            if width > 1 and spread.devices[0].platform == "cpu":
                _require_no_lapack(program.lower(*placed).as_text())
            unread.append((now, counts, program(*placed)))
        if len(unread) > 1 or not waiting:
            now, counts, outputs = unread.pop(0)
            outputs = jax.tree.map(np.asarray, outputs)
            here = [device * capacity + place for device, count in enumerate(counts) for place in range(count)]
            order = [number for device in range(devices) for number in now[device::devices]]
            yield np.array(order), jax.tree.map(lambda leaf, here=here: leaf[here], outputs)
            if width == 1:
                seconds, began = time.perf_counter() - began, time.perf_counter()
                size = max(1, min(capacity, round(max(counts) * SECONDS_PER_CHUNK / max(seconds, 1e-3))))


@functools.lru_cache(maxsize=16)
def _program(train: Train, spread: Spread, capacity: int, width: int) -> Callable[..., Any]:
    """Return the program (counts [D], runs [D x capacity]) -> outputs [D x capacity, ...], of which counts are filled.

    Kept, so that another sweep of the same `train` is not compiled again.
    """

    def share(counts, runs):
        if width > 1:
            return jax.vmap(train)(*runs)
        shapes = jax.eval_shape(train, *jax.tree.map(lambda leaf: leaf[0], runs))
        empty = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)

        def one(number, outputs):
            left = train(*jax.tree.map(lambda leaf: leaf[number], runs))
            return jax.tree.map(lambda leaf, new: leaf.at[number].set(new), outputs, left)

        return jax.lax.fori_loop(0, counts[0], one, empty)

    return jax.jit(spreading.sharded(share, spread))


def _require_no_lapack(program: str) -> None:
    """Raise a ValueError for a batched program that could wait for ever."""
    if "lapack_" in program:
        raise ValueError(
            "train calls LAPACK (jax's orthogonal initialiser does): two such calls, batched, can wait for each other "
            "for ever on a CPU. Run one after another, together=1, or initialise by layers.orthogonal"
        )


def diverged(outputs: PyTree, leading: tuple[int, ...]) -> np.ndarray:
    """Return for each run whether it went astray: as its `diverged_at` says, or else a number that is not finite."""
    if isinstance(outputs, dict) and "diverged_at" in outputs:
        return np.asarray(outputs["diverged_at"]) >= 0
    found = np.zeros(leading, bool)
    for leaf in jax.tree.leaves(outputs):
        if leaf.dtype.kind == "f" or leaf.dtype == jnp.bfloat16:
            found |= ~np.isfinite(leaf.astype(np.float32)).reshape(*leading, -1).all(axis=-1)
    return found


# --- training, as what is swept -------------------------------------------------------------------------------------


@pytree_dataclass
class Watched:
    """An agent's state, and when it went astray."""

    state: PyTree
    updates: Any  # int32
    diverged_at: Any  # int32: the first update in which a metric was not finite, or -1


def watched(agent: Agent) -> Agent:
    """Return an agent that does the same, and notes in which update its metrics first held a NaN or an infinity."""

    def init(key, hypers):
        return Watched(state=agent.init(key, hypers), updates=jnp.int32(0), diverged_at=jnp.int32(-1))

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return agent.act(key, state.state, memory, observation, hypers, greedy=greedy)

    def update(key, state, rollout, hypers):
        own, metrics = agent.update(key, state.state, rollout, hypers)
        astray = ~jnp.all(jnp.isfinite(jnp.stack(list(metrics.values())))) if metrics else jnp.bool_(False)
        first = astray & (state.diverged_at < 0)
        diverged_at = jnp.where(first, state.updates, state.diverged_at)
        return Watched(state=own, updates=state.updates + 1, diverged_at=diverged_at), metrics

    def observe(state, rollout, hypers):
        return dataclasses.replace(state, state=agent.observe(state.state, rollout, hypers))

    return Agent(init=init, start=agent.start, act=act, update=update, observe=observe)


def trainer(
    phases: Sequence[Phase], env: Any, *, length: int = 1, rows: int = 1, judge: Any = None, max_steps: int = 10_000
) -> Train:
    """Return `train(key, hypers)`, a whole run as a pure function; `hypers` may be a pair (hypers, env_params).

    It returns a dict: the metrics of the last phase [rows], as means over its iterations, `episode_return` and
    `episode_length` as means over the episodes that ended in a row (NaN if none did); `evaluation_return` [E], greedy
    returns in the E environments of `judge`, if there is one, of at most `max_steps` steps; and `diverged_at`, the
    first update whose metrics were not finite (the last one, if only the agent's state then held a NaN), or -1. Raises
    ValueError for no phases, for steps and rows below one, and for rows that do not divide the last phase.
    """
    if not phases:
        raise ValueError("phases is empty; it takes at least one")
    for name, count in [("length", length), ("rows", rows), *[("steps", phase.steps) for phase in phases]]:
        require_count(name, count)
    agents = [watched(phase.agent) for phase in phases]
    counts = [-(-phase.steps // (length * env.spec.num_envs)) for phase in phases]
    if counts[-1] % rows:
        raise ValueError(f"rows is {rows}, which does not divide the {counts[-1]} iterations of the last phase")

    def train(key: Key[Array, ""], hypers: Any) -> dict[str, Array]:
        numbers, params = hypers if isinstance(hypers, tuple) else (hypers, None)
        train_key, judge_key = jax.random.split(key)
        run, metrics = loop.begin(train_key, agents[0], env, numbers, env_params=params), {}
        for place, (agent, iterations) in enumerate(zip(agents, counts, strict=True)):
            wanted = rows if place == len(agents) - 1 else 1
            run, metrics = loop.advance(
                run, agent, env, numbers, iterations=iterations, length=length, rows=wanted, env_params=params
            )
        for name in ("episode_return", "episode_length"):
            metrics[name] = metrics[name] / metrics["episodes"]
        leaves = [leaf for leaf in jax.tree.leaves(run.agent.state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        lost = jnp.any(jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in leaves])) if leaves else jnp.bool_(False)
        unseen = lost & (run.agent.diverged_at < 0)
        found = metrics | {"diverged_at": jnp.where(unseen, run.agent.updates - 1, run.agent.diverged_at)}
        if judge is not None:
            verdict = evaluate.evaluate(
                judge_key, agents[-1], run.agent, judge, numbers, max_steps=max_steps, env_params=params
            )
            found["evaluation_return"] = verdict.episode_return
        return found

    return train
