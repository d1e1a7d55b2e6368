import dataclasses
import json
import os
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import results, scores

SUMMARY = {
    "agent": "dqn",
    "env": "CartPole-v1",
    "seeds": 3,
    "total_steps": 1000,
    "hypers": {"learning_rate": 0.001},
    "episode_return": scores.summary([1, 2, 6]),
    "evaluation": {"episodes": 10, **scores.summary([2, 3, 7])},
    "seconds": {"compile": 1.5, "run": 2.0},
    "steps_per_second": 1500.0,
    "versions": {"python": "3.11"},
}
METRICS = {
    "episode_return": np.array([[1.0, np.nan], [2.0, 3.0]], np.float32),
    "evaluation/steps": np.array([10, 20]),
    "file": np.array([True]),  # a name that np.savez itself would refuse
}


class Size(NamedTuple):
    width: int
    depth: int


@dataclasses.dataclass(frozen=True)
class Settings:
    env: str
    directory: Path
    sizes: tuple[int, ...]
    learning_rate: object


def write_run(path, **changes):
    results.write(path, settings={"env": "x"}, metrics=METRICS, summary={**SUMMARY, **changes})
    return path


def test_round_trip(tmp_path):
    run = results.create(tmp_path / "a" / "run")
    settings = Settings("CartPole-v1", Path("runs/a"), (64, 64), jnp.float32(0.00025))
    results.write(run, settings={"settings": settings}, metrics=METRICS, summary=SUMMARY)
    assert sorted(os.listdir(run)) == ["metrics.npz", "settings.json", "summary.json"]
    read = results.load(run)
    assert isinstance(read, results.Result)
    assert read.directory == run
    assert read.settings["settings"] == {
        "env": "CartPole-v1",
        "directory": "runs/a",
        "sizes": [64, 64],
        "learning_rate": 0.00025,
    }
    assert read.summary == SUMMARY
    assert set(read.metrics) == set(METRICS)
    for name, array in METRICS.items():
        np.testing.assert_array_equal(read.metrics[name], array)
        assert read.metrics[name].dtype == array.dtype


def test_a_jax_metric_comes_back_as_numbers(tmp_path):
    metrics = {"loss": jnp.ones((2, 3), jnp.bfloat16), "steps": jnp.arange(2)}
    results.write(tmp_path, settings={}, metrics=metrics, summary=SUMMARY)
    read = results.load(tmp_path)
    assert isinstance(read, results.Result)
    np.testing.assert_array_equal(read.metrics["loss"], np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(read.metrics["steps"], [0, 1])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (np.bool_(False), False),
        (np.int64(3), 3),
        (np.float32(0.1), 0.1),
        (np.float64(0.1), 0.1),
        (jnp.int32(4), 4),
        (jnp.float32(1e-8), 1e-8),
        (jnp.bfloat16(0.5), 0.5),
        (jnp.array([[0.1, jnp.nan]]), [[0.1, None]]),
        (np.float32("inf"), "inf"),
        (float("nan"), None),
        (-float("inf"), "-inf"),
        (np.str_("text"), "text"),
        (Size(np.int32(2), 3), {"width": 2, "depth": 3}),
        ({1: (None, Path("a"))}, {"1": [None, "a"]}),
    ],
)
def test_to_json(value, expected):
    found = results.to_json(value)
    assert found == expected
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


@pytest.mark.parametrize("value", [len, Size, jnp.float32, b"bytes", 1j, np.array([None])])
def test_what_json_cannot_hold_is_named(value):
    with pytest.raises(TypeError, match=r"settings\.network\[1\] is of type .*; it takes"):
        results.to_json({"network": [0, value]}, "settings")


def test_a_typed_key_is_named():
    with pytest.raises(TypeError, match=r"settings\.key is of type .*; it takes"):
        results.to_json({"key": jax.random.key(0)}, "settings")


def test_load_many_sorted_and_without_unfinished_runs(tmp_path):
    for name in ("b/2", "b/1", "a/9/deep"):
        write_run(tmp_path / name)
    results.create(tmp_path / "b" / "0")
    found = results.load(tmp_path)
    assert isinstance(found, list)
    assert [run.directory for run in found] == [tmp_path / n for n in ("a/9/deep", "b/1", "b/2")]


def test_a_failed_write_leaves_the_old_files(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def full_disk(descriptor):
        raise OSError("no space left on device")

    # The new bytes are written by then, but not safely.
    monkeypatch.setattr(results.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        results.write(run, settings={"env": "other"}, metrics={}, summary={})
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_nothing_is_written_where_one_file_cannot_be(tmp_path):
    with pytest.raises(TypeError, match=r"summary\.agent is of type"):
        write_run(tmp_path / "run", agent=len)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TypeError, match=r"metrics\.bad is of type"):
        results.write(tmp_path, settings={}, metrics={"bad": [object()]}, summary={})
    assert list(tmp_path.iterdir()) == []


def test_the_summary_is_written_last(tmp_path, monkeypatch):
    order = []
    replace = os.replace
    monkeypatch.setattr(results.os, "replace", lambda a, b: (order.append(Path(b).name), replace(a, b)))
    write_run(tmp_path)
    assert order == ["settings.json", "metrics.npz", "summary.json"]


def test_create_refuses_a_finished_run_and_a_file(tmp_path):
    run = results.create(str(tmp_path / "run"))
    assert results.create(run) == run
    write_run(run)
    with pytest.raises(FileExistsError, match="run, which already holds a finished run"):
        results.create(run)
    with pytest.raises(FileExistsError, match="which is a file; it takes a folder"):
        results.create(run / "summary.json")


def test_default_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = datetime(2025, 3, 4, 5, 6, 7)
    first = results.default_directory("dqn", "CartPole-v1", now)
    assert first == Path("runs/dqn/CartPole-v1/20250304-050607")
    assert not first.exists()
    results.create(first)
    second = results.create(results.default_directory("dqn", "CartPole-v1", now))
    assert second.name == "20250304-050607-2"
    assert results.default_directory("dqn", "CartPole-v1", now).name == "20250304-050607-3"
    assert results.default_directory("../a b", "x/y", now).parts[1:3] == ("a-b", "x-y")
    with pytest.raises(ValueError, match=r"env is '\.\./'; it takes a name"):
        results.default_directory("dqn", "../", now)


@pytest.mark.parametrize("name", ["settings.json", "summary.json", "metrics.npz"])
@pytest.mark.parametrize("cut", [0, 10, -30])
def test_a_file_cut_short_is_named(tmp_path, name, cut):
    run = write_run(tmp_path / "run")
    results.write(run, settings={"a": list(range(20))}, metrics=METRICS, summary=SUMMARY)
    (run / name).write_bytes((run / name).read_bytes()[:cut])
    with pytest.raises(ValueError, match=f"{name} is not .*cut short"):
        results.load(tmp_path)


def test_a_file_of_another_kind_is_named(tmp_path):
    run = write_run(tmp_path / "run")
    content = bytearray((run / "metrics.npz").read_bytes())
    content[60:70] = bytes(10)
    (run / "metrics.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.npz is not a valid npz"):
        results.load(run)
    (run / "settings.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"settings\.json holds a JSON list; it takes an object"):
        results.load(run)


def test_missing_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere, which is not a folder"):
        results.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"holds no summary\.json, nor does any folder below"):
        results.load(tmp_path)
    run = write_run(tmp_path / "run")
    (run / "metrics.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"run holds no metrics\.npz, though"):
        results.load(tmp_path)
    (run / "summary.json").unlink()
    with pytest.raises(FileNotFoundError, match="this run has not finished"):
        results.load(run)


def test_table(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", agent="sarsa", evaluation=None, steps_per_second=jnp.float32(2.5))
    first, second = results.table(results.load(tmp_path))
    interval = SUMMARY["episode_return"]["ci95"]
    assert first == {
        "agent": "dqn",
        "env": "CartPole-v1",
        "seeds": 3,
        "total_steps": 1000,
        "episode_return_mean": 3.0,
        "episode_return_iqm": 3.0,
        "episode_return_ci95": interval,
        "evaluation_mean": 4.0,
        "evaluation_iqm": 4.0,
        "evaluation_ci95": SUMMARY["evaluation"]["ci95"],
        "steps_per_second": 1500.0,
        "directory": str(tmp_path / "a"),
    }
    assert list(second) == list(first)
    assert (second["agent"], second["evaluation_mean"]) == ("sarsa", None)
    assert second["steps_per_second"] == 2.5
    assert results.table(results.load(tmp_path / "a")) == [first]


def test_versions():
    found = results.versions()
    assert (found["numpy"], found["jax"]) == (np.__version__, jax.__version__)
    assert found["python"].startswith("3.")


def test_versions_skips_what_is_not_installed(monkeypatch):
    monkeypatch.setattr(results, "PACKAGES", ("numpy", "no-such-package"))
    assert set(results.versions()) == {"python", "numpy"}
