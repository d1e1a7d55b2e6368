"""What scripts of several parts share: each part is kept as it is finished, and not made again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from purerl import checkpoint, cli, folders, results
from purerl.interrupts import Interrupt, Stopped


class Parts:
    """A folder for what the parts of an experiment leave, and then for its results; a context.

    Within, Ctrl-C and SIGTERM end the process once the part under way is finished, and kept.
    """

    def __init__(self, folder: folders.Folder):
        self.directory, self.finished, self._folder = folder.path, folder.lock is None, folder
        self._parts = folder.path / folders.PARTS
        self._interrupt = Interrupt("this part")

    def part(self, name: str, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return the arrays by name that `make` returns, or those that it returned before.

        Raises Stopped, once they are kept, if the process was asked to end, and cli.Failed if they cannot be kept.
        """
        path = self._parts / f"{name}.npz"
        if path.exists():
            with cli.bad_input():
                return results.read_npz(path)
        try:
            left = results.npz_bytes(make())
            self._parts.mkdir(exist_ok=True)
            results.replace_file(path, left)
        except checkpoint.Unfit as error:
            raise cli.BadInput(str(error)) from error
        except OSError as error:
            raise cli.Failed(f"{name}: {error}") from error
        if self._interrupt.asked:
            raise Stopped(f"stopped after {name}", self.directory)
        return results.read_npz(path)

    def finish(self, metrics: Mapping[str, Any], summary: Mapping[str, Any], files: Sequence[str]) -> None:
        """Write the results, and tell where they are with the `files` that are there already."""
        try:
            summary = dict(summary) | {"versions": results.versions()}
            results.write(self.directory, settings=self._folder.description, metrics=metrics, summary=summary)
        except OSError as error:
            raise cli.Failed(f"the results could not be written: {error}") from error
        self._folder.finish()
        names = [*files, results.SUMMARY, results.METRICS, results.SETTINGS]
        print(f"results in {self.directory}: {', '.join(names)}")

    def __enter__(self) -> Parts:
        self._interrupt.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._interrupt.__exit__(*raised)
        if self._folder.lock is not None:
            self._folder.lock.close()


def opened(settings: cli.Place, script: str, env: str) -> Parts:
    """Return the folder of a script, to begin or to go on in; if all in it is `finished`, it is told.

    Raises cli.BadInput for a folder that cannot be had, or that holds something else.
    """
    with cli.bad_input():
        cli.require_one_process("a script of several parts takes one")
        directory = cli.directory_of(settings, script, env)
        described = dataclasses.asdict(settings) | {"script": script}
        del described["resume"]
        folder = folders.opened(directory, described, resume=settings.resume)
    if folder.lock is None:
        print(f"{directory} holds this run, and it is finished")
    return Parts(folder)
