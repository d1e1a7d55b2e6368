"""Finite MDPs as environments: what can follow an action is written down once, drawn from by stepping, and listed."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from gymnax.environments.misc.frozen_lake import START, FrozenLake
from gymnax.environments.misc.frozen_lake import EnvState as LakeState
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from purerl import exploration
from purerl.checks import require_count, require_kind
from purerl.envs.vectorised import create
from purerl.mdps import MDP, Successors, Transitions, require_mdp, require_probabilities


# The fields of a pytree also hold axes and shapes (vmap's in_axes, eval_shape): not type-checked.
@no_type_check
@struct.dataclass
class EnvState(environment.EnvState):
    """Which of the S states it is, and the steps since the reset: both int32 [] arrays."""

    position: jax.Array


class Outcomes(NamedTuple):
    """What can follow an action in a state: K successors, int32 and float32 [K] each."""

    position: Any
    probability: Any
    reward: Any


class FiniteEnvironment(environment.Environment[EnvState, Any], abc.ABC):
    """An environment of S states, numbered, that is all in three functions: `starts`, `outcomes` and `is_terminated`.

    A subclass gives them, `num_states`, and parameters with `max_steps_in_episode`. The observation is the state's
    number, unless it says otherwise (`observe` and `observation_space`, as in gymnax; `observe` draws nothing, the key
    that it is given is spent).
    """

    num_states: int
    _num_actions: int = 4
    # gymnax declares these as properties.
    name = property(lambda self: f"{type(self).__name__}-purerl")
    num_actions = property(lambda self: self._num_actions)

    @abc.abstractmethod
    def starts(self, params: Any) -> Float[Array, " S"] | int:
        """Return the probabilities of an episode's first state, or that state if it is always the same."""

    @abc.abstractmethod
    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: Any) -> Outcomes:
        """Return what can follow `action` in the state `position`, which is not terminal."""

    @abc.abstractmethod
    def is_terminated(self, state: EnvState, params: Any) -> Bool[Array, ""]:
        """Return whether the state ends the episode."""

    def reset_env(self, key: Key[Array, ""], params: Any) -> tuple[PyTree, EnvState]:
        """Draw a first state."""
        starts = self.starts(params)
        position = jnp.int32(starts) if isinstance(starts, int) else exploration.draw(key, starts)
        # Strongly typed, or the carry of a scan would change its type after the first step.
        state = EnvState(time=jnp.int32(0), position=position)
        return self.observe(key, state, None, params), state

    def step_env(self, key: Key[Array, ""], state: EnvState, action: Any, params: Any):
        """Draw one of the outcomes."""
        outcomes = self.outcomes(state.position, action, params)
        # One outcome takes no chance, and so no random number.
        chosen = 0 if outcomes.position.shape == (1,) else exploration.draw(key, outcomes.probability)
        state = EnvState(time=state.time + 1, position=outcomes.position[chosen])
        terminated = self.is_terminated(state, params)
        discount = jnp.where(terminated, 0.0, 1.0).astype(jnp.float32)
        # astype, because a parameter that is a Python float would make the reward weakly typed.
        reward = jnp.asarray(outcomes.reward[chosen]).astype(jnp.float32)
        return self.observe(key, state, action, params), state, reward, terminated, {"discount": discount}

    def observe(self, key: Any, state: EnvState, action: Any, params: Any) -> PyTree:
        """Return the state's number."""
        del key, action, params
        return state.position

    def action_space(self, params: Any = None) -> spaces.Discrete:
        """Return `Discrete(num_actions)`."""
        del params
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> Any:
        """Return `Discrete(num_states)`."""
        del params
        return spaces.Discrete(self.num_states)


def certain(position: Any, reward: Any) -> Outcomes:
    """Return the one outcome of a step that leaves nothing to chance."""
    return Outcomes(jnp.reshape(position, 1), jnp.ones(1), jnp.reshape(reward, 1))


def enumerate_mdp(env: str | environment.Environment, params: Any = None, **kwargs: Any) -> MDP:
    """Return the MDP that an environment is, by name (with its constructor's `kwargs`) or as an object.

    Known are purerl's own (every `FiniteEnvironment`) and gymnax's FrozenLake; `planning` solves the arrays on which
    agents then act. Time limits are no part of them. Raises TypeError for other environments, and for the parameters of
    another one.
    """
    made = create(env, **kwargs)
    own = made.default_params
    params = own if params is None else params
    require_kind("params", params, type(own), wanted=f"{type(own).__name__}, as {made.name} has")
    if isinstance(made, FrozenLake):
        states, starts, outcomes = made.n_states, int(jnp.argmax(made.desc.reshape(-1) == START)), _on_ice(made, params)
    elif isinstance(made, FiniteEnvironment):
        states, starts, outcomes = made.num_states, made.starts(params), partial(made.outcomes, params=params)
    else:
        raise TypeError(f"{made.name!r} cannot be enumerated; it takes an envs.FiniteEnvironment, or FrozenLake")
    position, action = jnp.arange(states), jnp.arange(made.num_actions)
    found = jax.vmap(jax.vmap(outcomes, (None, 0)), (0, None))(position, action)
    probability = jnp.asarray(found.probability, jnp.float32)
    at = EnvState(time=jnp.zeros_like(position), position=position)  # pyright: ignore[reportArgumentType]
    return MDP(
        transition=Successors(state=found.position, probability=probability),
        reward=jnp.sum(probability * found.reward, axis=-1),
        terminal=jax.vmap(lambda state: made.is_terminated(state, params))(at),
        start=jax.nn.one_hot(starts, states) if isinstance(starts, int) else jnp.asarray(starts, jnp.float32),
    )


def _on_ice(lake: FrozenLake, params: Any) -> Callable[[Array, Array], Outcomes]:
    """Return what can follow an action on gymnax's lake: the move, and if it is slippery those to either side."""
    sure = copy.copy(lake)
    sure.is_slippery = False
    sides = (1.0 - lake.success_rate) / 2.0
    probability = jnp.array([sides, lake.success_rate, sides] if lake.is_slippery else [0.0, 1.0, 0.0])

    def outcomes(position: Array, action: Array) -> Outcomes:
        def move(turn: Array) -> tuple[Array, Array]:
            state = LakeState(time=0, position=position)
            _, state, reward, _, _ = sure.step_env(jax.random.key(0), state, (action + turn) % 4, params)
            return state.position, reward

        successor, reward = jax.vmap(move)(jnp.arange(-1, 2))
        return Outcomes(successor, probability, reward)

    return outcomes


# --- from arrays ----------------------------------------------------------------------------------------------------


@no_type_check
@struct.dataclass
class TabularParams(environment.EnvParams):
    """An MDP as traced arrays, so that one program runs, or vmaps over, all MDPs of a size."""

    # Without meaningful defaults, but gymnax's parameters all have some, and so must those of their subclasses.
    transition: Any = None  # [S, A, S], or Successors with K outcomes
    reward: Any = None  # [S, A]
    terminal: Any = None  # [S]
    start: Any = None  # [S]
    max_steps_in_episode: int | jax.Array = 1_000


class TabularMDP(FiniteEnvironment):
    """Any finite MDP: see `tabular_mdp`."""

    default_params = property(lambda self: self._params)

    def __init__(self, params: TabularParams):
        self._params = params
        self.num_states, self._num_actions = params.reward.shape

    def starts(self, params: TabularParams) -> Float[Array, " S"]:
        """Return the probabilities that it was given."""
        return params.start

    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: TabularParams) -> Outcomes:
        """Return the successors in the arrays, each with the mean reward."""
        if isinstance(params.transition, Successors):
            state = params.transition.state[position, action]
            probability = params.transition.probability[position, action]
        else:
            state, probability = jnp.arange(self.num_states), params.transition[position, action]
        return Outcomes(state, probability, jnp.broadcast_to(params.reward[position, action], state.shape))

    def is_terminated(self, state: EnvState, params: TabularParams) -> Bool[Array, ""]:
        """Return whether the arrays say so."""
        return params.terminal[state.position]


def tabular_mdp(
    transition: Transitions,
    reward: Float[Array, "S A"],
    terminal: Bool[Array, " S"],
    start: Float[Array, "..."] | int = 0,
    max_steps: int = 1_000,
) -> TabularMDP:
    """Return the environment of a finite MDP, for `envs.make`: agents act on the arrays that `planning` solves.

    `start` is the first state, or the probabilities of first states [S]; episodes are truncated after `max_steps`. The
    arrays are the environment's parameters. Raises ValueError for what is no MDP.
    """
    require_mdp(transition, reward, terminal, 0.0)
    require_count("max_steps", max_steps)
    states = len(reward)
    if np.ndim(start) == 0:
        whole = not isinstance(start, bool) and np.asarray(start).dtype.kind in "iu"
        if not (whole and 0 <= int(start) < states):
            raise ValueError(f"start is {start}; it takes one of the states 0 .. {states - 1}, or their probabilities")
        start = jax.nn.one_hot(start, states)
    if np.shape(start) != (states,):
        raise ValueError(f"start has the shape {np.shape(start)}; it takes the probabilities of {states} states")
    require_probabilities("start", np.asarray(start))
    params = TabularParams(
        transition=jax.tree.map(jnp.asarray, transition),
        reward=jnp.asarray(reward, jnp.float32),
        terminal=jnp.asarray(terminal, bool),
        start=jnp.asarray(start, jnp.float32),
        max_steps_in_episode=max_steps,
    )
    return TabularMDP(params)
