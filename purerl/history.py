"""What was measured of runs so far, on the host: a row for each chunk, the evaluations, and who was lost when."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Num

from purerl.metrics import Progress

_EPISODES = ("episodes", "episode_return", "episode_length")
_EVALUATION = ("episode_return", "episode_length", "finished")


class History:
    """Rows and evaluations of S seeds. With `judged`, evaluations may stop the runs, and otherwise the episodes'."""

    def __init__(self, seeds: int, *, judged: bool, progress: Progress | None):
        self.seeds, self.judged, self.progress = seeds, judged, progress
        self._before = 0.0  # seconds
        self.rows: dict[str, list[np.ndarray]] = {}
        self.evaluation_steps: list[int] = []
        self.evaluations: dict[str, list[np.ndarray]] = {}
        self.latest: float | None = None  # the return that may stop the runs
        self.diverged_at = np.full(seeds, -1, np.int64)

    def start(self) -> None:
        """Let the clock run on."""
        self._started = time.perf_counter() - self._before

    @property
    def seconds(self) -> float:
        """How long the runs have taken since they started, without the time between processes."""
        return time.perf_counter() - self._started

    @property
    def all_lost(self) -> bool:
        """Whether every seed has diverged."""
        return bool(np.all(self.diverged_at >= 0))

    def read(self, steps: int, metrics: Mapping[str, Any] | None, verdict: Any) -> None:
        """Fetch a chunk's metrics and evaluation, waiting for them."""
        shown = evaluation = None
        if metrics is not None:
            row = {name: np.asarray(column)[: self.seeds, 0] for name, column in metrics.items()}
            lost = row.pop("lost")
            for name in row.keys() - set(_EPISODES):
                lost = lost | ~np.isfinite(row[name])
            self.diverged_at[lost & (self.diverged_at < 0)] = steps
            with np.errstate(invalid="ignore"):  # no episode ended: not a number
                for name in ("episode_return", "episode_length"):
                    row[name] = row[name] / row["episodes"]
            known = row["episode_return"][row["episodes"] > 0]
            shown = float(np.mean(known)) if known.size else None
            row["environment_steps"] = np.full(self.seeds, steps, np.int64)
            row["seconds"] = np.full(self.seeds, self.seconds)
            for name, values in row.items():
                self.rows.setdefault(name, []).append(values)
        if verdict is not None:
            self.evaluation_steps.append(steps)
            found = jax.tree.map(lambda leaf: np.asarray(leaf)[: self.seeds], verdict)
            for name in _EVALUATION:
                self.evaluations.setdefault(name, []).append(getattr(found, name))
            evaluation = float(np.mean(found.episode_return))
        if self.progress:
            self.progress.update(steps * self.seeds, episode_return=shown, evaluation=evaluation)
        self.latest = evaluation if self.judged else shown

    def metrics(self) -> dict[str, Num[np.ndarray, "S R"]]:
        """Return the rows as columns."""
        return {name: np.stack(column, axis=1) for name, column in self.rows.items()}

    def evaluated(self, episodes: int) -> tuple[Float[np.ndarray, "S E N"], Bool[np.ndarray, "S E N"]]:
        """Return the returns of all evaluations, of so many episodes each, and whether each episode was finished."""
        if not self.evaluations:
            return np.zeros((self.seeds, 0, episodes), np.float32), np.zeros((self.seeds, 0, episodes), bool)
        found = {name: np.stack(column, axis=1) for name, column in self.evaluations.items()}
        return found["episode_return"], found["finished"]

    def saved(self) -> tuple[dict[str, Num[np.ndarray, "..."]], dict[str, Any]]:
        """Return all of it, as arrays by name and as what JSON takes; `go_on` takes both."""
        arrays = {f"rows/{name}": column for name, column in self.metrics().items()}
        for name, column in self.evaluations.items():
            arrays[f"evaluations/{name}"] = np.stack(column, axis=1)
        arrays["evaluation_steps"] = np.asarray(self.evaluation_steps, np.int64)
        arrays["diverged_at"] = self.diverged_at
        return arrays, {"latest": self.latest, "seconds": self.seconds}

    def go_on(self, arrays: Mapping[str, Num[np.ndarray, "..."]], numbers: Mapping[str, Any]) -> None:
        """Take up what `saved` gave: as if nothing had come between."""
        for kind, columns in (("rows", self.rows), ("evaluations", self.evaluations)):
            for name in arrays:
                if name.startswith(f"{kind}/"):
                    columns[name.removeprefix(f"{kind}/")] = list(np.moveaxis(np.asarray(arrays[name]), 1, 0))
        self.evaluation_steps = [int(step) for step in arrays["evaluation_steps"]]
        self.diverged_at = np.array(arrays["diverged_at"])
        self.latest = numbers["latest"]
        self._before = numbers["seconds"]
