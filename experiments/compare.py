"""Eight agents on one environment, by the defaults of their scripts: learning curves with intervals on one picture.

An agent that cannot have the environment (tables need numbered states, DQN and QAC discrete actions) is left out, and
says why.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType

# The scripts beside this one.
import a2c
import dqn
import numpy as np
import ppo
import q_actor_critic
import q_learning
import reinforce
import sarsa
import trpo

from purerl import cli, envs, plots, precision, results
from purerl.base import require_count
from purerl.interrupts import Interrupt, Stopped

SCRIPTS: dict[str, ModuleType] = {
    "Q-learning": q_learning,
    "SARSA": sarsa,
    "DQN": dqn,
    "REINFORCE": reinforce,
    "QAC": q_actor_critic,
    "A2C": a2c,
    "PPO": ppo,
    "TRPO": trpo,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Place):
    """The flags."""

    env: str = "CartPole-v1"  # name of an environment that gymnax knows
    total_steps: int = 100_000  # environment steps per seed
    seeds: int = 5  # independent runs of each agent
    seed: int = 0  # what all keys are made of
    precision: precision.Preset = "float32"  # what networks compute in

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"total_steps": 1, "seeds": 1, "seed": 0}.items():
            require_count(name, getattr(self, name), least=least)


def possible(settings: Settings, directory: Path) -> dict[str, cli.Settings]:
    """Return the settings of every agent that can be made for the environment; says of the others why not."""
    spec = envs.make(settings.env, 1).spec
    shared = {"env": settings.env, "total_steps": settings.total_steps, "seeds": settings.seeds, "seed": settings.seed}
    chosen = {}
    for name, script in SCRIPTS.items():
        numbers = {"precision": settings.precision} if hasattr(script.Settings, "precision") else {}
        place = {"out": directory / name.lower(), "resume": "auto" if settings.resume else None}
        own = script.Settings(**shared, **numbers, **place)
        try:
            script.phases(own, spec)
            chosen[name] = own
        except ValueError as error:
            print(f"{name} is left out: {error}")
    return chosen


def main(settings: Settings) -> None:
    """Train every agent, save one picture of all, and print how well each did."""
    try:
        cli.require_one_process("this script takes one")
        directory = cli.directory_of(settings, "compare", settings.env, held=f"*/{results.SETTINGS}")
        chosen = possible(settings, directory)
        if not chosen:
            raise ValueError(f"env is {settings.env}; it takes one that at least one of the agents can have")
        directory = results.create(directory)
    except (ValueError, TypeError, OSError) as error:
        raise cli.BadInput(str(error)) from error
    runs = {}
    with Interrupt("this agent") as interrupt:
        for number, (name, own) in enumerate(chosen.items(), start=1):
            try:
                runs[name] = SCRIPTS[name].main(own)
            except Stopped as stop:
                raise Stopped(f"{name}: {stop}", directory) from None
            except cli.Failed as error:
                print(f"{name} is left out: {error}")
            if interrupt.asked and number < len(chosen):
                raise Stopped(f"stopped after {number} of {len(chosen)} agents", directory)
    if not runs:
        raise cli.Failed("none of the agents came to its end")
    picture(runs, directory / "compare.png", title=f"{settings.env}, {settings.seeds} seeds")
    print()
    for name, run in runs.items():
        score, diverged = run.summary["evaluation"], len(run.summary["diverged"])
        low, high = score["ci95"]
        mean = "none" if score["iqm"] is None else f"{score['iqm']:.1f}"
        interval = "" if low is None else f" [{low:.1f}, {high:.1f}]"
        without = f"   without {diverged} seeds that diverged" if diverged else ""
        speed = run.summary["steps_per_second"]
        print(f"{name:12s} greedy return, interquartile mean {mean:>8s}{interval}   {speed:12,.0f} steps/s{without}")
    print(f"results in {directory}: compare.png, and a folder for each agent")


def picture(runs: dict[str, results.Result], path: Path, *, title: str) -> None:
    """Save the learning curves of all agents, returns while exploring, in one frame."""
    figure = plots.new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    most = max(run.metrics["environment_steps"].max() for run in runs.values())
    # At least two rows to a point: agents with long rollouts have fewer rows, and a point without one is a hole.
    rows = min(run.metrics["environment_steps"].shape[1] for run in runs.values())
    points = np.linspace(0, most, max(2, min(51, rows // 2)))[1:]
    curves = {name: _at(points, run.metrics) for name, run in runs.items()}
    plots.comparison(axes, points, curves, xlabel="environment steps", ylabel="episode return in training")
    axes.set_title(f"{title}, means and 95 % intervals", loc="left", fontsize=12, fontweight="bold")
    plots.save(figure, path)


def _at(points: np.ndarray, metrics: dict[str, np.ndarray]) -> np.ndarray:
    """Return every seed's mean return of the episodes that ended up to each point, since the one before: [S, points].

    NaN where none ended.
    """
    steps, episodes = metrics["environment_steps"][0], metrics["episodes"]
    total = np.nan_to_num(metrics["episode_return"]) * episodes
    place = np.searchsorted(points, steps)
    with np.errstate(invalid="ignore"):
        sums = [
            total[:, place == point].sum(axis=1) / episodes[:, place == point].sum(axis=1)
            for point in range(len(points))
        ]
    return np.stack(sums, axis=1)


if __name__ == "__main__":
    cli.start(main, Settings)
