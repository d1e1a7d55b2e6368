"""Successive halving: who goes on, for how long, and that it is what the runs would be alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, halving, loop, spread, sweep, tables, training
from purerl.agents import q_learning

HYPERS = tables.Hypers()


def walker(noise=0.0):
    """A learner whose score moves by its discount each unit, around which the keys scatter it."""

    def begin(key, hypers):
        return jnp.float32(0.0), jax.random.normal(key), hypers.initial_value

    def advance(run, hypers):
        total, own, start = run
        total = total + hypers.discount
        return (total, own, start), start + total + noise * own

    return training.Learner(begin, advance, lambda run, parent: (parent[0], *run[1:]))


def reference(discounts, starts, own, noise, plan):
    """The same in NumPy: order of the points, and scores [R, P, S]."""
    points, totals, alive = len(discounts), np.zeros(len(discounts)), list(range(len(discounts)))
    rows, out = [], []
    for count, units in plan:
        out = alive[count:] + out
        alive = alive[:count]
        row = np.full((points, len(own)), np.nan)
        for point in alive:
            totals[point] += units * discounts[point]
            row[point] = starts[point] + totals[point] + noise * own
        rows.append(row)
        alive = sorted(alive, key=lambda point: -row[point].mean())
    return alive + out, np.array(rows)


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(("devices", "together"), [(1, 1), (2, 1), (2, 3), (2, None)])
@pytest.mark.parametrize(("points", "seeds"), [(9, 1), (11, 3)])
def test_the_better_points_go_on_as_in_a_slow_loop(devices, together, points, seeds):
    rng = np.random.default_rng(points)
    discounts, starts = rng.permutation(points) / 4.0, rng.permutation(points) / 2.0
    keys = jax.random.split(jax.random.key(seeds), seeds)
    batch = sweep.listed(HYPERS, discount=discounts, initial_value=starts)
    chosen = spread.choose(points * seeds, devices=devices, together=together)
    found = halving.halve(walker(0.1), keys, batch, rungs=3, factor=3, units=2, spread=chosen if together else None)
    plan = halving.plan(points, rungs=3, factor=3, units=2)
    own = np.array([jax.random.normal(key) for key in keys])
    order, scores = reference(discounts, starts, own, 0.1, plan)
    np.testing.assert_array_equal(found.order, order)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-5)
    assert list(zip(found.points.tolist(), found.units.tolist(), strict=True)) == plan


def test_every_rung_costs_about_the_same_and_units_add_up():
    assert halving.plan(27, rungs=3, factor=3, units=2) == [(27, 2), (9, 4), (3, 12)]
    assert halving.plan(5, rungs=1, factor=2, units=7) == [(5, 7)]


def test_its_values_and_sizes_are_not_compiled_in():
    traces = []
    plain = walker()

    def advance(run, hypers):
        traces.append(1)
        return plain.advance(run, hypers)

    learner, keys = plain._replace(advance=advance), jax.random.split(jax.random.key(0), 2)
    for factor, units, values in [(2, 1, [0.1, 0.2, 0.3, 0.4]), (4, 5, [4, 3, 2, 1])]:
        first = len(traces)
        halving.halve(learner, keys, sweep.grid(HYPERS, discount=values), rungs=2, factor=factor, units=units)
        traced = len(traces) - first
    assert first > 0
    assert traced == 0


def test_a_point_without_a_score_is_out_before_those_that_have_one():
    plain = walker()

    def advance(run, hypers):
        run, score = plain.advance(run, hypers)
        return run, jnp.where(hypers.discount == 4, jnp.nan, jnp.where(hypers.discount == 3, -jnp.inf, score))

    batch = sweep.grid(HYPERS, discount=[4, 1, 3, 2, 0])
    found = halving.halve(plain._replace(advance=advance), jax.random.split(jax.random.key(0), 1), batch, rungs=2)
    assert found.order[:2].tolist() == [3, 1]


def test_what_goes_on_is_what_it_would_be_alone():
    """Of real runs: the states of those that were moved between devices, to the bit of a table."""
    env = envs.make("CliffWalking-purerl", 2)
    phases = [loop.Phase(q_learning.q_learning(env.spec), 200)]
    learner = training.learner(phases, env)
    batch = sweep.grid(tables.Hypers(exploration=0.3), learning_rate=[0.05, 0.1, 0.2, 0.4, 0.8])
    keys = jax.random.split(jax.random.key(5), 2)
    found = halving.halve(learner, keys, batch, rungs=2, factor=2)
    best = found.order[0]
    hypers = jax.tree.map(lambda leaf: leaf[best], batch.values)
    for seed in range(2):
        run = learner.begin(keys[seed], hypers)
        (_, _), score = jax.jit(lambda run, hypers: training.for_units(learner, (run, hypers), jnp.int32(2)))(
            run, hypers
        )
        np.testing.assert_array_equal(found.scores[1, best, seed], score)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rungs": 0}, "rungs is 0"),
        ({"units": 0}, "units is 0"),
        ({"factor": 1}, "factor is 1; it takes a whole number from 2 on"),
        ({"rungs": 3, "factor": 3}, "rungs is 3: of 4 points, one in 3 each time, none is left for the last"),
    ],
)
def test_plans_that_end_with_nothing_are_told(options, sentence):
    batch = sweep.grid(HYPERS, discount=[1, 2, 3, 4])
    with pytest.raises(ValueError, match=sentence):
        halving.halve(walker(), jax.random.split(jax.random.key(0), 1), batch, **{"rungs": 2} | options)
