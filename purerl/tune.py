"""Search by Optuna: trials in whole batches, each one program; many workers on one storage, nothing lost or doubled.

A study is made with a ticket for each of its trials. Workers claim tickets, and a ticket whose trial was left running
by a dead worker is handed out again, with the same numbers: so many trials are finished as were asked for, whoever is
killed, and when.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optuna
from jaxtyping import Key
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from purerl import archive, points, results, scores, sweep
from purerl import spread as spreading
from purerl.base import require_keys
from purerl.checks import make_folder, require_count, require_function, require_kind, require_number, shown
from purerl.interrupts import Interrupt
from purerl.spread import Spread
from purerl.sweep import Train
from purerl.workers import OWNER, Owner, SignsOfLife, Watch

PATIENCE = 120.0  # seconds without a sign of life after which a worker counts as dead
LEAST_PATIENCE = 0.5
SCORES = "scores"  # the attribute of a trial with those of its runs, None for what diverged
_TICKET, _DIVERGED, _DESCRIPTION = "ticket", "diverged", "description"


def storage_of(where: str | os.PathLike[str]) -> optuna.storages.BaseStorage:
    """Return Optuna's storage: of a URL (sqlite:///..., postgresql+psycopg://...) a database, else a journal file.

    Raises ValueError for a database that cannot be opened, OSError for a folder that cannot be made.
    """
    from sqlalchemy.exc import SQLAlchemyError

    require_kind("where", where, str | os.PathLike, wanted="a database's URL, or the path of a journal file")
    if str(where).startswith("sqlite:") or "://" in str(where):
        try:
            return _sqlite(str(where)) if str(where).startswith("sqlite:") else _database(str(where))
        except (ImportError, SQLAlchemyError) as error:  # no such kind of database, or it does not answer
            reason = str(error).partition("\n")[0]
            raise ValueError(f"where is {where}, which cannot be opened: {reason}") from error
    path = Path(where)
    if path.is_dir():
        raise IsADirectoryError(f"where is {path}, which is a folder; it takes the path of a journal file")
    make_folder(path.parent, name="where")
    return optuna.storages.JournalStorage(JournalFileBackend(str(path)))


def require_url(where: str) -> None:
    """Raise a ValueError for the URL of a database of which there is no such kind here; it is not opened."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    require_kind("where", where, str, wanted="a database's URL, or the path of a journal file")
    if "://" in where:
        try:
            make_url(where).get_dialect().import_dbapi()
        except (ImportError, SQLAlchemyError) as error:
            raise ValueError(f"where is {where}, which cannot be opened: {error}") from error


def _database(url: str) -> optuna.storages.BaseStorage:
    return optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


def _sqlite(url: str) -> optuna.storages.BaseStorage:
    """Return a SQLite storage in which a transaction locks the file as it begins.

    By default it does so as it first writes: two workers that both read that a trial waits would both take it.
    """
    from sqlalchemy import event

    storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60.0}})
    event.listen(storage.engine, "connect", lambda own, _: setattr(own, "isolation_level", None))
    event.listen(storage.engine, "begin", lambda own: own.exec_driver_sql("BEGIN IMMEDIATE"))
    storage.engine.dispose()  # connections made before now know nothing of it
    return storage


def create(
    where: str | os.PathLike[str],
    name: str,
    *,
    trials: int,
    description: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> optuna.Study:
    """Return the study of so many trials that looks for the highest score, made unless it is there.

    By one process alone, before others open it: two that make the tables of an empty database are in each other's way.
    `description` says what is searched. Raises ValueError for a count below one, and, naming the first difference, for
    a study that is there with another description or count.
    """
    _require_named(name, description, seed)
    require_count("trials", trials)
    study = optuna.create_study(storage=storage_of(where), study_name=name, direction="maximize", load_if_exists=True)
    own = results.to_json({"trials": trials} | dict(description or {}))
    archive.require_equal(study.user_attrs.get(_DESCRIPTION, own), own, f"study {name!r} in {where}")
    study.set_user_attr(_DESCRIPTION, own)
    _hand_out(study)
    return _drawing(study, seed)


def open_study(
    where: str | os.PathLike[str],
    name: str,
    *,
    description: Mapping[str, Any] | None = None,
    seed: int = 0,
    wait: float = 600.0,
) -> optuna.Study:
    """Return a study that another process makes, for which it waits so many seconds.

    Raises TimeoutError after them, and ValueError, naming the first difference, if `description` is another.
    """
    _require_named(name, description, seed)
    require_number("wait", wait, least=0.0)
    until = time.monotonic() + wait
    while True:
        # Half-made tables and a missing study look different in every storage.
        with contextlib.suppress(Exception):
            study = optuna.load_study(storage=storage_of(where), study_name=name)
            if _DESCRIPTION in study.user_attrs:
                break
        if time.monotonic() > until:
            raise TimeoutError(f"there is no study {name!r} in {where} after {wait:.0f} seconds; worker 0 makes it")
        time.sleep(1.0)
    if description is not None:
        former = study.user_attrs[_DESCRIPTION]
        archive.require_equal(
            former, results.to_json({"trials": former["trials"]} | dict(description)), f"study {name!r}"
        )
    return study


def _require_named(name: Any, description: Any, seed: Any) -> None:
    require_kind("name", name, str, wanted="the name of a study, which is text")
    require_kind("description", description, Mapping | None, wanted="a dict of what is searched")
    require_count("seed", seed, least=0)


def _require_study(study: Any) -> None:
    if not isinstance(study, optuna.Study) or _DESCRIPTION not in study.user_attrs:
        raise TypeError(f"study is {shown(study)}; it takes one that tune.create or tune.open_study returned")


def size(study: optuna.Study) -> int:
    """Return how many trials a study is of."""
    _require_study(study)
    return study.user_attrs[_DESCRIPTION]["trials"]


def work(
    study: optuna.Study,
    train: Train,
    keys: Key[jax.Array, " S"],
    base: Any,
    distributions: Mapping[str, points.Distribution],
    *,
    score: Callable[[Any], np.ndarray],
    batch: int,
    worker: int = 0,
    spread: Spread | None = None,
    patience: float = PATIENCE,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Run trials until all of the study are finished, by whomever, and return how many of them it was that ran here.

    A batch of trials is one call of a program that is compiled once: `train(key, hypers)` at `batch` points, each with
    all keys, spread over the devices. `score(outputs)` tells from what runs left, leaves [P, S, ...], the scores
    [P, S]; a trial's value is their interquartile mean. One whose score is not finite is told as failed, marked
    "diverged", and counts as finished. Each worker has a number of its own: started again with the same number, it
    hands out at once what it had left running; what other workers leave is handed out once they have been silent for
    `patience` seconds. Ctrl-C or SIGTERM ends it after the batch under way. Raises ValueError for distributions that
    Optuna has no like of, and workers.Taken if another worker takes the same number.
    """
    _require_study(study)
    require_function("train", train, wanted="a function (key, hypers) -> arrays, such as training.trainer returns")
    require_keys("keys", keys)
    require_function("score", score, wanted="a function: outputs [P, S, ...] -> scores [P, S]")
    require_count("batch", batch)
    require_count("worker", worker, least=0)
    require_kind("spread", spread, Spread | None, wanted="a Spread, such as spread.choose(runs)")
    require_number("patience", patience)
    if patience < LEAST_PATIENCE:
        raise ValueError(f"patience is {patience}; it takes at least {LEAST_PATIENCE} seconds")
    points.require_within(base, distributions)
    if not distributions:
        raise ValueError("distributions is {}; it takes at least one hyper to search over")
    watch = Watch(patience)
    done = 0
    with SignsOfLife(study, worker, patience) as alive, Interrupt("these trials") as interrupt:
        while not interrupt.asked:
            watch.fail_the_dead(study)
            _hand_out(study)
            trials = list(_claimed(study, distributions, batch, alive))
            if not trials:
                if progress:
                    progress(finished(study))
                if finished(study) >= size(study):
                    return done
                time.sleep(min(1.0, patience / 10))  # others are at work
                continue
            for trial, found in zip(trials, _scores(train, keys, base, trials, batch, score, spread), strict=True):
                done += _tell(study, trial, alive.owner, found)
            if progress:
                progress(finished(study))
    return done


def _scores(
    train: Train, keys: Any, base: Any, trials: list[optuna.Trial], batch: int, score: Any, spread: Spread | None
) -> np.ndarray:
    """Return the scores of the trials, [trials, S]."""
    asked = [trial.params for trial in trials]
    filled = asked + [asked[-1]] * (batch - len(asked))  # of one shape always, though no more is run than was claimed
    points_of = points.listed(base, **{name: [params[name] for params in filled] for name in asked[0]})
    if spread is None:
        spread = sweep.fitting(train, keys, points_of, spreading.choose(batch * len(keys)))
    left = {}
    for numbers, outputs in sweep.each(train, keys, points_of, np.arange(len(trials) * len(keys)), spread):
        for place, number in enumerate(numbers.tolist()):
            left[number] = jax.tree.map(lambda leaf, place=place: leaf[place], outputs)
    runs = [left[number] for number in sorted(left)]
    shape = len(trials), len(keys)
    return np.asarray(score(jax.tree.map(lambda *leaves: np.stack(leaves).reshape(*shape, *leaves[0].shape), *runs)))


def _claimed(
    study: optuna.Study, distributions: Mapping[str, points.Distribution], batch: int, alive: SignsOfLife
) -> Iterator[optuna.Trial]:
    """Yield up to `batch` trials that this worker, and no other, now runs."""
    for _ in range(batch):
        if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return
        alive.require_own()
        trial = study.ask()
        ticket = trial.user_attrs.get(_TICKET)
        with contextlib.suppress(UpdateFinishedTrialError):
            trial.set_user_attr(OWNER, alive.owner)
            # Two workers may have handed out a ticket at one time, or this one may have come too late for the last. Of
            # trials with one ticket the first counts.
            others = [other.number for other in _of_ticket(study, ticket) if _counts(other)]
            if ticket is None or min(others, default=None) != trial.number:
                study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                continue
            for name, distribution in distributions.items():
                _suggest(trial, name, distribution)
            yield trial


def _tell(study: optuna.Study, trial: optuna.Trial, owner: Owner, found: np.ndarray) -> bool:
    """Tell what came of a trial, unless it was taken away meanwhile; return whether it counts."""
    if study.get_trials(deepcopy=False)[trial.number].user_attrs.get(OWNER) != list(owner):
        return False
    finite = bool(np.isfinite(found).all())
    value, state = (scores.interquartile_mean(found), None) if finite else (None, TrialState.FAIL)
    with contextlib.suppress(UpdateFinishedTrialError):
        trial.set_user_attr(SCORES, [float(score) if np.isfinite(score) else None for score in found])
        trial.set_user_attr(_DIVERGED, not finite)
        return _counts(study.tell(trial, value, state, skip_if_finished=True))
    return False


def _hand_out(study: optuna.Study) -> None:
    """Make a waiting trial for each ticket that has none which counts, with the numbers of the one that failed."""
    trials = study.get_trials(deepcopy=False)
    held = {trial.user_attrs.get(_TICKET) for trial in trials if _counts(trial)}
    former: dict[int, dict[str, Any]] = {}
    for trial in trials:
        if _TICKET in trial.user_attrs:  # the last may have been left before it had any number
            former[trial.user_attrs[_TICKET]] = former.get(trial.user_attrs[_TICKET], {}) | trial.params
    for ticket in range(size(study)):
        if ticket not in held:
            study.enqueue_trial(former.get(ticket, {}), user_attrs={_TICKET: ticket})


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are finished, those that diverged included, in the order in which they were asked for."""
    _require_study(study)
    ended: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and _counts(trial) and _TICKET in trial.user_attrs:
            ended.setdefault(trial.user_attrs[_TICKET], trial)
    return [ended[ticket] for ticket in sorted(ended)]


def finished(study: optuna.Study) -> int:
    """Return how many trials are finished."""
    return len(finished_trials(study))


def _counts(trial: FrozenTrial) -> bool:
    """Return whether a trial stands for its ticket: not one that was left running, or was one too many."""
    return trial.state != TrialState.FAIL or trial.user_attrs.get(_DIVERGED, False)


def _of_ticket(study: optuna.Study, ticket: int | None) -> list[FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.user_attrs.get(_TICKET) == ticket]


def _drawing(study: optuna.Study, seed: int) -> optuna.Study:
    """Return the study with its sampler: a process that goes on with it does not draw again what was drawn before."""
    drawn = len(study.get_trials(deepcopy=False)) - len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))
    # The liar: trials under way count as bad ones, so that those of a batch are not all drawn from one spot.
    study.sampler = optuna.samplers.TPESampler(seed=seed + 7919 * drawn, constant_liar=True)
    return study


def _suggest(trial: optuna.Trial, name: str, distribution: Any) -> None:
    if isinstance(distribution, points.Choice):
        trial.suggest_categorical(name, distribution.values)
    else:
        logarithmic = isinstance(distribution, points.LogUniform)
        trial.suggest_float(name, float(distribution.low), float(distribution.high), log=logarithmic)
