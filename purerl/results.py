"""Run directories: settings.json, metrics.npz, summary.json; each written whole or not at all."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import platform
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from purerl.checks import make_folder, path_of, require_kind

if TYPE_CHECKING:
    import pandas

SETTINGS, METRICS, SUMMARY = "settings.json", "metrics.npz", "summary.json"
PACKAGES = ("purerl", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


class Damaged(ValueError):
    """A file is cut short or malformed; the message names it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One finished run, as read; arrays of `metrics` are [seeds, rows] or the evaluation's."""

    directory: Path
    settings: dict[str, Any]
    metrics: dict[str, np.ndarray]
    summary: dict[str, Any]


def default_directory(script: str, env: str, now: datetime | None = None) -> Path:
    """Where a run goes unless told otherwise: runs/<script>/<env>/<YYYYmmdd-HHMMSS>.

    Where that is taken a number follows. Nothing is made, the path is relative to the working
    directory, and characters that do not belong in a folder's name become dashes. Raises
    ValueError where a name has none that does.
    """
    stamp = (now or datetime.now()).strftime("%Y%m%d-%H%M%S")
    parent = Path("runs") / _folder_name(script, "script") / _folder_name(env, "env")
    path, number = parent / stamp, 1
    while path.exists():
        number += 1
        path = parent / f"{stamp}-{number}"
    return path


def create(directory: str | os.PathLike[str]) -> Path:
    """Makes a run directory; raises FileExistsError where a finished run or a file is there."""
    path = path_of("directory", directory)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"directory is {path}, which is a file; it takes a folder.")
    if (path / SUMMARY).exists():
        raise FileExistsError(f"directory is {path}, which already holds a finished run ({SUMMARY}); give another.")
    make_folder(path, name="directory")
    return path


def write(
    directory: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    summary: Mapping[str, Any],
) -> None:
    """Writes a run's three files, each atomically, the summary last: it marks a whole run.

    `metrics` are arrays [seeds, rows] and the evaluation's; `settings` and `summary` are what
    `to_json` takes. All are converted before any file is touched. Raises TypeError on what
    cannot be stored.
    """
    path = path_of("directory", directory)
    for name, value in {"settings": settings, "metrics": metrics, "summary": summary}.items():
        require_kind(name, value, Mapping, wanted="a dict")
    contents = {
        SETTINGS: json_bytes(settings, "settings"),
        METRICS: npz_bytes(metrics),
        SUMMARY: json_bytes(summary, "summary"),
    }
    make_folder(path, name="directory")
    for name, content in contents.items():
        replace_file(path / name, content)


def load(directory: str | os.PathLike[str]) -> Result | list[Result]:
    """Reads a run directory as a Result, or a folder with runs below it as a list sorted by path.

    Raises FileNotFoundError where there is no finished run or one lacks a file, and ValueError
    that names the file where one is cut short or malformed. Below a folder, unfinished runs are
    passed over.
    """
    path = path_of("directory", directory)
    if not path.is_dir():
        raise FileNotFoundError(f"directory is {path}, which is not a folder.")
    if (path / SUMMARY).exists():
        return load_run(path)
    if (path / SETTINGS).exists() or (path / METRICS).exists():
        raise FileNotFoundError(f"{path} holds no {SUMMARY}: this run has not finished.")
    runs = sorted(found.parent for found in path.rglob(SUMMARY))
    if not runs:
        raise FileNotFoundError(f"{path} holds no {SUMMARY}, nor does any folder below it: no finished run is there.")
    return [load_run(run) for run in runs]


def table(results: Result | Iterable[Result]) -> list[dict[str, Any]]:
    """One flat row for each run, with the columns named below.

    agent, env, seeds, total_steps, episode_return_{mean,iqm,ci95}, evaluation_{mean,iqm,ci95},
    steps_per_second and directory; ci95 is [low, high] and total_steps counts one seed's. What
    a summary lacks is None.
    """
    rows = []
    for result in _each(results):
        row = {name: result.summary.get(name) for name in ("agent", "env", "seeds", "total_steps")}
        for group in ("episode_return", "evaluation"):
            scores = result.summary.get(group) or {}
            row |= {f"{group}_{name}": scores.get(name) for name in ("mean", "iqm", "ci95")}
        row["steps_per_second"] = result.summary.get("steps_per_second")
        row["directory"] = str(result.directory)
        rows.append(row)
    return rows


def frame(results: Result | Iterable[Result]) -> pandas.DataFrame:
    """A sweep, the groups of one, or a search as a pandas table: a row for each run.

    It has the static choices of its group, its point's value on every axis, its seed and its score: NaN if it diverged,
    and of a sweep `diverged_at`, the update in which it did, or -1. Raises ValueError for other results.
    """
    import pandas

    parts = []
    for result in _each(results):
        if "labels" not in result.summary:
            raise ValueError(f"{result.directory} holds no sweep; results.table takes single runs")
        seeds, points = result.summary["seeds"], result.summary["points"]
        static = {
            name: str(value) if isinstance(value, list) else value
            for name, value in result.summary.get("static", {}).items()
        }
        columns = {name: np.repeat(values, seeds) for name, values in result.summary["labels"].items()}
        columns["seed"] = np.tile(np.arange(seeds), len(points))
        columns["score"] = np.array([row["per_seed"] for row in points], float).ravel()
        if "diverged_at" in result.metrics:
            columns["diverged_at"] = result.metrics["diverged_at"].ravel()
        parts.append(pandas.DataFrame(static | columns, index=range(len(columns["seed"]))))
    if not parts:
        raise ValueError("results is empty; it takes at least one Result")
    return pandas.concat(parts, ignore_index=True)


def _each(results: Result | Iterable[Result]) -> list[Result]:
    found = [results] if isinstance(results, Result) else results
    require_kind("results", found, Iterable, wanted="what results.load returns: a Result, or a list of them")
    found = list(found)
    for result in found:
        require_kind("one of results", result, Result, wanted="a Result, as results.load returns")
    return found


def versions() -> dict[str, str]:
    """Versions of python, purerl and what it stands on, without those that are not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def to_json(value: Any, name: str = "value") -> Any:
    """The value as JSON takes it.

    Dataclasses and NamedTuples become dicts, tuples and arrays lists, Paths text, numpy and jax
    scalars numbers: float32 as its shortest decimal, 0.1 and not 0.10000000149. NaN becomes
    None and an infinity "inf" or "-inf", since JSON has neither. Raises TypeError on anything
    else; `name` says where in that sentence.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return None if math.isnan(value) else str(float(value))
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Not dataclasses.asdict: it copies deeply, devices' arrays included.
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, Mapping):
        return {str(key): to_json(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if hasattr(value, "__array__") and not isinstance(value, type):
        array = _array(value, name)
        if array.dtype.kind == "f" and array.dtype.itemsize < 8:
            array = array.astype(str).astype(np.float64)
        return to_json(array.tolist(), name)
    raise TypeError(
        f"{name} is of type {type(value).__name__}; it takes text, numbers, booleans, None, Paths,"
        " arrays, and dataclasses, dicts, lists and tuples of these."
    )


def _array(value: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(value)
        # ml_dtypes such as bfloat16 would come back from a file as raw bytes.
        return array if array.dtype.kind in "biufU" else array.astype(np.float32, casting="safe")
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is of type {type(value).__name__}; it takes an array of numbers or text.") from error


def json_bytes(value: Mapping[str, Any], name: str) -> bytes:
    """The content of a JSON file with this; raises TypeError, naming it, on what cannot be stored."""
    return (json.dumps(to_json(value, name), indent=2, allow_nan=False) + "\n").encode()


def npz_bytes(metrics: Mapping[str, Any]) -> bytes:
    """The content of an npz file with these arrays; raises TypeError on what it cannot hold."""
    require_kind("metrics", metrics, Mapping, wanted="a dict: name -> array")
    # As np.savez does, whose keyword arguments would forbid a metric named "file".
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, value in metrics.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                array = _array(value, f"metrics.{name}")
                np.lib.format.write_array(member, array, allow_pickle=False)
    return buffer.getvalue()


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file at one stroke: whoever reads finds the old content or the new, whole."""
    path = path_of("path", path)
    require_kind("content", content, bytes, wanted="bytes")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path is {path}, and {path.parent} is no folder; it takes one that is there")
    # In the same folder, since a rename is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def tidy(directory: str | os.PathLike[str]) -> None:
    """Removes what a process that was killed left of `replace_file` in a folder that no other one writes to."""
    for path in path_of("directory", directory).glob(".*.tmp"):
        if re.fullmatch(r"\..+\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def _folder_name(text: str, name: str) -> str:
    require_kind(name, text, str, wanted="a name with letters or digits")
    cleaned = re.sub(r"[^\w.+-]+", "-", text).strip("-.")
    if not cleaned:
        raise ValueError(f"{name} is {text!r}; it takes a name with letters or digits.")
    return cleaned


def _file(name: str, value: Any) -> Path:
    path = path_of(name, value)
    if not path.is_file():
        raise FileNotFoundError(f"{name} is {path}, which is no file; it takes one that is there")
    return path


def load_run(path: Path) -> Result:
    """Read one run directory; raises FileNotFoundError for a missing file and ValueError for a broken one."""
    path = path_of("path", path)
    for name in (SETTINGS, METRICS):
        if not (path / name).exists():
            raise FileNotFoundError(f"{path} holds no {name}, though it holds a {SUMMARY}.")
    return Result(
        directory=path,
        settings=read_json(path / SETTINGS),
        metrics=read_npz(path / METRICS),
        summary=read_json(path / SUMMARY),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises Damaged, naming the file, where it is malformed."""
    path = _file("path", path)
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise Damaged(f"{path} is not valid JSON; it may be cut short ({error}).") from error
    if not isinstance(value, dict):
        raise Damaged(f"{path} holds a JSON {type(value).__name__}; it takes an object.")
    return value


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of an npz file; raises Damaged, naming the file, where it is cut short or malformed."""
    path = _file("path", path)
    # Opened as a zip file first: np.load would take anything else for a pickle.
    try:
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise Damaged(f"{path} is not a valid npz file; it may be cut short ({error}).") from error
