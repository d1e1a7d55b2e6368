"""Where runs are computed: spread over all devices, and on each one after another or together.

On a CPU each core is made a device (`use_all_cores`), which computes its share of the runs one after another: small
networks gain nothing from being batched there, and everything from a second core. An accelerator computes together as
many as its memory holds.
"""

from __future__ import annotations

import functools
import math
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import PyTree

from purerl import distributed, sharding
from purerl.checks import require_count, require_kind
from purerl.sharding import RUN, Layout

_UNKNOWN = 2**62  # bytes of memory, where the system does not tell


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
    """How runs are spread: over these devices, so many together on each; 1 is one after another.

    With a `layout` not over single devices but over those parts of its mesh that lie along `run`.
    """

    devices: tuple[Any, ...]
    together: int
    layout: Layout | None = None

    @property
    def shares(self) -> int:
        """How many shares the runs are dealt into: one for each device, or part of a mesh."""
        return len(self.devices) if self.layout is None else self.layout.mesh.shape[RUN]

    def __str__(self) -> str:
        """Say it in words."""
        kind = self.devices[0].platform
        where = f"{len(self.devices)} {kind} device{'s' * (len(self.devices) > 1)}"
        how = "one run after another" if self.together == 1 else f"{self.together} runs together"
        if self.layout is None:
            return f"{where}, {how} on each"
        return f"{where} as {' x '.join(f'{name} {size}' for name, size in self.layout.mesh.shape.items())}, {how}"


def choose(
    runs: int, *, devices: int | None = None, together: int | None = None, layout: Layout | None = None
) -> Spread:
    """Return how to spread `runs`: what is not given is what suits the devices there are.

    Raises ValueError for more devices than there are, and for counts below one.
    """
    local = jax.local_devices()
    require_count("runs", runs)
    if layout is not None:
        require_kind("layout", layout, Layout, wanted="what sharding.layout(mesh) returns")
        require_count("together", together or 1)
        if devices is not None:
            raise ValueError(f"devices is {devices} and a layout is given; the devices are those of its mesh")
        return Spread(tuple(layout.mesh.devices.flat), together or 1, layout)
    if devices is not None:
        require_count("devices", devices)
        if devices > len(local):
            raise ValueError(f"devices is {devices}; there are {len(local)}")
    count = min(len(local) if devices is None else devices, runs)
    if together is None:
        together = 1 if local[0].platform == "cpu" else math.ceil(runs / count)
    require_count("together", together)
    return Spread(tuple(local[:count]), together)


def free_memory(spread: Spread) -> int:
    """Return the bytes that runs may take: nine tenths of what the machine, or each accelerator, has free now."""
    if shares_memory(spread):
        return _free_of_machine() * 9 // 10
    every = [device.memory_stats() for device in _own(spread)]
    return min(_UNKNOWN if of is None else (of["bytes_limit"] - of["bytes_in_use"]) * 9 // 10 for of in every)


def _free_of_machine() -> int:
    """Return the bytes that this process may still take, as Linux tells, with the limits of containers and jobs."""
    try:
        free = _fields(Path("/proc/meminfo"))["MemAvailable:"] * 1024
        group = Path("/proc/self/cgroup").read_text().rpartition("::/")[2].strip()
        root = Path("/sys/fs/cgroup")
        for folder in (root / group, *(root / group).parents):
            limit = folder / "memory.max"  # of version 2
            if limit.exists() and (most := limit.read_text().strip()) != "max":
                used = int((folder / "memory.current").read_text()) - _fields(folder / "memory.stat")["inactive_file"]
                free = min(free, int(most) - used)
            if folder == root:
                break
        return max(free, 0)
    except (OSError, ValueError, KeyError, IndexError):
        return _UNKNOWN


def _fields(path: Path) -> dict[str, int]:
    return {line.split()[0]: int(line.split()[1]) for line in path.read_text().splitlines()}


def shares_memory(spread: Spread) -> bool:
    """Return whether the devices have one memory: a CPU's have."""
    return spread.devices[0].platform == "cpu"


def _own(spread: Spread) -> list[Any]:
    """Return those of the devices that are this process's."""
    return [device for device in spread.devices if device.process_index == jax.process_index()]


def memory_of(compiled: Any, spread: Spread) -> int:
    """Return the bytes that a compiled program takes, arguments and results included, of the memory of a device."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0  # this kind of device does not say
    own = (
        analysis.argument_size_in_bytes
        + 2 * analysis.output_size_in_bytes  # what one call left is read while the next is under way
        + analysis.temp_size_in_bytes
        - analysis.alias_size_in_bytes
    )
    return own * (len(_own(spread)) if shares_memory(spread) else 1)


def require_room(runs: PyTree, spread: Spread, memory: int | None = None) -> None:
    """Raise a MemoryError if all of these runs, arrays or their shapes [R, ...], are more than `memory` bytes.

    Without `memory` it is what is free.
    """
    needed = sharding.bytes_per_device(of_runs(spread, runs), runs)
    needed *= len(_own(spread)) if shares_memory(spread) else 1
    free = free_memory(spread) if memory is None else memory
    if needed > free:
        raise MemoryError(
            f"{len(jax.tree.leaves(runs)[0])} runs keep {gib(needed)} and there are {gib(free)} of memory: fewer seeds "
            "or members, a smaller replay capacity, or a sweep, which keeps results and not states"
        )


def gib(size: int) -> str:
    """Return a number of bytes in words."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 100 else f"{size / 2**20:.2f} MiB"


def mesh_of(spread: Spread) -> Mesh:
    """Return the mesh of the layout, or that with one axis, "run", of the devices."""
    if spread.layout is not None:
        return spread.layout.mesh
    return Mesh(np.array(spread.devices), (RUN,), axis_types=(AxisType.Auto,))


def in_shares(spread: Spread) -> NamedSharding:
    """Return where leaves [R, ...] are of which each device has its consecutive share."""
    return NamedSharding(mesh_of(spread), P(RUN))


def of_runs(spread: Spread, runs: PyTree) -> PyTree:
    """Return where runs, or their shapes, with leaves [R, ...] are: each in its share, and there by the layout."""
    if spread.layout is None:
        return jax.tree.map(lambda _: in_shares(spread), runs)
    return sharding.shardings(spread.layout, runs, leading=1)


def place(spread: Spread, batch: PyTree) -> PyTree:
    """Put leaves [R, ...], R a multiple of the number of shares, on the devices: each has its consecutive share."""
    return distributed.put(batch, in_shares(spread))


def replicate(spread: Spread, shared: PyTree) -> PyTree:
    """Put what all runs share on every device."""
    return distributed.put(shared, on_all(spread))


def on_all(spread: Spread) -> NamedSharding:
    """Return where leaves are that every device has."""
    return NamedSharding(mesh_of(spread), P())


def padded(spread: Spread, batch: PyTree) -> PyTree:
    """Return leaves [R, ...] with the last run repeated until they divide into shares; NumPy's stay NumPy's."""
    short = -len(jax.tree.leaves(batch)[0]) % spread.shares
    if not short:
        return batch

    def repeated(leaf: Any) -> Any:
        joined = np.concatenate if isinstance(leaf, np.ndarray) else jnp.concatenate
        return joined([leaf, *[leaf[-1:]] * short])

    return jax.tree.map(repeated, batch)


def sharded(function: Callable[..., PyTree], spread: Spread, *, shared: int = 0) -> Callable[..., PyTree]:
    """Return `function` as each device computes it on its share; of the last `shared` arguments all have the whole."""

    def everywhere(*arguments: PyTree) -> PyTree:
        own = len(arguments) - shared
        specs = (*[P(RUN)] * own, *[P()] * shared)
        # Along the other axes of a layout's mesh the compiler splits what it is told to within.
        mapped = functools.partial(jax.shard_map, mesh=mesh_of(spread), axis_names={RUN}, check_vma=False)
        return mapped(function, in_specs=specs, out_specs=P(RUN))(*arguments)

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
    """Return `function(run, *shared) -> (run, left)` over the leading axis, as (counts [D], runs [R], *shared), to jit.

    Of its share of the runs each device advances the first `counts`; the others stay as they are and leave zeros. Runs
    are read and written where they lie, so many at a time as go together: of large states, such as replay buffers,
    there is one copy.
    """

    def share(counts: Any, batch: PyTree, *shared: PyTree) -> tuple[PyTree, PyTree]:
        size = len(jax.tree.leaves(batch)[0])
        together = min(spread.together, size)
        shapes = jax.eval_shape(function, jax.tree.map(lambda leaf: leaf[0], batch), *shared)[1]
        nothing = jax.tree.map(lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype), shapes)

        def one(number: Any, carry: Any) -> Any:
            if together == 1:
                places, advance = number, function
            else:
                places = number * together + jnp.arange(together)
                places = jnp.where(places < counts[0], places, size)  # past the end: the last is read, none is written
                advance = jax.vmap(function, (0, *[None] * len(shared)))
            changed = advance(jax.tree.map(lambda leaf: leaf.at[places].get(mode="clip"), carry[0]), *shared)
            return jax.tree.map(lambda leaf, new: leaf.at[places].set(new, mode="drop"), carry, changed)

        return jax.lax.fori_loop(0, -(-counts[0] // together), one, (batch, nothing))

    def every(counts: Any, batch: PyTree, *shared: PyTree) -> tuple[PyTree, PyTree]:
        return sharded(share, spread, shared=len(shared))(counts, batch, *shared)

    return every
