"""Where runs are computed: spread over all devices, and on each one after another or together.

On a CPU each core is made a device (`use_all_cores`), which computes its share of the runs one after another: small
networks gain nothing from being batched there, and everything from a second core. An accelerator computes together as
many as its memory holds.
"""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from purerl.base import require_count


def use_all_cores(cores: int | None = None) -> None:
    """Make every core of the CPU a device of jax (or so many `cores`), over which runs are then spread.

    To be called before jax computes anything, at the top of a script or notebook, and before `purerl.envs` is imported:
    gymnax computes as it is imported. (`purerl.cli`, with which experiments begin, calls it.) Without `cores` a number
    in the environment's JAX_NUM_CPU_DEVICES wins. Calling it again is no error. Raises RuntimeError, and says which
    line to move, if jax has started with another number.
    """
    if cores is None:
        # Of the cores that this process may use, where the system tells (Linux).
        own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        asked = os.environ.get("JAX_NUM_CPU_DEVICES", "")
        cores = int(asked) if asked.isdigit() and int(asked) > 0 else own
    require_count("cores", cores)
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError:
        started = len(jax.devices("cpu"))
        if started == cores:
            return
        caller = traceback.extract_stack(limit=2)[0]
        raise RuntimeError(
            f"use_all_cores() was called after jax had started with {started} of {cores} cores: move line "
            f"{caller.lineno} of {caller.filename} up, before anything that computes with jax or imports purerl.envs "
            "(in a notebook: restart it, and run that line first)"
        ) from None


class Spread(NamedTuple):
    """How runs are spread: over these devices, so many together on each; 1 is one after another."""

    devices: tuple[Any, ...]
    together: int

    def __str__(self) -> str:
        """Say it in words."""
        kind = self.devices[0].platform
        where = f"{len(self.devices)} {kind} device{'s' * (len(self.devices) > 1)}"
        return f"{where}, {'one run after another' if self.together == 1 else f'{self.together} runs together'} on each"


def choose(runs: int, *, devices: int | None = None, together: int | None = None) -> Spread:
    """Return how to spread `runs`: what is not given is what suits the devices there are.

    Raises ValueError for more devices than there are, and for counts below one.
    """
    local = jax.local_devices()
    require_count("runs", runs)
    if devices is not None:
        require_count("devices", devices)
        if devices > len(local):
            raise ValueError(f"devices is {devices}; there are {len(local)}")
    count = min(len(local) if devices is None else devices, runs)
    if together is None:
        together = 1 if local[0].platform == "cpu" else math.ceil(runs / count)
    require_count("together", together)
    return Spread(tuple(local[:count]), together)


def mesh_of(spread: Spread) -> Mesh:
    """Return the mesh with one axis, "run", of the devices."""
    return Mesh(np.array(spread.devices), ("run",), axis_types=(AxisType.Auto,))


def place(spread: Spread, batch: PyTree) -> PyTree:
    """Put leaves [R, ...], R a multiple of the number of devices, on the devices: each has its consecutive share."""
    return jax.device_put(batch, NamedSharding(mesh_of(spread), P("run")))


def replicate(spread: Spread, shared: PyTree) -> PyTree:
    """Put what all runs share on every device."""
    return jax.device_put(shared, NamedSharding(mesh_of(spread), P()))


def padded(spread: Spread, batch: PyTree) -> PyTree:
    """Return leaves [R, ...] with the last run repeated until they divide over the devices."""
    short = -len(jax.tree.leaves(batch)[0]) % len(spread.devices)
    return jax.tree.map(lambda leaf: jnp.concatenate([leaf, *[leaf[-1:]] * short]), batch) if short else batch


def sharded(function: Callable[..., PyTree], spread: Spread, *, shared: int = 0) -> Callable[..., PyTree]:
    """Return `function` as each device computes it on its share; of the last `shared` arguments all have the whole."""

    def everywhere(*arguments: PyTree) -> PyTree:
        own = len(arguments) - shared
        specs = (*[P("run")] * own, *[P()] * shared)
        return jax.shard_map(function, mesh=mesh_of(spread), in_specs=specs, out_specs=P("run"), check_vma=False)(
            *arguments
        )

    return everywhere


def over_runs(function: Callable[..., PyTree], spread: Spread) -> Callable[..., PyTree]:
    """Return `function(run, *shared)` over the leading axis of its first argument, to be jitted."""

    def every(batch: PyTree, *shared: PyTree) -> PyTree:
        def share(batch: PyTree, *shared: PyTree) -> PyTree:
            together = min(spread.together, len(jax.tree.leaves(batch)[0]))
            return jax.lax.map(lambda run: function(run, *shared), batch, batch_size=together if together > 1 else None)

        return sharded(share, spread, shared=len(shared))(batch, *shared)

    return every


def in_place(function: Callable[..., tuple[PyTree, PyTree]], spread: Spread) -> Callable[..., tuple[PyTree, PyTree]]:
    """Return `function(run, *shared) -> (run, left)` over the leading axis, to be jitted, the runs donated.

    One after another, runs are read and written where they lie: of large states, such as replay buffers, there is one
    copy at a time.
    """

    def every(batch: PyTree, *shared: PyTree) -> tuple[PyTree, PyTree]:
        def share(batch: PyTree, *shared: PyTree) -> tuple[PyTree, PyTree]:
            def one(batch: PyTree, number: Any) -> tuple[PyTree, PyTree]:
                run, left = function(jax.tree.map(lambda leaf: leaf[number], batch), *shared)
                return jax.tree.map(lambda leaf, new: leaf.at[number].set(new), batch, run), left

            return jax.lax.scan(one, batch, jnp.arange(len(jax.tree.leaves(batch)[0])))

        return sharded(share, spread, shared=len(shared))(batch, *shared)

    return over_runs(function, spread) if spread.together > 1 else every
