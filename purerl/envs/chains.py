"""Small MDPs of Sutton & Barto in which states stand in a row: walks, a gambler, a corridor, Baird's star."""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Array, Bool, Float, Int

from purerl.checks import require_count
from purerl.envs.finite import EnvState, FiniteEnvironment, Outcomes, certain

LEFT, RIGHT = range(2)
DASHED, SOLID = range(2)


# The fields of a pytree also hold axes and shapes (vmap's in_axes, eval_shape): not type-checked.
@no_type_check
@struct.dataclass
class RandomWalkParams(environment.EnvParams):
    """Traced numbers: what the two ends give."""

    max_steps_in_episode: int | jax.Array = 10_000
    left_reward: float | jax.Array = 0.0
    right_reward: float | jax.Array = 1.0


class RandomWalk(FiniteEnvironment):
    """The random walk of S&B Examples 6.2 and 7.1: left or right, by chance, from the middle until an end is reached.

    States 1..`states` between the ends 0 and `states` + 1; there is one action, and rewards are 0 but at the ends. With
    the book's 19 states the left end gives -1 (`left_reward`).
    """

    _num_actions = 1
    default_params = property(lambda self: RandomWalkParams())

    def __init__(self, states: int = 5):
        require_count("states", states)
        self.num_states = states + 2

    def starts(self, params: Any) -> int:
        del params
        return self.num_states // 2

    def is_terminated(self, state: EnvState, params: Any) -> Bool[Array, ""]:
        del params
        return (state.position == 0) | (state.position == self.num_states - 1)

    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: Any) -> Outcomes:
        del action
        there = jnp.clip(position + jnp.array([-1, 1]), 0, self.num_states - 1)
        ends = jnp.where(there == self.num_states - 1, params.right_reward, 0.0)
        return Outcomes(there, jnp.full(2, 0.5), jnp.where(there == 0, params.left_reward, ends))


@no_type_check
@struct.dataclass
class GamblerParams(environment.EnvParams):
    """Traced number: the probability of heads."""

    max_steps_in_episode: int | jax.Array = 10_000
    heads: float | jax.Array = 0.4


class Gambler(FiniteEnvironment):
    """The gambler of S&B Example 4.3: stakes on heads until the capital is 100, which gives 1, or 0.

    The state is the capital, 0..100; action a stakes a + 1, or as much as there is or as is needed if that is less.
    Episodes start with 1..99, all alike.
    """

    num_states, _num_actions = 101, 50
    default_params = property(lambda self: GamblerParams())

    def starts(self, params: Any) -> Float[Array, " S"]:
        del params
        return jnp.full(101, 1 / 99).at[jnp.array([0, 100])].set(0.0)

    def is_terminated(self, state: EnvState, params: Any) -> Bool[Array, ""]:
        del params
        return (state.position == 0) | (state.position == 100)

    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: Any) -> Outcomes:
        stake = jnp.minimum(action + 1, jnp.minimum(position, 100 - position))
        there = position + stake * jnp.array([-1, 1])
        probability = jnp.stack([1.0 - params.heads, jnp.asarray(params.heads)])
        return Outcomes(there, probability, jnp.where((there == 100) & (stake > 0), 1.0, 0.0))


@no_type_check
@struct.dataclass
class ShortCorridorParams(environment.EnvParams):
    """Traced number: the reward of a step."""

    max_steps_in_episode: int | jax.Array = 1_000
    step_reward: float | jax.Array = -1.0


class ShortCorridor(FiniteEnvironment):
    """The short corridor of S&B Example 13.1: three states that look the same, and in the second moves are reversed.

    From state 0 right and right again, which there leads left: by chance alone is the end, 3, reached. Observation: 0,
    always. Actions: 0 left, 1 right.
    """

    num_states, _num_actions = 4, 2
    default_params = property(lambda self: ShortCorridorParams())

    def starts(self, params: Any) -> int:
        del params
        return 0

    def is_terminated(self, state: EnvState, params: Any) -> Bool[Array, ""]:
        del params
        return state.position == 3

    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: Any) -> Outcomes:
        forwards = (action == RIGHT) ^ (position == 1)
        return certain(jnp.clip(position + jnp.where(forwards, 1, -1), 0, 3), params.step_reward)

    def observe(self, key: Any, state: EnvState, action: Any, params: Any) -> Int[Array, ""]:
        del key, action, params
        return jnp.zeros_like(state.position)

    def observation_space(self, params: Any = None) -> spaces.Discrete:
        del params
        return spaces.Discrete(1)


class BairdsCounterexample(FiniteEnvironment):
    """Baird's star, S&B Example 11.1: off-policy learning with linear features diverges, though all rewards are 0.

    Action 0 (dashed) leads to one of the states 0..5, all alike, action 1 (solid) to state 6. `features` [7, 8] are the
    book's: 2 w_i + w_8 of the first six, w_7 + 2 w_8 of the last. It never ends; episodes start anywhere, all alike.
    """

    num_states, _num_actions = 7, 2
    features = np.concatenate([np.diag([2.0] * 6 + [1.0]), [[1.0]] * 6 + [[2.0]]], axis=1, dtype=np.float32)
    default_params = property(lambda self: environment.EnvParams(max_steps_in_episode=1_000))

    def starts(self, params: Any) -> Float[Array, " S"]:
        del params
        return jnp.full(7, 1 / 7)

    def is_terminated(self, state: EnvState, params: Any) -> Bool[Array, ""]:
        del state, params
        return jnp.bool_(False)

    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: Any) -> Outcomes:
        del position, params
        probability = jnp.where(action == DASHED, jnp.full(6, 1 / 6), jnp.zeros(6))
        return Outcomes(jnp.arange(7), jnp.append(probability, jnp.where(action == SOLID, 1.0, 0.0)), jnp.zeros(7))
