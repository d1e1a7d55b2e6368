"""On-policy against off-policy on the cliff (Sutton & Barto, Example 6.6): the safe path, the edge, and what they earn.

Q-learning, SARSA and Expected SARSA learn CliffWalking while they explore. Prints what the last episodes returned and
how long the greedy paths are, and saves one picture: learning curves, and the greedy paths on the grid.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from purerl import cli, driver, envs, guards, loop, parts, plots, rollout, scores, tables
from purerl.agents import expected_sarsa, q_learning, sarsa
from purerl.base import Agent, cast_hypers, require_count
from purerl.checks import require_number
from purerl.metrics import Progress

AGENTS = {
    "Q-learning": q_learning.q_learning,
    "SARSA": sarsa.sarsa,
    "Expected SARSA": expected_sarsa.expected_sarsa,
}
GRID, START, GOAL, CLIFF = (4, 12), 36, 47, range(37, 47)
CHUNK = 1_000  # steps between looks at how many episodes are done
LONGEST = 100  # steps of a greedy path; one that has not arrived by then walks in circles
PER_POINT = 10  # episodes in a point of the curves


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Place):
    """The flags; by default the book's experiment, over more runs."""

    seeds: int = 200  # independent runs of each agent
    episodes: int = 500  # episodes of each run
    seed: int = 0  # what all keys are made of
    hypers: tables.Hypers = tables.Hypers()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"seeds": 2, "episodes": PER_POINT, "seed": 0}.items():
            require_count(name, getattr(self, name), least=least)


class Trained(NamedTuple):
    """What became of the seeds of one agent."""

    returns: np.ndarray  # [seeds, episodes]
    walks: np.ndarray  # [seeds, LONGEST + 1] the cells of a greedy walk after the last episode; it stays at the goal
    diverged: np.ndarray  # bool [seeds]


def train(keys: Key[Array, " seeds"], settings: Settings, env: envs.Env, agent: Agent, name: str) -> loop.Run:
    """Return the runs of all seeds, each after so many episodes and not a step more."""

    def begin(key, hypers):
        return loop.begin(key, agent, env, hypers, episode_table=settings.episodes)

    def advance(run, hypers):
        def step(run, _):
            further, _ = loop.advance(run, agent, env, hypers, iterations=1)
            enough = run.table.count >= settings.episodes
            return jax.tree.map(lambda new, old: jnp.where(enough, old, new), further, run), None

        return jax.lax.scan(step, run, length=CHUNK)[0]

    hypers = cast_hypers(settings.hypers)
    run = jax.jit(jax.vmap(begin, (0, None)))(keys, hypers)
    further = jax.jit(jax.vmap(advance, (0, None)), donate_argnums=0)
    with Progress(settings.seeds * settings.episodes, description=name, unit="episodes") as progress:
        while (episodes := np.asarray(run.table.count)).min() < settings.episodes:
            run = further(run, hypers)
            progress.update(episodes.sum())
        progress.update(episodes.sum())
    return run


def look_at(run: loop.Run, keys: Key[Array, " seeds"], settings: Settings, env: envs.Env, agent: Agent) -> Trained:
    """Let each seed walk once without exploring, and return that with what it earned when it did explore."""

    def walk(key, state, hypers):
        start_key, step_key = jax.random.split(key)
        episodes = rollout.start(start_key, agent, env, env.params)
        keys = rollout.step_keys(step_key, LONGEST)
        _, experience, _ = rollout.unroll(keys, agent, state, env, env.params, episodes, hypers, greedy=True)
        steps = jax.tree.map(lambda leaf: leaf[:, 0], experience.steps)
        arrived = jnp.cumsum(steps.terminated) > 0
        return jnp.concatenate([steps.observation[:1], jnp.where(arrived, GOAL, steps.next_observation)])

    walks = jax.jit(jax.vmap(walk, (0, 0, None)))(keys, run.agent, cast_hypers(settings.hypers))
    returns = np.asarray(run.table.episode_return)
    diverged = np.asarray(guards.has_nan(run.agent)) | ~np.isfinite(returns).all(axis=1)
    return Trained(returns=returns, walks=np.asarray(walks), diverged=diverged)


def learned(settings: Settings, env: envs.Env, name: str) -> dict[str, np.ndarray]:
    """Train the seeds of one agent, and return what became of them."""
    keys, agent = jax.vmap(jax.random.split)(driver.seed_keys(settings.seed, settings.seeds)), AGENTS[name](env.spec)
    run = train(keys[:, 0], settings, env, agent, name)
    return look_at(run, keys[:, 1], settings, env, agent)._asdict()


def describe(trained: Trained) -> dict[str, Any]:
    """Return the online return of the last 100 episodes, by seed, and how many greedy paths have which length.

    Seeds that diverged count for neither.
    """
    late = trained.returns[:, -100:].mean(axis=1)
    kept, walks = late[~trained.diverged], trained.walks[~trained.diverged]
    arrived = walks[:, -1] == GOAL
    lengths = collections.Counter(np.sum(walks[arrived, :-1] != GOAL, axis=1).tolist())
    return {
        "episode_return": np.where(trained.diverged, np.nan, late),
        "mean": kept.mean() if kept.size else None,
        "mean_ci95": scores.bootstrap_interval(kept, np.mean) if kept.size > 1 else (None, None),
        "greedy_path_steps": {str(steps): lengths[steps] for steps in sorted(lengths)},
        "greedy_path_in_circles": int(np.sum(~arrived)),
        "diverged": np.flatnonzero(trained.diverged),
    }


def sentence(summary: dict[str, Any]) -> str:
    """Return a line of the printed table."""
    low, high = summary["mean_ci95"]
    interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    mean = "   none" if summary["mean"] is None else f"{summary['mean']:7.2f}"
    paths = [f"{steps} steps x {count}" for steps, count in summary["greedy_path_steps"].items()]
    if summary["greedy_path_in_circles"]:
        paths.append(f"in circles x {summary['greedy_path_in_circles']}")
    if len(summary["diverged"]):
        paths.append(f"diverged x {len(summary['diverged'])}")
    return f"{mean}{interval}   greedy path: {', '.join(paths)}"


def picture(trained: dict[str, Trained], path: Path) -> None:
    """Save the learning curves, and below them the greedy paths of each agent."""
    figure = plots.new_figure(9.0, 5.8)
    grid = figure.add_gridspec(2, len(AGENTS), height_ratios=(3.7, 1.0))
    axes = figure.add_subplot(grid[0, :])
    seeds, episodes = next(iter(trained.values())).returns.shape
    points = {
        name: one.returns[:, : episodes // PER_POINT * PER_POINT].reshape(seeds, -1, PER_POINT).mean(axis=2)
        for name, one in trained.items()
    }
    x = (np.arange(episodes // PER_POINT) + 0.5) * PER_POINT
    plots.comparison(axes, x, points, xlabel="episode", ylabel=f"return while exploring, mean of {PER_POINT} episodes")
    # The first episodes are far below all others; but what there is must be seen.
    last = [points[name][~one.diverged, -1] for name, one in trained.items()]
    worst = min((values.mean() for values in last if values.size), default=0.0)
    axes.set_ylim(min(-100.0, 1.5 * worst), 0.0)
    axes.set_title(f"CliffWalking, {seeds} seeds, 95 % intervals", loc="left", fontsize=12, fontweight="bold")
    for number, (name, one) in enumerate(trained.items()):
        place, color = figure.add_subplot(grid[1, number]), plots.COLORS[number]
        ends = [list(dict.fromkeys(row.tolist())) for row in one.walks[~one.diverged] if row[-1] == GOAL]
        labels = {START: "S", GOAL: "G"}
        plots.grid_paths(place, GRID, ends, color=color, shaded=CLIFF, labels=labels)
        place.text(5.5, 3, "cliff", ha="center", va="center", fontsize=8, color=plots.TEXT)
        others = {"walk in circles": seeds - len(ends) - one.diverged.sum(), "diverged": one.diverged.sum()}
        told = "".join(f"; {count} {what}" for what, count in others.items() if count)
        place.set_title(f"{name}: greedy paths\nof {len(ends)} of {seeds} seeds{told}", fontsize=9)
    plots.save(figure, path)


def main(settings: Settings) -> None:
    """Train all three, and tell what came of it."""
    with cli.bad_input():
        env = envs.make("CliffWalking-purerl", 1)
        cli.require_sensible(settings.hypers)
        require_number("hypers.exploration", settings.hypers.exploration, least=0.0, most=1.0)  # epsilon
        driver.seed_keys(settings.seed, settings.seeds)  # of 32 bits
    folder = parts.opened(settings, "cliff_walking", env.name)
    if folder.finished:
        return
    with folder:
        trained = {
            name: Trained(**folder.part(name, functools.partial(learned, settings, env, name))) for name in AGENTS
        }
        tell(trained, settings, env, folder)


def tell(trained: dict[str, Trained], settings: Settings, env: envs.Env, folder: parts.Parts) -> None:
    """Print a table, save the picture, write the results."""
    summary = {name: describe(one) for name, one in trained.items()}
    last = min(100, settings.episodes)
    print(f"return of the last {last} of {settings.episodes} episodes, mean of {settings.seeds} seeds [95 % interval]")
    for name, line in summary.items():
        print(f"{name:15s} {sentence(line)}")
    picture(trained, folder.directory / "cliff_walking.png")
    folder.finish(
        {f"episode_return of {name}": one.returns for name, one in trained.items()},
        {"agent": ", ".join(AGENTS), "env": env.name, "seeds": settings.seeds, "agents": summary},
        ["cliff_walking.png"],
    )


if __name__ == "__main__":
    cli.start(main, Settings)
