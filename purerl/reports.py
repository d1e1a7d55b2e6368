"""What is said of a run when it is over: the summary that it leaves, and what is printed of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from purerl import driver, results, scores


def summarise(outcome: driver.Outcome, *, agent: str, env: str, hypers: Any) -> dict[str, Any]:
    """Return what `summary.json` holds: final returns with intervals (NaN for diverged seeds), speed."""
    metrics = outcome.metrics
    steps = int(metrics["environment_steps"][0, -1])
    rows = metrics["episodes"].shape[1]
    last = slice(rows - max(1, rows // 10), rows)
    episodes = metrics["episodes"][:, last]
    with np.errstate(invalid="ignore"):  # a seed without a finished episode has no return
        returns = np.nansum(metrics["episode_return"][:, last] * episodes, axis=1) / episodes.sum(axis=1)
    evaluation = None
    if outcome.evaluation_returns.size:
        final = outcome.evaluation_returns[:, -1]
        unfinished = (~outcome.evaluation_finished[:, -1]).sum(axis=1)
        evaluation = {"episodes": final.shape[1], "unfinished": unfinished.tolist()}
        evaluation |= scores.summary(np.where(outcome.diverged, np.nan, final.mean(axis=1)))
    return {
        "agent": agent,
        "env": env,
        "seeds": len(episodes),
        "total_steps": steps,
        "hypers": dataclasses.asdict(hypers),
        "episode_return": scores.summary(np.where(outcome.diverged, np.nan, returns)),
        "evaluation": evaluation,
        "diverged": np.flatnonzero(outcome.diverged).tolist(),
        "seconds": {"compile": outcome.compile_seconds, "run": outcome.run_seconds},
        "steps_per_second": len(episodes) * steps / outcome.run_seconds,
        "versions": results.versions(),
    }


def show(summary: dict[str, Any], directory: Path) -> None:
    """Print the returns and the speed of a run, and where it lies."""

    def line(name: str, score: dict[str, Any]) -> str:
        if score["iqm"] is None:
            return f"{name}: none"
        low, high = score["ci95"]
        interval = "" if low is None else f", 95 % interval {low:.1f} to {high:.1f}"
        return f"{name}: mean {score['mean']:.1f}, interquartile mean {score['iqm']:.1f}{interval}"

    seconds, diverged = summary["seconds"], summary["diverged"]
    if diverged:
        print(f"DIVERGED, and left out below: {len(diverged)} of {summary['seeds']} seeds, {diverged}")
    print(line("training return, last tenth", summary["episode_return"]))
    if summary["evaluation"]:
        evaluation = summary["evaluation"]
        print(line(f"greedy return, {evaluation['episodes']} episodes a seed", evaluation))
        if sum(evaluation["unfinished"]):
            print(f"of these {sum(evaluation['unfinished'])} were not finished, and count with what they had")
    print(
        f"{summary['steps_per_second']:,.0f} steps/s "
        f"({seconds['compile']:.1f} s to compile, {seconds['run']:.1f} s to run)"
    )
    policy = ", policy.zip" if (directory / "policy.zip").exists() else ""
    print(f"results in {directory}: summary.json, metrics.npz, settings.json, learning_curve.png{policy}")
