"""Episodes as GIFs: grids and classic control drawn here, games and others by gymnax's visualiser."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.environment import Environment
from gymnax.environments.misc.frozen_lake import GOAL, HOLE, START, FrozenLake
from jaxtyping import Float, PyTree

from purerl.checks import require_kind
from purerl.envs.canvas import BLUE, GREEN, GRID, INK, ORANGE, PALE, RED, Canvas, gif
from purerl.envs.finite import EnvState
from purerl.envs.gridworlds import WIND, CliffWalking, Gridworld, JumpingGridworld, WindyGridworld, grid_of
from purerl.envs.mazes import DynaMaze

# What gymnax's visualiser draws. It also draws classic control, by way of packages that purerl does without.
BY_GYMNAX = (
    *(f"{game}-MinAtar" for game in ("Asterix", "Breakout", "Freeway", "Seaquest", "SpaceInvaders")),
    *("Catch-bsuite", "FourRooms-misc", "MetaMaze-misc", "PointRobot-misc", "Pong-misc"),
)


class Scene(NamedTuple):
    """How to draw one environment: what is to be seen, for how long, and `draw(canvas, states, step)`."""

    view: tuple[float, float, float, float]  # left, right, bottom, top
    milliseconds: int
    draw: Callable[[Canvas, Any, int], None]


def can_be_drawn(environment: Environment) -> bool:
    """Return whether `animate` knows the environment."""
    _require_environment(environment)
    return environment.name in (*BY_GYMNAX, *_SCENES) or grid_of(environment) is not None


def animate(environment: Environment, params: PyTree, states: PyTree, returns: Float[np.ndarray, " T"]) -> bytes:
    """Return a GIF of an episode: a picture for each of T states (leaves [T, ...]), with the returns up to it.

    Raises ValueError for an environment that cannot be drawn.
    """
    _require_environment(environment)
    if not len(returns):
        raise ValueError("returns is empty; it takes one for each picture, of which there is at least one")
    states = jax.tree.map(np.asarray, states)
    scene = _scene(environment, params)
    if scene is not None:
        return gif(_pictures(scene, environment.name, states, returns), scene.milliseconds)
    if environment.name in BY_GYMNAX:
        return _by_gymnax(environment, params, states, returns)
    raise ValueError(
        f"env is {environment.name}, which cannot be drawn; grids, {', '.join((*_SCENES, *BY_GYMNAX))} can"
    )


def _require_environment(environment: Any) -> None:
    require_kind("environment", environment, Environment, wanted="an environment of gymnax's, as envs.create returns")


def _caption(step: int, total: float) -> str:
    return f"step {step}   return {total:,.1f}"


def _pictures(scene: Scene, name: str, states: Any, returns: np.ndarray) -> Iterator[Any]:
    for step, total in enumerate(returns):
        canvas = Canvas(*scene.view)
        scene.draw(canvas, states, step)
        yield canvas.picture(name, _caption(step, total))


def _by_gymnax(environment: Environment, params: PyTree, states: Any, returns: np.ndarray) -> bytes:
    from gymnax.visualize import Visualizer

    class Titled(Visualizer):
        def update(self, frame: int) -> None:
            super().update(frame)
            # gymnax's own title counts the first picture, of which nothing has been done yet, as step 1.
            self.ax.set_title(f"{environment.name}   {_caption(frame, returns[frame])}", fontsize=13)

    each = [jax.tree.map(lambda leaf, step=step: leaf[step], states) for step in range(len(returns))]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "episode.gif"
        Titled(environment, params, each, returns).animate(str(file))
        return file.read_bytes()


# --- classic control ------------------------------------------------------------------------------------------------


def _cart_pole(params: Any) -> Scene:
    edge, length = float(params.x_threshold), 2 * float(params.length)

    def draw(canvas: Canvas, states: Any, step: int) -> None:
        x, angle = float(states.x[step]), float(states.theta[step])
        canvas.line([(-1.1 * edge, 0), (1.1 * edge, 0)], GRID)
        for end in (-edge, edge):
            canvas.line([(end, -0.12), (end, 0.12)], RED)
        canvas.rectangle(x - 0.25, x + 0.25, -0.15, 0.15, INK)
        canvas.line([(x, 0.1), (x + length * np.sin(angle), 0.1 + length * np.cos(angle))], ORANGE, 9)
        canvas.circle((x, 0.1), 0.04, PALE)

    return Scene((-1.1 * edge, 1.1 * edge, -0.35, 0.3 + length), 20, draw)


def _acrobot(params: Any) -> Scene:
    first, second = float(params.link_length_1), float(params.link_length_2)
    reach = 1.08 * (first + second)

    def draw(canvas: Canvas, states: Any, step: int) -> None:
        one, both = states.joint_angle1[step], states.joint_angle1[step] + states.joint_angle2[step]
        elbow = float(first * np.sin(one)), float(-first * np.cos(one))
        tip = elbow[0] + float(second * np.sin(both)), elbow[1] - float(second * np.cos(both))
        canvas.line([(-reach, 1.0), (reach, 1.0)], GREEN)  # what the tip is to rise above
        canvas.line([(0, 0), elbow], BLUE, 10)
        canvas.line([elbow, tip], ORANGE, 10)
        for joint in ((0.0, 0.0), elbow):
            canvas.circle(joint, 0.05, INK)

    return Scene((-reach, reach, -reach, reach), 50, draw)


def _pendulum(params: Any) -> Scene:
    length, most = float(params.l), float(params.max_torque)
    reach = 1.15 * length

    def draw(canvas: Canvas, states: Any, step: int) -> None:
        angle, torque = float(states.theta[step]), float(np.ravel(states.last_u)[step])
        canvas.line([(0, 0), (0, length)], PALE)  # where it is to stand
        canvas.line([(0, 0), (-length * np.sin(angle), length * np.cos(angle))], BLUE, 14)
        turned = np.linspace(0, torque / most * np.pi / 2, 30) - np.pi / 2
        arc = [(0.4 * length * np.cos(turn), 0.4 * length * np.sin(turn)) for turn in turned]
        if abs(torque) > 0.01 * most:
            canvas.line(arc, ORANGE, 3)
            canvas.circle(arc[-1], 0.03 * length, ORANGE)
        canvas.circle((0, 0), 0.05 * length, INK)

    return Scene((-reach, reach, -reach, reach), 50, draw)


def _mountain_car(params: Any) -> Scene:
    left, right, goal = float(params.min_position), float(params.max_position), float(params.goal_position)

    def height(x: Any) -> Any:
        return np.sin(3 * x) * 0.45 + 0.55

    def draw(canvas: Canvas, states: Any, step: int) -> None:
        x = float(states.position[step])
        across = np.linspace(left, right, 80)
        hill = list(zip(across.tolist(), height(across).tolist(), strict=True))
        canvas.polygon([(left, 0), *hill, (right, 0)], PALE)
        canvas.line(hill, INK)
        top = float(height(goal))
        canvas.line([(goal, top), (goal, top + 0.16)], INK)
        canvas.polygon([(goal, top + 0.16), (goal, top + 0.09), (goal + 0.08, top + 0.125)], GREEN)
        canvas.circle((x, float(height(x)) + 0.04), 0.04, ORANGE)

    return Scene((left, right, 0.0, 1.22), 40, draw)


_SCENES: dict[str, Callable[[Any], Scene]] = {
    "Acrobot-v1": _acrobot,
    "CartPole-v1": _cart_pole,
    "MountainCar-v0": _mountain_car,
    "MountainCarContinuous-v0": _mountain_car,
    "Pendulum-v1": _pendulum,
}


# --- grids ----------------------------------------------------------------------------------------------------------


def _scene(environment: Environment, params: PyTree) -> Scene | None:
    grid = grid_of(environment)
    if grid is None:
        return _SCENES[environment.name](params) if environment.name in _SCENES else None
    faces, labels = _cells(environment, params)

    def centre(cell: int) -> tuple[float, float]:
        return float(cell % grid.columns), -float(cell // grid.columns)

    def draw(canvas: Canvas, states: Any, step: int) -> None:
        for cell in range(grid.rows * grid.columns):
            x, y = centre(cell)
            canvas.rectangle(x - 0.5, x + 0.5, y - 0.5, y + 0.5, faces.get(cell, "white"), GRID)
        walk = [centre(int(cell)) for cell in states.position[: step + 1]]
        canvas.line(walk, "#90cdf4", 4)
        canvas.circle(walk[-1], 0.3, BLUE)
        for cell, label in labels.items():
            here = cell == int(states.position[step])
            canvas.text(centre(cell), label, "white" if here or faces.get(cell) in _DARK else INK)

    return Scene((-0.5, grid.columns - 0.5, 0.5 - grid.rows, 0.5), 160, draw)


_DARK = (INK, RED)


def _cells(environment: Environment, params: Any) -> tuple[dict[int, str], dict[int, str]]:
    """Return the colours and the labels of cells that have some."""
    if isinstance(environment, FrozenLake):
        tiles = np.asarray(environment.desc).ravel()
        faces = {START: "white", HOLE: INK, GOAL: "#9ae6b4"}
        labels = {START: "S", HOLE: "hole", GOAL: "G"}
        known = [(cell, int(tile)) for cell, tile in enumerate(tiles) if int(tile) in faces]
        return {cell: faces[tile] for cell, tile in known}, {cell: labels[tile] for cell, tile in known}
    assert isinstance(environment, Gridworld)
    cells = jnp.arange(environment.num_states)
    at = EnvState(time=jnp.zeros_like(cells), position=cells)  # pyright: ignore[reportArgumentType]
    ends = jax.vmap(lambda state: environment.is_terminated(state, params))(at)
    goals = np.flatnonzero(np.asarray(ends)).tolist()
    faces, labels = dict.fromkeys(goals, "#9ae6b4"), dict.fromkeys(goals, "G")
    starts = environment.starts(params)
    if isinstance(starts, int):
        labels[starts] = "S"
    if isinstance(environment, CliffWalking):
        faces |= dict.fromkeys(range(37, 47), RED)
    if isinstance(environment, WindyGridworld):
        faces |= {cell: ("#edf2f7", PALE)[WIND[cell % 10] - 1] for cell in range(70) if WIND[cell % 10]}
        faces |= dict.fromkeys(goals, "#9ae6b4")
        labels |= {60 + column: "↑" * wind for column, wind in enumerate(WIND) if wind}
    if isinstance(environment, JumpingGridworld):
        faces |= {1: "#fbd38d", 21: "#feebc8", 3: "#d6bcfa", 13: "#e9d8fd"}
        labels |= {1: "A", 21: "A'", 3: "B", 13: "B'"}
    if isinstance(environment, DynaMaze):
        faces |= dict.fromkeys(np.flatnonzero(np.asarray(params.walls)).tolist(), INK)
    return faces, labels
