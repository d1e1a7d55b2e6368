"""Small problems of Sutton & Barto made to show one thing each."""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from purerl.checks import require_count

A, B, END = range(3)
RIGHT, LEFT = range(2)


# The fields of a pytree also hold axes and shapes (vmap's in_axes, eval_shape): not type-checked.
@no_type_check
@struct.dataclass
class MaximizationBiasState(environment.EnvState):
    """Where the agent is (A, B, END), and the steps since the reset: both int32 [] arrays."""

    place: jax.Array


@no_type_check
@struct.dataclass
class MaximizationBiasParams(environment.EnvParams):
    """Traced numbers: mean and standard deviation of the reward that ends an episode in B."""

    max_steps_in_episode: int | jax.Array = 10
    reward_mean: float | jax.Array = -0.1
    reward_deviation: float | jax.Array = 1.0


class MaximizationBias(environment.Environment[MaximizationBiasState, MaximizationBiasParams]):
    """The MDP of S&B Example 6.7, on which maximizing over noisy estimates misleads.

    | in | action     | next | reward                               | terminated |
    |----|------------|------|--------------------------------------|------------|
    | A  | 0 (right)  | END  | 0                                    | yes        |
    | A  | 1 (left)   | B    | 0                                    | no         |
    | B  | any        | END  | Normal(`reward_mean` -.1, deviation 1) | yes      |

    Observation: int32 [], A, B, END = 0, 1, 2; every episode starts in A. There are `actions` actions (10), and in A
    those from 2 on do what right does: for the book's two, mask them (values of -inf in row A of a table).
    """

    default_params = property(lambda self: MaximizationBiasParams())
    num_actions = property(lambda self: self._num_actions)
    name = property(lambda self: "MaximizationBias-purerl")

    def __init__(self, actions: int = 10):
        require_count("actions", actions, least=2)  # right and left
        self._num_actions = actions

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, MaximizationBiasState]:
        del key, params
        return jnp.int32(A), MaximizationBiasState(time=jnp.int32(0), place=jnp.int32(A))

    def step_env(self, key: jax.Array, state: MaximizationBiasState, action: Any, params: Any):
        in_b = state.place == B
        noise = params.reward_mean + params.reward_deviation * jax.random.normal(key)
        reward = jnp.where(in_b, noise, 0.0).astype(jnp.float32)
        place = jnp.where(~in_b & (action == LEFT), B, END)
        state = MaximizationBiasState(time=state.time + 1, place=place)
        terminated = place == END
        return place, state, reward, terminated, {"discount": jnp.where(terminated, 0.0, 1.0).astype(jnp.float32)}

    def action_space(self, params: Any = None) -> spaces.Discrete:
        del params
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: Any = None) -> spaces.Discrete:
        del params
        return spaces.Discrete(3)
