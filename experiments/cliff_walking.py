"""On-policy against off-policy on the cliff (Sutton & Barto, Example 6.6): the safe path, the edge, and what they earn.

Q-learning, SARSA and Expected SARSA learn CliffWalking while they explore. Prints what the last episodes returned and
how long the greedy paths are, and saves one picture: learning curves, and the greedy paths on the grid.
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl import cli, driver, envs, loop, plots, results, rollout, scores, tables
from purerl.agents import expected_sarsa, q_learning, sarsa
from purerl.base import cast_hypers
from purerl.metrics import Progress

AGENTS = {
    "Q-learning": q_learning.q_learning,
    "SARSA": sarsa.sarsa,
    "Expected SARSA": expected_sarsa.expected_sarsa,
}
GRID, START, GOAL, CLIFF = (4, 12), 36, 47, range(37, 47)
CHUNK = 5_000  # steps between looks at how many episodes are done
LONGEST = 100  # steps of a greedy path; one that is longer walks in circles
PER_POINT = 10  # episodes in a point of the curves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags; by default the book's experiment, over more runs."""

    seeds: int = 200  # independent runs of each agent
    episodes: int = 500  # episodes of each run
    seed: int = 0  # what all keys are made of
    out: Path | None = None  # run directory; runs/cliff_walking/CliffWalking-purerl/<time> if not given
    hypers: tables.Hypers = tables.Hypers()

    def __post_init__(self) -> None:
        for name, least in {"seeds": 2, "episodes": PER_POINT}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it takes at least {least}")


def train(settings: Settings, env: envs.Env, agent: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the returns of all episodes [seeds, episodes], and the cells of a greedy walk [seeds, LONGEST + 1].

    After the goal a walk stays there.
    """
    hypers = cast_hypers(settings.hypers)
    keys = driver.seed_keys(settings.seed, settings.seeds)

    @jax.jit
    @jax.vmap
    def begin(key):
        return loop.begin(key, agent, env, hypers, episode_table=settings.episodes)

    @jax.jit
    def advance(run, hypers):
        return jax.vmap(lambda run: loop.advance(run, agent, env, hypers, iterations=CHUNK)[0])(run)

    @jax.jit
    @jax.vmap
    def walk(key, state):
        start_key, step_key = jax.random.split(key)
        episodes = rollout.start(start_key, agent, env, env.params)
        keys = rollout.step_keys(step_key, LONGEST)
        _, experience, _ = rollout.unroll(keys, agent, state, env, env.params, episodes, hypers, greedy=True)
        steps = jax.tree.map(lambda leaf: leaf[:, 0], experience.steps)
        arrived = jnp.cumsum(steps.terminated) > 0
        return jnp.concatenate([steps.observation[:1], jnp.where(arrived, GOAL, steps.next_observation)])

    run = begin(keys)
    with Progress(settings.seeds * settings.episodes, description=name) as progress:
        while (done := np.minimum(run.table.count, settings.episodes)).min() < settings.episodes:
            run = advance(run, hypers)
            progress.update(done.sum())
    walks = walk(jax.vmap(jax.random.fold_in, (0, None))(keys, 1), run.agent)
    return np.asarray(run.table.episode_return), np.asarray(walks)


def describe(returns: np.ndarray, walks: np.ndarray) -> dict[str, Any]:
    """Return the online return of the last 100 episodes, by seed, and how many greedy paths have which length."""
    late = returns[:, -100:].mean(axis=1)
    lengths = np.where(walks[:, -1] == GOAL, np.sum(walks[:, :-1] != GOAL, axis=1), 0)
    known = collections.Counter(lengths[lengths > 0].tolist())
    return {
        "episode_return": late,
        "mean": late.mean(),
        "mean_ci95": scores.bootstrap_interval(late, np.mean),
        "greedy_path_steps": {str(steps): known[steps] for steps in sorted(known)},
        "greedy_path_in_circles": int(np.sum(lengths == 0)),
    }


def sentence(summary: dict[str, Any]) -> str:
    """Return a line of the printed table."""
    low, high = summary["mean_ci95"]
    paths = [f"{steps} steps x {count}" for steps, count in summary["greedy_path_steps"].items()]
    if summary["greedy_path_in_circles"]:
        paths.append(f"in circles x {summary['greedy_path_in_circles']}")
    return f"{summary['mean']:7.2f} [{low:.2f}, {high:.2f}]   greedy path: {', '.join(paths)}"


def picture(returns: dict[str, np.ndarray], walks: dict[str, np.ndarray], path: Path) -> None:
    """Save the learning curves, and below them the greedy paths of each agent."""
    figure = plots.new_figure(9.0, 5.8)
    grid = figure.add_gridspec(2, len(AGENTS), height_ratios=(3.7, 1.0))
    axes = figure.add_subplot(grid[0, :])
    points = {
        name: rows[:, : rows.shape[1] // PER_POINT * PER_POINT].reshape(len(rows), -1, PER_POINT).mean(axis=2)
        for name, rows in returns.items()
    }
    x = (np.arange(next(iter(points.values())).shape[1]) + 0.5) * PER_POINT
    plots.comparison(axes, x, points, xlabel="episode", ylabel=f"return while exploring, mean of {PER_POINT} episodes")
    axes.set_ylim(-100, 0)
    seeds = len(next(iter(returns.values())))
    axes.set_title(f"CliffWalking, {seeds} seeds, 95 % intervals", loc="left", fontsize=12, fontweight="bold")
    for number, (name, cells) in enumerate(walks.items()):
        place, color = figure.add_subplot(grid[1, number]), plots.COLORS[number]
        ends = [list(dict.fromkeys(row.tolist())) for row in cells if row[-1] == GOAL]
        labels = {START: "S", GOAL: "G"}
        plots.grid_paths(place, GRID, ends, color=color, shaded=CLIFF, labels=labels)
        place.text(5.5, 3, "cliff", ha="center", va="center", fontsize=8, color=plots.TEXT)
        circles = f"; {seeds - len(ends)} walk in circles" if len(ends) < seeds else ""
        place.set_title(f"{name}: greedy paths\nof {len(ends)} of {seeds} seeds{circles}", fontsize=9)
    plots.save(figure, path)


def main(settings: Settings) -> None:
    """Train all three, print a table, save the picture."""
    try:
        env = envs.make("CliffWalking-purerl", 1)
        cli.require_finite(settings.hypers)
        directory = results.create(settings.out or results.default_directory("cliff_walking", env.name))
    except (ValueError, TypeError, OSError) as error:
        raise cli.BadInput(str(error)) from error
    returns, walks = {}, {}
    for name, factory in AGENTS.items():
        returns[name], walks[name] = train(settings, env, factory(env.spec), name)
    summary = {name: describe(returns[name], walks[name]) for name in AGENTS}
    print(f"return of the last 100 of {settings.episodes} episodes, mean over {settings.seeds} seeds [95 % interval]")
    for name, line in summary.items():
        print(f"{name:15s} {sentence(line)}")
    picture(returns, walks, directory / "cliff_walking.png")
    results.write(
        directory,
        settings=dataclasses.asdict(settings) | {"out": directory, "versions": results.versions()},
        metrics={f"episode_return of {name}": rows for name, rows in returns.items()},
        summary={"env": env.name, "seeds": settings.seeds, "agents": summary, "versions": results.versions()},
    )
    print(f"results in {directory}: cliff_walking.png, summary.json, metrics.npz, settings.json")


if __name__ == "__main__":
    cli.start(main, Settings)
