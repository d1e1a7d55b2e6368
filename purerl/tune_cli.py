"""What scripts that search with Optuna share: a study and its workers, started by hand or as jobs, and a picture."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna

from purerl import archive, cli, plots, points, results, scores, sweep, sweep_cli, sweep_reports, tune, workers
from purerl.base import Spec, require_count
from purerl.interrupts import Stopped
from purerl.loop import Phase
from purerl.metrics import Progress

# A study is the same study, however its workers are started.
NOT_DESCRIBED = sweep_cli.NOT_DESCRIBED | {"search"}
JOURNAL = "journal.log"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """Where the study is kept, and who works on it."""

    trials: int = 40  # of the study
    batch: int = 8  # trials that are one call of the program
    name: str = "study"
    storage: str | None = None  # sqlite:///FILE, postgresql+psycopg://..., or a file; <out>/journal.log if not given
    worker: int | None = None  # a number of its own; SLURM_ARRAY_TASK_ID if not given, or 0, which makes the study
    patience: float = tune.PATIENCE  # seconds of silence after which another worker counts as dead
    submit: Literal["slurm", "local"] | None = None  # let submitit start this command so many times:
    workers: int = 2
    cpus: int = 2  # of each of them, where slurm starts them ...
    minutes: int = 720  # ... and for how long at most


def run(
    settings: Any,
    phases: Callable[[Any, Spec], Sequence[Phase]],
    *,
    agent: str,
    hypers: Callable[[Any], Any],
    usual: Mapping[str, points.Distribution],
) -> results.Result | None:
    """Work on the study of `settings.search` until all its trials are finished; worker 0 then writes the folder.

    A trial trains with `settings.seeds` seeds, its numbers chosen by Optuna from what is asked for (`usual` if nothing
    is). The same command goes on with what is there, and with another `--search.worker` helps. Raises BadInput for what
    cannot be run, before anything is trained, and Stopped if it was asked to end before the last trial was.
    """
    search: Search = settings.search
    with cli.bad_input():
        for name in ("trials", "batch", "workers", "cpus", "minutes"):
            require_count(f"search.{name}", getattr(search, name))
        if not search.name:
            raise ValueError("search.name is ''; it takes the name of a study")
        space = sweep_cli.distributions(settings) or dict(usual)
        points.require_within(hypers(settings), space)
        if not tune.LEAST_PATIENCE <= search.patience < np.inf:
            raise ValueError(f"search.patience is {search.patience}; it takes at least {tune.LEAST_PATIENCE} seconds")
        if search.worker is not None:
            require_count("search.worker", search.worker, least=0)
        task = sweep_cli.task(settings, phases, hypers)
        worker = int(os.environ.get("SLURM_ARRAY_TASK_ID", 0)) if search.worker is None else search.worker
        directory = _directory(settings, worker, f"tune_{agent}")
        if search.submit is not None:
            _submit(search, directory)
            return None
        described = {key: value for key, value in dataclasses.asdict(settings).items() if key not in NOT_DESCRIBED}
        described |= {"agent": agent, "space": {name: str(own) for name, own in space.items()}}
        where, seed = search.storage or directory / JOURNAL, settings.seed + worker
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        _require_storage(search.storage, made=worker == 0)
        told = dataclasses.asdict(settings) | described | {"out": directory, "versions": results.versions()}
        if worker == 0:
            _begin(directory, results.to_json(told), [*described, "search"], going_on=settings.resume is not None)
            study = tune.create(where, search.name, trials=search.trials, description=described, seed=seed)
        else:
            print(f"worker {worker}: looking for study {search.name!r} in {where}", flush=True)
            study = tune.open_study(where, search.name, description=described, seed=seed)
        if worker == 0 and (directory / results.SUMMARY).exists():
            if tune.finished(study) < tune.size(study):
                raise FileExistsError(f"directory is {directory}, which holds the results of another study")
            print(f"{directory} holds this search, and it is finished")
            return results.load_run(directory)
        train = task.train(rows=1)
        runs = sweep.listed(task.hypers, **{name: [0.0] * search.batch for name in space})
        spread = cli.spread_of(settings, search.batch * settings.seeds)
        spread = sweep.fitting(train, task.keys, runs, spread, memory=cli.memory_of(settings))
    total = tune.size(study)
    runs_of = f"{settings.seeds} seeds of {task.steps:,} steps"
    print(f"{agent} on {settings.env}: {total} trials of {runs_of}, as worker {worker}")
    print(f"space: {'; '.join(f'{name} {own}' for name, own in space.items())}")
    print(f"{spread}; study {search.name!r} is kept in {where}: the same command goes on")
    print(f"with --out {directory} --search.worker {worker + 1} another process helps", flush=True)
    with Progress(total, description=f"{agent} {settings.env}", unit="trials") as progress:
        progress.update(tune.finished(study))
        done = _worked(
            study,
            train,
            task.keys,
            task.hypers,
            space,
            score=lambda outputs: sweep_reports.score_of(
                sweep.Results(outputs, {}, sweep.diverged(outputs, outputs["diverged_at"].shape))
            ),
            batch=search.batch,
            worker=worker,
            spread=spread,
            patience=search.patience,
            progress=progress.update,
        )
    if (ended := tune.finished(study)) < total:
        raise Stopped(f"stopped after {ended} of {total} trials", directory)
    print(f"worker {worker} ran {done} of {total} trials")
    return _finish(study, directory, told, space, agent, task.steps) if worker == 0 else None


def _worked(*arguments: Any, **named: Any) -> int:
    try:
        return tune.work(*arguments, **named)
    except workers.Taken as error:
        raise cli.BadInput(str(error)) from error


def _directory(settings: Any, worker: int, script: str) -> Path:
    if settings.out is None and not settings.resume and (worker > 0 or "SLURM_ARRAY_TASK_ID" in os.environ):
        raise ValueError(f"out is not given, and this is worker {worker}; all workers of a study take one --out")
    if worker > 0 and settings.search.storage and settings.resume not in (None, "auto"):
        return Path(settings.resume)  # what helps need not see the folder
    return cli.directory_of(settings, script, settings.env, held=results.SETTINGS if worker == 0 else JOURNAL)


def _begin(directory: Path, told: dict[str, Any], bound: Sequence[str], *, going_on: bool) -> None:
    """Make the folder of a search, which says what it is, or see that it is this search's.

    Raises FileExistsError for one that holds something else, or results if they are not asked for, and ValueError,
    naming the first difference, for another search.
    """
    if not going_on:
        results.create(directory)
    if not (directory / results.SETTINGS).exists():
        results.create(directory)
        results.replace_file(directory / results.SETTINGS, results.json_bytes(told, "settings"))
        return
    former = results.read_json(directory / results.SETTINGS)
    if "search" not in former:
        raise FileExistsError(f"directory is {directory}, which holds another run; give another")
    former, now = ({name: settings.get(name) for name in bound} for settings in (former, told))
    former["search"], now["search"] = ({"name": one["search"]["name"]} for one in (former, now))
    archive.require_equal(former, now, f"{directory} holds a search")


def _require_storage(storage: str | None, *, made: bool) -> None:
    """Raise a ValueError for a storage that cannot be, before a folder is left for it, or it is waited for."""
    try:
        if storage is not None:
            (tune.storage_of if made else tune.require_url)(storage)
    except (ValueError, OSError) as error:
        raise ValueError(f"search.storage is {storage}: {error}") from error


def _submit(search: Search, directory: Path) -> None:
    """Start this very command as so many workers."""
    try:
        import submitit
    except ImportError:
        raise ValueError("submit takes the package submitit: pip install submitit") from None
    executor = submitit.AutoExecutor(folder=directory / "jobs", cluster=search.submit)
    executor.update_parameters(timeout_min=search.minutes, name="purerl")
    if search.submit == "slurm":
        executor.update_parameters(cpus_per_task=search.cpus)
    own = [argument for argument in sys.argv if not argument.startswith("--search.submit=")]
    if "--search.submit" in own:
        place = own.index("--search.submit")
        del own[place : place + 2]
    command = [sys.executable, *own, "--out", str(directory), "--search.worker"]  # its number follows
    jobs = executor.map_array(submitit.helpers.CommandFunction(command), range(search.workers))
    print(f"{search.workers} workers are jobs {', '.join(job.job_id for job in jobs)}; logs in {directory / 'jobs'}")
    if search.submit == "local":
        for job in jobs:
            job.result()


def _finish(study, directory, told, space, agent, steps) -> results.Result:
    """Write the folder of a search, of the trials that count, in the order of their tickets."""
    trials = tune.finished_trials(study)
    labels = {name: np.array([float(trial.params[name]) for trial in trials]) for name in space}
    per_seed = np.array([trial.user_attrs[tune.SCORES] for trial in trials], float)
    rows = [
        {name: float(column[place]) for name, column in labels.items()} | scores.summary(per_seed[place])
        for place in range(len(trials))
    ]
    _draw(directory, trials, labels)
    results.write(
        directory,
        settings=told,
        metrics={"score": per_seed},
        summary={
            "agent": agent,
            "env": told["env"],
            "static": {},
            "seeds": told["seeds"],
            "total_steps": steps,
            "points": rows,
            "labels": labels,
            "versions": results.versions(),
        },
    )
    values = _values(trials)
    best = rows[int(np.nanargmax(values))] if np.isfinite(values).any() else None
    print(f"best of {len(trials)}: {best}" if best else "no trial has a score")
    print(f"results in {directory}: search.png, summary.json, metrics.npz, settings.json")
    return results.load_run(directory)


def _values(trials) -> np.ndarray:
    return np.array([np.nan if trial.value is None else trial.value for trial in trials])


def _draw(directory, trials, labels) -> None:
    """Save the scores over the order of the trials, and over each number."""
    frames = {"trial": np.arange(len(trials)) + 1} | labels
    figure = plots.new_figure(4.5 * len(frames), 4.0)
    for place, (name, column) in enumerate(frames.items()):
        axes = figure.add_subplot(1, len(frames), place + 1)
        plots.dots(axes, column, _values(trials), xlabel=name, ylabel="score", best=place == 0)
    plots.save(figure, directory / "search.png")
