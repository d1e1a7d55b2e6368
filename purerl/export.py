"""The policy alone, as one file: what acting needs of an agent's state, and `act` as a program that needs no agent."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jaxtyping import PyTree

from purerl import results, rollout, sealed
from purerl.base import Agent, cast_hypers, require_agent, require_env
from purerl.checks import path_of, require_count
from purerl.policies import Part, Policy, Program, place_of, spaces

POLICY = "policy.zip"  # what the file is called in a run directory
FORMAT = 1
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")  # what the programs are made for
_KINDS = {True: "greedy", False: "sampled"}
_KIND = {"kind": "purerl policy", "version": FORMAT}


def save_policy(
    path: str | os.PathLike[str],
    agent: Agent,
    state: PyTree,
    env: Any,
    hypers: PyTree,
    *,
    env_params: PyTree = None,
    runs: int | None = None,
    name: str | None = None,
) -> Path:
    """Write what `agent` needs to act in `env`, and `act` itself, into one file at one stroke; return its path.

    `state` is that of one run or, with `runs`, of so many, with that leading axis (`driver.Outcome.runs.agent`); hypers
    are those of all. Kept are the arrays that the traced `act` reads, no optimizer, no replay, no target network; `act`
    is kept as StableHLO, greedy and not, for any number of observations and for CPUs, GPUs and TPUs. `name` is what the
    agent is called. Raises ValueError for an agent with memory or one whose `act` depends on how many observations
    there are, and where the state has not `runs` runs.
    """
    require_agent(agent)
    require_env("env", env)
    file, hypers = path_of("path", path), cast_hypers(hypers)
    if state is None:
        raise ValueError("state is None; it takes an agent's state, such as run.agent")
    if jax.tree.leaves(agent.start(1)):
        raise ValueError("agent has memory (its start returns arrays); save_policy takes agents without")
    params = jax.tree_util.tree_leaves_with_path(rollout.cast_params(env, env_params))
    params = {place_of("", place): np.asarray(leaf) for place, leaf in params}
    arrays, parts, tree = _arrays(state, hypers, runs)
    programs = {greedy: _exported(agent, parts, tree, env, greedy=greedy) for greedy in (True, False)}
    read = {place for _, takes in programs.values() for place in takes}
    kept = [part for part in parts if part.path in read]
    about = {
        "name": name or getattr(agent.act, "__qualname__", "agent").partition(".")[0],
        "env": env.name,
        "env_params": [Part(place, str(leaf.dtype), leaf.shape) for place, leaf in params.items()],
        "observation": spaces(env.spec.observation),
        "action": spaces(env.spec.action),
        "hypers": hypers,
        "versions": results.versions(),
        "runs": 1 if runs is None else runs,
        "key_type": str(jax.random.key_impl(jax.random.key(0))),
        "arrays": kept,
        "per_run": [runs is not None and part.path.startswith("state") for part in kept],
        "programs": {_KINDS[greedy]: _description(*program) for greedy, program in programs.items()},
    }
    members = {"policy.json": json.dumps(results.to_json(about), indent=1).encode()}
    members |= {f"arrays/{index}": np.asarray(arrays[part.path]).tobytes() for index, part in enumerate(kept)}
    members |= {f"env_params/{index}": leaf.tobytes() for index, leaf in enumerate(params.values())}
    members |= {f"{_KINDS[greedy]}.mlir": bytes(made.mlir_module_serialized) for greedy, (made, _) in programs.items()}
    return sealed.write(file, members, **_KIND)


def load_policy(path: str | os.PathLike[str], run: int = 0) -> Policy:
    """Return one run's policy from a file that `save_policy` wrote, or from the run directory that holds it.

    Nothing but jax is needed for it to act. Raises FileNotFoundError where there is none, and ValueError that names the
    file where it is damaged, cut short or another's, of a format or a jax that this one does not read, or without that
    run. jax reads programs of the six months before it, and usually older ones.
    """
    runs, policy = _read(path)
    if isinstance(run, bool) or not isinstance(run, int) or not 0 <= run < runs:
        raise ValueError(f"run is {run!r}; {path} holds {runs} runs, from 0 to {runs - 1}")
    return policy(run)


def load_policies(path: str | os.PathLike[str]) -> tuple[Policy, ...]:
    """Return the policies of all runs in a file, which share their programs; raises as `load_policy` does."""
    runs, policy = _read(path)
    return tuple(map(policy, range(runs)))


def _read(path: str | os.PathLike[str]) -> tuple[int, Callable[[int], Policy]]:
    """Return how many runs a file holds, and what makes the policy of one."""
    file = path_of("path", path)
    file = file / POLICY if file.is_dir() else file
    members = sealed.read(file, **_KIND)
    about = json.loads(members["policy.json"])
    about |= {
        name: tuple(_part(part) for part in about[name]) for name in ("env_params", "observation", "action", "arrays")
    }
    stored = [
        _array(members[f"arrays/{index}"], part, (about["runs"],) if per_run else ())
        for index, (part, per_run) in enumerate(zip(about["arrays"], about["per_run"], strict=True))
    ]
    try:
        programs = {greedy: _program(members[f"{_KINDS[greedy]}.mlir"], about, greedy) for greedy in (True, False)}
    except Exception as error:  # the checksum was right, so it is jax that has changed, and may say so in any way
        reason, by = str(error).partition("\n")[0], about["versions"]["jax"]
        raise ValueError(
            f"{file} was saved by jax {by} and cannot be read by jax {jax.__version__}: {reason}"
        ) from error
    plain = ("name", "env", "hypers", "versions", "observation", "action", "runs", "key_type")
    common = {name: about[name] for name in plain}
    common["env_params"] = {
        part.path: _array(members[f"env_params/{index}"], part) for index, part in enumerate(about["env_params"])
    }

    def policy(run: int) -> Policy:
        rows = zip(about["arrays"], about["per_run"], stored, strict=True)
        arrays = {part.path: jnp.asarray(array[run] if per_run else array) for part, per_run, array in rows}
        return Policy(**common, run=run, arrays=arrays, programs=programs)

    return about["runs"], policy


# --- programs -------------------------------------------------------------------------------------------------------


def _exported(
    agent: Agent, parts: Sequence[Part], tree: Any, env: Any, *, greedy: bool
) -> tuple[export.Exported, list[str]]:
    """Return `act` as a program for any number of observations, and the paths of the arrays that it takes."""
    observed, structure = jax.tree.flatten(env.spec.observation)
    memory = agent.start(1)
    key_data = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))

    def act(arrays: dict[int, Any], key_data: Any, observation: list[Any]) -> Any:
        # What is not kept is never read: zeros stand for it.
        leaves = [arrays.get(index) for index in range(len(parts))]
        leaves = [
            jnp.zeros(part.shape, part.dtype) if leaf is None else leaf
            for leaf, part in zip(leaves, parts, strict=True)
        ]
        state, hypers = jax.tree.unflatten(tree, leaves)
        key = jax.random.wrap_key_data(key_data)
        action = agent.act(key, state, memory, structure.unflatten(observation), hypers, greedy=greedy)[0]
        if len(jax.tree.leaves(action)) != 1:
            raise ValueError(f"actions are {action}; save_policy takes those that are one array")
        return jax.tree.leaves(action)[0]

    def arguments(kept: Sequence[int], count: Any) -> tuple[Any, ...]:
        given = {index: _shape(parts[index]) for index in kept}
        return given, key_data, [jax.ShapeDtypeStruct((count, *space.shape), space.dtype) for space in observed]

    try:
        # Of a program of fixed shapes jax says which arguments it reads; one for any shape would take them all.
        whole = export.export(jax.jit(act))(*arguments(range(len(parts)), 2))
        kept = [index for index in whole.module_kept_var_idx if index < len(parts)]
        count = export.symbolic_shape("N")[0]
        made = export.export(jax.jit(act), platforms=PLATFORMS)(*arguments(kept, count))
    except Exception as error:  # jax has many ways to say that a function does not suit its arguments
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"agent cannot be saved, for its act cannot be traced with this state for any number of observations: "
            f"{reason}"
        ) from error
    return made, [parts[index].path for index in kept]


def _description(made: export.Exported, takes: list[str]) -> dict[str, Any]:
    """Return what must be known of a program beside its code to call it again."""
    return {
        "takes": takes,
        "platforms": made.platforms,
        "calling_convention": made.calling_convention_version,
        "returns": Part("", str(made.out_avals[0].dtype), tuple(made.out_avals[0].shape[1:])),
    }


def _program(code: bytes, about: dict[str, Any], greedy: bool) -> Program:
    """Return a program of the file, to be called.

    jax's own way to write an `Exported` takes a package that purerl does not need otherwise. What it would write beside
    the code follows from the arguments: it is taken from a program of the same arguments that does nothing.
    """
    stored = about["programs"][_KINDS[greedy]]
    version = stored["calling_convention"]
    least = export.minimum_supported_calling_convention_version
    most = export.maximum_supported_calling_convention_version
    if not least <= version <= most:
        raise ValueError(f"it has calling convention {version}, and known are {least} to {most}")
    parts, action = {part.path: part for part in about["arrays"]}, _part(stored["returns"])

    def nothing(arrays: list[Any], key_data: Any, observation: list[Any]) -> Any:
        return jnp.zeros((observation[0].shape[0], *action.shape), action.dtype)

    count = export.symbolic_shape("N")[0]
    empty = export.export(jax.jit(nothing), platforms=stored["platforms"])(
        [_shape(parts[place]) for place in stored["takes"]],
        jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=about["key_type"]))),
        [_shape(part, count) for part in about["observation"]],
    )
    program = dataclasses.replace(empty, mlir_module_serialized=code, calling_convention_version=version)
    program.mlir_module()  # raises now, and not when it is first called, if this jax cannot read it
    return Program(tuple(stored["takes"]), jax.jit(program.call))


# --- arrays ---------------------------------------------------------------------------------------------------------


def _arrays(state: PyTree, hypers: PyTree, runs: int | None) -> tuple[dict[str, Any], list[Part], Any]:
    """Return all arrays by path, what each is in one run, and the tree (state, hypers) that they form."""
    if runs is not None:
        require_count("runs", runs)
    named, tree = jax.tree_util.tree_flatten_with_path((state, hypers))
    arrays = {place_of(("state", "hypers")[place[0].idx], place[1:]): jnp.asarray(leaf) for place, leaf in named}
    parts = []
    for place, leaf in arrays.items():
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise ValueError(f"{place} is a key; it takes a state without, as an agent's is")
        per_run = runs is not None and place.startswith("state")
        if per_run and (leaf.ndim == 0 or len(leaf) != runs):
            raise ValueError(f"{place} has shape {leaf.shape}; with runs={runs} it takes a leading axis of {runs}")
        parts.append(Part(place, str(leaf.dtype), leaf.shape[1:] if per_run else leaf.shape))
    return arrays, parts, tree


def _part(stored: dict[str, Any]) -> Part:
    return Part(stored["path"], stored["dtype"], tuple(stored["shape"]), stored["values"])


def _shape(part: Part, *leading: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*leading, *part.shape), jnp.dtype(part.dtype))


def _array(content: bytes, part: Part, leading: tuple[int, ...] = ()) -> np.ndarray:
    """Return an array to the bit: bytes and a dtype's name also hold bfloat16, which an npz file does not."""
    return np.ndarray((*leading, *part.shape), jnp.dtype(part.dtype), content)
