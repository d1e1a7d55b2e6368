"""Population-based training: who takes over from whom, what changes of it, and that it pays where rates must fall."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl import envs, features, loop, pbt, planning, points, prediction, replay, spread, tables, training
from purerl.agents import n_step_td, q_learning
from purerl.base import cast_hypers

BOUNDS = {"discount": points.uniform(0.0, 1.0), "learning_rate": points.log_uniform(1e-3, 1.0)}


def counter():
    """A learner that sums its discounts: its run says what it was trained with, and whose keys and state it has."""

    def begin(key, hypers):
        return {"total": jnp.float32(0.0), "own": jax.random.bits(key), "first": hypers.initial_value}

    def advance(run, hypers):
        run = run | {"total": run["total"] + hypers.discount}
        return run, run["total"]

    return training.Learner(begin, advance, lambda run, parent: parent | {"own": run["own"]})


def population(discounts):
    count = np.arange(len(discounts)) / 10
    return points.listed(tables.Hypers(), discount=discounts, learning_rate=count + 0.1, initial_value=count)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(("devices", "together"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("size", [5, 8])
def test_a_population_is_what_its_history_says(devices, together, size):
    """Sums, keys and numbers followed by hand from generation to generation, by the parents that are told."""
    discounts = np.random.default_rng(size).permutation(size) / size
    options = {"generations": 6, "units": 3, "quantile": 0.4, "factor": 1.5, "resample": 0.3}
    spreading = spread.choose(size, devices=devices, together=together)
    found = pbt.evolve(jax.random.key(1), counter(), population(discounts), BOUNDS, spread=spreading, **options)
    alone = pbt.evolve(jax.random.key(1), counter(), population(discounts), BOUNDS, spread=spread.choose(1), **options)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    few = round(0.4 * size)
    total, first = np.zeros(size), np.arange(size) / 10
    changed = 0
    for generation in range(6):
        total = total + 3 * found.hypers["discount"][generation]
        np.testing.assert_allclose(found.scores[generation], total, rtol=1e-5)
        parents, order = found.parents[generation], np.argsort(found.scores[generation], kind="stable")
        if generation == 5:
            np.testing.assert_array_equal(parents, np.arange(size))
            break
        np.testing.assert_array_equal(np.sort(np.flatnonzero(parents != np.arange(size))), np.sort(order[:few]))
        assert set(parents[order[:few]]) <= set(order[-few:])
        for name, bound in BOUNDS.items():
            before, after = found.hypers[name][generation], found.hypers[name][generation + 1]
            for member in range(size):
                if parents[member] == member:
                    assert after[member] == before[member]
                    continue
                ratio = after[member] / before[parents[member]]
                stepped = np.isclose(ratio, [1.5, 1 / 1.5], rtol=1e-5).any() or after[member] == bound.high
                changed += not stepped  # drawn anew
                assert bound.low <= after[member] <= bound.high
        total, first = total[parents], first[parents]
    np.testing.assert_allclose(found.runs["total"], total, rtol=1e-5)
    np.testing.assert_allclose(found.runs["first"], first, rtol=1e-5)
    assert len(set(found.runs["own"].tolist())) == size  # of its own key each
    assert changed > 0


def test_no_number_is_compiled_in():
    traces = []
    plain = counter()

    def advance(run, hypers):
        traces.append(1)
        return plain.advance(run, hypers)

    learner = plain._replace(advance=advance)
    first = 0
    for factor, quantile, units, high in [(1.2, 0.2, 1, 1.0), (2.0, 0.5, 4, 0.5)]:
        bounds = {"learning_rate": points.log_uniform(1e-3, high)}
        numbers = {"factor": factor, "quantile": quantile, "units": units}
        pbt.evolve(jax.random.key(0), learner, population([0.1, 0.2, 0.3]), bounds, generations=2, **numbers)
        first = first or len(traces)
    assert len(traces) == first > 0


def test_what_is_drawn_and_stepped_is_of_its_distribution():
    size = 20_000
    hypers = population(np.full(size, 0.5)).values
    numbers = pbt.Numbers(units=1, quantile=0.5, factor=jnp.float32(1.25), resample=jnp.float32(0.25), bounds=BOUNDS)
    new = jnp.arange(size) % 2 == 0
    found = pbt.explored(jax.random.key(3), hypers, new, numbers)
    np.testing.assert_array_equal(found.discount[1::2], 0.5)
    moved = np.asarray(found.discount[::2])
    up, down = np.isclose(moved, 0.5 * 1.25), np.isclose(moved, 0.5 / 1.25)
    for share, expected in [(up, 0.375), (down, 0.375), (~up & ~down, 0.25)]:
        assert abs(share.mean() - expected) < 4 * 0.5 / np.sqrt(len(moved))
    assert stats.kstest(moved[~up & ~down], stats.uniform.cdf).pvalue > 1e-3


def test_a_member_without_a_score_is_replaced_first():
    scores = jnp.array([3.0, jnp.nan, 1.0, 2.0, -jnp.inf])
    parents = pbt.chosen_parents(jax.random.key(0), scores, jnp.float32(0.2))
    assert parents.tolist() in ([0, 0, 2, 3, 4], [0, 1, 2, 3, 0])
    assert pbt.chosen_parents(jax.random.key(0), scores, jnp.float32(0.0)).tolist() == [0, 1, 2, 3, 4]


def test_whoever_has_no_score_is_nobody_s_parent():
    for seed in range(20):
        key, half = jax.random.key(seed), jnp.float32(0.5)
        few = pbt.chosen_parents(key, jnp.array([jnp.nan] * 6 + [1.0, 2.0]), half)
        replaced = np.asarray(few) != np.arange(8)
        assert replaced.sum() == 4
        assert set(few[replaced].tolist()) <= {6, 7}
        none = pbt.chosen_parents(key, jnp.full(8, jnp.nan), half)
        assert none.tolist() == list(range(8))


def test_an_heir_goes_on_as_its_parent_with_keys_of_its_own():
    """Of a real agent with a replay buffer: all but the keys is the parent's, so it acts on the same from there."""
    env = envs.make("CliffWalking-purerl", 2)
    agent = replay.with_replay(q_learning.q_learning(env.spec), replay.uniform(env.spec, 20), batch_size=2)
    learner = training.learner([loop.Phase(agent, 40)], env)
    hypers = cast_hypers(tables.Hypers(exploration=1.0))
    advance = jax.jit(learner.advance)
    own, parent = (advance(learner.begin(jax.random.key(seed), hypers), hypers)[0] for seed in (0, 1))
    heir = learner.inherit(own, parent)
    for name in ("agent", "episodes", "iteration"):
        for mine, theirs in zip(*map(jax.tree.leaves, (getattr(heir[0], name), getattr(parent[0], name))), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert heir[0].key == own[0].key != parent[0].key
    assert heir[1] == own[1] != parent[1]
    followed, parents = (advance(run, hypers)[0][0].agent.learner.values for run in (heir, parent))
    assert (followed != parents).any()


def walker(walk, env, units):
    """TD(0) on a random walk, scored after so many steps by how near its values are to the true ones."""
    agent = n_step_td.n_step_td(env.spec, features.table(env.spec), prediction.uniform(env.spec), n=1)
    mdp = envs.enumerate_mdp(walk, env.params)
    true = planning.solve_policy(jnp.ones_like(mdp.reward), *mdp.arrays, 1.0).value[1:-1]
    plain = training.learner([loop.Phase(agent, units)], env)

    def advance(run, hypers):
        run, _ = plain.advance(run, hypers)
        return run, -jnp.sqrt(jnp.mean((run[0].agent.weights[1:-1] - true) ** 2))

    return plain._replace(advance=advance)


@pytest.mark.thorough
def test_it_beats_random_search_where_the_best_rate_falls():
    """Values come near fast with a high learning rate, and closer with a low one. At equal budget, 20 searches each."""
    walk = envs.RandomWalk(19)
    learner = walker(walk, envs.make(walk, 1), units=300)
    bounds = {"learning_rate": points.log_uniform(1e-3, 1.0)}

    def best(key, **numbers):
        population = points.sample(key, n_step_td.Hypers(), 16, **bounds)
        found = pbt.evolve(key, learner, population, bounds, generations=30, **numbers)
        return found.scores[-1].max(), found.hypers["learning_rate"]

    differences, falls = [], []
    for key in jax.random.split(jax.random.key(0), 20):
        score, rates = best(key)
        searched, fixed = best(key, quantile=0.0)  # nobody takes over from anybody: random search
        assert (fixed == fixed[0]).all()
        differences.append(score - searched)
        falls.append(np.median(rates[2]) / np.median(rates[-1]))
    interval = stats.bootstrap((differences,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    assert interval.low > 0
    assert np.median(falls) > 1


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"generations": 0}, "generations is 0"),
        ({"quantile": 0.6}, "quantile is 0.6; it takes a number from 0 to 0.5"),
        ({"quantile": 0.1}, "quantile is 0.1; of 4 members that is none"),
        ({"factor": 0.5}, "factor is 0.5; it takes a number of at least 1"),
        ({"resample": -1.0}, "resample is -1.0"),
        ({"bounds": {"rate": BOUNDS["discount"]}}, "bounds has rate; the batch has no such number"),
        ({"bounds": {"discount": points.choice(1, 2)}}, "bounds of discount are Choice"),
        ({"batch": population([0.1])}, "batch has 1 point; a population takes at least 2"),
    ],
)
def test_what_cannot_evolve_is_told(changed, sentence):
    given = {"batch": population([0.1, 0.2, 0.3, 0.4]), "bounds": BOUNDS, "generations": 2} | changed
    batch, bounds = given.pop("batch"), given.pop("bounds")
    with pytest.raises(ValueError, match=sentence):
        pbt.evolve(jax.random.key(0), counter(), batch, bounds, **given)
