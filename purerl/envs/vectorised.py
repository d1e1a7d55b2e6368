"""The seam to gymnax: N copies of an environment that step together and start again by themselves."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces
from gymnax.environments.environment import Environment
from jaxtyping import Array, Bool, Float, Key, PyTree

from purerl.base import Box, Discrete, Spec, where
from purerl.checks import require_count


@runtime_checkable
class ResetFn(Protocol):
    def __call__(self, key: Key[Array, ""], params: PyTree) -> tuple[PyTree, PyTree]:
        """Return (observation [N, ...], state [N, ...]) of N new episodes."""
        ...


@runtime_checkable
class StepFn(Protocol):
    def __call__(
        self, key: Key[Array, ""], state: PyTree, action: PyTree, params: PyTree
    ) -> tuple[PyTree, PyTree, Float[Array, " N"], Bool[Array, " N"], Bool[Array, " N"], PyTree]:
        """Step N environments and start those anew whose episode ended.

        Returns (observation, state, reward, terminated, truncated, next_observation): `observation` and `state` are to
        act on next (of the new episode where the old one ended); `next_observation` is the successor before that reset.
        """
        ...


class Env(NamedTuple):
    """N environments as two pure functions; `params` are gymnax's, as arrays, to be traced, swept and passed along."""

    reset: ResetFn
    step: StepFn
    spec: Spec
    params: Any
    name: str


def names() -> list[str]:
    """Return the name of every environment that `make` knows: gymnax's own and what was registered with it."""
    return list(gymnax.registered_envs)


def make(
    env: str | Environment,
    num_envs: int,
    *,
    observation_dtype: Any = None,
    restart: bool = True,
    groups: int = 1,
    **kwargs: Any,
) -> Env:
    """Return `num_envs` copies of an environment, by gymnax's name (with its constructor's `kwargs`) or as an object.

    `observation_dtype` is what arrays are observed in, if not what the environment shows: bool for MinAtar's pictures,
    which gymnax shows as float32, takes a quarter of the memory wherever observations are kept, and a 32nd in replay,
    which packs bool into bits; bfloat16 takes half, and rounds floats to eight bits. Batches are drawn within `groups`
    of neighbouring environments, of each as much, so that groups may lie on different devices. Without `restart` an
    ended episode does not start anew: what follows means nothing.

    Raises ValueError for an unknown name (with the near misses), a count below one, groups that do not divide the
    environments, a dtype that does not hold what is observed (in a hundred random steps), or no `restart` where an
    environment has its own way to start anew; TypeError for another object.
    """
    require_count("num_envs", num_envs)
    require_count("groups", groups)
    if num_envs % groups:
        raise ValueError(f"groups is {groups}, which does not divide the {num_envs} environments (num_envs)")
    environment = create(env, **kwargs)
    action = _action_space(environment.action_space(environment.default_params))
    params = jax.tree.map(_as_array, environment.default_params)
    types = _Types(environment, params)
    if observation_dtype is not None:
        types.observation = _observed_as(_dtype(observation_dtype), environment, params, types)
    if type(environment).step is Environment.step:
        reset, step = _own_auto_reset(environment, num_envs, types, restart, groups)
    elif restart:
        reset, step = _gymnax_auto_reset(environment, num_envs, types)
    else:
        raise ValueError(
            f"restart is False; {environment.name} starts its episodes anew in its own step: it takes True"
        )
    spec = Spec(
        observation=_observation_space(environment.observation_space(environment.default_params), types),
        action=action,
        num_envs=int(num_envs),
        groups=int(groups),
    )
    return Env(
        reset=reset,
        step=step,
        spec=spec,
        params=params,
        name=env if isinstance(env, str) else env.name,
    )


def create(env: str | Environment, **kwargs: Any) -> Environment:
    """Return one gymnax environment, by name (with its constructor's `kwargs`) or as it is.

    Raises ValueError for an unknown name (with the near misses) or wrong `kwargs`, TypeError for another object.
    """
    if isinstance(env, str):
        if env not in names():
            near = difflib.get_close_matches(env, names(), n=3, cutoff=0.4)
            hint = f"; did you mean {' or '.join(near)}?" if near else f"; known are {', '.join(names())}"
            raise ValueError(f"env is {env!r}, which gymnax does not know{hint}")
        try:
            return gymnax.make(env, **kwargs)[0]
        except TypeError as error:
            raise ValueError(f"{env} does not take {kwargs}: {error}") from error
    if not isinstance(env, Environment):
        raise TypeError(f"env is {env!r}; it takes the name of an environment or a gymnax Environment")
    if kwargs:
        raise ValueError(f"got {kwargs} beside an environment object; give them to its constructor")
    return env


def _as_array(leaf: Any) -> Array:
    """Return a parameter as a strongly typed array (int32, float32 or bool), so that a new value is no new program."""
    leaf = np.asarray(leaf)
    kinds = {"f": np.float32, "i": np.int32, "u": np.int32}
    return jnp.asarray(leaf, kinds.get(leaf.dtype.kind, leaf.dtype))


class _Types:
    """The shapes and dtypes that observation, state and action have after any number of steps.

    Environments may start with other dtypes than they go on with (a Python int that becomes a weakly typed int32, a
    count that becomes a float); a scan's carry, and a checkpoint, need them fixed from the start.
    """

    def __init__(self, environment: Environment, params: PyTree):
        key = jax.eval_shape(lambda: jax.random.key(0))
        space = environment.action_space(environment.default_params)
        action = jax.eval_shape(space.sample, key)
        both = jax.eval_shape(environment.reset_env, key, params)
        # Two rounds: what is promoted by one step may promote another leaf at the next.
        for _ in range(2):
            stepped = jax.eval_shape(environment.step_env, key, both[1], action, params)[:2]
            both = jax.tree.map(_promoted, both, stepped)
        self.observation, self.state = both
        self.action = action.dtype if isinstance(space, spaces.Box) else jnp.int32

    def cast(self, observation: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
        """Return both with the fixed dtypes, strongly typed."""

        def fix(leaf: Any, fixed: jax.ShapeDtypeStruct) -> Array:
            return leaf if _is_key(fixed) else jax.lax.convert_element_type(leaf, fixed.dtype)

        return jax.tree.map(fix, (observation, state), (self.observation, self.state))


def _dtype(name: Any) -> np.dtype:
    try:
        dtype = np.dtype(jax.dtypes.canonicalize_dtype(name))
    except TypeError:
        dtype = None
    if dtype is None or (dtype.kind not in "biuf" and dtype != jnp.bfloat16):
        raise ValueError(f"observation_dtype is {name!r}; it takes a dtype of numbers, such as bool or uint8")
    return dtype


def _observed_as(dtype: np.dtype, environment: Environment, params: PyTree, types: _Types) -> PyTree:
    """Return the shapes of observations with another dtype; ValueError if random steps show what it does not hold."""
    space = environment.action_space(environment.default_params)
    if isinstance(environment.observation_space(environment.default_params), spaces.Discrete):
        raise ValueError(f"observation_dtype is {dtype}, and {environment.name} is observed as an integer, no array")

    def held(observation: PyTree) -> Array:
        def near(leaf: Array) -> Array:
            kept = leaf.astype(dtype).astype(leaf.dtype)
            if not all(jnp.issubdtype(kind, jnp.floating) for kind in (leaf.dtype, dtype)):
                return jnp.all(kept == leaf)
            # Whoever asks for floats of fewer digits knows that they are rounded.
            return jnp.all((kept == leaf) | (jnp.abs(kept - leaf) <= float(jnp.finfo(dtype).eps) * jnp.abs(leaf)))

        return jnp.stack([near(leaf) for leaf in jax.tree.leaves(observation)])

    def step(state: PyTree, keys: Array) -> tuple[PyTree, Array]:
        observation, state, *_ = environment.step(keys[0], state, space.sample(keys[1]), params)
        return types.cast(observation, state)[1], held(observation)

    def walk(key: Array) -> Array:
        reset_key, step_key = jax.random.split(key)
        observation, state = environment.reset(reset_key, params)
        keys = jax.random.split(step_key, (100, 2))
        return jnp.all(held(observation)) & jnp.all(jax.lax.scan(step, types.cast(observation, state)[1], keys)[1])

    if not jax.jit(walk)(jax.random.key(0)):
        raise ValueError(f"observation_dtype is {dtype}, which does not hold all that {environment.name} shows")
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), types.observation)


def _promoted(old: Any, new: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(old.shape, old.dtype if _is_key(old) else jnp.promote_types(old.dtype, new.dtype))


def _is_key(leaf: Any) -> bool:
    """Whether an environment keeps a random key here: it has one dtype, and takes part in no promotion."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _own_auto_reset(
    environment: Environment, num_envs: int, types: _Types, restart: bool, groups: int
) -> tuple[ResetFn, StepFn]:
    """Vectorise an environment whose episodes start anew the ordinary way.

    gymnax computes a reset at every step. Here it is computed only in steps in which some episode ended: starts keep
    their distribution and every episode its own key. (Under vmap the condition becomes a select, as in gymnax.)
    """

    def reset(key: Key[Array, ""], params: PyTree) -> tuple[PyTree, PyTree]:
        def one(key):
            return types.cast(*environment.reset_env(key, params))

        return jax.vmap(one)(jax.random.split(key, num_envs))

    def step(key: Key[Array, ""], state: PyTree, action: PyTree, params: PyTree):
        def one(key, state, action):
            observation, state, reward, terminated, _ = environment.step_env(key, state, action, params)
            truncated = environment.is_truncated(state, params)
            return *types.cast(observation, state), *_signals(reward, terminated, truncated)

        keys = jax.random.split(jax.random.split(key)[0], num_envs)
        action = _possible(environment, action.astype(types.action), params)
        next_observation, state, reward, terminated, truncated = jax.vmap(one)(keys, state, action)
        if not restart:
            return next_observation, state, reward, terminated, truncated, next_observation
        ended = terminated | truncated
        # Split once more in there, and not beside the steps' keys: where no episode ends that is spared, too.
        again = jax.random.clone(key)

        def anew() -> tuple[PyTree, PyTree]:
            return where(ended, reset(jax.random.split(again)[1], params), (next_observation, state))

        if groups > 1:  # which may lie on other devices, that would have to hear at every step whether any ended
            observation, state = anew()
        else:
            observation, state = jax.lax.cond(jnp.any(ended), anew, lambda: (next_observation, state))
        return observation, state, reward, terminated, truncated, next_observation

    return reset, step


def _gymnax_auto_reset(environment: Environment, num_envs: int, types: _Types) -> tuple[ResetFn, StepFn]:
    """Vectorise an environment that overrides gymnax's `step`, and so has its own way to start anew: use that."""

    def reset(key: Key[Array, ""], params: PyTree) -> tuple[PyTree, PyTree]:
        def one(key):
            return types.cast(*environment.reset(key, params))

        return jax.vmap(one)(jax.random.split(key, num_envs))

    def step(key: Key[Array, ""], state: PyTree, action: PyTree, params: PyTree):
        def one(key, state, action):
            observation, state, reward, terminated, truncated, info = environment.step(key, state, action, params)
            next_observation, state = types.cast(info["final_observation"], state)
            observation, state = types.cast(observation, state)
            return observation, state, *_signals(reward, terminated, truncated), next_observation

        action = _possible(environment, action.astype(types.action), params)
        return jax.vmap(one)(jax.random.split(key, num_envs), state, action)

    return reset, step


def _possible(environment: Environment, action: Array, params: PyTree) -> Array:
    """Return actions [N, ...] within the bounds that the environment has with these parameters.

    Clipped here and not by the agent: the rollout keeps the action that its policy drew, and so its probability.
    Environments differ: of those in gymnax some clip, and one clips the force but lets the agent pay for what it asked.
    """
    space = environment.action_space(params)
    return jnp.clip(action, space.low, space.high) if isinstance(space, spaces.Box) else action


def _signals(reward: Array, terminated: Array, truncated: Array) -> tuple[Array, Array, Array]:
    return (
        jnp.asarray(reward, jnp.float32),
        jnp.asarray(terminated, bool),
        jnp.asarray(truncated, bool),
    )


def _observation_space(space: Any, types: _Types) -> PyTree:
    """Return purerl's description of observations: shapes and dtypes as really seen, which gymnax's spaces misstate."""
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    seen = jax.tree.map(lambda leaf: Box(leaf.shape, np.dtype(leaf.dtype), -np.inf, np.inf), types.observation)
    if isinstance(space, spaces.Box) and isinstance(seen, Box):
        return Box(seen.shape, seen.dtype, np.asarray(space.low), np.asarray(space.high))
    return seen  # a dict, a tuple, a dataclass: its parts, without bounds


def _action_space(space: Any) -> Discrete | Box:
    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        return Box(tuple(space.shape), np.dtype(space.dtype), np.asarray(space.low), np.asarray(space.high))
    raise ValueError(f"the action space {space} is not supported; it takes a Discrete or a Box space")
