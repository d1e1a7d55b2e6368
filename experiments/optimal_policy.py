"""The optimal policy of a finite MDP: Bellman's equation solved exactly, and drawn.

Any environment that can be enumerated: purerl's gridworlds, mazes and chains, and FrozenLake. Grids are drawn as such,
with V* in each cell and an arrow for every optimal action; of others V* is drawn over the states.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from purerl import cli, envs, parts, planning, plots
from purerl.mdps import MDP, Successors

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Place):
    """The flags."""

    env: str = "FrozenLake-misc"  # name of an environment that can be enumerated
    discount: float = 0.99  # gamma, [0, 1]


def reachable(mdp: MDP) -> np.ndarray:
    """Return whether an episode can come to each state, bool [S]: not into walls."""
    assert isinstance(mdp.transition, Successors)  # enumerated
    reached = np.asarray(mdp.start) > 0
    successors, possible = np.asarray(mdp.transition.state), np.asarray(mdp.transition.probability) > 0
    while True:
        going_on = reached & ~np.asarray(mdp.terminal)
        before = reached.sum()
        reached[successors[going_on][possible[going_on]]] = True
        if reached.sum() == before:
            return reached


def draw_grid(axes: Axes, grid: Any, mdp: MDP, solution: planning.Solution) -> None:
    """Draw V* as the colour of cells, and the optimal actions as arrows; cells that nobody comes to are grey."""
    shape, inside = (grid.rows, grid.columns), reachable(mdp)
    value = np.where(inside & ~np.asarray(mdp.terminal), solution.value, np.nan).reshape(shape)
    axes.set_facecolor("#cbd5e0")
    image = axes.imshow(value, cmap="cividis")
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label="V*")
    middle = np.nanmin(value) + 0.5 * (np.nanmax(value) - np.nanmin(value))
    best = np.asarray(planning.optimal_actions(solution.action_value))
    for state in np.flatnonzero(inside):
        row, column = divmod(int(state), grid.columns)
        if mdp.terminal[state]:
            axes.text(column, row, "end", ha="center", va="center", fontsize=8, color=plots.TEXT)
            continue
        ink = "white" if value[row, column] < middle else "black"
        for action in np.flatnonzero(best[state]):
            down, right = grid.moves[action]
            if down or right:
                arrow = {"arrowstyle": "->", "color": ink, "lw": 1.2}
                axes.annotate("", (column + 0.42 * right, row + 0.42 * down), (column, row), arrowprops=arrow)
            else:
                axes.plot(column, row, "o", color=ink, markersize=4)  # to stay
    axes.set(xticks=[], yticks=[])


def draw_chain(axes: Axes, mdp: MDP, solution: planning.Solution) -> None:
    """Draw V* over the numbers of the states, but for those where episodes end."""
    value = np.where(mdp.terminal, np.nan, solution.value)
    axes.plot(np.arange(len(value)), value, ".-", color=plots.LINE, linewidth=1)
    axes.set(xlabel="state", ylabel="V*")


def main(settings: Settings) -> None:
    """Solve, and tell what came of it."""
    with cli.bad_input():
        env = envs.create(settings.env)
        mdp = envs.enumerate_mdp(env)
        solution = planning.value_iteration(*mdp.arrays, settings.discount)
    folder = parts.opened(settings, "optimal_policy", settings.env)
    if folder.finished:
        return
    with folder:
        tell(settings, env, mdp, solution, folder)


def tell(settings: Settings, env: Any, mdp: MDP, solution: planning.Solution, folder: parts.Parts) -> None:
    """Print what came of it, save the picture, write the results."""
    start = float(np.sum(np.asarray(mdp.start) * np.asarray(solution.value)))
    print(f"{settings.env}, gamma {settings.discount:g}: {len(mdp.terminal)} states, {env.num_actions} actions")
    print(f"V* of the start {start:.6f}; {int(solution.iterations)} sweeps, residual {float(solution.residual):.1e}")
    grid = envs.grid_of(env)
    figure = plots.new_figure(*((1.5 + 0.6 * grid.columns, 1.0 + 0.6 * grid.rows) if grid else (7.0, 4.0)))
    axes = figure.add_subplot()
    if grid:
        draw_grid(axes, grid, mdp, solution)
    else:
        draw_chain(axes, mdp, solution)
    axes.set_title(f"{settings.env}, $\\gamma$ = {settings.discount:g}", loc="left", fontsize=10, color=plots.TEXT)
    plots.save(figure, folder.directory / "optimal_policy.png")
    folder.finish(
        {name: np.asarray(getattr(solution, name)) for name in ("value", "action_value", "policy")},
        {"agent": "value iteration", "env": settings.env, "seeds": 1, "start_value": start},
        ["optimal_policy.png"],
    )


if __name__ == "__main__":
    cli.start(main, Settings)
