"""Where the runs of one `driver.drive` are kept: what a checkpoint of theirs holds, when one is due, and what fits."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from purerl import archive, checkpoint, distributed, results
from purerl.checkpoint import Checkpoints
from purerl.history import History

SECONDS_BETWEEN = 600.0
SECONDS_AT_END = 60.0


class Found(NamedTuple):
    """Runs as they were saved."""

    runs: PyTree  # leading axis [S]
    done: int  # chunks
    steps: int  # environment steps of each
    last_evaluated: int  # the steps at which they were evaluated last
    compile_seconds: float


class Store:
    """The checkpoints of runs that were begun with what is `given` (arrays), and are driven as `about` says (JSON)."""

    def __init__(self, checkpoints: Checkpoints, given: PyTree, about: Mapping[str, Any], *, every: int | None):
        self.checkpoints, self.given, self.every = checkpoints, given, every
        self.about = results.to_json(dict(about))
        self._steps, self._time = 0, time.monotonic()

    def latest(self, runs: PyTree, history: History) -> Found | None:
        """Return the latest of the runs, whose shapes are given, and let the history go on from there; None if none is.

        Raises checkpoint.Unfit, naming the first difference, for those of other runs.
        """
        directory = self.checkpoints.directory
        (step,) = distributed.from_first(lambda: checkpoint.steps(directory)[-1:] or [None])
        if step is None:
            return None
        about = checkpoint.about(directory, step)
        if "run" not in about:
            raise checkpoint.Unfit(f"{directory} holds checkpoints of something else than runs")
        try:
            archive.require_equal(about["run"], self.about, f"{directory} holds checkpoints of a run")
        except ValueError as error:
            raise checkpoint.Unfit(str(error)) from None
        given = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), self.given
        )
        found = checkpoint.restore(directory, {"given": given, "runs": runs, "history": checkpoint.REST}, step)
        _require_same(found["given"], self.given, directory)
        history.go_on(found["history"], about["history"])
        then, now = about["versions"], results.versions()
        packages = [name for name in ("jax", "jaxlib", "purerl") if name in then and then[name] != now.get(name)]
        if others := [f"{name} {then[name]}" for name in packages]:
            print(f"note: this was saved by {', '.join(others)}; bits may differ from here on", file=sys.stderr)
        self._steps = about["steps"]
        return Found(found["runs"], about["done"], about["steps"], about["last_evaluated"], about["compile_seconds"])

    def due(self, steps: int) -> bool:
        """Return whether it is time, after so many environment steps, to save."""
        if self.every is None:
            return time.monotonic() - self._time >= SECONDS_BETWEEN
        return self.every > 0 and steps // self.every > self._steps // self.every

    def save(
        self,
        runs: PyTree,
        history: History,
        done: int,
        steps: int,
        last_evaluated: int,
        compile_seconds: float,
        *,
        must: bool = False,
    ) -> None:
        """Save runs. That it failed is told; raised, as OSError, if it is what they `must` leave."""
        arrays, numbers = history.saved()
        about = {"run": self.about, "done": done, "steps": steps, "last_evaluated": last_evaluated}
        about |= {"compile_seconds": compile_seconds, "history": numbers, "versions": results.versions()}
        self._steps, self._time = steps, time.monotonic()
        self.finish()
        try:
            self.checkpoints.save({"given": self.given, "runs": runs, "history": arrays}, steps, about)
            if must:
                self.checkpoints.wait()
        except OSError as error:
            if must:
                raise
            _warn(error)

    def due_at_end(self) -> bool:
        """Return whether what would be lost with the process, once the last chunk is done, is worth a save."""
        return self.every != 0 and time.monotonic() - self._time >= SECONDS_AT_END

    def finish(self) -> None:
        """Wait until what was saved last is on disk; tell if it could not be written."""
        try:
            self.checkpoints.wait()
        except OSError as error:
            _warn(error)


def _warn(error: OSError) -> None:
    if distributed.is_first():
        print(f"\nwarning: {error}; the run goes on", file=sys.stderr, flush=True)


def _require_same(saved: PyTree, given: PyTree, directory: Any) -> None:
    for (path, old), new in zip(jax.tree.leaves_with_path(saved), jax.tree.leaves(given), strict=True):
        keys = jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        old, new = (np.asarray(jax.random.key_data(leaf) if keys else leaf) for leaf in (old, new))
        if not np.array_equal(old, new):
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            old, new = (results.to_json(leaf) if leaf.ndim == 0 else "another one" for leaf in (old, new))
            raise checkpoint.Unfit(f"{directory} holds checkpoints of a run with {name} {old}, and this one has {new}")
