"""What the scripts that sweep an agent share: axes as flags, a folder that is gone on with, a table and pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from purerl import cli, driver, envs, results, spread, sweep, sweep_reports, training
from purerl.archive import Archive
from purerl.base import Spec
from purerl.loop import Phase
from purerl.metrics import Progress


def axes(hypers: type) -> Any:
    """Return a dataclass with an axis for each number of `hypers`: the values to try, none by default.

    As the type of a field `sweep` of settings it makes the flags --sweep.<name> VALUE VALUE ...
    """
    fields = [
        (field.name, tuple[float, ...], dataclasses.field(default=()))  # as many values as are given
        for field in dataclasses.fields(hypers)
    ]
    made = dataclasses.make_dataclass("Sweep", fields, frozen=True, kw_only=True)
    made.__doc__ = "The values to try of each number; every combination is a point."
    return made


def run(
    settings: Any,
    phases: Callable[[Spec], Sequence[Phase]],
    *,
    agent: str,
    hypers: Any,
    usual: Mapping[str, Sequence[float]],
) -> results.Result:
    """Train every point of `settings.sweep` with `settings.seeds` seeds, and leave a folder with a table and pictures.

    Where no axis is asked for, the `usual` ones are swept.
    What is finished is on disk: the same command with the same --out goes on with what is missing. Raises BadInput for
    what cannot be run, before anything is trained.
    """
    try:
        env = envs.make(settings.env, settings.num_envs, observation_dtype=settings.observation_dtype)
        judge = envs.make(settings.env, settings.eval_episodes, observation_dtype=settings.observation_dtype)
        env_params = cli.env_params_of(env, settings.env_params)
        plan = phases(env.spec)
        cli.require_finite(hypers)
        cli.require_fitting(plan, env, hypers, settings.length)
        _require_no_more(settings)
        chosen = {name: values for name, values in dataclasses.asdict(settings.sweep).items() if values} or dict(usual)
        if 0 in chosen.get("learning_rate_horizon", ()):
            raise ValueError("sweep.learning_rate_horizon has a 0; on an axis it takes numbers of updates")
        settings = cli.effective(settings, env_params, sum(phase.steps for phase in plan))
        batch = sweep.product(sweep.grid(hypers, **chosen), sweep.grid(env_params))
        iterations = -(-plan[-1].steps // (settings.length * settings.num_envs))
        rows = max(divisor for divisor in range(1, min(100, iterations) + 1) if iterations % divisor == 0)
        directory = settings.out or results.default_directory(f"sweep_{agent}", settings.env)
        described = dataclasses.asdict(settings) | {"agent": agent, "axes": chosen, "versions": results.versions()}
        described.pop("out")
        archive = Archive(directory, described, points=batch.points, seeds=settings.seeds)
        keys = driver.seed_keys(settings.seed, settings.seeds)
    except (ValueError, TypeError, OSError, OverflowError) as error:
        raise cli.BadInput(str(error)) from error
    total = batch.points * settings.seeds
    spreading = spread.choose(total)
    steps = sum(phase.steps for phase in plan)
    print(f"{agent} on {settings.env}: {batch.points} points x {settings.seeds} seeds of {steps:,} steps", flush=True)
    print(f"axes: {'; '.join(f'{name} {list(values)}' for name, values in chosen.items()) or 'none'}", flush=True)
    print(f"{spreading}; one program to compile", flush=True)
    print(f"finished runs are kept in {archive.directory}: with that as --out the same command goes on", flush=True)
    if kept := total - len(archive.missing()):
        print(f"{kept} of {total} runs are there already", flush=True)
    train = training.trainer(
        plan,
        env,
        length=settings.length,
        rows=rows,
        judge=judge if settings.eval_every else None,
        max_steps=settings.eval_max_steps,
    )
    with Progress(total, description=f"{agent} {settings.env}", unit="runs") as progress:
        progress.update(kept)
        found = sweep.run(train, keys, batch, spread=spreading, archive=archive, progress=progress)
    before = steps - plan[-1].steps
    at = before + (np.arange(rows) + 1) * (iterations // rows) * settings.length * settings.num_envs
    files = sweep_reports.pictures(found, at, archive.directory, title=f"{agent} on {settings.env}")
    archive.finish(
        {
            "agent": agent,
            "env": settings.env,
            "seeds": settings.seeds,
            "total_steps": steps,
            "points": sweep_reports.summarise(found),
            "labels": found.labels,
            "environment_steps": at,
            "versions": results.versions(),
        }
    )
    print("\n".join(sweep_reports.lines(found)))
    print(f"results in {archive.directory}: {', '.join([*files, 'summary.json', 'metrics.npz', 'settings.json'])}")
    return results.load_run(archive.directory)


def _require_no_more(settings: Any) -> None:
    """Raise a ValueError for a flag of single runs that a sweep has no use for."""
    if settings.stop_at_return is not None:
        raise ValueError("stop_at_return is set; a sweep runs every point to its end")
    if settings.log_every is not None:
        raise ValueError("log_every is set; a sweep has up to a hundred rows of metrics, evenly")
    if settings.eval_every:
        raise ValueError(f"eval_every is {settings.eval_every}; a sweep evaluates at the end, or with 0 never")
