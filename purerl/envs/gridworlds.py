"""The gridworlds of Sutton & Barto, which gymnax lacks: of chapters 3, 4, 6 and 8.

A cell (row, column) has the index row * columns + column, row 0 on top. Moves are numbered as
gymnasium numbers those of its CliffWalking, and then clockwise:

| action | 0  | 1     | 2    | 3    | 4        | 5          | 6         | 7       | 8    |
|--------|----|-------|------|------|----------|------------|-----------|---------|------|
| move   | up | right | down | left | up-right | down-right | down-left | up-left | stay |
"""

from typing import Any, NamedTuple, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment
from gymnax.environments.misc.frozen_lake import FrozenLake
from jaxtyping import Array, Bool, Float, Int

from purerl.checks import require_flag, require_kind
from purerl.envs.finite import EnvState, FiniteEnvironment, Outcomes, certain

UP, RIGHT, DOWN, LEFT = range(4)
# (change of row, change of column) of each action in the table above.
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1), (-1, 1), (1, 1), (1, -1), (-1, -1), (0, 0))
# Rows by which the wind lifts an agent that leaves the column (S&B Example 6.5).
WIND = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)


# The fields of a pytree also hold axes and shapes (vmap's in_axes, eval_shape): not type-checked.
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


class Gridworld(FiniteEnvironment):
    """What they share: cells, one start, one goal, the cell's index as observation."""

    rows: int
    columns: int
    start: int
    goal: int
    num_states = property(lambda self: self.rows * self.columns)  # pyright: ignore[reportAssignmentType]
    default_params = property(lambda self: EnvParams())

    def starts(self, params: Any) -> int:
        del params
        return self.start

    def is_terminated(self, state: EnvState, params: Any) -> Bool[Array, ""]:
        del params
        return state.position == self.goal

    def moved(self, position: Int[Array, ""], action: Int[Array, ""]) -> tuple[Array, Array]:
        """Return (row, column) after one of the first four moves, within the grid."""
        # Comparisons instead of a look-up of MOVES: all is fused into one elementwise kernel.
        down = jnp.where(action == DOWN, 1, jnp.where(action == UP, -1, 0))
        right = jnp.where(action == RIGHT, 1, jnp.where(action == LEFT, -1, 0))
        row, column = self.cell(position)
        return jnp.clip(row + down, 0, self.rows - 1), jnp.clip(column + right, 0, self.columns - 1)

    def cell(self, position: Int[Array, ""]) -> tuple[Array, Array]:
        """Return (row, column) of an index."""
        return position // self.columns, position % self.columns

    def index(self, row: Int[Array, "*K"], column: Int[Array, "*K"]) -> Int[Array, "*K"]:
        """Return the index of a cell, or of the nearest one if it is beyond the grid."""
        row, column = jnp.clip(row, 0, self.rows - 1), jnp.clip(column, 0, self.columns - 1)
        return row * self.columns + column


class CliffWalking(Gridworld):
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

    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: Any) -> Outcomes:
        row, column = self.moved(position, action)
        fell = (row == self.rows - 1) & (column > 0) & (column < self.columns - 1)
        column = jnp.where(fell, 0, column)  # the start is in the cliff's own row
        return certain(self.index(row, column), jnp.where(fell, params.cliff_reward, params.step_reward))


class WindyGridworld(Gridworld):
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
        flags = {"kings_moves": kings_moves, "with_stay": with_stay, "stochastic_wind": stochastic_wind}
        for name, flag in flags.items():
            require_flag(name, flag)
        if with_stay and not kings_moves:
            raise ValueError("with_stay=True needs kings_moves=True: staying is the ninth action, after 8 moves.")
        self.stochastic_wind = stochastic_wind
        self._num_actions = 4 + 4 * kings_moves + with_stay

    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: Any) -> Outcomes:
        row, column = self.cell(position)
        down, right = jnp.moveaxis(jnp.asarray(np.array(MOVES, np.int32))[action], -1, 0)
        wind = jnp.asarray(np.array(WIND, np.int32))[column]
        gusts = jnp.array([-1, 0, 1]) if self.stochastic_wind else jnp.zeros(1, jnp.int32)
        blown = self.index(
            row + down - wind - jnp.where(wind > 0, gusts, 0), jnp.broadcast_to(column + right, gusts.shape)
        )
        alike = jnp.full(gusts.shape, 1 / gusts.size)
        return Outcomes(blown, alike, jnp.full(gusts.shape, params.step_reward))


class CornerGridworld(Gridworld):
    """The 4 x 4 gridworld of S&B Example 4.1: -1 a step until one of two opposite corners, 0 and 15, is reached.

    Episodes start in any other cell, all alike. Observation: int32 [], the cell's index in 0..15. Actions 0..3.
    """

    rows, columns = 4, 4

    def starts(self, params: Any) -> Float[Array, " S"]:
        del params
        return jnp.full(16, 1 / 14).at[jnp.array([0, 15])].set(0.0)

    def is_terminated(self, state: EnvState, params: Any) -> Bool[Array, ""]:
        del params
        return (state.position == 0) | (state.position == 15)

    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: Any) -> Outcomes:
        return certain(self.index(*self.moved(position, action)), params.step_reward)


@no_type_check
@struct.dataclass
class JumpingGridworldParams(environment.EnvParams):
    """Traced numbers: what leaving the grid costs, and what the two jumps bring; and a time limit, the only end."""

    max_steps_in_episode: int | jax.Array = 1_000
    wall_reward: float | jax.Array = -1.0
    first_reward: float | jax.Array = 10.0
    second_reward: float | jax.Array = 5.0


class JumpingGridworld(Gridworld):
    """The 5 x 5 gridworld of S&B Example 3.5, which never ends.

    | in          | any action leads to | reward                |
    |-------------|---------------------|-----------------------|
    | A, (0, 1)   | A', (4, 1)          | `first_reward` (10)   |
    | B, (0, 3)   | B', (2, 3)          | `second_reward` (5)   |

    Elsewhere moves give 0, and those beyond the grid `wall_reward` (-1) and no move. Episodes start in any cell, all
    alike. Observation: int32 [], the cell's index in 0..24. Actions 0..3.
    """

    rows, columns = 5, 5
    default_params = property(lambda self: JumpingGridworldParams())

    def starts(self, params: Any) -> Float[Array, " S"]:
        del params
        return jnp.full(25, 1 / 25)

    def is_terminated(self, state: EnvState, params: Any) -> Bool[Array, ""]:
        del state, params
        return jnp.bool_(False)

    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: Any) -> Outcomes:
        there = self.index(*self.moved(position, action))
        reward = jnp.where(there == position, params.wall_reward, 0.0)
        for jump, target, gain in ((1, 21, params.first_reward), (3, 13, params.second_reward)):
            there, reward = jnp.where(position == jump, target, there), jnp.where(position == jump, gain, reward)
        return certain(there, reward)


class Grid(NamedTuple):
    """How the states of an environment lie in the plane: state row * columns + column, and where actions lead."""

    rows: int
    columns: int
    moves: tuple[tuple[int, int], ...]  # of each action: (change of row, change of column)


def grid_of(env: environment.Environment) -> Grid | None:
    """Return the grid that an environment's states form, purerl's or FrozenLake's; None if they form none.

    Raises TypeError for what is no single environment, as `envs.create` returns it.
    """
    require_kind("env", env, environment.Environment, wanted="a single environment, as envs.create(name) returns")
    if isinstance(env, Gridworld):
        return Grid(env.rows, env.columns, MOVES[: env.num_actions])
    if isinstance(env, FrozenLake):
        return Grid(env.nrow, env.ncol, (MOVES[LEFT], MOVES[DOWN], MOVES[RIGHT], MOVES[UP]))
    return None
