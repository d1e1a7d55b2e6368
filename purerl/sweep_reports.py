"""What is said of a sweep: a row for each point, what is printed of it, and its pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from purerl import plots, scores
from purerl.sweep import Results


def score_of(results: Results) -> np.ndarray:
    """Return what each run is judged by, NaN if it diverged: [P, S].

    That is its mean greedy return, or without evaluations the mean return of the last tenth of its rows.
    """
    outputs = results.outputs
    if "evaluation_return" in outputs:
        found = outputs["evaluation_return"].mean(axis=-1)
    else:
        rows = outputs["episodes"].shape[-1]
        last = slice(rows - max(1, rows // 10), rows)
        episodes = outputs["episodes"][..., last]
        with np.errstate(invalid="ignore"):  # of a run without an episode nothing is known
            found = np.nansum(outputs["episode_return"][..., last] * episodes, axis=-1) / episodes.sum(axis=-1)
    return np.where(results.diverged, np.nan, found)


def summarise(results: Results) -> list[dict[str, Any]]:
    """Return for each point its labels, its scores with intervals, and which seeds diverged in which update."""
    score, rows = score_of(results), []
    for point in range(len(score)):
        astray = np.flatnonzero(results.diverged[point])
        updates = results.outputs["diverged_at"][point, astray]
        rows.append(
            {name: float(column[point]) for name, column in results.labels.items()}
            | scores.summary(score[point])
            | {"diverged": dict(zip(map(str, astray.tolist()), updates.tolist(), strict=True))}
        )
    return rows


def lines(results: Results) -> list[str]:
    """Return the printed table: a line for each point, the best first."""
    names = list(results.labels)
    rows = sorted(summarise(results), key=lambda row: -np.inf if row["iqm"] is None else row["iqm"], reverse=True)
    table = ["  ".join([*[f"{name:>18s}" for name in names], f"{'interquartile mean':>20s}  95 % interval"])]
    for row in rows:
        low, high = row["ci95"]
        interval = "" if low is None else f"[{low:.1f}, {high:.1f}]"
        iqm = "none" if row["iqm"] is None else f"{row['iqm']:.1f}"
        astray = "".join(f"; seed {seed} diverged in update {update}" for seed, update in row["diverged"].items())
        table.append("  ".join([*[f"{row[name]:18.6g}" for name in names], f"{iqm:>20s}  {interval}{astray}"]))
    return table


def pictures(results: Results, steps: np.ndarray, directory: Path, *, title: str) -> list[str]:
    """Save the learning curves of the best points, how the score depends on each axis, and for two axes a heat map.

    `steps` are the environment steps of the rows. Returns the names of the files.
    """
    score = score_of(results)
    with np.errstate(all="ignore"):
        middle = np.array([np.nanmean(row) if np.isfinite(row).any() else -np.inf for row in score])
    best = np.argsort(-middle, kind="stable")[: len(plots.COLORS)]
    curves = {}
    for point in best:
        kept = ~results.diverged[point]
        name = ", ".join(f"{name} {column[point]:.6g}" for name, column in results.labels.items()) or "all"
        if kept.any():
            curves[name] = results.outputs["episode_return"][point][kept]
    files = []
    if curves:
        figure = plots.new_figure(8.0, 5.0)
        axes = figure.add_subplot()
        plots.comparison(axes, steps, curves, xlabel="environment steps", ylabel="episode return in training")
        axes.set_title(f"{title}: the best points", loc="left", fontsize=12, fontweight="bold")
        plots.save(figure, directory / "learning_curves.png")
        files.append("learning_curves.png")
    if results.labels:
        figure = plots.new_figure(4.5 * len(results.labels), 4.0)
        for place, (name, column) in enumerate(results.labels.items()):
            axes = figure.add_subplot(1, len(results.labels), place + 1)
            plots.sensitivity(axes, column, score, xlabel=name, ylabel="score, all other axes pooled")
        plots.save(figure, directory / "sensitivity.png")
        files.append("sensitivity.png")
    if len(results.labels) == 2:
        figure = plots.new_figure(6.0, 4.6)
        axes = figure.add_subplot()
        plots.heat_map(axes, results.labels, middle)
        axes.set_title(f"{title}: mean score", loc="left", fontsize=12, fontweight="bold")
        plots.save(figure, directory / "heat_map.png")
        files.append("heat_map.png")
    return files
