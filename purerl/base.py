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
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from purerl.checks import require_count, require_kind, require_number, shown

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
    groups: int = 1  # of neighbouring environments, within which batches are shuffled and drawn, wherever groups lie


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
    """Make a `Network` of a flax linen module whose only variables are its parameters.

    Raises TypeError for what is no such module, a class included, and when parameters are made ValueError for others.
    """
    require_kind("module", module, nn.Module, wanted="a flax linen module, made of its class: nn.Dense(4)")

    def init(key: Key[Array, ""], *inputs: PyTree) -> PyTree:
        variables = module.init(key, *inputs)
        if others := sorted(set(variables) - {"params"}):
            raise ValueError(f"module has variables {', '.join(others)}; it takes one whose only ones are its params")
        return variables

    return Network(init=init, apply=module.apply)


# --- checks of what agents are made of and started with, beside those of checks.py -----------------------------------


def require_number_or_tracer(name: str, number: Any, *, least: float = -np.inf, most: float = np.inf) -> None:
    """Raise a ValueError that names the argument unless it is a number within the bounds, or one that is traced."""
    if not isinstance(number, Tracer):
        require_number(name, number, least=least, most=most)


def require_key(name: str, key: Any) -> None:
    """Raise a TypeError for what is no typed key, such as one of the old kind, and a ValueError for several of them."""
    _require_typed(name, key, wanted="a typed key: jax.random.key(seed)")
    if key.ndim:
        raise ValueError(f"{name} has the shape {key.shape}; it takes one key. To use many, vmap over them")


def require_keys(name: str, keys: Any) -> None:
    """Raise a TypeError for what are no typed keys, and a ValueError unless they are [S], at least one."""
    _require_typed(name, keys, wanted="typed keys: jax.random.split(jax.random.key(seed), seeds)")
    if keys.ndim != 1:
        raise ValueError(f"{name} has the shape {keys.shape}; it takes keys [seeds]: jax.random.split(key, seeds)")
    require_count(f"the number of {name}", len(keys))


def _require_typed(name: str, keys: Any, *, wanted: str) -> None:
    if not (hasattr(keys, "dtype") and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"{name} is {shown(keys)}; it takes {wanted}")


def require_spec(spec: Any, *, agent: str) -> None:
    """Raise a TypeError that names `agent`, what is made for the spec, unless it is a `Spec`."""
    require_kind("spec", spec, Spec, wanted=f"the Spec of an environment, env.spec, for which {agent} is made")
    require_count("spec.num_envs", spec.num_envs)


def require_discrete(space: PyTree, *, what: str, agent: str) -> int:
    """Return n of a `Discrete(n)` space; a ValueError that names `agent` and `what` for any other."""
    if not isinstance(space, Discrete):
        raise ValueError(f"{agent} needs a discrete {what} space, and this environment's is {space}")
    return space.n


def require_num_envs(rollout: Rollout, num_envs: int, *, what: str) -> None:
    """Raise a ValueError that names `what` was made for `num_envs` environments if a rollout is from another number."""
    if rollout.steps.reward.shape[1] != num_envs:
        raise ValueError(
            f"{what} was made for {num_envs} environments (spec.num_envs) and is handed a rollout of "
            f"{rollout.steps.reward.shape[1]}"
        )


def require_env(name: str, env: Any) -> None:
    """Raise a TypeError that names the argument unless it is an environment as `envs.make` returns."""
    parts = isinstance(getattr(env, "spec", None), Spec) and hasattr(env, "params")
    if not (parts and callable(getattr(env, "reset", None)) and callable(getattr(env, "step", None))):
        raise TypeError(f"{name} is {shown(env)}; it takes an environment, as envs.make(name, num_envs) returns")


def require_agent(agent: Any) -> None:
    """Raise a TypeError unless this is an `Agent`: a factory is not."""
    require_kind(
        "agent", agent, Agent, wanted="an Agent, as the factories of purerl.agents return, such as dqn(spec, ...)"
    )


def require_hypers(hypers: Any, kind: type, *, agent: str) -> None:
    """Raise a TypeError that names what is missing unless `hypers` has the fields of `kind`, the Hypers of `agent`."""
    lacking = [field.name for field in dataclasses.fields(kind) if not hasattr(hypers, field.name)]
    if lacking:
        own, other = (f"{of.__module__}.{of.__qualname__}" for of in (kind, type(hypers)))
        got = f"of type {other}" if dataclasses.is_dataclass(hypers) else shown(hypers)
        names = ", ".join(lacking if len(lacking) < 4 else [*lacking[:3], f"{len(lacking) - 3} more"])
        raise TypeError(f"hypers is {got}, without {names}; {agent} takes {own}")


def require_state(agent: Agent, state: PyTree, hypers: Any) -> None:
    """Raise a ValueError unless `state` has the parts of a state of this agent; a whole run, for one, has others."""
    own = jax.eval_shape(agent.init, jax.eval_shape(lambda: jax.random.key(0)), hypers)
    if jax.tree.structure(own) != jax.tree.structure(state):
        raise ValueError(f"state is {shown(state)}; this agent takes {type(own).__name__}, such as run.agent")


def require_values(name: str, network: Any, inputs: PyTree, shape: tuple[int, ...], *, agent: str) -> None:
    """Raise a ValueError unless `network` makes one array of this shape of one observation, or of its features."""
    values = output_of(name, network, inputs)
    if getattr(values, "shape", None) != shape:
        got = f"the shape {values.shape}" if hasattr(values, "shape") else shown(values)
        raise ValueError(f"{name} is a network that returns {got} for one observation; {agent} takes {shape}")


def output_of(name: str, network: Any, *inputs: PyTree) -> PyTree:
    """Return the shapes of what a network makes of inputs of these shapes; a ValueError if it cannot read them."""
    require_kind(name, network, Network, wanted="a Network, such as those that purerl.networks makes")

    def output(key: Array, *inputs: PyTree) -> PyTree:
        return network.apply(network.init(key, *inputs), *inputs)

    try:
        return jax.eval_shape(output, jax.eval_shape(lambda: jax.random.key(0)), *inputs)
    except Exception as error:  # whatever a module raises for another shape than it was made for
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(inputs))
        raise ValueError(f"{name} is a network that cannot read {shapes}; it takes one made for this spec") from error


# --- hypers ---------------------------------------------------------------------------------------------------------


def cast_hypers(hypers: T) -> T:
    """Return `hypers`, a dataclass of numbers, with each a float32 scalar array.

    Raises ValueError for a leaf of another shape or NaN, TypeError for one that is no number, and names it.

    Called once at the door, so that `Hypers(rate=0.1)` and `Hypers(rate=array(0.1))` are one program and not two.
    """
    if isinstance(hypers, type):
        raise TypeError(f"hypers is the class {hypers.__name__}; it takes one made of it: {hypers.__name__}()")

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
        if not isinstance(array, Tracer) and np.isnan(np.asarray(array, np.float32)):
            raise ValueError(f"{name} is nan; it takes a number")
        return jnp.asarray(array, jnp.float32)

    return jax.tree_util.tree_map_with_path(cast, hypers, is_leaf=plain)
