"""What a sweep leaves on disk as it goes: every finished run once, whenever it is killed.

A folder holds `settings.json` (what the sweep is), `chunks/` (what runs left, an npz file for each chunk), and
`index.sqlite` (which runs are finished, and where: a run counts from the moment it stands there). With the last run
come the three files of any run directory, and `chunks/` goes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import numpy as np

from purerl import results
from purerl.checks import path_of, require_count, require_kind

_TABLE = """
create table if not exists runs (
    number integer primary key, point integer not null, seed integer not null,
    file text not null, place integer not null, diverged integer not null, finished text not null
)
"""


class Archive:
    """The folder of one sweep of `points` x `seeds` runs; run p x seeds + s is point p with seed s.

    `description` says what the sweep is: whoever opens the folder again must say the same. One process at a time has it
    (where the system has locks of files: not on Windows), until it ends or `close`. Raises ValueError, naming the first
    difference, for a folder that holds another sweep, and FileExistsError for one that holds a finished one or that
    another process is at work in.
    """

    def __init__(self, directory: Path, description: Mapping[str, Any], *, points: int, seeds: int):
        directory = path_of("directory", directory)
        require_kind("description", description, Mapping, wanted="a dict that says what the sweep is")
        require_count("points", points)
        require_count("seeds", seeds)
        if (directory / results.SUMMARY).exists():  # the last process may have been killed before it had tidied up
            tidy(directory)
        self.directory = results.create(directory)
        self.points, self.seeds = points, seeds
        self.description = description_of(description, points=points, seeds=seeds)
        settings = self.directory / results.SETTINGS
        self._lock = locked(self.directory / "lock")
        if settings.exists():
            try:
                require_same(self.directory, self.description)
            except ValueError:
                self.close()
                raise
        else:
            results.replace_file(settings, json.dumps(self.description, indent=2).encode())
        self.chunks = self.directory / "chunks"
        self.chunks.mkdir(exist_ok=True)
        with self._index() as index:
            index.execute(_TABLE)

    def missing(self) -> np.ndarray:
        """Return the numbers of the runs that are not finished, in order."""
        with self._index() as index:
            finished = [number for (number,) in index.execute("select number from runs")]
        return np.setdiff1d(np.arange(self.points * self.seeds), np.array(finished, np.int64))

    def add(self, numbers: np.ndarray, outputs: Mapping[str, np.ndarray], diverged: np.ndarray) -> None:
        """Keep what these runs left, arrays [k, ...]: first the file, whole, and then the index, at one stroke."""
        name = f"{min(numbers):08d}-{uuid.uuid4().hex[:8]}.npz"  # never one that is there: the index knows its places
        results.replace_file(self.chunks / name, results.npz_bytes(outputs))
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rows = [
            (int(number), int(number) // self.seeds, int(number) % self.seeds, name, place, int(diverged[place]), now)
            for place, number in enumerate(numbers)
        ]
        with self._index() as index:
            index.executemany("insert or ignore into runs values (?, ?, ?, ?, ?, ?, ?)", rows)

    def read(self) -> dict[str, np.ndarray]:
        """Return what all runs left, arrays [points, seeds, ...]. Raises ValueError while some are missing."""
        if len(self.missing()):
            raise ValueError(f"{self.directory} lacks {len(self.missing())} of {self.points * self.seeds} runs")
        with self._index() as index:
            places = list(index.execute("select number, file, place from runs order by number"))
        files = {name: results.read_npz(self.chunks / name) for name in {file for _, file, _ in places}}
        names = next(iter(files.values()))
        return {
            name: np.stack([files[file][name][place] for _, file, place in places]).reshape(
                self.points, self.seeds, *names[name].shape[1:]
            )
            for name in names
        }

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write the files of a finished run directory, and remove what they replace."""
        results.write(self.directory, settings=self.description, metrics=self.read(), summary=summary)
        tidy(self.directory)
        self.close()

    def close(self) -> None:
        """Let others have the folder."""
        self._lock.close()

    @contextlib.contextmanager
    def _index(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self.directory / "index.sqlite", timeout=60.0)
        try:
            with connection:  # commits, or rolls back
                yield connection
        finally:
            connection.close()


def tidy(directory: Path) -> None:
    """Remove from the folder of a finished sweep what its results replace."""
    shutil.rmtree(directory / "chunks", ignore_errors=True)
    (directory / "lock").unlink(missing_ok=True)


def description_of(description: Mapping[str, Any], *, points: int, seeds: int) -> dict[str, Any]:
    """Return the settings that the folder of a sweep holds."""
    return results.to_json(dict(description) | {"runs": {"points": points, "seeds": seeds}})


def require_same(directory: Path, description: dict[str, Any]) -> None:
    """Raise a ValueError, naming the first difference, if the sweep in a folder is another one."""
    require_equal(results.read_json(directory / results.SETTINGS), description, f"{directory} holds a sweep")


def locked(path: Path) -> IO[bytes]:
    """Return a file that is locked until it is closed or the process ends, however it ends."""
    file = path.open("ab")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        file.close()
        raise FileExistsError(f"directory is {path.parent}, in which another process is at work") from None
    return file


def require_equal(former: Any, now: Any, what: str, name: str = "") -> None:
    """Raise a ValueError that names the first difference between two descriptions, of JSON, of `what` is gone on with.

    Nothing is raised if there is none.
    """
    if isinstance(former, dict) and isinstance(now, dict):
        for key in [*former, *[key for key in now if key not in former]]:
            require_equal(former.get(key), now.get(key), what, f"{name}.{key}" if name else key)
    elif former != now:
        raise ValueError(
            f"{what} with {name} {former!r}, and this one has {now!r}; give another place, or the same settings to go "
            "on"
        )
