"""The mazes of Sutton & Barto, chapter 8, of which two change."""

from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gymnax.environments import environment
from jaxtyping import Array, Int

from purerl.envs.finite import Outcomes, certain
from purerl.envs.gridworlds import Gridworld


def _walls(*cells: tuple[slice | int, slice | int]) -> np.ndarray:
    """Return a maze of 6 x 9 cells with walls in these."""
    maze = np.zeros((6, 9), bool)
    for cell in cells:
        maze[cell] = True
    return maze


# Start, goal, walls, and the walls that take their place later (S&B Figures 8.2, 8.4 and 8.5; without change the same).
MAZES = {
    "dyna": (18, 8, _walls((slice(1, 4), 2), (4, 5), (slice(0, 3), 7)), None),
    "blocking": (48, 8, _walls((3, slice(0, 8))), _walls((3, slice(1, 9)))),
    "shortcut": (48, 8, _walls((3, slice(1, 9))), _walls((3, slice(1, 8)))),
}


@no_type_check
@struct.dataclass
class DynaMazeParams(environment.EnvParams):
    """The walls, bool [6, 9], traced: so a maze changes during a run; and a time limit."""

    walls: Any = None
    max_steps_in_episode: int | jax.Array = 10_000


class DynaMaze(Gridworld):
    """The mazes of S&B chapter 8, 6 x 9 cells: 0 a step and 1 at the goal, (0, 8); moves into walls do nothing.

    `maze` is "dyna" (Figure 8.2), or "blocking" or "shortcut" (Figures 8.4 and 8.5): the way is closed and another
    opened, or a shorter one opened besides, by going on with `changed_params`. Observation: int32 [], the cell's index
    in 0..53. Actions 0..3. Raises ValueError for another maze.
    """

    rows, columns = 6, 9

    def __init__(self, maze: str = "dyna"):
        if not isinstance(maze, str) or maze not in MAZES:
            raise ValueError(f"maze is {maze!r}; it takes {', '.join(MAZES)}")
        self.start, self.goal, self._before, self._after = MAZES[maze]

    @property
    def default_params(self) -> DynaMazeParams:
        return DynaMazeParams(walls=jnp.asarray(self._before))

    @property
    def changed_params(self) -> DynaMazeParams:
        """The parameters after the change. Raises ValueError for the maze that does not change."""
        if self._after is None:
            raise ValueError('maze is "dyna", which does not change; it takes blocking or shortcut')
        return DynaMazeParams(walls=jnp.asarray(self._after))

    def outcomes(self, position: Int[Array, ""], action: Int[Array, ""], params: Any) -> Outcomes:
        row, column = self.moved(position, action)
        there = jnp.where(params.walls[row, column], position, self.index(row, column))
        return certain(there, jnp.where(there == self.goal, 1.0, 0.0))
