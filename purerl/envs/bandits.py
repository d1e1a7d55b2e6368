"""The k-armed testbed of Sutton & Barto, sections 2.3 and 2.5."""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces

from purerl.checks import require_count


# The fields of a pytree also hold axes and shapes (vmap's in_axes, eval_shape): not type-checked.
@no_type_check
@struct.dataclass
class BanditState(environment.EnvState):
    """What the arms are worth, float32 [k], and the steps since the reset, int32 []."""

    values: jax.Array


@no_type_check
@struct.dataclass
class BanditParams(environment.EnvParams):
    """Traced numbers: how problems are drawn, how noisy rewards are, and how fast values drift."""

    max_steps_in_episode: int | jax.Array = 1_000
    value_mean: float | jax.Array = 0.0
    value_deviation: float | jax.Array = 1.0
    reward_deviation: float | jax.Array = 1.0
    drift_deviation: float | jax.Array = 0.0


class Bandit(environment.Environment[BanditState, BanditParams]):
    """The k-armed testbed: every episode is a problem of its own, and all observations are 0.

        q(a) ~ Normal(value_mean, value_deviation),  reward ~ Normal(q(action), reward_deviation)

    After each step every q(a) goes on by Normal(0, `drift_deviation`): 0 is the stationary testbed of S&B section 2.3;
    .01, with `value_deviation` 0, the drifting one of Exercise 2.5. The values are in the state: with them it is known
    which action is best. An episode is cut by its clock. Raises ValueError for fewer than one arm.
    """

    default_params = property(lambda self: BanditParams())
    num_actions = property(lambda self: self._arms)
    name = property(lambda self: "Bandit-purerl")

    def __init__(self, arms: int = 10):
        require_count("arms", arms)
        self._arms = arms

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, BanditState]:
        values = params.value_mean + params.value_deviation * jax.random.normal(key, (self._arms,))
        return jnp.int32(0), BanditState(time=jnp.int32(0), values=values)

    def step_env(self, key: jax.Array, state: BanditState, action: Any, params: Any):
        # One draw for all: a second key would cost as much as the numbers.
        noise = jax.random.normal(key, (1 + self._arms,))
        reward = state.values[action] + params.reward_deviation * noise[0]
        values = state.values + params.drift_deviation * noise[1:]
        info = {"discount": jnp.float32(1.0)}
        return jnp.int32(0), BanditState(time=state.time + 1, values=values), reward, jnp.bool_(False), info

    def action_space(self, params: Any = None) -> spaces.Discrete:
        del params
        return spaces.Discrete(self._arms)

    def observation_space(self, params: Any = None) -> spaces.Discrete:
        del params
        return spaces.Discrete(1)
