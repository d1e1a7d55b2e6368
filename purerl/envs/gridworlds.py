"""Two gridworlds of Sutton & Barto, chapter 6, which gymnax lacks: CliffWalking and WindyGridworld.

A cell (row, column) has the index row * columns + column, row 0 on top. Moves are numbered as
gymnasium numbers those of its CliffWalking, and then clockwise:

| action | 0  | 1     | 2    | 3    | 4        | 5          | 6         | 7       | 8    |
|--------|----|-------|------|------|----------|------------|-----------|---------|------|
| move   | up | right | down | left | up-right | down-right | down-left | up-left | stay |
"""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment, spaces
from jaxtyping import Array, Bool, Float, Int

UP, RIGHT, DOWN, LEFT = range(4)
# (change of row, change of column) of each action in the table above.
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (-1, 1), (1, 1), (1, -1), (-1, -1), (0, 0))
# Rows by which the wind lifts an agent that leaves the column (S&B Example 6.5).
WIND = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)


# The fields of a pytree also hold axes and shapes (vmap's in_axes, eval_shape): not type-checked.
@no_type_check
@struct.dataclass
class EnvState(environment.EnvState):
    """The agent's cell as its index, and the steps since the reset: both int32 [] arrays."""

    position: jax.Array


@no_type_check
@struct.dataclass
class EnvParams(environment.EnvParams):
    """Traced numbers of a gridworld; the time limit is far above what the textbook's runs reach."""

    max_steps_in_episode: int | jax.Array = 10_000
    step_reward: float | jax.Array = -1.0


@no_type_check
@struct.dataclass
class CliffWalkingParams(EnvParams):
    """`EnvParams`, and the reward of a step into the cliff, given in place of the step reward."""

    cliff_reward: float | jax.Array = -100.0


# Observation, state, reward, terminated, info.
Step = tuple[Int[Array, ""], EnvState, Float[Array, ""], Bool[Array, ""], dict[str, Array]]


class _Gridworld(environment.Environment[EnvState, EnvParams]):
    """What the two share: one start, one goal, the cell's index as observation."""

    rows: int
    columns: int
    start: int
    goal: int
    _num_actions: int = 4
    # gymnax declares these as properties.
    name = property(lambda self: f"{type(self).__name__}-purerl")
    num_actions = property(lambda self: self._num_actions)
    default_params = property(lambda self: EnvParams())

    def reset_env(self, key: jax.Array, params: EnvParams) -> tuple[Int[Array, ""], EnvState]:
        # Strongly typed, or the carry of a scan would change its type after the first step.
        state = EnvState(time=jnp.int32(0), position=jnp.int32(self.start))
        return self.observe(key, state, None, params), state

    def observe(self, key: jax.Array, state: EnvState, action: Any, params: EnvParams) -> jax.Array:
        del key, action, params
        return state.position

    def is_terminated(self, state: EnvState, params: EnvParams) -> jax.Array:
        del params
        return state.position == self.goal

    def action_space(self, params: EnvParams | None = None) -> spaces.Discrete:
        del params
        return spaces.Discrete(self.num_actions)

    def observation_space(self, params: EnvParams | None = None) -> spaces.Discrete:
        del params
        return spaces.Discrete(self.rows * self.columns)

    def _arrive(self, state: EnvState, row, column, reward, params: EnvParams) -> Step:
        """Ends a step of `state` in the cell (row, column)."""
        state = EnvState(time=state.time + 1, position=row * self.columns + column)
        terminated = self.is_terminated(state, params)
        discount = jnp.where(terminated, 0.0, 1.0).astype(jnp.float32)
        # astype, because a parameter that is a Python float would make the reward weakly typed.
        reward = jnp.asarray(reward).astype(jnp.float32)
        return state.position, state, reward, terminated, {"discount": discount}


class CliffWalking(_Gridworld):
    """The cliff of S&B Example 6.6, 4 x 12 cells: from (3, 0) to (3, 11) along the cliff between.

    | the move leads to     | next cell | reward                    | terminated |
    |-----------------------|-----------|---------------------------|------------|
    | (3, 1) .. (3, 10)     | (3, 0)    | `cliff_reward` (-100)     | no         |
    | (3, 11)               | (3, 11)   | `step_reward` (-1)        | yes        |
    | another cell          | that cell | `step_reward` (-1)        | no         |
    | beyond the grid       | no move   | `step_reward` (-1)        | no         |

    Observation: int32 [], the cell's index in 0..47. Actions 0..3. Deterministic.
    """

    rows, columns, start, goal = 4, 12, 36, 47
    default_params = property(lambda self: CliffWalkingParams())

    def step_env(self, key: jax.Array, state: EnvState, action: Any, params: Any) -> Step:
        del key
        # Comparisons instead of a look-up of MOVES: all is fused into one elementwise kernel.
        down = jnp.where(action == DOWN, 1, jnp.where(action == UP, -1, 0))
        right = jnp.where(action == RIGHT, 1, jnp.where(action == LEFT, -1, 0))
        row = jnp.clip(state.position // self.columns + down, 0, self.rows - 1)
        column = jnp.clip(state.position % self.columns + right, 0, self.columns - 1)
        fell = (row == self.rows - 1) & (column > 0) & (column < self.columns - 1)
        column = jnp.where(fell, 0, column)  # the start is in the cliff's own row
        reward = jnp.where(fell, params.cliff_reward, params.step_reward)
        return self._arrive(state, row, column, reward, params)


class WindyGridworld(_Gridworld):
    """The windy gridworld of S&B Example 6.5, 7 x 10 cells: from (3, 0) to (3, 7), -1 a step.

        row' = clip(row + move_row - wind(column), 0, 6)
        column' = clip(column + move_column, 0, 9)

    where wind = 0 0 0 1 1 1 2 2 1 0 in the column that the agent leaves. Observation: int32 [], the
    cell's index in 0..69. Actions 0..3; `kings_moves` adds 4..7 and `with_stay` 8 (Exercise 6.9).
    With `stochastic_wind` a wind that is not 0 is changed by -1, 0 or +1, 1/3 each (Exercise 6.10).
    Raises ValueError for `with_stay` without `kings_moves`.
    """

    rows, columns, start, goal = 7, 10, 30, 37

    def __init__(self, kings_moves: bool = False, with_stay: bool = False, stochastic_wind: bool = False):
        if with_stay and not kings_moves:
            raise ValueError("with_stay=True needs kings_moves=True: staying is the ninth action, after 8 moves.")
        self.stochastic_wind = stochastic_wind
        self._num_actions = 4 + 4 * kings_moves + with_stay

    def step_env(self, key: jax.Array, state: EnvState, action: Any, params: Any) -> Step:
        row, column = state.position // self.columns, state.position % self.columns
        move = jnp.asarray(np.array(MOVES, np.int32))[action]
        wind = jnp.asarray(np.array(WIND, np.int32))[column]
        if self.stochastic_wind:
            # The remainder of 32 bits is uniform to 2^-32, in one draw where randint takes two.
            gust = (jax.random.bits(key, dtype=jnp.uint32) % 3).astype(jnp.int32) - 1
            wind = wind + jnp.where(wind > 0, gust, 0)
        row = jnp.clip(row + move[0] - wind, 0, self.rows - 1)
        column = jnp.clip(column + move[1], 0, self.columns - 1)
        return self._arrive(state, row, column, params.step_reward, params)
