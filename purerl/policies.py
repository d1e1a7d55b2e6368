"""A policy alone: a function of observations that knows what it takes, wherever it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from purerl.base import Agent, Discrete, no_memory


class Part(NamedTuple):
    """An array in the file or in an observation: where it stands in its tree, and what it is."""

    path: str
    dtype: str
    shape: tuple[int, ...]
    values: int | None = None  # of integers that are 0 .. values - 1


class Program(NamedTuple):
    """`act`, greedy or not: which of the policy's arrays it takes, and (arrays, key data, observation) -> action."""

    takes: tuple[str, ...]
    call: Callable[..., Any]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """What an agent of one run does, without the agent: a function of observations (and of a key, to sample)."""

    name: str  # of the agent, or what it was called when it was saved
    env: str
    env_params: dict[str, np.ndarray]  # the environment's numbers in training, by path
    observation: tuple[Part, ...]  # every array of an observation; Part.shape is that of one environment's
    action: tuple[Part, ...]
    hypers: Any  # what the agent's numbers were, as JSON has them
    versions: dict[str, str]  # of python, purerl, jax and others that saved it
    run: int  # which of the file's runs this is
    runs: int  # how many the file holds
    key_type: str  # of the keys that sampling takes, as jax.random.key_impl names it
    arrays: dict[str, jax.Array]  # what acting needs of state and hypers, by path
    programs: dict[bool, Program]  # by whether they are greedy

    def __call__(self, observation: PyTree, *, key: Any = None, greedy: bool | None = None) -> Any:
        """Return the greedy action for an observation [...], or those of a batch [N, ...]: [...] or [N, ...].

        With a key, an action drawn as in training; with a key and `greedy=True`, the greedy one, the key breaking ties
        (without a key they are broken the same way every time). May be called under jit; not under vmap: give it
        the batch. A new N compiles anew. Raises ValueError for an observation of another tree, shape or dtype and for
        a number that is not among those observed, TypeError for no key or one of another type.
        """
        greedy = key is None if greedy is None else greedy
        if key is None and not greedy:
            raise TypeError("key is None; to draw an action (greedy=False) it takes a key, as from jax.random.key")
        key = jax.random.key(0, impl=self.key_type) if key is None else key
        leaves, batched = _observed(observation, self.observation)
        action = self._act(key, self.arrays, leaves if batched else [leaf[None] for leaf in leaves], greedy)
        return action if batched else action[0]

    def agent(self) -> Agent:
        """Return the policy as an agent that does not learn, to be rolled out and evaluated; its state is `arrays`."""

        def act(key, state, memory, observation, hypers, *, greedy=False):
            del hypers
            return self._act(key, state, _observed(observation, self.observation)[0], greedy), memory

        return Agent(
            init=lambda key, hypers: self.arrays,
            start=no_memory,
            act=act,
            update=lambda key, state, rollout, hypers: (state, {}),
        )

    def _act(self, key: Any, arrays: dict[str, Any], observation: list[Any], greedy: bool) -> Any:
        found = getattr(key, "dtype", None)
        if found is None or not jnp.issubdtype(found, jax.dtypes.prng_key) or key.shape != ():
            raise TypeError(f"key is {key!r:.60}; it takes one key, as jax.random.key makes it")
        if str(jax.random.key_impl(key)) != self.key_type:
            raise TypeError(f"key is one of {jax.random.key_impl(key)}; this policy takes those of {self.key_type}")
        program = self.programs[greedy]
        return program.call([arrays[path] for path in program.takes], jax.random.key_data(key), observation)


def spaces(space: PyTree) -> tuple[Part, ...]:
    """Return the arrays of which observations, or actions, of this space consist."""
    return tuple(
        Part(place_of("", place), str(np.dtype(leaf.dtype)), leaf.shape, leaf.n if isinstance(leaf, Discrete) else None)
        for place, leaf in jax.tree_util.tree_leaves_with_path(space)
    )


def place_of(root: str, place: tuple[Any, ...]) -> str:
    """Return where a leaf stands, as in state.params['kernel']; `place` is jax's, and `root` the name of the tree."""
    return (root + jax.tree_util.keystr(place)).lstrip(".")


def _observed(observation: PyTree, parts: Sequence[Part]) -> tuple[list[Any], bool]:
    """Return the arrays of an observation with the dtypes of `parts`, and whether they are of a batch [N, ...]."""
    if [part.path for part in parts] == [""]:
        given = {"": observation}  # one array, for which a list of numbers will do
    else:
        named = jax.tree_util.tree_leaves_with_path(observation)
        given = {place_of("", place): leaf for place, leaf in named}
    if list(given) != [part.path for part in parts]:
        raise ValueError(f"observation has {list(given)}; it takes {[part.path for part in parts]}")
    leaves = [_one_observed(leaf, part) for leaf, part in zip(given.values(), parts, strict=True)]
    fronts = {leaf.shape[: max(0, leaf.ndim - len(part.shape))] for leaf, part in zip(leaves, parts, strict=True)}
    fits = all(
        leaf.shape[leaf.ndim - len(part.shape) :] == part.shape for leaf, part in zip(leaves, parts, strict=True)
    )
    front = fronts.pop()
    if not fits or fronts or len(front) > 1 or front == (0,):
        found = ", ".join(str(leaf.shape) for leaf in leaves)
        takes = ", ".join(str(part.shape) for part in parts)
        raise ValueError(f"observation has shape {found}; it takes {takes}, or a batch with one leading axis N >= 1")
    return leaves, bool(front)


def _one_observed(leaf: Any, part: Part) -> Any:
    """Return one array of an observation with the dtype of `part`, if that holds it."""
    where = f"observation.{part.path}" if part.path else "observation"
    try:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
    except ValueError as error:  # a ragged list
        raise ValueError(f"{where} is {leaf!r:.60}; it takes an array of {part.dtype}") from error
    dtype = jnp.dtype(part.dtype)
    if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise ValueError(f"{where} is of {array.dtype}; it takes {part.dtype}")
    if part.values is not None and not isinstance(array, Tracer):
        numbers = np.asarray(array)
        if numbers.size and not (numbers.min() >= 0 and numbers.max() < part.values):
            raise ValueError(f"{where} has {numbers.min()} to {numbers.max()}; it takes 0 to {part.values - 1}")
    return array.astype(dtype)
