"""The contract: what an agent is, what it is told about the environment, and what it is handed to learn from."""

from __future__ import annotations

import dataclasses
from typing import (
    Any,
    NamedTuple,
    Protocol,
    TypeVar,
    dataclass_transform,
    no_type_check,
    runtime_checkable,
)

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def pytree_dataclass(cls: type[T]) -> type[T]:
    """Make `cls` a frozen, keyword-only dataclass whose fields are the children of a pytree node."""
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    # A field declared `float` holds an array, a tracer, or whatever else jax puts into a tree: no type checker looks.
    no_type_check(cls.__init__)
    return jax.tree_util.register_dataclass(cls)


# --- what is learned from -------------------------------------------------------------------------------------------


@pytree_dataclass
class Transition:
    """One step of interaction; leaves are [...] for a step and [T, N, ...] for a rollout of N environments."""

    observation: PyTree
    action: PyTree
    reward: Any  # float32
    terminated: Any  # bool: the MDP ended; the value of what follows is zero: do not bootstrap
    truncated: Any  # bool: the clock ended; bootstrap from next_observation. Both flags can be true: then it terminated
    next_observation: PyTree  # the successor before any automatic reset, whatever ended


@pytree_dataclass
class Rollout:
    """Consecutive steps of N environments, time first: what the loop hands to `update`, and what replay samples."""

    steps: Transition  # [T, N, ...]
    memory: PyTree  # [N, ...] per-environment memory as it was before step 0; () for agents without memory


# --- what an agent is told about the environment --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Discrete:
    """The integers 0 .. n-1, held as int32 scalars."""

    n: int
    shape: tuple[int, ...] = ()
    dtype: Any = np.dtype(np.int32)

    def __repr__(self) -> str:
        """Return the number of values, which says all."""
        return f"Discrete({self.n})"


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """Arrays of one shape and dtype between `low` and `high` (each broadcasts to `shape`; may be infinite)."""

    shape: tuple[int, ...]
    dtype: Any
    low: Any
    high: Any

    def __repr__(self) -> str:
        """Return shape and dtype only: bounds can be large arrays."""
        return f"Box(shape={self.shape}, dtype={self.dtype})"


class Spec(NamedTuple):
    """What the factory of an agent is told about the environment; a space, or a dict or tuple of spaces, each."""

    observation: PyTree  # of Discrete | Box
    action: PyTree  # of Discrete | Box
    num_envs: int  # N: sizes whatever an agent keeps per environment


def zeros(space: PyTree, leading: tuple[int, ...] = ()) -> PyTree:
    """Return zeros of the shape and dtype of `space`, with `leading` axes in front: [*leading, *space.shape]."""
    return jax.tree.map(lambda leaf: jnp.zeros((*leading, *leaf.shape), leaf.dtype), space)


def where(condition: Bool[Array, " N"], yes: PyTree, no: PyTree) -> PyTree:
    """Select whole environments: the rows of `yes` where `condition` holds, else of `no`; leaves [N, ...]."""

    def select(yes: Any, no: Any) -> Array:
        return jnp.where(condition.reshape(condition.shape + (1,) * (jnp.ndim(no) - 1)), yes, no)

    return jax.tree.map(select, yes, no)


def select(values: Float[Array, "*batch A"], action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return values[..., action] as a masked sum: unlike that of indexing, its gradient is no scatter."""
    chosen = action[..., None] == jnp.arange(values.shape[-1])
    return jnp.sum(jnp.where(chosen, values, 0.0), axis=-1)


def require_discrete(space: PyTree, *, what: str, agent: str) -> int:
    """Return n of a `Discrete(n)` space; a ValueError that names `agent` and `what` for any other."""
    if not isinstance(space, Discrete):
        raise ValueError(f"{agent} needs a discrete {what} space, and this environment's is {space}")
    return space.n


def require_count(name: str, count: Any, *, least: int = 1) -> None:
    """Raise a ValueError that names the argument unless `count` is a whole number of at least `least`."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < least:
        raise ValueError(f"{name} is {count!r}; it takes a whole number of at least {least}")


def require_num_envs(rollout: Rollout, num_envs: int, *, what: str) -> None:
    """Raise a ValueError that names `what` was made for `num_envs` environments if a rollout is from another number."""
    if rollout.steps.reward.shape[1] != num_envs:
        raise ValueError(
            f"{what} was made for {num_envs} environments (spec.num_envs) and is handed a rollout of "
            f"{rollout.steps.reward.shape[1]}"
        )


# --- the functions --------------------------------------------------------------------------------------------------


@runtime_checkable
class InitFn(Protocol):
    def __call__(self, key: Key[Array, ""], hypers: Any) -> PyTree:
        """Return the agent's whole state: parameters, optimizer, counters, what adapts. No key is kept in it."""
        ...


@runtime_checkable
class StartFn(Protocol):
    def __call__(self, num_envs: int) -> PyTree:
        """Return the memory [N, ...] with which an episode starts; () unless the agent is recurrent."""
        ...


@runtime_checkable
class ActFn(Protocol):
    def __call__(
        self,
        key: Key[Array, ""],
        state: PyTree,
        memory: PyTree,
        observation: PyTree,
        hypers: Any,
        *,
        greedy: bool = False,
    ) -> tuple[PyTree, PyTree]:
        """Choose actions [N, ...] for observations [N, ...] and return (action, memory after the step).

        `greedy=True` asks for the mode of the policy. The caller cuts memory where an episode ended. Log-probabilities
        and values are not returned: `update` recomputes them in one batched pass.
        """
        ...


@runtime_checkable
class UpdateFn(Protocol):
    def __call__(
        self, key: Key[Array, ""], state: PyTree, rollout: Rollout, hypers: Any
    ) -> tuple[PyTree, dict[str, Array]]:
        """Learn from a rollout and return (state, metrics): state of the same tree, shapes and dtypes; metrics a flat
        dict of float32 scalars with fixed keys.

        Bootstrap with `1 - terminated`, from `next_observation`; cut traces and memory by `terminated | truncated`.
        """
        ...


@runtime_checkable
class ObserveFn(Protocol):
    def __call__(self, state: PyTree, rollout: Rollout, hypers: Any) -> PyTree:
        """Take note of new experience in what is no learning, such as counts and moments, and return the state.

        Called once with every new rollout, before `update`; what `update` learns from may come from replay, many times.
        """
        ...


def no_observe(state: PyTree, rollout: Rollout, hypers: Any) -> PyTree:
    """Return the state as it is: the `observe` of an agent that keeps nothing but what it learns."""
    del rollout, hypers
    return state


class Agent(NamedTuple):
    """A learning algorithm. Factories take `spec`, networks and whatever changes the program; numbers are `hypers`."""

    init: InitFn
    start: StartFn
    act: ActFn
    update: UpdateFn
    observe: ObserveFn = no_observe


def no_memory(num_envs: int) -> tuple[()]:
    """Return the memory of an agent that has none: the `start` of every feed-forward agent."""
    del num_envs
    return ()


class Network(NamedTuple):
    """A function approximator: `init(key, *inputs) -> params` and `apply(params, *inputs) -> outputs`.

    `apply` accepts any leading axes in front of an input's own shape. Agents know nothing else about a network.
    """

    init: Any
    apply: Any


def from_linen(module: nn.Module) -> Network:
    """Make a `Network` of a flax linen module whose only variables are its parameters."""
    return Network(init=module.init, apply=module.apply)


# --- hypers ---------------------------------------------------------------------------------------------------------


def cast_hypers(hypers: T) -> T:
    """Return `hypers`, a dataclass of numbers, with each a float32 scalar array.

    Raises ValueError for a leaf of another shape and TypeError for one that is no number, and names it.

    Called once at the door, so that `Hypers(rate=0.1)` and `Hypers(rate=array(0.1))` are one program and not two.
    """

    def plain(node: Any) -> bool:
        """Whether this is what jax would take for a subtree and we for a mistaken number."""
        return node is not hypers and type(node) in (type(None), list, tuple, dict)

    def cast(path: Any, leaf: Any) -> Array:
        name = f"{type(hypers).__name__}{jax.tree_util.keystr(path)}"
        try:
            array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        except ValueError as error:  # a ragged list
            raise TypeError(f"{name} is {leaf!r}; it takes a number") from error
        if array.dtype.kind not in "biuf" and array.dtype != jnp.bfloat16:
            raise TypeError(f"{name} is {leaf!r}; it takes a number")
        if array.shape != ():
            raise ValueError(
                f"{name} has shape {array.shape}; it takes a number. To try many at once, vmap over hypers"
            )
        return jnp.asarray(array, jnp.float32)

    return jax.tree_util.tree_map_with_path(cast, hypers, is_leaf=plain)
