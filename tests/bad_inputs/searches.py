"""Points of a sweep, sweeps, and the searches: halving, populations, Optuna."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import optuna

from bad_inputs.rows import Row, folder, key, keys, old_key, row
from purerl import archive, halving, pbt, points, spread, sweep, training, tune
from purerl.tables import Hypers


def grid(count: int = 4) -> Any:
    return points.grid(Hypers(), discount=np.linspace(0.1, 0.9, count).tolist())


def train(key: Any, hypers: Any) -> Any:
    return {"score": hypers.discount}


def learner() -> Any:
    return training.Learner(
        begin=lambda key, hypers: hypers.discount,
        advance=lambda run, hypers: (run, hypers.discount),
        inherit=lambda run, parent: parent,
    )


def axes(make: Any) -> tuple[Row, ...]:
    """Return the rows of a base and of lists of values for its fields."""
    return (
        row("a class for a base", lambda: make(Hypers, discount=[0.9]), TypeError, "base is", "dqn.Hypers()"),
        row("a dict for a base", lambda: make({"discount": 0.9}, discount=[0.9]), TypeError, "base is"),
        row("text in the base", lambda: make(Hypers(exploration="0.1"), discount=[0.9]), TypeError, "base has '0.1'"),
        row("a near miss", lambda: make(Hypers(), rate=[0.1]), ValueError, "Hypers has no rate", "learning_rate"),
        row("one number", lambda: make(Hypers(), discount=0.9), ValueError, "discount is 0.9", "a list"),
        row("an empty list", lambda: make(Hypers(), discount=[]), ValueError, "discount is []", "at least one"),
        row("NaN", lambda: make(Hypers(), discount=[0.9, float("nan")]), ValueError, "discount is [0.9, nan]"),
        row("text", lambda: make(Hypers(), discount=["0.9"]), ValueError, "discount is ['0.9']"),
        row("more than float32 holds", lambda: make(Hypers(), discount=[1e300]), ValueError, "float32 can hold"),
        row("a list of lists", lambda: make(Hypers(), discount=[[0.9], [1.0]]), ValueError, "discount is [[0.9]"),
        row(
            "an axis that is an array",
            lambda: make(Hypers(discount=jnp.ones(3)), discount=[0.9]),
            ValueError,
            "discount is an array of shape (3,)",
        ),
    )


def bounds(make: Any) -> tuple[Row, ...]:
    return (
        row("the wrong way", lambda: make(2.0, 1.0), ValueError, "low is 2.0 and high is 1.0"),
        row("nothing between", lambda: make(1.0, 1.0), ValueError, "low is 1.0 and high is 1.0"),
        row("NaN", lambda: make(float("nan"), 1.0), ValueError, "low is nan"),
        row("infinity", lambda: make(1.0, float("inf")), ValueError, "high is inf"),
        row("text", lambda: make("0.1", 1.0), ValueError, "low is 0.1", "finite bounds"),
        row("none", lambda: make(0.1, None), ValueError, "high is None"),
    )


def swept(call: Any) -> tuple[Row, ...]:
    """Return the rows of what every sweep takes."""
    return (
        row("hypers for a function", lambda: call(train=Hypers()), TypeError, "train is", "(key, hypers)"),
        row("keys of the old kind", lambda: call(keys=old_key()), TypeError, "keys is", "typed keys"),
        row("one key", lambda: call(keys=key()), ValueError, "keys has the shape ()", "jax.random.split"),
        row("a seed", lambda: call(keys=0), TypeError, "keys is 0"),
        row("no keys", lambda: call(keys=keys()[:0]), ValueError, "the number of keys is 0"),
        row("hypers for a batch", lambda: call(batch=Hypers()), TypeError, "batch is", "points.Batch"),
        row("devices for a spread", lambda: call(spread=2), TypeError, "spread is 2", "spread.choose"),
    )


def ran(**changed: Any) -> Any:
    return sweep.run(**{"train": train, "keys": keys(), "batch": grid()} | changed)


def fitted(**changed: Any) -> Any:
    given = {"train": train, "keys": keys(), "batch": grid(), "spread": spread.choose(8)}
    return sweep.fitting(**given | changed)


def each(**changed: Any) -> Any:
    given = {"train": train, "keys": keys(), "batch": grid(), "numbers": np.arange(8), "spread": spread.choose(8)}
    return list(sweep.each(**given | changed))


def halved(**changed: Any) -> Any:
    return halving.halve(**{"learner": learner(), "keys": keys(), "batch": grid(9), "rungs": 2} | changed)


def plan(**changed: Any) -> Any:
    return halving.plan(**{"points": 9, "rungs": 2, "factor": 3, "units": 1} | changed)


def rules(**changed: Any) -> None:
    pbt.require_rules(**{"members": 4, "quantile": 0.25, "factor": 1.2, "resample": 0.25} | changed)


def evolved(**changed: Any) -> Any:
    given = {"key": key(), "learner": learner(), "batch": grid(), "bounds": {"discount": points.uniform(0.0, 1.0)}}
    return pbt.evolve(**given | {"generations": 2} | changed)


def planned(call: Any) -> tuple[Row, ...]:
    """Return the rows of a plan of rungs."""
    return (
        row("no rungs", lambda: call(rungs=0), ValueError, "rungs is 0"),
        row("more rungs than leave a point", lambda: call(rungs=4), ValueError, "rungs is 4", "9 points"),
        row("all go on", lambda: call(factor=1), ValueError, "factor is 1"),
        row("a fraction", lambda: call(factor=2.5), ValueError, "factor is 2.5", "a whole number"),
        row("text for a factor", lambda: call(factor="3"), ValueError, "factor is '3'"),
        row("no units", lambda: call(units=0), ValueError, "units is 0"),
        row("a bool for units", lambda: call(units=True), ValueError, "units is True"),
    )


@functools.cache
def study() -> Any:
    return tune.create(folder() / "study.log", "here", trials=2)


def worked(**changed: Any) -> Any:
    given = {"study": study(), "train": train, "keys": keys(), "base": Hypers(), "batch": 2}
    given |= {"distributions": {"discount": points.uniform(0.0, 1.0)}, "score": lambda outputs: outputs["score"]}
    return tune.work(**given | changed)


def of_study(call: Any) -> tuple[Row, ...]:
    return (
        row("a name", lambda: call("here"), TypeError, "study is 'here'", "tune.create"),
        row("nothing", lambda: call(None), TypeError, "study is None"),
        row("a storage", lambda: call(optuna.storages.InMemoryStorage()), TypeError, "study is"),
        row("one of Optuna alone", lambda: call(optuna.create_study()), TypeError, "study is", "tune.open_study"),
        row("a path", lambda: call(folder()), TypeError, "study is"),
    )


def named(call: Any) -> tuple[Row, ...]:
    """Return the rows of where a study lies and what it is called."""
    return (
        row("no place", lambda: call(None, "a"), TypeError, "where is None"),
        row("a folder", lambda: call(folder(), "a"), IsADirectoryError, "where is", "which is a folder"),
        row(
            "a place below a file", lambda: call(folder() / "file" / "log", "a"), OSError, "where is", "cannot be made"
        ),
        row("a number for a name", lambda: call(folder() / "log", 3), TypeError, "name is 3"),
        row("text that describes", lambda: call(folder() / "log", "a", description="a"), TypeError, "description is"),
        row("a fraction for a seed", lambda: call(folder() / "log", "a", seed=0.5), ValueError, "seed is 0.5"),
    )


def opened(where: Any, name: Any, **given: Any) -> Any:
    return tune.open_study(where, name, **{"wait": 0.0} | given)


def kept(**changed: Any) -> Any:
    return archive.Archive(**{"directory": folder() / "sweep", "description": {}, "points": 4, "seeds": 2} | changed)


def archived() -> Any:
    """Return a closed archive of four runs."""
    made = kept(directory=folder() / "four", points=2)
    made.close()
    return made


ROWS: dict[str, tuple[Row, ...]] = {
    "points.grid": axes(points.grid),
    "points.listed": (
        *axes(points.listed),
        row(
            "lists of two lengths",
            lambda: points.listed(Hypers(), discount=[1], exploration=[0, 1]),
            ValueError,
            "columns",
        ),
        row("no lists", lambda: points.listed(Hypers()), ValueError, "columns have lengths {}"),
    ),
    "points.uniform": bounds(points.uniform),
    "points.log_uniform": (
        *bounds(points.log_uniform),
        row("from nothing", lambda: points.log_uniform(0.0, 1.0), ValueError, "low is 0.0", "positive"),
    ),
    "points.choice": (
        row("nothing", lambda: points.choice(), ValueError, "choice takes at least one value"),
        row("NaN", lambda: points.choice(float("nan")), ValueError, "choice has (nan,)"),
        row("infinity", lambda: points.choice(1.0, float("inf")), ValueError, "choice has (1.0, inf)"),
        row("text", lambda: points.choice("a", "b"), ValueError, "choice has ('a', 'b')", "finite numbers"),
        row("a list", lambda: points.choice([0.1, 0.2]), ValueError, "choice has ([0.1, 0.2],)"),
    ),
    "points.require_within": (
        row(
            "a near miss",
            lambda: points.require_within(Hypers(), {"rate": points.uniform(0, 1)}),
            ValueError,
            "no rate",
        ),
        row("a list", lambda: points.require_within(Hypers(), {"discount": [0, 1]}), ValueError, "the distribution of"),
        row("a pair", lambda: points.require_within(Hypers(), [("discount", 1)]), TypeError, "distributions is"),
        row(
            "a class for a base",
            lambda: points.require_within(Hypers, {"discount": points.uniform(0, 1)}),
            TypeError,
            "base is",
        ),
        row(
            "more than float32 holds",
            lambda: points.require_within(Hypers(), {"discount": points.uniform(0, 1e300)}),
            ValueError,
            "discount is",
            "float32",
        ),
    ),
    "points.sample": (
        row("a key of the old kind", lambda: points.sample(old_key(), Hypers(), 2), TypeError, "key is"),
        row("a class for a base", lambda: points.sample(key(), Hypers, 2), TypeError, "base is"),
        row("no points", lambda: points.sample(key(), Hypers(), 0), ValueError, "n is 0"),
        row("a fraction of points", lambda: points.sample(key(), Hypers(), 2.5), ValueError, "n is 2.5"),
        row("a list", lambda: points.sample(key(), Hypers(), 2, discount=[0, 1]), TypeError, "discount is [0, 1]"),
        row(
            "a near miss",
            lambda: points.sample(key(), Hypers(), 2, rate=points.uniform(0, 1)),
            ValueError,
            "Hypers has no rate",
        ),
    ),
    "points.product": (
        row("one batch", lambda: points.product(grid()), ValueError, "product is of 1 batches"),
        row("hypers", lambda: points.product(Hypers(), Hypers()), TypeError, "a batch is", "points.Batch"),
        row("a list of batches", lambda: points.product([grid(), grid()]), ValueError, "product is of 1"),
        row("numbers", lambda: points.product([0.1], [0.2]), TypeError, "a batch is [0.1]"),
        row("one axis twice", lambda: points.product(grid(), grid()), ValueError, "discount is an axis of two"),
    ),
    "sweep.run": (
        *swept(ran),
        row(
            "an archive of other runs", lambda: ran(archive=archived()), ValueError, "archive is of 2 points x 2 seeds"
        ),
    ),
    "sweep.fitting": (
        *swept(fitted),
        row("no memory", lambda: fitted(memory=0), ValueError, "memory is 0"),
        row("a fraction of memory", lambda: fitted(memory=1e9), ValueError, "memory is 1000000000.0"),
        row("too little memory", lambda: fitted(memory=1), MemoryError, "one run takes", "memory"),
    ),
    "sweep.each": (
        *swept(each),
        row("a run beyond the last", lambda: each(numbers=np.array([8])), ValueError, "numbers has 8", "0 to 7"),
        row("a run before the first", lambda: each(numbers=np.array([-1])), ValueError, "numbers has -1"),
    ),
    "halving.plan": (
        row("no points", lambda: plan(points=0), ValueError, "points is 0"),
        *planned(plan),
    ),
    "halving.halve": (
        *planned(halved),
        row("a function for a learner", lambda: halved(learner=train), TypeError, "learner is", "training.learner"),
        row("keys of the old kind", lambda: halved(keys=old_key()), TypeError, "keys is"),
        row("one key", lambda: halved(keys=key()), ValueError, "keys has the shape ()"),
        row("no keys", lambda: halved(keys=keys()[:0]), ValueError, "the number of keys is 0"),
        row("hypers for a batch", lambda: halved(batch=Hypers()), TypeError, "batch is"),
        row("devices for a spread", lambda: halved(spread=2), TypeError, "spread is 2"),
    ),
    "pbt.require_rules": (
        row("one member", lambda: rules(members=1), ValueError, "members is 1; it takes a whole number of at least 2"),
        row("a fraction of members", lambda: rules(members=2.5), ValueError, "members is 2.5"),
        row("half and more", lambda: rules(quantile=0.6), ValueError, "quantile is 0.6", "from 0 to 0.5"),
        row("none of them", lambda: rules(quantile=0.1), ValueError, "quantile is 0.1", "4 members"),
        row("a factor of NaN", lambda: rules(factor=float("nan")), ValueError, "factor is nan"),
        row("a negative probability", lambda: rules(resample=-0.1), ValueError, "resample is -0.1"),
    ),
    "pbt.evolve": (
        row("a key of the old kind", lambda: evolved(key=old_key()), TypeError, "key is"),
        row("several keys", lambda: evolved(key=keys()), ValueError, "key has the shape (2,)"),
        row("a function for a learner", lambda: evolved(learner=train), TypeError, "learner is"),
        row("hypers for a batch", lambda: evolved(batch=Hypers()), TypeError, "batch is"),
        row("a population of one", lambda: evolved(batch=grid(1)), ValueError, "batch has 1 point"),
        row("no generations", lambda: evolved(generations=0), ValueError, "generations is 0"),
        row("a fraction of units", lambda: evolved(units=1.5), ValueError, "units is 1.5"),
        row("most of all", lambda: evolved(quantile=0.6), ValueError, "quantile is 0.6", "from 0 to 0.5"),
        row("NaN of them", lambda: evolved(quantile=float("nan")), ValueError, "quantile is nan"),
        row("none of them", lambda: evolved(quantile=0.1), ValueError, "quantile is 0.1", "4 members"),
        row("a probability above 1", lambda: evolved(resample=1.5), ValueError, "resample is 1.5"),
        row("a factor below 1", lambda: evolved(factor=0.8), ValueError, "factor is 0.8"),
        row("text for a factor", lambda: evolved(factor="1.2"), ValueError, "factor is '1.2'"),
        row("names for bounds", lambda: evolved(bounds=["discount"]), TypeError, "bounds is ['discount']"),
        row("a pair for bounds", lambda: evolved(bounds={"discount": (0, 1)}), ValueError, "bounds of discount are"),
        row(
            "bounds of nothing",
            lambda: evolved(bounds={"rate": points.uniform(0, 1)}),
            ValueError,
            "bounds has rate",
        ),
        row(
            "NaN bounds",
            lambda: evolved(bounds={"discount": points.Uniform(float("nan"), 1.0)}),
            ValueError,
            "low is nan",
        ),
        row("devices for a spread", lambda: evolved(spread=2), TypeError, "spread is 2"),
    ),
    "tune.storage_of": (
        row("nothing", lambda: tune.storage_of(None), TypeError, "where is None", "journal"),
        row("a number", lambda: tune.storage_of(3), TypeError, "where is 3"),
        row("a folder", lambda: tune.storage_of(folder()), IsADirectoryError, "where is", "which is a folder"),
        row("a place below a file", lambda: tune.storage_of(folder() / "file" / "log"), OSError, "cannot be made"),
        row("a study", lambda: tune.storage_of(study()), TypeError, "where is"),
    ),
    "tune.require_url": (
        row("nothing", lambda: tune.require_url(None), TypeError, "where is None", "a database's URL"),
        row("a number", lambda: tune.require_url(3), TypeError, "where is 3"),
        row("a path", lambda: tune.require_url(folder()), TypeError, "where is", "a database's URL"),
        row(
            "no such kind", lambda: tune.require_url("no://here"), ValueError, "where is no://here", "cannot be opened"
        ),
        row("no URL", lambda: tune.require_url("://here"), ValueError, "where is ://here", "cannot be opened"),
        row(
            "no driver", lambda: tune.require_url("sqlite+no://a"), ValueError, "where is sqlite+no", "cannot be opened"
        ),
    ),
    "tune.create": (
        *named(lambda *place, **given: tune.create(*place, **{"trials": 2} | given)),
        row("no trials", lambda: tune.create(folder() / "log", "a", trials=0), ValueError, "trials is 0"),
        row("a fraction of trials", lambda: tune.create(folder() / "log", "a", trials=1e3), ValueError, "trials is"),
        row(
            "another count",
            lambda: (study(), tune.create(folder() / "study.log", "here", trials=3)),
            ValueError,
            "study 'here' in",
            "trials 2",
        ),
    ),
    "tune.open_study": (
        *named(opened)[3:],
        row("text to wait", lambda: opened(folder() / "log", "a", wait="long"), ValueError, "wait is 'long'"),
        row("less than no time", lambda: opened(folder() / "log", "a", wait=-1.0), ValueError, "wait is -1"),
        row("a study that is not there", lambda: opened(folder() / "log", "b"), TimeoutError, "no study 'b'"),
    ),
    "tune.size": of_study(tune.size),
    "tune.finished": of_study(tune.finished),
    "tune.finished_trials": of_study(tune.finished_trials),
    "tune.work": (
        *of_study(lambda study: worked(study=study)),
        row("hypers for a function", lambda: worked(train=Hypers()), TypeError, "train is"),
        row("keys of the old kind", lambda: worked(keys=old_key()), TypeError, "keys is"),
        row("one key", lambda: worked(keys=key()), ValueError, "keys has the shape ()"),
        row("no score", lambda: worked(score=None), TypeError, "score is None"),
        row("no batch", lambda: worked(batch=0), ValueError, "batch is 0"),
        row("a worker of no number", lambda: worked(worker=-1), ValueError, "worker is -1"),
        row("a name for a worker", lambda: worked(worker="first"), ValueError, "worker is 'first'"),
        row("no patience", lambda: worked(patience=0.0), ValueError, "patience is 0.0"),
        row("NaN for patience", lambda: worked(patience=float("nan")), ValueError, "patience is nan"),
        row("a class for a base", lambda: worked(base=Hypers), TypeError, "base is"),
        row("nothing to search", lambda: worked(distributions={}), ValueError, "distributions is {}"),
        row("a list to search", lambda: worked(distributions={"discount": [0, 1]}), ValueError, "the distribution of"),
        row("devices for a spread", lambda: worked(spread=2), TypeError, "spread is 2"),
    ),
    "archive.Archive": (
        row("a number for a folder", lambda: kept(directory=3), TypeError, "directory is 3"),
        row(
            "a file for a folder", lambda: kept(directory=folder() / "file"), FileExistsError, "directory is", "a file"
        ),
        row("a folder below a file", lambda: kept(directory=folder() / "file" / "x"), OSError, "cannot be made"),
        row("text that describes", lambda: kept(description="dqn"), TypeError, "description is 'dqn'"),
        row("no points", lambda: kept(points=0), ValueError, "points is 0"),
        row("a fraction of seeds", lambda: kept(seeds=2.5), ValueError, "seeds is 2.5"),
        row(
            "another sweep's folder",
            lambda: (archived(), kept(directory=folder() / "four", points=3)),
            ValueError,
            "holds a sweep with runs.points 2",
        ),
    ),
}
FEW: dict[str, str] = {}
