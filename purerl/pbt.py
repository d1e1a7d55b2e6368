"""Population-based training: the worst copy the best and change their numbers, on the way (Jaderberg et al., 2017)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from purerl import spread as spreading
from purerl import training
from purerl.base import pytree_dataclass, require_key
from purerl.checks import require_count, require_kind, require_number
from purerl.points import Batch, Distribution, LogUniform, Uniform, log_uniform, uniform
from purerl.spread import Spread
from purerl.training import Learner


class Evolved(NamedTuple):
    """What a population came to, over G generations; a member is a place in it."""

    scores: Float[np.ndarray, "G P"]  # at the end of each generation
    hypers: dict[str, Float[np.ndarray, "G P"]]  # with which each generation was trained, of what was explored
    parents: Int[np.ndarray, "G P"]  # whose state and numbers each took over after that: its own number if none
    runs: PyTree  # [P], at the end


def require_rules(members: int, *, quantile: float, factor: float, resample: float) -> None:
    """Raise a ValueError for a population of one, and for rules of `evolve` that are out of range or replace nobody."""
    require_count("members", members, least=2)
    require_number("quantile", quantile, least=0.0, most=0.5)
    require_number("resample", resample, least=0.0, most=1.0)
    require_number("factor", factor, least=1.0)
    if 0 < quantile <= 0.5 / members:
        raise ValueError(f"quantile is {quantile}; of {members} members that is none")


def evolve(
    key: Key[Array, ""],
    learner: Learner,
    batch: Batch,
    bounds: Mapping[str, Distribution],
    *,
    generations: int,
    units: int = 1,
    quantile: float = 0.2,
    factor: float = 1.2,
    resample: float = 0.25,
    spread: Spread | None = None,
) -> Evolved:
    """Train the points of `batch` as a population, for `generations` of `units` units.

    Exploit: after each generation but the last, the `quantile` of lowest scores (NaN is lowest) take over the run and
    the hypers of one of the `quantile` of highest, drawn evenly (truncation selection); keys stay their own. Explore:
    each number of theirs that has `bounds` is drawn anew from them with probability `resample`, or else multiplied or
    divided by `factor` and kept within. All is one program, and no number is compiled into it. Raises ValueError for a
    population of one, counts below one, numbers out of range, and bounds of what the hypers lack.
    """
    require_key("key", key)
    require_kind("learner", learner, Learner, wanted="a Learner, such as training.learner returns")
    require_kind("batch", batch, Batch, wanted="a points.Batch, such as points.sample(key, hypers, 10, ...)")
    require_kind("bounds", bounds, Mapping, wanted="a dict: name of a hyper -> points.uniform or points.log_uniform")
    require_kind("spread", spread, Spread | None, wanted="a Spread, such as spread.choose(runs)")
    for name, count in {"generations": generations, "units": units}.items():
        require_count(name, count)
    if batch.points < 2:
        raise ValueError(f"batch has {batch.points} point; a population takes at least 2")
    require_rules(batch.points, quantile=quantile, factor=factor, resample=resample)
    for name, bound in bounds.items():
        if not isinstance(bound, Uniform | LogUniform):  # a step from one choice to another is not known
            raise ValueError(f"bounds of {name} are {bound!r}; they take points.uniform or points.log_uniform")
        if np.shape(getattr(batch.values, name, ())) != (batch.points,):
            raise ValueError(f"bounds has {name}; the batch has no such number")
        (uniform if isinstance(bound, Uniform) else log_uniform)(*bound)  # made by hand it was not looked at
    spread = spreading.choose(batch.points) if spread is None else spread
    program = _program(learner, spread, batch.points, generations)
    numbers = Numbers(
        units=jnp.int32(units),
        quantile=jnp.float32(quantile),
        factor=jnp.float32(factor),
        resample=jnp.float32(resample),
        bounds=jax.tree.map(jnp.float32, dict(bounds)),
    )
    runs, history = program(key, batch.values, numbers)
    scores, hypers, parents = jax.tree.map(np.asarray, history)
    return Evolved(scores, hypers, parents, runs)


@pytree_dataclass
class Numbers:
    """The numbers of a search, all traced."""

    units: Any
    quantile: Any
    factor: Any
    resample: Any
    bounds: dict[str, Any]  # Uniform or LogUniform


@functools.lru_cache(maxsize=16)
def _program(learner: Learner, spread: Spread, points: int, generations: int) -> Any:
    """Return the program (key, values [P], numbers) -> (runs [P], (scores, hypers, parents), each [G, P])."""
    share = -(-points // spread.shares)
    # What fills up a device repeats the last member, and is never advanced.
    everyone = np.minimum(np.arange(share * spread.shares), points - 1)
    counts = jnp.clip(points - share * jnp.arange(spread.shares), 0, share)
    advance = spreading.in_place(functools.partial(training.for_units, learner), spread)
    begin = spreading.over_runs(lambda run: (learner.begin(*run), run[1]), spread._replace(together=1))

    def generation(state, plan, numbers):
        key, last = plan
        exploit_key, explore_key = jax.random.split(key)
        state, score = advance(counts, state, numbers.units)
        own, parents = jnp.arange(points), chosen_parents(exploit_key, score[:points], numbers.quantile)
        parents = jnp.where(last, own, parents)
        runs, hypers = state
        trained_with = {name: getattr(hypers, name)[:points] for name in numbers.bounds}
        parent_runs, taken = jax.tree.map(lambda leaf: leaf[parents], state)
        changed = explored(explore_key, taken, parents != own, numbers)
        heirs = jax.vmap(learner.inherit)(runs, jax.tree.map(lambda leaf: leaf[everyone], parent_runs))
        return (heirs, jax.tree.map(lambda leaf: leaf[everyone], changed)), (score[:points], trained_with, parents)

    def program(key, values, numbers):
        begin_key, evolve_key = jax.random.split(key)
        values = jax.tree.map(lambda leaf: leaf[everyone], values)
        state = begin((jax.random.split(begin_key, points)[everyone], values))
        plans = jax.random.split(evolve_key, generations), jnp.arange(generations) == generations - 1
        (runs, _), history = jax.lax.scan(lambda state, plan: generation(state, plan, numbers), state, plans)
        return jax.tree.map(lambda leaf: leaf[:points], runs), history

    return jax.jit(program)


def chosen_parents(key: Key[Array, ""], scores: Float[Array, " P"], quantile: Float[Array, ""]) -> Int[Array, " P"]:
    """Return whose state each member takes over: one of the highest quantile for the lowest, and its own for others."""
    points, scored = len(scores), jnp.isfinite(scores)
    size = jnp.minimum(jnp.round(quantile * points).astype(jnp.int32), points // 2)
    best = jnp.minimum(size, jnp.sum(scored))  # whoever has no score is no example
    ascending = jnp.argsort(jnp.where(scored, scores, -jnp.inf))
    rank = jnp.argsort(ascending)
    drawn = jax.random.randint(key, (points,), 0, jnp.maximum(best, 1))
    return jnp.where((rank < size) & (best > 0), ascending[points - 1 - drawn], jnp.arange(points))


def explored(key: Key[Array, ""], hypers: Any, new: Bool[Array, " P"], numbers: Numbers) -> Any:
    """Return the hypers of all members, in which those that are new have their bounded numbers changed."""
    changed = {}
    for (name, bound), own_key in zip(numbers.bounds.items(), jax.random.split(key, len(numbers.bounds)), strict=True):
        fresh_key, up_key, draw_key = jax.random.split(own_key, 3)
        value = getattr(hypers, name)
        up = jax.random.bernoulli(up_key, shape=value.shape)
        stepped = jnp.clip(value * jnp.where(up, numbers.factor, 1 / numbers.factor), bound.low, bound.high)
        drawn = jax.vmap(bound.draw)(jax.random.split(draw_key, len(value)))
        fresh = jax.random.bernoulli(fresh_key, numbers.resample, value.shape)
        changed[name] = jnp.where(new, jnp.where(fresh, drawn, stepped), value)
    return dataclasses.replace(hypers, **changed)
