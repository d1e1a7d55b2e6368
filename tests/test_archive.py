"""A sweep on disk: every finished run is there once, whenever the sweep was killed."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from purerl import results, sweep, tables
from purerl.archive import Archive

# A sweep of 4 x 3 runs, of which each takes a little while, as a script: it goes on with what is in the folder.
SCRIPT = """
import sys
from pathlib import Path
from purerl import spread
spread.use_all_cores(2)
import jax, jax.numpy as jnp
from purerl import sweep, tables
from purerl.archive import Archive

def train(key, hypers):
    def step(carry, number):
        return carry * hypers.discount + jax.random.normal(jax.random.fold_in(key, number)), None
    last, _ = jax.lax.scan(step, jnp.float32(0.0), jnp.arange(3_000_000))
    return {"last": last, "seven": jnp.full(7, hypers.discount)}

sweep.SECONDS_PER_CHUNK = 0.01
batch = sweep.grid(tables.Hypers(), discount=[0.5, 0.6, 0.7, 0.8])
archive = Archive(Path(sys.argv[1]), {"discount": batch.labels["discount"]}, points=4, seeds=3)
print("begun", len(archive.missing()), flush=True)
sweep.run(train, jax.random.split(jax.random.key(0), 3), batch, archive=archive)
archive.finish({"runs": 12})
"""


def start(tmp_path, directory):
    script = tmp_path / "swept.py"
    script.write_text(SCRIPT)
    return subprocess.Popen([sys.executable, str(script), str(directory)], stdout=subprocess.PIPE, text=True)


def finished(directory):
    """How many runs the index knows."""
    if not (directory / "index.sqlite").exists():
        return 0
    with sqlite3.connect(f"file:{directory / 'index.sqlite'}?mode=ro", uri=True) as index:
        try:
            return index.execute("select count(*) from runs").fetchone()[0]
        except sqlite3.OperationalError:  # the table is not there yet
            return 0


def killed(tmp_path, kills, seed):
    """What a sweep leaves that is killed so often, at moments drawn at random, and then let run to its end."""
    directory, rng, counts = tmp_path / "killed", random.Random(seed), []
    for _ in range(kills):
        process = start(tmp_path, directory)
        before, deadline = finished(directory), time.monotonic() + 120
        # At random, but some time after a run was kept: or many kills would come before the first.
        while finished(directory) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        counts.append(finished(directory))
        if (directory / results.SUMMARY).exists():
            break
    if not (directory / results.SUMMARY).exists():
        assert start(tmp_path, directory).wait(timeout=120) == 0
    return results.load_run(directory).metrics, counts


def whole(tmp_path):
    assert start(tmp_path, tmp_path / "whole").wait(timeout=120) == 0
    return results.load_run(tmp_path / "whole").metrics


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_a_sweep_that_is_killed_twice_leaves_what_it_would_have_left(tmp_path):
    metrics, counts = killed(tmp_path, 2, seed=0)
    assert 0 < counts[0] < 12
    assert counts == sorted(counts)
    assert_equal(metrics, whole(tmp_path))
    assert metrics["seven"].shape == (4, 3, 7)


@pytest.mark.slow
def test_a_sweep_that_is_killed_ten_times_leaves_what_it_would_have_left(tmp_path, slow_result):
    expected, kills, begun = whole(tmp_path), 0, time.monotonic()
    for seed in range(5):
        folder = tmp_path / str(seed)
        folder.mkdir()
        metrics, counts = killed(folder, 4, seed)
        kills += len(counts)
        assert_equal(metrics, expected)
    assert kills >= 10
    slow_result(f"{kills} kills in five sweeps, all as uninterrupted, {time.monotonic() - begun:.0f} s")


def test_what_was_kept_is_not_run_again(tmp_path):
    batch = sweep.grid(tables.Hypers(), discount=[0.1, 0.2, 0.3])
    keys = jax.random.split(jax.random.key(0), 2)
    archive = Archive(tmp_path / "a", {}, points=3, seeds=2)
    archive.add(np.array([4, 1]), {"found": np.float32([40, 10])}, np.array([False, True]))
    assert archive.missing().tolist() == [0, 2, 3, 5]
    found = sweep.run(lambda key, hypers: {"found": hypers.discount}, keys, batch, archive=archive)
    np.testing.assert_allclose(found.outputs["found"], [[0.1, 10], [0.2, 0.2], [40, 0.3]], rtol=1e-6)

    def never(key, hypers):
        raise AssertionError("all runs are there")

    archive.close()
    again = sweep.run(never, keys, batch, archive=Archive(tmp_path / "a", {}, points=3, seeds=2))
    assert_equal(again.outputs, found.outputs)
    with sqlite3.connect(tmp_path / "a" / "index.sqlite") as index:
        assert index.execute("select number, point, seed from runs where diverged order by number").fetchall() == [
            (1, 0, 1)
        ]


def test_a_file_that_was_not_entered_into_the_index_does_not_count(tmp_path):
    archive = Archive(tmp_path / "a", {}, points=2, seeds=1)
    results.replace_file(archive.chunks / "00000000-1.npz", results.npz_bytes({"found": np.zeros(1)}))
    assert archive.missing().tolist() == [0, 1]
    with pytest.raises(ValueError, match="lacks 2 of 2 runs"):
        archive.read()


def test_another_sweep_or_a_finished_one_is_refused(tmp_path):
    described = {"axes": {"rate": [0.1, 0.2]}, "seeds": 3}
    Archive(tmp_path / "a", described, points=2, seeds=3).close()
    for other, sentence in [
        (described | {"seeds": 4}, "holds a sweep with seeds 3, and this one has 4"),
        ({"axes": {"rate": [0.1, 0.3]}, "seeds": 3}, r"holds a sweep with axes.rate \[0.1, 0.2\]"),
        (described | {"more": 1}, "holds a sweep with more None, and this one has 1"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            Archive(tmp_path / "a", other, points=2, seeds=3)
    with pytest.raises(ValueError, match=r"holds a sweep with runs\.seeds 3, and this one has 2"):
        Archive(tmp_path / "a", described, points=2, seeds=2)
    archive = Archive(tmp_path / "a", described, points=2, seeds=3)
    with pytest.raises(FileExistsError, match="in which another process is at work"):
        Archive(tmp_path / "a", described, points=2, seeds=3)
    archive.add(np.arange(6), {"found": np.arange(6.0)}, np.zeros(6, bool))
    archive.finish({"agent": "none"})
    assert not archive.chunks.exists()
    archive.chunks.mkdir()  # as a process leaves it that is killed while it tidies up
    np.testing.assert_array_equal(results.load_run(tmp_path / "a").metrics["found"], np.arange(6.0).reshape(2, 3))
    with pytest.raises(FileExistsError, match="already holds a finished run"):
        Archive(tmp_path / "a", described, points=2, seeds=3)
    assert not archive.chunks.exists()
