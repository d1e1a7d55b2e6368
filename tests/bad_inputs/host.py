"""The host's side: run directories, pictures, scores, progress, devices, and steps of a trust region."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bad_inputs.rows import Row, folder, key, row
from purerl import metrics, plots, results, scores, spread, trust_region


@functools.cache
def finished() -> Any:
    """Return the folder of a finished run."""
    made = folder() / "finished"
    results.write(made, settings={}, metrics={"a": np.zeros(2)}, summary={"seeds": 2})
    return made


@functools.cache
def broken() -> Any:
    """Return a file that is neither JSON nor npz."""
    made = folder() / "broken"
    made.write_text("{")
    return made


def written(**changed: Any) -> Any:
    given = {"directory": folder() / "run", "settings": {}, "metrics": {}, "summary": {}}
    return results.write(**given | changed)


def path_of(name: str, call: Any) -> tuple[Row, ...]:
    """Return the rows of a path that is none."""
    return (
        row("no path", lambda: call(None), TypeError, f"{name} is None", "a path"),
        row("a number", lambda: call(3), TypeError, f"{name} is 3", "a path"),
        row("a list of paths", lambda: call(["run"]), TypeError, f"{name} is ['run']"),
    )


def axes() -> Any:
    return plots.new_figure(4.0, 3.0).add_subplot()


def axes_of(call: Any) -> tuple[Row, ...]:
    return (
        row("a figure for axes", lambda: call(plots.new_figure(4.0, 3.0)), TypeError, "axes is"),
        row("nothing for axes", lambda: call(None), TypeError, "axes is", "figure.add_subplot"),
    )


STEPS, RETURNS = np.arange(5), np.zeros((2, 5))
LABELS = {"x": [0.1, 0.2], "y": [1.0, 2.0]}


def curve(path: Any = None, steps: Any = STEPS, returns: Any = RETURNS, **given: Any) -> Any:
    return plots.learning_curve(folder() / "a.png" if path is None else path, steps, returns, title="", **given)


def compared(on: Any, x: Any = STEPS, returns: Any = None) -> Any:
    return plots.comparison(on, x, {"a": RETURNS} if returns is None else returns, xlabel="", ylabel="")


def drawn(on: Any, curves: Any = None) -> Any:
    return plots.curves(on, {"a": (STEPS,) * 4} if curves is None else curves, xlabel="", ylabel="")


def walked(on: Any, shape: Any = (2, 3), paths: Any = ((0, 1),), **given: Any) -> Any:
    return plots.grid_paths(on, shape, paths, **{"color": "red"} | given)


def sensitive(on: Any, column: Any = (1.0, 2.0), found: Any = np.zeros((2, 3))) -> Any:  # noqa: B008
    return plots.sensitivity(on, column, found, xlabel="", ylabel="")


def dotted(on: Any, x: Any = (1.0, 2.0), y: Any = (1.0, 2.0)) -> Any:
    return plots.dots(on, x, y, xlabel="", ylabel="")


def heated(on: Any, labels: Any = None, values: Any = (0.0, 1.0)) -> Any:
    return plots.heat_map(on, LABELS if labels is None else labels, values)


def numbers(name: str, call: Any) -> tuple[Row, ...]:
    """Return the rows of scores that are none."""
    return (
        row("no scores", lambda: call([]), ValueError, f"{name} has shape (0,)"),
        row("NaN", lambda: call([1.0, float("nan")]), ValueError, f"{name} has 1 of 2 scores that are not finite"),
        row("infinity", lambda: call([1.0, float("inf")]), ValueError, f"{name} has 1 of 2"),
        row("text", lambda: call(["good", "bad"]), ValueError, f"{name} is ['good', 'bad']"),
        row("a ragged list", lambda: call([[1.0], [1.0, 2.0]]), ValueError, f"{name} is [[1.0], [1.0, 2.0]]"),
    )


def size(name: str, call: Any) -> tuple[Row, ...]:
    bad = {"none": 0.0, "less than none": -1.0, "NaN": float("nan"), "text": "4"}
    return tuple(
        row(f"{name}: {label}", lambda got=got: call(**{name: got}), ValueError, f"{name} is {got!r}")
        for label, got in bad.items()
    )


def squared(params: Any) -> Any:
    return jnp.sum(params**2)


VECTOR = np.ones(3, np.float32)


def stepped(**changed: Any) -> Any:
    given = {"params": VECTOR, "surrogate": squared, "mean_kl": squared, "delta": 0.01, "damping": 0.1}
    given |= {"cg_iterations": 3, "max_backtracks": 3, "backtrack_coefficient": 0.8} | changed
    return jax.eval_shape(lambda: trust_region.natural_step(**given))


def conjugated(**changed: Any) -> Any:
    given = {"product": lambda x: x, "target": VECTOR, "iterations": 3} | changed
    return jax.eval_shape(lambda: trust_region.conjugate_gradient(**given))


def searched(**changed: Any) -> Any:
    given = {"params": VECTOR, "step": VECTOR, "acceptable": lambda params: True, "max_backtracks": 3}
    given |= {"backtrack_coefficient": 0.8} | changed
    return jax.eval_shape(lambda: trust_region.line_search(**given))


def multiplied(**changed: Any) -> Any:
    given = {"mean_kl": squared, "params": VECTOR, "vector": VECTOR, "damping": 0.1} | changed
    return jax.eval_shape(lambda: trust_region.fisher_vector_product(**given))


ROWS: dict[str, tuple[Row, ...]] = {
    "results.default_directory": (
        row("an agent for a name", lambda: results.default_directory(None, "env"), TypeError, "script is None"),
        row("a number", lambda: results.default_directory("dqn", 3), TypeError, "env is 3", "a name"),
        row("no letters", lambda: results.default_directory("dqn", "../"), ValueError, "env is '../'"),
        row("nothing", lambda: results.default_directory("", "env"), ValueError, "script is ''"),
        row("dots", lambda: results.default_directory("..", "env"), ValueError, "script is '..'"),
    ),
    "results.create": (
        *path_of("directory", results.create),
        row("a file", lambda: results.create(folder() / "file"), FileExistsError, "directory is", "a file"),
        row("a folder below a file", lambda: results.create(folder() / "file" / "x"), OSError, "cannot be made"),
        row("a finished run", lambda: results.create(finished()), FileExistsError, "already holds a finished run"),
    ),
    "results.write": (
        *path_of("directory", lambda path: written(directory=path)),
        row("a folder below a file", lambda: written(directory=folder() / "file" / "x"), OSError, "directory is"),
        row("text for settings", lambda: written(settings="dqn"), TypeError, "settings is 'dqn'"),
        row("an array for metrics", lambda: written(metrics=np.zeros(3)), TypeError, "metrics is"),
        row("objects for metrics", lambda: written(metrics={"a": object()}), TypeError, "metrics.a is of type object"),
        row("a key in settings", lambda: written(settings={"key": key()}), TypeError, "settings.key is of type"),
        row("a set in a summary", lambda: written(summary={"a": {1}}), TypeError, "summary.a is of type set"),
    ),
    "results.load": (
        *path_of("directory", results.load),
        row("nowhere", lambda: results.load(folder() / "nowhere"), FileNotFoundError, "directory is", "not a folder"),
        row("a file", lambda: results.load(folder() / "file"), FileNotFoundError, "directory is", "not a folder"),
    ),
    "results.load_run": (
        *path_of("path", results.load_run),
        row("nowhere", lambda: results.load_run(folder() / "nowhere"), FileNotFoundError, "holds no settings.json"),
        row("a file", lambda: results.load_run(folder() / "file"), FileNotFoundError, "holds no settings.json"),
    ),
    "results.read_json": (
        *path_of("path", results.read_json),
        row("nowhere", lambda: results.read_json(folder() / "nowhere"), FileNotFoundError, "path is", "no file"),
        row("a folder", lambda: results.read_json(folder()), FileNotFoundError, "path is", "no file"),
        row("half of one", lambda: results.read_json(broken()), ValueError, "is not valid JSON"),
    ),
    "results.read_npz": (
        *path_of("path", results.read_npz),
        row("nowhere", lambda: results.read_npz(folder() / "nowhere"), FileNotFoundError, "path is", "no file"),
        row("text", lambda: results.read_npz(broken()), ValueError, "is not a valid npz file"),
    ),
    "results.replace_file": (
        *path_of("path", lambda path: results.replace_file(path, b"")),
        row("text", lambda: results.replace_file(folder() / "a", "text"), TypeError, "content is 'text'", "bytes"),
        row("nowhere", lambda: results.replace_file(folder() / "no" / "a", b""), FileNotFoundError, "is no folder"),
    ),
    "results.table": (
        row("a path", lambda: results.table("runs"), TypeError, "one of results is 'r'", "results.load"),
        row("paths", lambda: results.table([folder()]), TypeError, "one of results is"),
        row("nothing", lambda: results.table(None), TypeError, "results is None"),
        row("a number", lambda: results.table(3), TypeError, "results is 3"),
        row("summaries", lambda: results.table([{}]), TypeError, "one of results is {}"),
    ),
    "results.frame": (
        row("a path", lambda: results.frame("runs"), TypeError, "one of results is 'r'"),
        row("nothing", lambda: results.frame(None), TypeError, "results is None"),
        row("an empty list", lambda: results.frame([]), ValueError, "results is empty"),
        row("summaries", lambda: results.frame([{}]), TypeError, "one of results is {}"),
        row("a single run", lambda: results.frame(results.load(finished())), ValueError, "holds no sweep"),
    ),
    "results.to_json": (
        row("an object", lambda: results.to_json(object()), TypeError, "value is of type object"),
        row("a class", lambda: results.to_json({"a": int}), TypeError, "value.a is of type type"),
        row("a function", lambda: results.to_json([len], "settings"), TypeError, "settings[0] is of type"),
        row("a key", lambda: results.to_json(key(), "key"), TypeError, "key is of type"),
        row("a set", lambda: results.to_json({1, 2}), TypeError, "value is of type set"),
    ),
    "results.tidy": (
        *path_of("directory", results.tidy),
        row("bytes", lambda: results.tidy(b"run"), TypeError, "directory is b'run'", "a path"),
        row("a dict", lambda: results.tidy({"out": "run"}), TypeError, "directory is {'out': 'run'}", "a path"),
    ),
    "results.npz_bytes": (
        row("an array", lambda: results.npz_bytes(np.zeros(3)), TypeError, "metrics is", "a dict"),
        row("nothing", lambda: results.npz_bytes(None), TypeError, "metrics is None"),
        row("objects", lambda: results.npz_bytes({"a": object()}), TypeError, "metrics.a is of type object"),
        row("a ragged list", lambda: results.npz_bytes({"a": [[1], [1, 2]]}), TypeError, "metrics.a is of type list"),
        row("a key", lambda: results.npz_bytes({"a": key()}), TypeError, "metrics.a is of type"),
    ),
    "plots.learning_curve": (
        *path_of("path", lambda path: curve() if path is None else curve(path))[1:],
        row("a folder", lambda: curve(folder()), IsADirectoryError, "path is", "a folder"),
        row("a picture below a file", lambda: curve(folder() / "file" / "a.png"), OSError, "path is", "cannot be made"),
        row("one seed without its axis", lambda: curve(returns=np.zeros(5)), ValueError, "returns has shape (5,)"),
        row("other steps", lambda: curve(steps=np.arange(4)), ValueError, "over steps of shape (4,)"),
        row("no seeds", lambda: curve(returns=np.zeros((0, 5))), ValueError, "returns has shape (0, 5)"),
        row("text for returns", lambda: curve(returns="best"), ValueError, "returns is 'best'"),
        row("text for steps", lambda: curve(steps=["a"] * 5), ValueError, "steps is"),
        row("an evaluation of no pair", lambda: curve(evaluation=[1, 2]), ValueError, "evaluation is [1, 2]"),
        row("another evaluation", lambda: curve(evaluation=([1], [[1.0, 2.0]])), ValueError, "evaluation has shape"),
    ),
    "plots.comparison": (
        *axes_of(compared),
        row("no names", lambda: compared(axes(), returns=RETURNS), TypeError, "returns is", "a dict"),
        row(
            "one seed without its axis", lambda: compared(axes(), returns={"a": STEPS}), ValueError, "returns of a has"
        ),
        row("other points", lambda: compared(axes(), x=[1, 2]), ValueError, "returns of a has shape (2, 5)"),
        row("text", lambda: compared(axes(), returns={"a": "best"}), ValueError, "returns of a is 'best'"),
    ),
    "plots.curves": (
        *axes_of(drawn),
        row("no names", lambda: drawn(axes(), [STEPS] * 4), TypeError, "drawn is", "a dict"),
        row("no band", lambda: drawn(axes(), {"a": (STEPS, STEPS)}), ValueError, "drawn has a of shapes"),
        row("two lengths", lambda: drawn(axes(), {"a": (STEPS, STEPS, STEPS, [1])}), ValueError, "drawn has a"),
    ),
    "plots.grid_paths": (
        *axes_of(walked),
        row("one size", lambda: walked(axes(), 6), ValueError, "shape is 6", "(rows, columns)"),
        row("no rows", lambda: walked(axes(), (0, 3)), ValueError, "shape is (0, 3)"),
        row(
            "a path beyond the grid", lambda: walked(axes(), paths=[[0, 6]]), ValueError, "a grid of (2, 3) has 0 to 5"
        ),
        row("shade beyond the grid", lambda: walked(axes(), shaded=[-1]), ValueError, "a grid of (2, 3) has 0 to 5"),
        row("a label beyond the grid", lambda: walked(axes(), labels={6: "G"}), ValueError, "labels has cell 6"),
    ),
    "plots.sensitivity": (
        *axes_of(sensitive),
        row("other points", lambda: sensitive(axes(), (1.0,)), ValueError, "scores_of has shape (2, 3)"),
        row(
            "scores without seeds", lambda: sensitive(axes(), found=np.zeros(2)), ValueError, "scores_of has shape (2,)"
        ),
        row("no scores", lambda: sensitive(axes(), found=np.zeros((2, 0))), ValueError, "scores_of has shape (2, 0)"),
        row("text", lambda: sensitive(axes(), ("a", "b")), ValueError, "column is ('a', 'b')"),
    ),
    "plots.dots": (
        *axes_of(dotted),
        row("two lengths", lambda: dotted(axes(), (1.0,)), ValueError, "y has shape (2,) over x of shape (1,)"),
        row("a table", lambda: dotted(axes(), RETURNS, RETURNS), ValueError, "y has shape (2, 5)"),
        row("text", lambda: dotted(axes(), ("a", "b")), ValueError, "x is ('a', 'b')"),
    ),
    "plots.heat_map": (
        *axes_of(heated),
        row("one axis", lambda: heated(axes(), {"x": [1, 2]}), ValueError, "labels has", "two axes"),
        row("lists for labels", lambda: heated(axes(), [[1, 2], [1, 2]]), TypeError, "labels is"),
        row("two lengths", lambda: heated(axes(), values=(0.0,)), ValueError, "labels has", "values of shape (1,)"),
        row("text", lambda: heated(axes(), values=("a", "b")), ValueError, "values is ('a', 'b')"),
    ),
    "plots.save": (
        *path_of("path", lambda path: plots.save(plots.new_figure(1.0, 1.0), path)),
        row("axes for a figure", lambda: plots.save(axes(), folder() / "a.png"), TypeError, "figure is"),
        row("a folder", lambda: plots.save(plots.new_figure(1.0, 1.0), folder()), IsADirectoryError, "path is"),
        row(
            "a picture below a file",
            lambda: plots.save(plots.new_figure(1.0, 1.0), folder() / "file" / "a.png"),
            OSError,
            "path is",
            "cannot be made",
        ),
    ),
    "plots.new_figure": (
        *size("width", lambda **given: plots.new_figure(**{"height": 3.0} | given)),
        *size("height", lambda **given: plots.new_figure(**{"width": 3.0} | given)),
    ),
    "scores.interquartile_mean": (
        *numbers("x", scores.interquartile_mean),
        row(
            "an axis that is not there", lambda: scores.interquartile_mean([1.0, 2.0], axis=1), ValueError, "axis is 1"
        ),
        row("a fraction of an axis", lambda: scores.interquartile_mean([1.0], axis=0.5), ValueError, "axis is 0.5"),
    ),
    "scores.bootstrap_interval": (
        *numbers("x", scores.bootstrap_interval),
        row("one run", lambda: scores.bootstrap_interval([1.0]), ValueError, "x has 1 run"),
        row("three axes", lambda: scores.bootstrap_interval(np.ones((2, 2, 2))), ValueError, "x has shape (2, 2, 2)"),
        row("per cent", lambda: scores.bootstrap_interval([1, 2], confidence=95), ValueError, "confidence is 95"),
        row(
            "text for it",
            lambda: scores.bootstrap_interval([1, 2], confidence="0.9"),
            ValueError,
            "confidence is '0.9'",
        ),
        row("no resamples", lambda: scores.bootstrap_interval([1, 2], resamples=0), ValueError, "resamples is 0"),
        row("half a one", lambda: scores.bootstrap_interval([1, 2], resamples=1e3), ValueError, "resamples is 1000.0"),
        row("a seed below 0", lambda: scores.bootstrap_interval([1, 2], seed=-1), ValueError, "seed is -1"),
        row("a name", lambda: scores.bootstrap_interval([1, 2], "mean"), TypeError, "statistic is 'mean'"),
        row(
            "a statistic that reduces nothing",
            lambda: scores.bootstrap_interval([1, 2], lambda x, axis: x),
            ValueError,
            "statistic returned shape",
        ),
    ),
    "scores.probability_of_improvement": (
        *numbers("x", lambda x: scores.probability_of_improvement(x, [1.0])),
        row("no scores of the other", lambda: scores.probability_of_improvement([1.0], []), ValueError, "y has shape"),
        row(
            "other tasks",
            lambda: scores.probability_of_improvement(np.ones((2, 3)), np.ones((2, 2))),
            ValueError,
            "x has shape (2, 3) and y (2, 2)",
        ),
    ),
    "scores.performance_profile": (
        *numbers("x", lambda x: scores.performance_profile(x, [0.5])),
        row(
            "NaN to be above", lambda: scores.performance_profile([1.0], [np.nan]), ValueError, "thresholds has 1 of 1"
        ),
        row("text to be above", lambda: scores.performance_profile([1.0], "high"), ValueError, "thresholds is 'high'"),
    ),
    "scores.summary": (
        row("no seeds", lambda: scores.summary([]), ValueError, "per_seed has shape (0,)"),
        row("a table", lambda: scores.summary([[1.0]]), ValueError, "per_seed has shape (1, 1)"),
        row("one number", lambda: scores.summary(1.0), ValueError, "per_seed has shape ()"),
        row("text", lambda: scores.summary(["good"]), ValueError, "per_seed is ['good']"),
        row("a ragged list", lambda: scores.summary([[1.0], [1.0, 2.0]]), ValueError, "per_seed is"),
    ),
    "metrics.Progress": (
        row("no steps", lambda: metrics.Progress(0, description=""), ValueError, "total_steps is 0"),
        row("a fraction", lambda: metrics.Progress(1e6, description=""), ValueError, "total_steps is 1000000.0"),
        row("text", lambda: metrics.Progress("100", description=""), ValueError, "total_steps is '100'"),
        row("no description", lambda: metrics.Progress(10, description=None), TypeError, "description is None"),
        row("a number for a unit", lambda: metrics.Progress(1, description="", unit=3), TypeError, "unit is 3"),
        row("text for a flag", lambda: metrics.Progress(1, description="", enabled="no"), TypeError, "enabled is 'no'"),
        row("seconds for a clock", lambda: metrics.Progress(1, description="", clock=1.0), TypeError, "clock is 1.0"),
    ),
    "spread.use_all_cores": (
        row("no cores", lambda: spread.use_all_cores(0), ValueError, "cores is 0"),
        row("fewer than none", lambda: spread.use_all_cores(-2), ValueError, "cores is -2"),
        row("half a core", lambda: spread.use_all_cores(1.5), ValueError, "cores is 1.5"),
        row("text", lambda: spread.use_all_cores("2"), ValueError, "cores is '2'"),
        row("too late", lambda: spread.use_all_cores(len(jax.devices()) + 1), RuntimeError, "use_all_cores()", "line"),
    ),
    "spread.choose": (
        row("no runs", lambda: spread.choose(0), ValueError, "runs is 0"),
        row("a fraction of runs", lambda: spread.choose(2.5), ValueError, "runs is 2.5"),
        row("no devices", lambda: spread.choose(4, devices=0), ValueError, "devices is 0"),
        row("more devices than there are", lambda: spread.choose(4, devices=999), ValueError, "devices is 999"),
        row("none together", lambda: spread.choose(4, together=0), ValueError, "together is 0"),
        row("a bool", lambda: spread.choose(4, together=True), ValueError, "together is True"),
    ),
    "trust_region.fisher_vector_product": (
        row("a number for a divergence", lambda: multiplied(mean_kl=0.01), TypeError, "mean_kl is 0.01"),
        row(
            "a vector of another size", lambda: multiplied(vector=np.ones(4)), ValueError, "vector has the shapes (4,)"
        ),
        row("a vector of other parts", lambda: multiplied(vector={"a": VECTOR}), ValueError, "vector has the shapes"),
        row("less than no damping", lambda: multiplied(damping=-0.1), ValueError, "damping is -0.1"),
        row("NaN for damping", lambda: multiplied(damping=float("nan")), ValueError, "damping is nan"),
    ),
    "trust_region.gauss_newton_product": (
        row(
            "outputs that are made already",
            lambda: trust_region.gauss_newton_product(VECTOR, squared, VECTOR),
            TypeError,
            "outputs is",
        ),
        row(
            "a number for a divergence",
            lambda: trust_region.gauss_newton_product(lambda params: params, 0.01, VECTOR),
            TypeError,
            "divergence is 0.01",
        ),
    ),
    "trust_region.conjugate_gradient": (
        row("a matrix for a product", lambda: conjugated(product=np.eye(3)), TypeError, "product is", "A x"),
        row("fewer than none", lambda: conjugated(iterations=-1), ValueError, "iterations is -1"),
        row("a fraction of iterations", lambda: conjugated(iterations=2.5), ValueError, "iterations is 2.5"),
        row("less than no tolerance", lambda: conjugated(tolerance=-1.0), ValueError, "tolerance is -1"),
        row("NaN for a tolerance", lambda: conjugated(tolerance=float("nan")), ValueError, "tolerance is nan"),
    ),
    "trust_region.line_search": (
        row("a step of another size", lambda: searched(step=np.ones(4)), ValueError, "step has the shapes (4,)"),
        row("a flag for a test", lambda: searched(acceptable=True), TypeError, "acceptable is True"),
        row("fewer than none", lambda: searched(max_backtracks=-1), ValueError, "max_backtracks is -1"),
        row(
            "a step that grows", lambda: searched(backtrack_coefficient=1.5), ValueError, "backtrack_coefficient is 1.5"
        ),
        row("NaN", lambda: searched(backtrack_coefficient=float("nan")), ValueError, "backtrack_coefficient is nan"),
    ),
    "trust_region.natural_step": (
        row("a number to maximise", lambda: stepped(surrogate=1.0), TypeError, "surrogate is 1.0"),
        row("a number for a divergence", lambda: stepped(mean_kl=0.01), TypeError, "mean_kl is 0.01"),
        row("less than no region", lambda: stepped(delta=-0.01), ValueError, "delta is -0.01"),
        row("NaN for damping", lambda: stepped(damping=float("nan")), ValueError, "damping is nan"),
        row("fewer than none", lambda: stepped(cg_iterations=-1), ValueError, "cg_iterations is -1"),
        row("a bool for backtracks", lambda: stepped(max_backtracks=True), ValueError, "max_backtracks is True"),
    ),
}
FEW: dict[str, str] = {
    "trust_region.gauss_newton_product": "two functions are all that can be wrong; parameters are any tree",
}
