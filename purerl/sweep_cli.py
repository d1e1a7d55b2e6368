"""What the scripts that sweep an agent share: axes as flags, a folder that is gone on with, a table and pictures."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Key

from purerl import archive, checks, cli, driver, envs, points, results, sweep, sweep_reports, training
from purerl.archive import Archive
from purerl.base import Spec
from purerl.interrupts import Interrupt, Stopped
from purerl.loop import Phase
from purerl.metrics import Progress
from purerl.points import Batch

# Of the settings, those that no group can have of its own ...
NOT_CHOSEN = {"total_steps", "seed", "seeds", "out", "env_params", "hypers", "devices", "together", "memory"}
NOT_CHOSEN |= {"mesh", "stop_at_return", "log_every", "eval_every", "resume", "checkpoint_every", "debug_nans"}
# ... and those with which a sweep is the same sweep, whatever they are.
NOT_DESCRIBED = {"out", "resume", "static", "devices", "together", "memory", "mesh"}


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


def choices(settings: type) -> Any:
    """Return a dataclass with the values to try of each static choice among `settings`, none by default.

    As the type of a field `static` it makes the flags --static.<name> VALUE VALUE ...; several numbers that are one
    value, as the widths of layers, are written 64,64.
    """
    fields = [
        (field.name, tuple[str, ...], dataclasses.field(default=()))
        for field in dataclasses.fields(settings)
        if field.name not in NOT_CHOSEN
    ]
    made = dataclasses.make_dataclass("Static", fields, frozen=True, kw_only=True)
    made.__doc__ = "What is compiled in: every combination is a program of its own, and has all points."
    return made


def distributions(settings: Any) -> dict[str, points.Distribution]:
    """Return what `settings.log_uniform` and `settings.uniform` (LOW HIGH) and, if there, `settings.choice` ask for.

    Raises ValueError for bounds that are not two or beyond what the number takes, and for one that two of them have.
    """
    found: dict[str, points.Distribution] = {}
    for kind, make in (("log_uniform", points.log_uniform), ("uniform", points.uniform), ("choice", points.choice)):
        asked = dataclasses.asdict(getattr(settings, kind)) if hasattr(settings, kind) else {}
        _require_sensible(kind, asked)
        for name, values in asked.items():
            if not values:
                continue
            if kind != "choice" and len(values) != 2:
                raise ValueError(f"{kind}.{name} has {len(values)} values; it takes two, LOW HIGH")
            if name in found:
                raise ValueError(f"{name} has two distributions; it takes one")
            found[name] = make(*values)
    return found


class Task(NamedTuple):
    """What one program trains, looked over and ready."""

    settings: Any
    static: Mapping[str, Any]  # what was chosen of the settings
    env: envs.Env
    judge: envs.Env
    env_params: Any
    plan: Sequence[Phase]
    hypers: Any
    steps: int  # of a run, all phases

    @property
    def keys(self) -> Key[Array, " S"]:
        """The keys of its seeds."""
        return driver.seed_keys(self.settings.seed, self.settings.seeds)

    def train(self, rows: int) -> sweep.Train:
        """Return a whole run as a pure function."""
        return training.trainer(
            self.plan,
            self.env,
            length=self.settings.length,
            rows=rows,
            judge=self.judge if self.settings.eval_every else None,
            max_steps=self.settings.eval_max_steps,
            layout=cli.layout_of(self.settings),
        )


def task(
    settings: Any,
    phases: Callable[[Any, Spec], Sequence[Phase]],
    hypers: Callable[[Any], Any],
    static: Mapping[str, Any] = types.MappingProxyType({}),
) -> Task:
    """Return what is to be trained. Raises ValueError or TypeError for what cannot be."""
    _require_no_more(settings)
    numbers = hypers(settings)
    cli.require_sensible(numbers)
    layout = cli.layout_of(settings)
    if layout is None:
        cli.spread_of(settings, 1)  # the devices that are asked for are there
    cli.require_one_process("sweeps and searches take workers, each by itself")
    env = cli.environments(settings)
    judge = envs.make(settings.env, settings.eval_episodes, observation_dtype=settings.observation_dtype)
    env_params = cli.env_params_of(env, settings.env_params)
    plan = phases(settings, env.spec)
    cli.require_fitting(plan, env, numbers, settings.length, layout)
    steps = sum(phase.steps for phase in plan)
    settings = cli.effective(settings, env_params, steps)
    env, judge = (one._replace(params=env_params) for one in (env, judge))  # for those that sweep no parameters
    return Task(settings, static, env, judge, env_params, plan, numbers, steps)


def combinations(settings: Any) -> list[dict[str, Any]]:
    """Return every combination of `settings.static`, values parsed: one, empty, if nothing is to be chosen.

    Raises ValueError for what a setting does not take.
    """
    kinds = typing.get_type_hints(type(settings))
    asked = {name: texts for name, texts in dataclasses.asdict(settings.static).items() if texts}
    if "env" in asked and settings.env_params:
        raise ValueError("env_params are given, and static.env; the parameters are those of one environment")
    columns = [[_parsed(name, text, kinds[name]) for text in texts] for name, texts in asked.items()]
    for name, values in zip(asked, columns, strict=True):
        if len(set(map(str, values))) < len(values):
            raise ValueError(f"static.{name} has {' '.join(asked[name])}; it takes each value once")
    return [dict(zip(asked, values, strict=True)) for values in itertools.product(*columns)]


def _parsed(name: str, text: str, kind: Any) -> Any:
    try:
        if typing.get_origin(kind) is tuple:
            return tuple(int(part) for part in text.split(",") if part)
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if typing.get_origin(kind) in (typing.Literal, typing.Union, types.UnionType):
            options = [one for part in (typing.get_args(kind)) for one in typing.get_args(part) or (part,)]
            return {str(option): option for option in options if option is not type(None)}[text]
        return kind(text)
    except (ValueError, KeyError):
        raise ValueError(f"static.{name} has {text!r}; it takes what --{name.replace('_', '-')} does") from None


class Group(NamedTuple):
    """A task, its points, and where its runs are kept: in no archive if all are there already."""

    task: Task
    batch: Batch
    iterations: int  # of the last phase
    rows: int  # of metrics
    directory: Path
    archive: Archive | None

    @property
    def total(self) -> int:
        """How many runs it is."""
        return self.batch.points * self.task.settings.seeds

    @property
    def kept(self) -> int:
        """How many of them are finished."""
        return self.total - (0 if self.archive is None else len(self.archive.missing()))

    def close(self) -> None:
        """Let others have its folder."""
        if self.archive is not None:
            self.archive.close()


def _group(task: Task, directory: Path, agent: str, axes: Mapping[str, Sequence[float]]) -> Group:
    settings = task.settings
    batch = sweep.product(sweep.grid(task.hypers, **axes), sweep.grid(task.env_params))
    iterations = -(-task.plan[-1].steps // (settings.length * settings.num_envs))
    rows = max(divisor for divisor in range(1, min(100, iterations) + 1) if iterations % divisor == 0)
    described = dataclasses.asdict(settings) | {"agent": agent, "axes": axes, "versions": results.versions()}
    described = {name: value for name, value in described.items() if name not in NOT_DESCRIBED}
    runs = {"points": batch.points, "seeds": settings.seeds}
    if task.static:
        chosen = ",".join(f"{name}={results.to_json(value)}" for name, value in task.static.items())
        directory = directory / chosen.replace("/", "-").replace(" ", "")
    if (task.static or settings.resume) and (directory / results.SUMMARY).exists():
        archive.require_same(directory, archive.description_of(described, **runs))  # a group may be finished, all not
        archive.tidy(directory)
        return Group(task, batch, iterations, rows, directory, None)
    return Group(task, batch, iterations, rows, directory, Archive(directory, described, **runs))


def run(
    settings: Any,
    phases: Callable[[Any, Spec], Sequence[Phase]],
    *,
    agent: str,
    hypers: Callable[[Any], Any],
    usual: Mapping[str, Sequence[float]],
) -> list[results.Result]:
    """Train every point of `settings.sweep` with `settings.seeds` seeds, and leave a folder with a table and pictures.

    Where no axis is asked for, the `usual` ones are swept. Of `settings.static` every combination is a group, with a
    program and a folder of its own; `phases` and `hypers` are made of each group's settings. What is finished is on
    disk: the same command with the same --out goes on with what is missing. Raises BadInput for what cannot be run,
    before anything is trained; for what memory does not hold, before its group is; and Stopped if the process was asked
    to end, once what is under way is kept.
    """
    with contextlib.ExitStack() as opened:
        with cli.bad_input():
            chosen = {name: own for name, own in dataclasses.asdict(settings.sweep).items() if own} or dict(usual)
            _require_sensible("sweep", chosen)
            statics = combinations(settings)
            tasks = [task(dataclasses.replace(settings, **static), phases, hypers, static) for static in statics]
            for one in tasks:
                _require_taken(one, phases, chosen)
            held = f"*/{results.SETTINGS}" if statics[0] else results.SETTINGS
            directory = cli.directory_of(settings, f"sweep_{agent}", settings.env, held=held)
            groups = []
            for one in tasks:
                groups.append(_group(one, directory, agent, chosen))
                opened.callback(groups[-1].close)
            if all(group.archive is None for group in groups):
                if not settings.resume:
                    raise ValueError(f"directory is {directory}, which already holds all of this sweep; give another")
                print(f"{directory} holds all of this sweep, and it is finished")
                return [results.load_run(group.directory) for group in groups]
        _announce(groups, agent, chosen, directory)
        _train_all(groups, agent, directory)
    return [results.load_run(group.directory) for group in groups]


def _announce(groups: Sequence[Group], agent: str, chosen: Mapping[str, Sequence[float]], directory: Path) -> None:
    seeds = groups[0].task.settings.seeds
    total, kept = sum(group.total for group in groups), sum(group.kept for group in groups)
    print(f"{agent}: {groups[0].batch.points} points x {seeds} seeds, axes: ", end="")
    print("; ".join(f"{name} {list(values)}" for name, values in chosen.items()) or "none")
    print("one program to compile" if len(groups) == 1 else f"{len(groups)} groups, each a program to compile:")
    for group in groups if len(groups) > 1 else ():
        print("".join(f"  {name} {value}" for name, value in group.task.static.items()))
    print(f"finished runs are kept in {directory}: with that as --resume the same command goes on")
    if kept:
        print(f"{kept} of {total} runs are there already")


def _train_all(groups: Sequence[Group], agent: str, directory: Path) -> None:
    """Train every group. Raises Stopped, with the folder of all, if the process was asked to end on the way."""
    total, done = sum(group.total for group in groups), 0
    with Progress(total, description=agent, unit="runs") as progress, Interrupt("the runs under way") as interrupt:
        for group in groups:
            try:
                _train(group, agent, lambda finished, done=done: progress.update(done + finished))
            except Stopped:
                raise Stopped(f"stopped after {done + group.kept} of {total} runs", directory) from None
            done += group.total
            if interrupt.asked and group is not groups[-1]:
                raise Stopped(f"stopped after {done} of {total} runs", directory)


def _train(group: Group, agent: str, progress: Callable[[int], None]) -> None:
    """Make the runs of a group that are missing, and finish its folder."""
    task, kept = group.task, group.archive
    if kept is None:
        return
    settings, train = task.settings, task.train(group.rows)
    name = f"{agent} on {settings.env}" + "".join(f", {key} {value}" for key, value in task.static.items())
    with cli.bad_input():
        spread = cli.spread_of(settings, group.total)
        spread = sweep.fitting(train, task.keys, group.batch, spread, memory=cli.memory_of(settings))
    print(f"{name}: {task.steps:,} steps a run; {spread}", flush=True)
    found = sweep.run(train, task.keys, group.batch, spread=spread, archive=kept, progress=progress)
    each_row = group.iterations // group.rows * settings.length * settings.num_envs
    at = task.steps - task.plan[-1].steps + (np.arange(group.rows) + 1) * each_row
    files = sweep_reports.pictures(found, at, group.directory, title=name)
    kept.finish(
        {
            "agent": agent,
            "env": settings.env,
            "static": task.static,
            "seeds": settings.seeds,
            "total_steps": task.steps,
            "points": sweep_reports.summarise(found),
            "labels": found.labels,
            "environment_steps": at,
            "versions": results.versions(),
        }
    )
    print("\n".join(sweep_reports.lines(found)))
    print(f"results in {group.directory}: {', '.join([*files, 'summary.json', 'metrics.npz', 'settings.json'])}")


def _require_sensible(flag: str, asked: Mapping[str, Sequence[float]]) -> None:
    """Raise a ValueError for a value that no single run would take, and for a horizon of 0.

    That stands for the whole run only as a setting. Values that are not finite are for who makes the points.
    """
    if 0 in asked.get("learning_rate_horizon", ()):
        raise ValueError(f"{flag}.learning_rate_horizon has a 0; here it takes numbers of updates")
    for name, values in asked.items():
        for value in filter(np.isfinite, values):
            checks.require_in_range(flag, name, value)


def _require_taken(task: Task, phases: Callable[[Any, Spec], Any], asked: Mapping[str, Sequence[float]]) -> None:
    """Let the script look at each value as if it were the only one: it may take less than the number's range."""
    for name, values in asked.items():
        for value in values:
            numbers = dataclasses.replace(task.settings.hypers, **{name: value})
            phases(dataclasses.replace(task.settings, hypers=numbers), task.env.spec)


def _require_no_more(settings: Any) -> None:
    """Raise a ValueError for a flag of single runs that a sweep has no use for."""
    if settings.checkpoint_every is not None:
        kept = "here whole runs are kept, each as it is finished"
        raise ValueError(f"checkpoint_every is {settings.checkpoint_every}; {kept}, and --resume makes those missing")
    if settings.debug_nans:
        raise ValueError("debug_nans is True; it is for scripts that train one agent")
    if settings.stop_at_return is not None:
        raise ValueError("stop_at_return is set; a sweep runs every point to its end")
    if settings.log_every is not None:
        raise ValueError("log_every is set; a sweep has up to a hundred rows of metrics, evenly")
    if settings.eval_every:
        raise ValueError(f"eval_every is {settings.eval_every}; a sweep evaluates at the end, or with 0 never")
