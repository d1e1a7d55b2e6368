"""Sweeps: any pure `train(key, hypers)` over points and seeds, in one compile and on all devices.

The points are made by `grid`, `listed`, `sample` and `product` (purerl/points.py).
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key, PyTree

from purerl import spread as spreading
from purerl.archive import Archive
from purerl.base import require_keys
from purerl.checks import require_count, require_function, require_kind
from purerl.interrupts import Interrupt, Stopped
from purerl.points import Batch, choice, grid, listed, log_uniform, product, sample, uniform
from purerl.spread import Spread

__all__ = [
    "Batch",
    "Results",
    "Train",
    "choice",
    "diverged",
    "each",
    "fitting",
    "grid",
    "listed",
    "log_uniform",
    "product",
    "run",
    "sample",
    "uniform",
]

SECONDS_PER_CHUNK = 5.0  # about how long runs are computed before their results are fetched ...
MOST_IN_CHUNK = 64  # ... how many on a device at most, one after another ...
MOST_BYTES_IN_CHUNK = 2**26  # ... and of what size their results may be


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
    progress: Callable[[int], None] | None = None,
) -> Results:
    """Run `train(key, hypers)` at every point with every key, all with one compilation, and return what they left.

    Point p with seed s is run p S + s, and has the key of its seed: points are compared on the same seeds. Runs are
    spread over the devices as `spread` says (by default as suits them and their memory: `spread.choose`, `fitting`).
    One after another, a run's bits do not depend on what else is run, nor where; together, they depend on how many are.
    With an `archive` every finished run is kept on disk as it goes, and those that are there already are not run again;
    `train` then returns a dict of arrays, and Ctrl-C or SIGTERM raises Stopped once the runs under way are kept.
    `progress` is told how many runs are there. Raises ValueError for no keys, and MemoryError as `fitting`.
    """
    _require(train, keys, batch, spread)
    points, seeds = batch.points, len(keys)
    total = points * seeds
    if archive is not None and (archive.points, archive.seeds) != (points, seeds):
        held = f"{archive.points} points x {archive.seeds} seeds"
        raise ValueError(f"archive is of {held}; it takes one of the {points} x {seeds} runs of this sweep")
    missing = np.arange(total) if archive is None else archive.missing()
    if len(missing) and spread is None:
        spread = fitting(train, keys, batch, spreading.choose(total))
    left: list[Any] = [None] * total
    done = total - len(missing)
    with contextlib.nullcontext() if archive is None else Interrupt("the runs under way") as interrupt:
        stop = (lambda: interrupt.asked) if interrupt else (lambda: False)
        for numbers, outputs in each(train, keys, batch, missing, spread, stop=stop) if spread and len(missing) else ():
            if archive is not None:
                archive.add(numbers, outputs, diverged(outputs, (len(numbers),)))
            else:
                for place, number in enumerate(numbers):
                    left[number] = jax.tree.map(lambda leaf, place=place: leaf[place], outputs)
            done += len(numbers)
            if progress:
                progress(done)
        if archive is not None and done < total:
            raise Stopped(f"stopped after {done} of {total} runs", archive.directory)
    if archive is not None:
        outputs: Any = archive.read()
    else:
        outputs = jax.tree.map(lambda *leaves: np.stack(leaves).reshape(points, seeds, *leaves[0].shape), *left)
    return Results(outputs, batch.labels, diverged(outputs, (points, seeds)))


def fitting(train: Train, keys: Key[Array, " S"], batch: Batch, spread: Spread, *, memory: int | None = None) -> Spread:
    """Return `spread`, or with fewer runs at a time what fits into `memory` bytes (without it: into what is free).

    How much it takes is read off the compiled program: states with their replay buffers, temporaries, results. On a
    CPU all devices share the memory, elsewhere it is that of each. Raises MemoryError if not even one run fits.
    """
    _require(train, keys, batch, spread)
    if memory is not None:
        require_count("memory", memory)
    free = spreading.free_memory(spread) if memory is None else memory
    most = math.ceil(batch.points * len(keys) / spread.shares)
    spread = spread._replace(together=min(spread.together, most))
    while True:
        needed = spreading.memory_of(_prepare(train, keys, batch, spread).compiled, spread)
        if needed <= free:
            return spread
        if spread.together > 1:
            fits = spread.together * free // needed
            spread = spread._replace(together=max(1, min(spread.together - 1, fits)))
        elif spread.layout is None and spread.shares > 1 and spreading.shares_memory(spread):
            fits = spread.shares * free // needed
            spread = spread._replace(devices=spread.devices[: max(1, min(spread.shares - 1, fits))])
        else:
            raise MemoryError(
                f"one run takes {spreading.gib(needed)} of memory and there are {spreading.gib(free)}: what the agent "
                "keeps (a replay's capacity, a batch) or num_envs is too much"
            )


def each(
    train: Train,
    keys: Key[Array, " S"],
    batch: Batch,
    numbers: Int[np.ndarray, " R"],
    spread: Spread,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Int[np.ndarray, " k"], PyTree]]:
    """Compute runs of these numbers, and yield (their numbers [k], what they left, leaves [k, ...]) as they finish.

    Once `stop` returns True none is begun any more, and the last to be yielded are those that were under way. Raises
    ValueError for numbers that are not of these runs.
    """
    _require(train, keys, batch, spread)
    outside = [number for number in numbers.tolist() if not 0 <= number < batch.points * len(keys)]
    if outside:
        raise ValueError(f"numbers has {outside[0]}; the runs have those from 0 to {batch.points * len(keys) - 1}")
    devices, (capacity, width, program) = spread.shares, _prepare(train, keys, batch, spread)
    waiting, size, began = numbers.tolist(), 1 if width == 1 else width, time.perf_counter()
    unread: list[tuple[list[int], list[int], Any]] = []
    while unread or waiting:
        more = bool(waiting) and not stop()
        if not more and not unread:
            return
        if more:
            now, waiting = waiting[: devices * size], waiting[devices * size :]
            counts = [len(range(device, len(now), devices)) for device in range(devices)]
            # Dealt out in turn, and then in consecutive shares: device d has the runs d, d + devices, ...
            dealt = [now[device::devices] for device in range(devices)]
            places = [number for own in dealt for number in (own + [now[0]] * capacity)[:capacity]]
            unread.append((now, counts, program(*_placed(keys, batch, spread, counts, places))))
        if len(unread) > 1 or not (more and waiting):
            now, counts, outputs = unread.pop(0)
            outputs = jax.tree.map(np.asarray, outputs)
            here = [device * capacity + place for device, count in enumerate(counts) for place in range(count)]
            order = [number for device in range(devices) for number in now[device::devices]]
            yield np.array(order), jax.tree.map(lambda leaf, here=here: leaf[here], outputs)
            if width == 1:
                seconds, began = time.perf_counter() - began, time.perf_counter()
                size = max(1, min(capacity, round(max(counts) * SECONDS_PER_CHUNK / max(seconds, 1e-3))))


def _require(train: Train, keys: Key[Array, " S"], batch: Batch, spread: Spread | None) -> None:
    """Raise a TypeError or ValueError for what is no sweep."""
    require_function("train", train, wanted="a function (key, hypers) -> arrays, such as training.trainer returns")
    require_keys("keys", keys)
    require_kind("batch", batch, Batch, wanted="a points.Batch, such as points.grid(hypers, discount=[0.9, 1])")
    require_kind("spread", spread, Spread | None, wanted="a Spread, such as spread.choose(runs)")


class _Prepared(NamedTuple):
    """A compiled program: (counts [D], runs [D x capacity]) -> outputs [D x capacity, ...], as many of them filled."""

    capacity: int
    width: int  # how many go together; 1 is one after another
    compiled: Any


def _prepare(train: Train, keys: Key[Array, " S"], batch: Batch, spread: Spread) -> _Prepared:
    """Compile a sweep, unless it is compiled already."""
    devices = spread.shares
    # Of the whole sweep, not of what is missing of it: a batch of another width would have other roundings.
    most = math.ceil(batch.points * len(keys) / devices)
    width = min(spread.together, most)
    # Together it is one batch a device. One after another it is as many as about five seconds hold; how many is a
    # traced number, so that no chunk is another program, and no run's bits depend on the chunk that it is in.
    capacity = width if width > 1 else min(_most_in_chunk(train, keys, batch), 1 << (most - 1).bit_length())
    placed = _placed(keys, batch, spread, [0] * devices, [0] * (devices * capacity))
    lowered = _program(train, spread, capacity, width).lower(*placed)
    if width > 1 and spread.devices[0].platform == "cpu":
        _require_no_lapack(lowered.as_text())
    return _Prepared(capacity, width, lowered.compile())


def _most_in_chunk(train: Train, keys: Key[Array, " S"], batch: Batch) -> int:
    """Return how many runs a device may make before their results are fetched: those of large results are few."""
    left = jax.eval_shape(train, keys[0], jax.tree.map(lambda leaf: leaf[0], batch.values))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(left))
    return max(1, min(MOST_IN_CHUNK, MOST_BYTES_IN_CHUNK // max(size, 1)))


def _placed(keys: Key[Array, " S"], batch: Batch, spread: Spread, counts: list[int], numbers: list[int]) -> Any:
    """Return (counts [D], (keys, values) of the runs of these numbers [D x capacity]) on the devices."""
    point, seed = np.divmod(np.array(numbers), len(keys))
    runs = keys[seed], jax.tree.map(lambda leaf: leaf[point], batch.values)
    return spreading.place(spread, (jnp.asarray(counts, jnp.int32), runs))


@functools.lru_cache(maxsize=16)
def _program(train: Train, spread: Spread, capacity: int, width: int) -> Any:
    """Return the program, jitted and kept, so that another sweep of the same `train` is not compiled again."""

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


def diverged(outputs: PyTree, leading: tuple[int, ...]) -> Bool[np.ndarray, "..."]:
    """Return for each run whether it went astray: as its `diverged_at` says, or else a number that is not finite."""
    if isinstance(outputs, dict) and "diverged_at" in outputs:
        return np.asarray(outputs["diverged_at"]) >= 0
    found = np.zeros(leading, bool)
    for leaf in jax.tree.leaves(outputs):
        if leaf.dtype.kind == "f" or leaf.dtype == jnp.bfloat16:
            found |= ~np.isfinite(leaf.astype(np.float32)).reshape(*leading, -1).all(axis=-1)
    return found
