"""Folders of results while they are made: begun, gone on with, or found finished, by one process at a time."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from purerl import archive, checkpoint, results

CHECKPOINTS = "checkpoints"  # of runs that are under way ...
PARTS = "parts"  # ... and what the finished parts of an experiment left
# What may differ between the process that began and one that goes on.
_FREE = ("out", "resume", "devices", "together", "memory", "mesh", "checkpoint_every", "debug_nans", "versions")


class Folder(NamedTuple):
    """A folder, the settings that it holds now, and its lock, or None if all is finished."""

    path: Path
    description: dict[str, Any]
    lock: IO[bytes] | None

    def finish(self) -> None:
        """Remove what was kept to go on from, once the results are written."""
        for name in (CHECKPOINTS, PARTS):
            shutil.rmtree(self.path / name, ignore_errors=True)
        (self.path / "lock").unlink(missing_ok=True)


def to_go_on_in(resume: str | None, *, held: str = results.SETTINGS) -> Path | None:
    """Return the folder that --resume names; None for auto, which leaves it to --out, and if it is not given.

    Raises FileNotFoundError for a folder that holds nothing of the pattern `held`.
    """
    if resume in (None, "auto"):
        return None
    directory = Path(resume)
    if not any(directory.glob(held)):
        raise FileNotFoundError(f"resume is {directory}, which holds no run ({Path(held).name})")
    return directory


def opened(directory: Path, description: Mapping[str, Any], *, resume: str | None) -> Folder:
    """Return a folder for what the description says, or to go on with it.

    Raises ValueError, naming the first difference, for one that holds something else, and FileExistsError for one that
    holds a run although none was to be gone on with, or in which another process is at work.
    """
    told = results.to_json(dict(description) | {"out": directory, "versions": results.versions()})
    if resume and (directory / results.SUMMARY).exists():
        _require_same(directory, told)
        folder = Folder(directory, told, None)
        folder.finish()  # whoever wrote the summary may have been killed before this
        return folder
    results.create(directory)
    lock = archive.locked(directory / "lock")
    if (directory / results.SUMMARY).exists():  # another process was quicker
        lock.close()
        return opened(directory, description, resume=resume)
    try:
        settings = directory / results.SETTINGS
        if (directory / "index.sqlite").exists() or (settings.exists() and "search" in results.read_json(settings)):
            raise FileExistsError(f"out is {directory}, which holds a sweep or a search; give another")
        if resume and settings.exists():
            _require_same(directory, told)
        elif not _begun(directory):
            results.replace_file(directory / results.SETTINGS, results.json_bytes(told, "settings"))
        else:
            raise FileExistsError(f"out is {directory}, which holds a run to go on with: --resume {directory}")
    except (OSError, ValueError):
        lock.close()
        raise
    results.tidy(directory)
    return Folder(directory, told, lock)


def _begun(directory: Path) -> bool:
    """Return whether there is something to go on from: parts, checkpoints, or checkpoints of parts."""
    places = [directory / CHECKPOINTS, *(directory / CHECKPOINTS).glob("*")]
    return any((directory / PARTS).glob("*.npz")) or any(map(checkpoint.steps, places))


def _require_same(directory: Path, description: dict[str, Any]) -> None:
    former = results.read_json(directory / results.SETTINGS)
    archive.require_equal(_bound(former), _bound(description), f"{directory} holds a run")


def _bound(description: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in description.items() if name not in _FREE}
