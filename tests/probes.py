"""Environments whose values are known by hand, for all tests: `Ends`, `Countdown`, `Walk`."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from gymnax.environments import environment, spaces


@struct.dataclass
class EnvParams(environment.EnvParams):
    max_steps_in_episode: Any = 1_000_000


class _Probe(environment.Environment):
    """Two actions, the default parameters, and a name."""

    name = property(lambda self: f"{type(self).__name__}-probe")
    num_actions = property(lambda self: 2)
    default_params = property(lambda self: EnvParams())

    def action_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(2)


@struct.dataclass
class EndsState(environment.EnvState):
    position: jax.Array


class Ends(_Probe):
    """One step long, from a state drawn uniformly from 0..3; tells terminated from truncated.

    | state | reward | terminated | truncated | next observation | Q for both actions |
    |-------|--------|------------|-----------|------------------|--------------------|
    | 0     | 1      | no         | yes       | 3                | 1 + 2 gamma        |
    | 1     | 1      | yes        | no        | 3                | 1                  |
    | 2     | 1      | yes        | yes       | 3                | 1                  |
    | 3     | 2      | yes        | no        | 3                | 2                  |
    """

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, EndsState]:
        position = jax.random.randint(key, (), 0, 4)
        return position, EndsState(time=jnp.int32(0), position=position)

    def step_env(self, key: jax.Array, state: EndsState, action: Any, params: Any):
        # The state remembers where it came from (10 + s): is_truncated sees the successor only.
        reward = jnp.where(state.position == 3, 2.0, 1.0)
        terminated = state.position > 0
        successor = EndsState(time=state.time + 1, position=10 + state.position)
        return jnp.int32(3), successor, reward, terminated, {}

    def is_truncated(self, state: EndsState, params: Any) -> jax.Array:
        return (state.position == 10) | (state.position == 12)

    def observation_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(4)


@struct.dataclass
class CountdownState(environment.EnvState):
    remaining: jax.Array


class Countdown(_Probe):
    """Reward 1 a step for k steps, then terminated; k is drawn uniformly from 1..5 at the reset.

    Observation: float32 [steps remaining, steps so far]. Return and length are k; the last observation is [0, k].
    """

    def _observation(self, state: CountdownState) -> jax.Array:
        return jnp.stack([state.remaining, state.time]).astype(jnp.float32)

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, CountdownState]:
        state = CountdownState(time=jnp.int32(0), remaining=jax.random.randint(key, (), 1, 6))
        return self._observation(state), state

    def step_env(self, key: jax.Array, state: CountdownState, action: Any, params: Any):
        state = CountdownState(time=state.time + 1, remaining=state.remaining - 1)
        return self._observation(state), state, jnp.float32(1.0), state.remaining == 0, {}

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(0.0, 5.0, (2,), jnp.float32)


@struct.dataclass
class WalkParams(environment.EnvParams):
    max_steps_in_episode: Any = 7
    slip: Any = 0.25  # probability of a move against the action
    step_reward: Any = -0.125  # a power of two: sums are exact


@struct.dataclass
class WalkState(environment.EnvState):
    position: jax.Array


class Walk(_Probe):
    """A random walk on 0..6 from 3: action 0 moves left, 1 right, and the other way with probability `slip`.

    Terminated at 0 and 6; the reward is `step_reward`, and 1 more on arrival at 6. Truncated after
    `max_steps_in_episode` steps: with 7, an odd number, an episode can end both ways in the same step.
    """

    default_params = property(lambda self: WalkParams())

    def reset_env(self, key: jax.Array, params: Any) -> tuple[jax.Array, WalkState]:
        state = WalkState(time=jnp.int32(0), position=jnp.int32(3))
        return state.position, state

    def step_env(self, key: jax.Array, state: WalkState, action: Any, params: Any):
        slipped = jax.random.bernoulli(key, params.slip)
        move = jnp.where((action == 1) ^ slipped, 1, -1)
        state = WalkState(time=state.time + 1, position=state.position + move)
        reward = params.step_reward + jnp.where(state.position == 6, 1.0, 0.0)
        return state.position, state, reward, (state.position == 0) | (state.position == 6), {}

    def observation_space(self, params: Any = None) -> spaces.Discrete:
        return spaces.Discrete(7)
