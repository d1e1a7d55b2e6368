"""Successive halving: of many points the better ones go on, in one program (Jamieson & Talwalkar, 2016)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from purerl import spread as spreading
from purerl import training
from purerl.base import require_keys
from purerl.checks import is_count, require_count, require_kind, shown
from purerl.points import Batch
from purerl.spread import Spread
from purerl.training import Learner


class Halved(NamedTuple):
    """What successive halving found, over R rungs."""

    order: Int[np.ndarray, " P"]  # the points, the best first: those that came further before those that did not
    scores: Float[np.ndarray, "R P S"]  # at the end of each rung, NaN where a point was out
    points: Int[np.ndarray, " R"]  # how many ran in each rung ...
    units: Int[np.ndarray, " R"]  # ... and for how many units each of them


def plan(points: int, *, rungs: int, factor: int, units: int) -> list[tuple[int, int]]:
    """Return (points, units) of each rung: one in `factor` goes on, for `factor` times as many units as it has had.

    So every rung costs about the same. Raises ValueError for counts below one, a factor below two, and more rungs than
    leave a point.
    """
    for name, count in {"points": points, "rungs": rungs, "units": units}.items():
        require_count(name, count)
    if not is_count(factor, least=2):
        raise ValueError(f"factor is {shown(factor)}; it takes a whole number from 2 on")
    if factor ** (rungs - 1) > points:
        raise ValueError(f"rungs is {rungs}: of {points} points, one in {factor} each time, none is left for the last")
    return [
        (points // factor**rung, units * (factor**rung - factor ** (rung - 1) if rung else 1)) for rung in range(rungs)
    ]


def halve(
    learner: Learner,
    keys: Key[Array, " S"],
    batch: Batch,
    *,
    rungs: int = 3,
    factor: int = 3,
    units: int = 1,
    spread: Spread | None = None,
) -> Halved:
    """Train all points for `units` units, then the best of them on and on as `plan` says, and return who came how far.

    A point is judged by the mean score of its runs, one for each key, at the end of a rung; a run without a score (NaN)
    loses its point. All is one program; neither the values nor `factor` and `units` are compiled into it. Runs are
    spread over the devices, and those that go on are dealt out to them evenly. Raises ValueError as `plan`, and for no
    keys.
    """
    require_kind("learner", learner, Learner, wanted="a Learner, such as training.learner returns")
    require_keys("keys", keys)
    require_kind("batch", batch, Batch, wanted="a points.Batch, such as points.grid(hypers, discount=[0.9, 1])")
    require_kind("spread", spread, Spread | None, wanted="a Spread, such as spread.choose(runs)")
    points, seeds = batch.points, len(keys)
    rungs_of = plan(points, rungs=rungs, factor=factor, units=units)
    if spread is None:
        spread = spreading.choose(points * seeds)
        # What goes together is computed together, needed or not: no more than the last rung fills.
        spread = spread._replace(together=min(spread.together, -(-rungs_of[-1][0] * seeds // spread.shares)))
    order, scores = _program(learner, spread, points, seeds)(keys, batch.values, np.array(rungs_of, np.int32))
    return Halved(np.asarray(order), np.asarray(scores), *np.array(rungs_of).T)


@functools.lru_cache(maxsize=16)
def _program(learner: Learner, spread: Spread, points: int, seeds: int) -> Any:
    """Return the program (keys [S], values [P], sizes of the rungs [R, 2]) -> (order [P], scores [R, P, S])."""
    devices, total = spread.shares, points * seeds
    share = -(-total // devices)
    # The run of rank r, the best first, lies on device r mod D: however many go on, each device has its part of them.
    rank = np.arange(share * devices)
    place_of = rank % devices * share + rank // devices
    rank_at = np.argsort(place_of)
    advance = spreading.in_place(functools.partial(training.for_units, learner), spread)
    begin = spreading.over_runs(lambda run: (learner.begin(*run), run[1]), spread._replace(together=1))

    def rung(carry, sizes):
        state, order = carry  # by place; the points by rank
        alive, units = sizes
        counts = -(-(alive * seeds - jnp.arange(devices)) // devices)
        state, score = advance(jnp.maximum(counts, 0), state, units)
        running = jnp.arange(points) < alive
        scores = jnp.where(running[:, None], score[place_of[:total]].reshape(points, seeds), jnp.nan)
        worst = jnp.finfo(jnp.float32).min  # without a score, and yet before those that did not run
        means = jnp.nan_to_num(jnp.mean(scores, axis=1), nan=worst, neginf=worst)
        ranks = jnp.argsort(-jnp.where(running, means, -jnp.inf), stable=True)
        runs = (ranks[:, None] * seeds + jnp.arange(seeds)).reshape(-1)
        source = jnp.asarray(place_of)[jnp.append(runs, rank[total:])[rank_at]]
        state = jax.tree.map(lambda leaf: leaf[source], state)
        return (state, order[ranks]), jnp.zeros_like(scores).at[order].set(scores)

    def program(keys, values, sizes):
        run = np.minimum(rank_at, total - 1)  # what fills up a device repeats the last run, and is never advanced
        own = jax.tree.map(lambda leaf: leaf[run // seeds], values)
        state = begin((keys[run % seeds], own))
        (_, order), scores = jax.lax.scan(rung, (state, jnp.arange(points)), sizes)
        return order, scores

    return jax.jit(program)
