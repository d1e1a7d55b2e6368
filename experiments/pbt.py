"""Population-based training of PPO: the worst members copy the best, and change their numbers, on the way.

python experiments/pbt.py --env CartPole-v1 --log-uniform.learning-rate 1e-5 1e-2 --uniform.entropy-weight 0 0.05

Each seed is a population of its own; all are one program. After a generation a member is judged by greedy episodes, or
with --eval-every 0 by the mean return of those in which it learned.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import ppo  # the script beside this one: its settings, and how they make an agent
from jaxtyping import Array, Key

from purerl import cli, driver, parts, pbt, plots, points, results, scores, spread, sweep_cli, training
from purerl.agents import ppo as agent
from purerl.base import require_count
from purerl.metrics import Progress

Axes = sweep_cli.axes(agent.Hypers)
USUAL = {"learning_rate": points.log_uniform(1e-5, 1e-2), "entropy_weight": points.uniform(0.0, 0.05)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ppo.Settings):
    """The flags: those of ppo.py, the population, and the bounds of each number."""

    total_steps: int = 100_000  # of each member
    members: int = 16
    generations: int = 20
    quantile: float = 0.2  # of the members that are replaced after each generation, by as many of the best
    factor: float = 1.2  # by which a number is multiplied or divided then ...
    resample: float = 0.25  # ... unless, with this probability, it is drawn anew
    # A rate that stays what it is: to anneal it is for the population.
    hypers: agent.Hypers = agent.Hypers()
    log_uniform: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]
    uniform: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]


def main(settings: Settings) -> results.Result:
    """Train the populations, each of which is kept once it is finished, and write the folder."""
    with cli.bad_input():
        require_count("generations", settings.generations)
        rules = {name: getattr(settings, name) for name in ("quantile", "factor", "resample")}
        pbt.require_rules(settings.members, **rules)
        bounds = sweep_cli.distributions(settings) or USUAL
        task = sweep_cli.task(settings, ppo.phases, lambda settings: settings.hypers)
        steps = -(-settings.total_steps // settings.generations)
        learner = training.learner(
            [phase._replace(steps=steps) for phase in task.plan],
            task.env,
            length=settings.length,
            judge=task.judge if task.settings.eval_every else None,
            max_steps=task.settings.eval_max_steps,
            layout=cli.layout_of(settings),
        )
        spreading = cli.spread_of(settings, settings.members)
        shapes = points.listed(task.hypers, **{name: [0.0] * settings.members for name in bounds})
        keys = driver.seed_keys(settings.seed, settings.members)
        runs = jax.eval_shape(jax.vmap(learner.begin), keys, shapes.values)
        spread.require_room((runs, runs), spreading, cli.memory_of(settings))  # a generation is made of the one before
    folder = parts.opened(task.settings, "pbt_ppo", settings.env)
    if folder.finished:
        return results.load_run(folder.directory)
    print(f"{settings.members} members, {settings.generations} generations of {steps:,} steps; {spreading}", flush=True)

    def evolved(key: Key[Array, ""]) -> dict[str, np.ndarray]:
        sample_key, evolve_key = jax.random.split(key)
        population = points.sample(sample_key, task.hypers, settings.members, **bounds)
        rounds = {"generations": settings.generations, "spread": spreading}
        with cli.bad_input():
            found = pbt.evolve(evolve_key, learner, population, bounds, **rounds, **rules)
        return {"score": found.scores, "parents": found.parents} | found.hypers

    found = []
    with folder:
        with Progress(settings.seeds, description=f"pbt of ppo, {settings.env}", unit="populations") as progress:
            for number, key in enumerate(task.keys):
                found.append(folder.part(f"population {number}", functools.partial(evolved, key)))
                progress.update(len(found))
        tell({name: np.stack([one[name] for one in found]) for name in found[0]}, steps, settings, bounds, folder)
    return results.load_run(folder.directory)


def tell(
    found: dict[str, np.ndarray], steps: int, settings: Settings, bounds: dict[str, Any], folder: parts.Parts
) -> None:
    """Write the results of all populations, save the picture, print what the best reached and with what numbers."""
    last = found["score"][:, -1]
    best = np.array([np.nanmax(members) if np.isfinite(members).any() else np.nan for members in last])
    at = (np.arange(settings.generations) + 1) * -(-steps // (settings.length * settings.num_envs))
    at = at * settings.length * settings.num_envs
    histories = {name: found[name] for name in bounds}
    summary = {
        "agent": "pbt of ppo",
        "env": settings.env,
        "seeds": settings.seeds,
        "total_steps": int(at[-1]),
        "episode_return": scores.summary(best),
    }
    _draw(folder.directory, at, found["score"], histories, bounds, f"PPO on {settings.env}")
    low, high = summary["episode_return"]["ci95"]
    print(f"best member at the end, a population each: {np.array2string(best, precision=1)}", end="")
    print("" if low is None else f"; interquartile mean {summary['episode_return']['iqm']:.1f} [{low:.1f}, {high:.1f}]")
    for name, values in histories.items():
        middle = np.median(values, axis=(0, 2))
        print(f"{name}: median {middle[0]:.3g} in the first generation, {middle[-1]:.3g} in the last")
    folder.finish(found | {"generation_steps": at}, summary, ["population.png"])


def _draw(directory, at, score, histories, bounds, title) -> None:
    """Save the scores of the best and of the median member, and the medians of the numbers, over the generations."""
    figure = plots.new_figure(5.0 * (1 + len(histories)), 4.2)
    axes = figure.add_subplot(1, 1 + len(histories), 1)
    lines = {"best member": np.nanmax(score, axis=2), "median member": np.nanmedian(score, axis=2)}
    plots.comparison(axes, at, lines, xlabel="environment steps of each member", ylabel="score")
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold")
    for place, (name, values) in enumerate(histories.items()):
        axes = figure.add_subplot(1, 1 + len(histories), 2 + place)
        quantiles = {f"{share}th percentile": np.quantile(values, share / 100, axis=2) for share in (10, 50, 90)}
        plots.comparison(axes, at, quantiles, xlabel="environment steps of each member", ylabel=name)
        if isinstance(bounds[name], points.LogUniform):
            axes.set_yscale("log")
    plots.save(figure, directory / "population.png")


if __name__ == "__main__":
    cli.start(main, Settings)
