"""Several processes, on one machine or many, as one: joining them, and what they have to agree about.

All run the same script, and each holds its part of every array that is split over the devices of all. What is done
once, files and words, the first one does.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from purerl.checks import require_count, require_function

Told = TypeVar("Told")

COORDINATOR, PROCESSES, PROCESS = "PURERL_COORDINATOR", "PURERL_PROCESSES", "PURERL_PROCESS"
HEARTBEAT, LAUNCHER = "PURERL_HEARTBEAT_SECONDS", "PURERL_LAUNCHER"
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
_MILLISECONDS = 24 * 3600 * 1000  # for which one waits for what the first does; that it is lost is heard before
_told, _waited = itertools.count(), itertools.count()  # so that no two questions have one name
SECONDS = 20  # without a sign of life, after which a process is taken for lost, and with it all


def start(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    heartbeat_seconds: int | None = None,
) -> bool:
    """Join this process, one of `processes`, to the others, and return whether there are others.

    To be called before jax computes anything, as `spread.use_all_cores` is. What is not given is read from the
    environment: PURERL_COORDINATOR (the address:port at which the first process listens), PURERL_PROCESSES,
    PURERL_PROCESS (which of them this is, from 0) and PURERL_HEARTBEAT_SECONDS, as `purerl.launch` sets them. With
    PURERL_PROCESSES=auto jax finds out, from SLURM, Open MPI, Kubernetes or a TPU's metadata. Where nothing is given
    and nothing is set, this process is alone. Calling it again is no error.

    A process that ends with an error, or is lost for `heartbeat_seconds`, ends all: they are begun again from the last
    checkpoint, together. Raises ValueError for what does not name a process, RuntimeError if jax has started already.
    """
    given = coordinator is not None or processes is not None or process is not None
    asked = os.environ.get(PROCESSES, "")
    if not given and not asked:
        return False
    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    seconds = heartbeat_seconds if heartbeat_seconds is not None else _number(HEARTBEAT, SECONDS)
    require_count("heartbeat_seconds", seconds)
    limits: dict[str, Any] = {"heartbeat_timeout_seconds": seconds}
    # It would take SIGTERM for itself, of which `interrupts` is to hear.
    jax.config.update("jax_enable_preemption_service", False)
    _end_with_launcher()
    if not given and asked == "auto":
        jax.distributed.initialize(**limits)
    else:
        coordinator = coordinator or os.environ.get(COORDINATOR)
        processes = _number(PROCESSES) if processes is None else processes
        process = _number(PROCESS) if process is None else process
        if not (isinstance(coordinator, str) and coordinator.rpartition(":")[2].isdigit() and ":" in coordinator):
            raise ValueError(f"coordinator is {coordinator!r}; it takes the first process's address:port")
        require_count("processes", processes)
        if process not in range(processes or 1):
            raise ValueError(f"process is {process!r}; of {processes} it takes a number from 0")
        jax.distributed.initialize(coordinator, processes, process, cluster_detection_method="deactivate", **limits)
    sys.excepthook = _end_all
    return jax.process_count() > 1


def _end_with_launcher() -> None:
    """Ask the system, where it can (Linux), for a SIGTERM once the launcher is no more."""
    if LAUNCHER in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _number(name: str, default: int | None = None) -> Any:
    text = os.environ.get(name, "")
    if text and not text.isdigit():
        raise ValueError(f"{name} is {text!r} in the environment; it takes a whole number")
    return int(text) if text else default


def _end_all(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    traceback.print_exception(kind, error, trace)
    leave(1)


def leave(status: int) -> NoReturn:
    """End this process without waiting for the others, whom that ends: they may wait for it in a computation."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def alone() -> bool:
    """Return whether there is no other process."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """Return whether this is the process that writes and speaks."""
    return alone() or jax.process_index() == 0


def from_first(make: Callable[[], Told]) -> Told:
    """Return what `make` returns in the first process, where alone it is called; it must be what JSON takes.

    An OSError or ValueError that it raises is raised in all.
    """
    require_function("make", make, wanted="a function without arguments")
    if alone():
        return make()
    client, key = _client(), f"purerl/told {next(_told)}"
    if not is_first():
        answer = json.loads(client.blocking_key_value_get(key, _MILLISECONDS))
        if "error" in answer:
            raise (OSError if answer["files"] else ValueError)(answer["error"])
        return answer["made"]
    try:
        made = make()
    except (OSError, ValueError) as error:
        client.key_value_set(key, json.dumps({"error": str(error), "files": isinstance(error, OSError)}))
        raise
    client.key_value_set(key, json.dumps({"made": made}))
    return made


def wait_for_all() -> None:
    """Return once all processes are here: compiling may take one much longer, and computations wait 30 s at most."""
    if not alone():
        _client().wait_at_barrier(f"purerl/waited {next(_waited)}", _MILLISECONDS)


def _client() -> Any:
    """Return jax's own client of the service in which processes tell each other things, no device involved."""
    from orbax.checkpoint import multihost

    return multihost.get_jax_distributed_client()


def all_hear(*wishes: Callable[[], bool]) -> Callable[[], tuple[bool, ...]]:
    """Return a function that tells of each wish whether any process has it, and none of them before the others.

    They are gathered without waiting: what is to be known after a computation is best asked before it. In a process
    alone they are what they are when that function is called.
    """
    if alone():
        return lambda: tuple(bool(wish()) for wish in wishes)
    mesh, any_of = _gathering()
    own = np.tile(np.array([[wish() for wish in wishes]], bool), (jax.local_device_count(), 1))
    heard = any_of(jax.make_array_from_process_local_data(NamedSharding(mesh, P("device")), own))
    return lambda: tuple(np.asarray(heard).tolist())


@functools.cache
def _gathering() -> tuple[Mesh, Any]:
    mesh = Mesh(np.array(jax.devices()), ("device",))
    return mesh, jax.jit(lambda rows: jnp.any(rows, axis=0), out_shardings=NamedSharding(mesh, P()))


def put(tree: Any, where: Any) -> Any:
    """Return arrays that every process has whole, laid out as shardings say, over the devices of all processes."""
    if alone():
        return jax.device_put(tree, where)

    def made(leaf: Any, place: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, place)
        if _is_key(leaf):
            return jax.random.wrap_key_data(made(jax.random.key_data(leaf), place), impl=jax.random.key_impl(leaf))
        own = np.asarray(leaf)
        return jax.make_array_from_callback(own.shape, place, lambda index: own[index])

    places = jax.tree.map(lambda _: where, tree) if isinstance(where, jax.sharding.Sharding) else where
    return jax.tree.map(made, tree, places)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


@functools.cache
def _to_all(mesh: Mesh) -> Any:
    return jax.jit(lambda array: array, out_shardings=NamedSharding(mesh, P()))


def _mesh_of(leaf: jax.Array) -> Mesh:
    assert isinstance(leaf.sharding, NamedSharding)
    mesh = leaf.sharding.mesh
    assert isinstance(mesh, Mesh)
    return mesh


def on_host(tree: Any) -> Any:
    """Return arrays, split over the devices of all processes as they may be, as NumPy arrays; keys stay keys."""

    def fetched(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        # One at a time, so that no device must hold all of them.
        whole = _to_all(_mesh_of(leaf))(leaf)
        return whole.addressable_data(0) if _is_key(leaf) else np.asarray(whole)

    return jax.tree.map(fetched, tree)
