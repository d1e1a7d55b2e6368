"""Acting: T steps of an agent in N environments, as one scan."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jaxtyping import Array, Float, Int, Key, PyTree

from purerl.base import Agent, Rollout, Transition, pytree_dataclass, require_env, where
from purerl.checks import shown


@pytree_dataclass
class Episodes:
    """The N episodes under way: where each environment stands, and what it has gathered so far."""

    observation: PyTree  # [N, ...]
    env_state: PyTree  # [N, ...]
    memory: PyTree  # [N, ...]
    episode_return: Any  # float32 [N]: sum of rewards since the episode's start
    episode_length: Any  # int32 [N]: steps since the episode's start


class StepKeys(NamedTuple):
    """The keys of T steps: one for acting and one for the environments each."""

    act: Key[Array, " T"]
    env: Key[Array, " T"]


class Totals(NamedTuple):
    """What every environment's episode had gathered after each of T steps, that step included."""

    episode_return: Float[Array, "T N"]
    episode_length: Int[Array, "T N"]


def cast_params(env: Any, env_params: PyTree) -> PyTree:
    """Return the environment's parameters, its own if `env_params` is None, with the shapes and dtypes of its own.

    Raises ValueError for another structure or shape, and names the parameter; TypeError for what is no number.
    """
    require_env("env", env)
    if env_params is None:
        return env.params
    if jax.tree.structure(env_params) != jax.tree.structure(env.params):
        raise ValueError(
            f"env_params is {shown(env_params)}; {env.name} takes {type(env.params).__name__}: {env.params!r}"
        )

    def cast(path: Any, leaf: Any, own: Array) -> Array:
        if not isinstance(leaf, jax.Array) and np.asarray(leaf).dtype.kind not in "biuf":
            raise TypeError(f"env_params{jax.tree_util.keystr(path)} is {shown(leaf)}; it takes a number")
        if jnp.shape(leaf) != own.shape:
            raise ValueError(
                f"env_params{jax.tree_util.keystr(path)} has shape {jnp.shape(leaf)}; {env.name} takes {own.shape}. "
                "To try many at once, vmap over env_params"
            )
        return jnp.asarray(leaf, own.dtype)

    return jax.tree_util.tree_map_with_path(cast, env_params, env.params)


def _require_actions(action: PyTree, env: Any) -> None:
    """Raise a ValueError, while tracing, unless the shapes of actions are those that the environment takes."""
    wanted = jax.tree.map(lambda space: (env.spec.num_envs, *space.shape), env.spec.action)
    got = jax.tree.map(jnp.shape, action)
    if got != wanted:
        raise ValueError(f"agent acts with the shape {got} in {env.name}, which takes {wanted}; give one for env.spec")


def step_keys(key: Key[Array, ""], length: int) -> StepKeys:
    """Return the keys of `length` steps. Apart from `unroll`, so that those of many rollouts can be drawn at once."""
    keys = jax.random.split(key, (length, 2))
    return StepKeys(act=keys[:, 0], env=keys[:, 1])


def start(key: Key[Array, ""], agent: Agent, env: Any, env_params: PyTree) -> Episodes:
    """Return N new episodes."""
    observation, env_state = env.reset(key, env_params)
    return Episodes(
        observation=observation,
        env_state=env_state,
        memory=agent.start(env.spec.num_envs),
        episode_return=jnp.zeros(env.spec.num_envs, jnp.float32),
        episode_length=jnp.zeros(env.spec.num_envs, jnp.int32),
    )


@jax.named_scope("rollout")  # by which a compiled program tells what of it is one
def unroll(
    keys: StepKeys,
    agent: Agent,
    state: PyTree,
    env: Any,
    env_params: PyTree,
    episodes: Episodes,
    hypers: Any,
    *,
    greedy: bool = False,
) -> tuple[Episodes, Rollout, Totals]:
    """Act T steps with the agent's `state` held fixed; returns the episodes then under way, the rollout, the totals."""
    fresh = agent.start(env.spec.num_envs)

    def step(episodes: Episodes, keys: StepKeys) -> tuple[Episodes, tuple[Transition, Totals]]:
        try:
            action, memory = agent.act(keys.act, state, episodes.memory, episodes.observation, hypers, greedy=greedy)
        except jax.errors.JAXTypeError:  # an agent that cannot be traced: jax says where
            raise
        except (TypeError, ValueError, FlaxError) as error:  # of an agent for other observations, or its networks
            reason = f"agent cannot act on what {env.name} shows, {env.spec.observation}"
            raise ValueError(f"{reason}; it takes one made for env.spec ({error})") from error
        _require_actions(action, env)
        observation, env_state, reward, terminated, truncated, next_observation = env.step(
            keys.env, episodes.env_state, action, env_params
        )
        ended = terminated | truncated
        totals = Totals(episodes.episode_return + reward, episodes.episode_length + 1)
        transition = Transition(
            observation=episodes.observation,
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            next_observation=next_observation,
        )
        following = Episodes(
            observation=observation,
            env_state=env_state,
            memory=where(ended, fresh, memory),
            episode_return=jnp.where(ended, 0.0, totals.episode_return),
            episode_length=jnp.where(ended, 0, totals.episode_length),
        )
        return following, (transition, totals)

    following, (steps, totals) = jax.lax.scan(step, episodes, keys)
    return following, Rollout(steps=steps, memory=episodes.memory), totals
