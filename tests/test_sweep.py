"""Sweeps: what points are made, that each run is what it would be alone, and that there is one compilation."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl import envs, exploration, loop, replay, spread, sweep, tables, training
from purerl.agents import q_learning
from purerl.base import cast_hypers

KEYS = jax.random.split(jax.random.key(0), 3)


@pytest.fixture(scope="module")
def cliff():
    return envs.make("CliffWalking-purerl", 2)


@pytest.fixture(scope="module")
def train(cliff):
    agent = q_learning.q_learning(cliff.spec)

    def train(key, hypers):
        run, metrics = loop.train(key, agent, cliff, hypers, iterations=40, rows=4)
        return {"values": run.agent.values, **metrics}

    return train


# --- points ---------------------------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_the_last_axis_varying_fastest():
    batch = sweep.grid(tables.Hypers(discount=0.9), learning_rate=[0.1, 0.2], exploration=[0.0, 0.5, 1.0])
    assert batch.points == 6
    pairs = list(itertools.product([0.1, 0.2], [0.0, 0.5, 1.0]))
    np.testing.assert_allclose(batch.values.learning_rate, [first for first, _ in pairs])
    np.testing.assert_allclose(batch.values.exploration, [second for _, second in pairs])
    np.testing.assert_allclose(batch.values.discount, np.full(6, 0.9))
    assert {name: column.tolist() for name, column in batch.labels.items()} == {
        "learning_rate": [first for first, _ in pairs],
        "exploration": [second for _, second in pairs],
    }


def test_without_axes_a_grid_is_the_one_point():
    batch = sweep.grid(tables.Hypers())
    assert (batch.points, batch.labels) == (1, {})


def test_numbers_are_float32_and_parameters_keep_their_dtypes(cliff):
    batch = sweep.grid(tables.Hypers(), learning_rate=[1, 0])
    assert {leaf.dtype for leaf in jax.tree.leaves(batch.values)} == {jnp.dtype(jnp.float32)}
    params = sweep.grid(cliff.params, max_steps_in_episode=[10, 20])
    assert params.values.max_steps_in_episode.dtype == jnp.int32
    assert params.values.max_steps_in_episode.tolist() == [10, 20]


def test_products_are_tuples_of_every_combination(cliff):
    batch = sweep.product(
        sweep.grid(tables.Hypers(), learning_rate=[0.1, 0.2, 0.3]), sweep.grid(cliff.params, cliff_reward=[-100, -10])
    )
    hypers, params = batch.values
    pairs = list(itertools.product([0.1, 0.2, 0.3], [-100, -10]))
    np.testing.assert_allclose(np.stack([hypers.learning_rate, params.cliff_reward], axis=1), pairs)
    assert list(batch.labels) == ["learning_rate", "cliff_reward"]
    with pytest.raises(ValueError, match="discount is an axis of two batches"):
        sweep.product(sweep.grid(tables.Hypers(), discount=[1]), sweep.grid(tables.Hypers(), discount=[1]))


def test_samples_are_of_their_distributions():
    batch = sweep.sample(
        jax.random.key(1),
        tables.Hypers(),
        4_000,
        discount=sweep.uniform(0.5, 1.0),
        learning_rate=sweep.log_uniform(1e-4, 1e-1),
        exploration=sweep.choice(0.1, 0.2, 0.4),
    )
    assert stats.kstest(batch.labels["discount"], stats.uniform(0.5, 0.5).cdf).pvalue > 1e-3
    logarithms = np.log10(batch.labels["learning_rate"])
    assert stats.kstest(logarithms, stats.uniform(-4, 3).cdf).pvalue > 1e-3
    counts = collections.Counter(np.round(batch.labels["exploration"], 3).tolist())
    assert set(counts) == {0.1, 0.2, 0.4}
    assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    columns = np.stack(list(batch.labels.values()))
    assert np.abs(np.corrcoef(columns) - np.eye(3)).max() < 0.06
    np.testing.assert_allclose(batch.values.learning_rate, batch.labels["learning_rate"], rtol=1e-6)


def test_more_points_or_axes_leave_those_there_are():
    key, rate = jax.random.key(2), sweep.log_uniform(1e-4, 1e-1)
    few = sweep.sample(key, tables.Hypers(), 3, learning_rate=rate)
    many = sweep.sample(key, tables.Hypers(), 9, discount=sweep.uniform(0, 1), learning_rate=rate)
    np.testing.assert_array_equal(few.labels["learning_rate"], many.labels["learning_rate"][:3])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: sweep.grid(tables.Hypers(), rate=[1]), "Hypers has no rate; it has learning_rate, discount"),
        (lambda: sweep.grid(tables.Hypers(), discount=[]), r"discount is \[\]; an axis takes a list of finite numbers"),
        (lambda: sweep.grid(tables.Hypers(), discount=[math.nan]), r"discount is \[nan\]"),
        (lambda: sweep.grid(tables.Hypers(), discount=0.5), "discount is 0.5; an axis takes a list"),
        (lambda: sweep.grid(tables.Hypers(), discount=["a"]), r"discount is \['a'\]"),
        (lambda: sweep.grid(envs.make("CliffWalking-purerl", 1).params, max_steps_in_episode=[1.5]), "whole numbers"),
        (lambda: sweep.grid(envs.DynaMaze().default_params, walls=[1]), r"walls is an array of shape \(6, 9\)"),
        (lambda: sweep.grid(tables.Hypers(), discount=[1e300]), "an axis takes numbers that float32 can hold"),
        (lambda: sweep.grid(envs.make("CliffWalking-purerl", 1).params, max_steps_in_episode=[1e10]), "int32"),
        (lambda: sweep.product(sweep.grid(tables.Hypers())), "product is of 1 batches; it takes at least two"),
        (lambda: sweep.uniform(1, 1), "low is 1 and high is 1; a distribution takes finite bounds"),
        (lambda: sweep.log_uniform(0, 1), "low is 0; a log-uniform distribution takes a positive number"),
        (lambda: sweep.choice(), "choice takes at least one value"),
        (lambda: sweep.sample(jax.random.key(0), tables.Hypers(), 0), "n is 0"),
    ],
)
def test_what_makes_no_points_is_told(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


# --- runs -----------------------------------------------------------------------------------------------------------


def equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("devices", [1, 2])
def test_every_run_is_what_it_is_alone_whatever_it_runs_beside(train, devices):
    batch = sweep.grid(tables.Hypers(), learning_rate=[0.1, 0.5], exploration=[0.1, 0.3])
    spreading = spread.choose(12, devices=devices, together=1)
    results = sweep.run(train, KEYS, batch, spread=spreading)
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(results.outputs)} == {(4, 3)}
    assert results.diverged.shape == (4, 3)
    assert not results.diverged.any()
    alone = jax.jit(train)
    for point, seed in np.ndindex(4, 3):
        hypers = jax.tree.map(lambda leaf: leaf[point], batch.values)  # noqa: B023
        equal(
            jax.tree.map(lambda leaf: leaf[point, seed], results.outputs),  # noqa: B023
            alone(KEYS[seed], hypers),
        )


@pytest.mark.parametrize("seconds", [1e-9, 1e9])
def test_a_run_s_bits_do_not_depend_on_its_chunk(train, seconds, monkeypatch):
    """With chunks of one run a device, and with one chunk of all."""
    batch = sweep.grid(tables.Hypers(), learning_rate=np.linspace(0.1, 1.0, 7))
    spreading = spread.choose(21, devices=2, together=1)
    expected = sweep.run(train, KEYS, batch, spread=spreading)
    monkeypatch.setattr(sweep, "SECONDS_PER_CHUNK", seconds)
    equal(sweep.run(train, KEYS, batch, spread=spreading).outputs, expected.outputs)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize(("devices", "together"), [(1, 2), (2, 4), (1, 100)])
def test_together_runs_are_what_they_are_alone(train, devices, together):
    batch = sweep.grid(tables.Hypers(), learning_rate=[0.1, 0.5, 0.9])
    one = sweep.run(train, KEYS, batch, spread=spread.choose(9, devices=1, together=1))
    all_of_them = sweep.run(train, KEYS, batch, spread=spread.choose(9, devices=devices, together=together))
    for a, b in zip(jax.tree.leaves(one.outputs), jax.tree.leaves(all_of_them.outputs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# Each would wait for ever if anything could.
HANG = """
from purerl import spread
spread.use_all_cores(2)
import flax.linen as nn, jax
from purerl import envs, loop, networks, sweep, tables, training
from purerl.agents import ppo

def lapack(key, hypers):  # jax's own initialiser, many times
    keys = jax.random.split(key, 3)
    return sum(nn.initializers.orthogonal()(key, (64, 64)).sum() for key in keys) * hypers.discount

env = envs.make("CartPole-v1", 2)
agent = ppo.ppo(env.spec, networks.policy(env.spec), networks.state_values(env.spec), epochs=1, minibatches=1)
begun = training.trainer([loop.Phase(agent, 4)], env, length=2)
for seed in range(3):
    keys = jax.random.split(jax.random.key(seed), 32)
    sweep.run(lapack, keys, sweep.grid(tables.Hypers()))
    sweep.run(begun, keys, sweep.grid(ppo.Hypers()), spread=spread.choose(32, together=16))
print("not one hung")
"""


def test_many_seeds_started_at_once_do_not_hang():
    done = subprocess.run([sys.executable, "-c", HANG], timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "not one hung\n"), done.stderr


def test_what_could_hang_when_batched_is_refused():
    def train(key, hypers):
        return jnp.linalg.qr(jax.random.normal(key, (4, 4)))[0] * hypers.discount

    batch = sweep.grid(tables.Hypers())
    with pytest.raises(ValueError, match=r"train calls LAPACK .* together=1, or initialise by layers\.orthogonal"):
        sweep.run(train, KEYS, batch, spread=spread.choose(3, together=2))
    assert sweep.run(train, KEYS, batch).outputs.shape == (1, 3, 4, 4)


def test_a_sweep_compiles_one_program_and_other_values_none(cliff):
    """Counted where XLA compiles, beside how often `train` is traced; of eager operations, as of indices, no more."""
    traces, compiled = [], []

    def listen(event, duration, **more):
        compiled.append(event) if event == "/jax/core/compile/backend_compile_duration" else None

    def train(key, hypers):
        traces.append(1)
        agent = q_learning.q_learning(cliff.spec)
        return loop.train(key, agent, cliff, hypers, iterations=2)[1]

    def swept(rates, discount):
        sweep.run(train, KEYS, sweep.grid(tables.Hypers(discount=discount), learning_rate=rates))
        return len(traces), len(compiled)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        first, _ = swept(np.linspace(0.1, 1.0, 5), 0.9)
        assert first <= 3  # twice for shapes, once for the program
        _, before = swept(np.linspace(0.2, 0.3, 5), 0.5)
        assert swept(np.linspace(0.7, 0.8, 5), 0.1) == (first, before)
        assert before > 0  # the listener hears
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_what_runs_take_of_memory_is_read_off_the_program_and_kept_within_a_budget(cliff):
    """A replay buffer of 8 MB, of which nothing that is handed in or out tells."""
    capacity = 400_000
    learner = replay.with_replay(q_learning.q_learning(cliff.spec), replay.uniform(cliff.spec, capacity), batch_size=4)
    state = jax.eval_shape(lambda key: learner.init(key, tables.Hypers()), KEYS[0])
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    train = training.trainer([loop.Phase(learner, 8)], cliff)
    batch = sweep.grid(tables.Hypers(), learning_rate=[0.1, 0.5])

    def fitting(room, **options):
        spreading = spread.choose(6, **options)
        found = sweep.fitting(train, KEYS, batch, spreading, memory=round(room * size))
        return len(found.devices), found.together

    assert fitting(2.3) == (2, 1)
    assert fitting(1.7) == (1, 1)
    assert fitting(2.3, devices=1, together=2) == (1, 2)
    assert fitting(1.7, devices=1, together=2) == (1, 1)
    with pytest.raises(MemoryError, match=r"one run takes 6\.\d\d MiB of memory and there are 6\.\d\d MiB"):
        fitting(0.9)
    assert 2**30 < spread.free_memory(spread.choose(1)) < 2**45


def test_what_diverges_is_marked_and_leaves_the_others_as_they_are(train):
    def broken(key, hypers):
        outputs = train(key, hypers)
        bad = hypers.learning_rate > 0.5
        return outputs | {"td_error": jnp.where(bad, jnp.nan, outputs["td_error"])}

    batch = sweep.grid(tables.Hypers(), learning_rate=[0.1, 0.9, 0.2])
    results = sweep.run(broken, KEYS, batch)
    np.testing.assert_array_equal(results.diverged, [[False] * 3, [True] * 3, [False] * 3])
    equal(results.outputs["values"], sweep.run(train, KEYS, batch).outputs["values"])


def test_batches_of_hypers_and_parameters_reach_train(cliff):
    agent = q_learning.q_learning(cliff.spec)

    def train(key, values):
        hypers, params = values
        return loop.train(key, agent, cliff, hypers, env_params=params, iterations=40)[1]["td_error"]

    batch = sweep.product(
        sweep.grid(tables.Hypers(), exploration=[1.0]), sweep.grid(cliff.params, cliff_reward=[-100.0, -7.0])
    )
    found = sweep.run(train, KEYS, batch).outputs
    for place, reward in enumerate([-100.0, -7.0]):
        params = cliff.params.replace(cliff_reward=jnp.float32(reward))
        alone = train(KEYS[1], (cast_hypers(tables.Hypers(exploration=1.0)), params))
        np.testing.assert_allclose(found[place, 1], alone)
    assert (found[0] != found[1]).any()


# --- training, as what is swept -------------------------------------------------------------------------------------


def phases_of(cliff, steps=(24, 96)):
    learner = q_learning.q_learning(cliff.spec)
    buffer = replay.uniform(cliff.spec, 40)
    collect, learn = (replay.with_replay(learner, buffer, batch_size=4, updates=updates) for updates in (0, 1))
    return [loop.Phase(collect, steps[0]), loop.Phase(learn, steps[1])]


def test_training_is_that_of_the_loop_phase_by_phase(cliff):
    judge = envs.make("CliffWalking-purerl", 3)
    phases, hypers = phases_of(cliff), cast_hypers(tables.Hypers(exploration=1.0))
    train = training.trainer(phases, cliff, length=2, rows=4, judge=judge, max_steps=30)
    key = jax.random.key(3)
    found = jax.jit(train)(key, hypers)
    run = loop.begin(jax.random.split(key)[0], phases[0].agent, cliff, hypers)
    run, _ = loop.advance(run, phases[0].agent, cliff, hypers, iterations=6, length=2)
    run, metrics = jax.jit(
        lambda run: loop.advance(run, phases[1].agent, cliff, hypers, iterations=24, length=2, rows=4)
    )(run)
    np.testing.assert_allclose(found["td_error"], metrics["td_error"], rtol=1e-5)
    np.testing.assert_array_equal(found["episodes"], metrics["episodes"])
    assert found["evaluation_return"].shape == (3,)
    assert int(found["diverged_at"]) == -1
    # The same parameters of the environment, handed over as numbers.
    pair = jax.jit(train)(key, (hypers, cliff.params))
    np.testing.assert_array_equal(pair["td_error"], found["td_error"])


def test_the_update_in_which_a_run_went_astray_is_told(cliff):
    agent = q_learning.q_learning(cliff.spec)

    def update(key, state, rollout, hypers):
        state, metrics = agent.update(key, state, rollout, hypers)
        visits = jnp.sum(state.values != 0)
        return state, metrics | {"bad": jnp.where((hypers.initial_value > 0.5) & (visits > 190), jnp.nan, 1.0)}

    train = training.trainer([loop.Phase(agent._replace(update=update), 40)], cliff)
    batch = sweep.grid(tables.Hypers(learning_rate=0.1), initial_value=[0.1, 1.0])
    results = sweep.run(train, KEYS, batch)
    np.testing.assert_array_equal(results.diverged, [[False] * 3, [True] * 3])
    np.testing.assert_array_equal(results.outputs["diverged_at"], [[-1] * 3, [0] * 3])


def test_a_watched_agent_is_the_agent(cliff):
    """Whatever it does, and to the bit; and it still counts what it observes."""
    agent = q_learning.q_learning(cliff.spec, explore=exploration.ucb)
    hypers = tables.Hypers(exploration=2.0)

    def train(agent):
        return jax.jit(lambda key: loop.train(key, agent, cliff, hypers, iterations=30, length=3)[0])(KEYS[0])

    plain, watched = train(agent), train(training.watched(agent))
    equal(plain.agent, watched.agent.state)
    equal(plain.episodes, watched.episodes)
    assert int(watched.agent.updates) == 30


def test_a_run_whose_last_update_lost_its_state_is_marked(cliff):
    """The metrics are of before, and finite."""
    agent = q_learning.q_learning(cliff.spec)

    def update(key, state, rollout, hypers):
        state, _ = agent.update(key, state, rollout, hypers)
        return dataclasses.replace(state, values=state.values * jnp.where(hypers.discount > 0.5, jnp.nan, 1.0)), {}

    train = training.trainer([loop.Phase(agent._replace(update=update), 6)], cliff)
    found = sweep.run(train, KEYS, sweep.grid(tables.Hypers(), discount=[0.1, 0.9]))
    np.testing.assert_array_equal(found.outputs["diverged_at"], [[-1] * 3, [2] * 3])


def test_what_cannot_be_trained_is_told_before_it_is(cliff):
    phase = phases_of(cliff)[0]
    for phases, options, sentence in [
        ([], {}, "phases is empty"),
        ([phase], {"rows": 5}, "rows is 5, which does not divide the 12 iterations"),
        ([phase], {"length": 0}, "length is 0"),
        ([phase._replace(steps=0)], {}, "steps is 0"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            training.trainer(phases, cliff, **options)
