"""What every agent must do, whatever it learns: the contract of purerl/base.py, run over all of them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from functools import partial

import chex
import going_on
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import CASES
from going_on import LENGTH, NUM_ENVS
from probes import Ends

from purerl import checkpoint, envs, loop, rollout
from purerl.base import cast_hypers

# For tests of what does not depend on how hard the compiler tries: most of their time is the compiler's.
CHEAP = {"xla_backend_optimization_level": "0"}


def agents(*, thorough):
    """Every agent; of some the test is for the thorough tier."""
    cases = [pytest.param(case, marks=[pytest.mark.thorough] * thorough(case), id=case.name) for case in CASES]
    return pytest.mark.parametrize("case", cases)


# Of what is an agent already here, with other options.
over_agents = agents(thorough=lambda case: case.name in ("dqn with options", "q_learning by UCB"))


@pytest.fixture(scope="module")
def setups():
    """Agents and environments, made once: an environment made anew is a new program."""
    made = {}

    def setup(case):
        if case.name not in made:
            env = envs.make(case.env, NUM_ENVS)
            made[case.name] = env, case.make(env.spec)
        return made[case.name]

    return setup


@pytest.fixture(scope="module")
def programs(setups):
    """Whole runs of sixty iterations in four rows of metrics, compiled once per agent."""
    made = {}

    def program(case):
        if case.name not in made:
            setup = setups(case)
            made[case.name] = jax.jit(lambda key, hypers: train(setup, key, hypers, rows=4))
        return made[case.name]

    return program


def train(setup, key, hypers, *, iterations=60, rows=1):
    env, agent = setup
    return loop.train(key, agent, env, hypers, iterations=iterations, length=LENGTH, rows=rows)


def collect(setup, key, run, hypers):
    env, agent = setup
    return rollout.unroll(
        rollout.step_keys(key, LENGTH), agent, run.agent, env, env.params, run.episodes, cast_hypers(hypers)
    )


def equal(one, other):
    """Whether two pytrees are the same bits."""
    leaves = [[raw(leaf) for leaf in jax.tree.leaves(tree)] for tree in (one, other)]
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(*leaves, strict=True))


def raw(leaf):
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


@over_agents
def test_new_numbers_are_no_new_program(case, setups):
    chex.clear_trace_counter()  # it counts by name
    env, agent = setups(case)
    hypers = cast_hypers(case.hypers)
    run = loop.begin(jax.random.key(0), agent, env, hypers)
    act = jax.jit(chex.assert_max_traces(agent.act, n=1), compiler_options=CHEAP)
    update = jax.jit(chex.assert_max_traces(agent.update, n=1), compiler_options=CHEAP)
    state = run.agent
    _, experience, _ = collect((env, agent), jax.random.key(1), run, hypers)
    for number in range(3):
        changed = jax.tree.map(lambda leaf: leaf * (1 + 0.01 * number), hypers)  # noqa: B023
        key = jax.random.key(number)
        act(key, state, run.episodes.memory, run.episodes.observation, changed)
        state, _ = update(key, state, experience, changed)


@over_agents
def test_state_keeps_its_tree_shapes_and_dtypes(case, setups):
    env, agent = setups(case)
    hypers = cast_hypers(case.hypers)

    def types(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)

    begun = jax.eval_shape(lambda key: loop.begin(key, agent, env, hypers), jax.random.key(0))
    advanced, metrics = jax.eval_shape(
        lambda run: loop.advance(run, agent, env, hypers, iterations=2, length=LENGTH), begun
    )
    assert types(begun) == types(advanced)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(metrics))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(begun) if hasattr(leaf, "weak_type"))


@over_agents
def test_one_seed_repeats_bit_for_bit_and_two_differ_in_parameters_and_actions(case, setups, programs):
    setup = setups(case)
    hypers = cast_hypers(case.hypers)
    once, again, other = (programs(case)(jax.random.key(seed), hypers)[0] for seed in (0, 0, 1))
    assert equal(once, again)
    assert not equal(once.agent, other.agent)

    @partial(jax.jit, compiler_options=CHEAP)
    def actions(key, run):
        keys = jax.random.split(key, 20)
        return jax.vmap(lambda key: collect(setup, key, run, hypers)[1].steps.action)(keys)

    five, six = jax.random.key(5), jax.random.key(6)
    assert np.array_equal(actions(five, once), actions(five, again))
    assert not np.array_equal(actions(five, once), actions(six, once))


@pytest.fixture(scope="module")
def elsewhere():
    """A function that lets another process go on with a run that was saved."""
    child = subprocess.Popen(
        [sys.executable, going_on.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def go_on(case, directory):
        print(case.name, directory, sep="\t", file=child.stdin, flush=True)
        assert child.stdout.readline() == "done\n"

    yield go_on
    child.stdin.close()
    assert child.wait(timeout=60) == 0


@over_agents
def test_neither_chunks_nor_rows_nor_another_process_that_goes_on_change_a_bit(
    case, setups, programs, elsewhere, tmp_path
):
    env, agent = setups(case)
    hypers = cast_hypers(case.hypers)
    key = jax.random.key(3)
    whole, metrics = programs(case)(key, hypers)
    chunk = going_on.chunk(env, agent)
    run = going_on.begin(env, agent)(key, hypers)
    for _ in range(2):
        run = chunk(run, hypers)
    checkpoint.save({"run": run, "hypers": hypers}, tmp_path, 30)
    elsewhere(case, tmp_path)
    assert equal(whole, checkpoint.restore(tmp_path, {"run": run}, 60)["run"])
    assert all(leaf.shape == (4,) for leaf in jax.tree.leaves(metrics))


@pytest.mark.fast_cases(6)
@agents(thorough=lambda case: not case.table and case.name != "ppo")
def test_vmap_over_seeds_and_hypers_is_the_same_as_separate_runs(case, setups, programs):
    setup = setups(case)
    keys = jax.random.split(jax.random.key(4), 3)
    points = [
        cast_hypers(jax.tree.map(lambda leaf: leaf * scale, cast_hypers(case.hypers)))  # noqa: B023
        for scale in (0.9, 1.0, 1.1)
    ]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *points)
    # Of tables equal bits, whole runs long, as the compiler makes them when it does its best; of networks one update.
    one = programs(case) if case.table else jax.jit(partial(train, setup, iterations=1), compiler_options=CHEAP)
    several = jax.vmap(partial(train, setup, **({"rows": 4} if case.table else {"iterations": 1})))
    together, _ = jax.jit(several, compiler_options={} if case.table else CHEAP)(keys, batch)
    for number, (key, hypers) in enumerate(zip(keys, points, strict=True)):
        alone, _ = one(key, hypers)
        mine = jax.tree.map(lambda leaf: leaf[number], together)  # noqa: B023
        if case.table:
            assert equal(mine.agent, alone.agent)
        else:
            chex.assert_trees_all_close(mine.agent, alone.agent, rtol=1e-5, atol=1e-5)


@over_agents
def test_every_number_in_hypers_matters(case, programs):
    program, key, hypers = programs(case), jax.random.key(0), cast_hypers(case.hypers)
    base = program(key, hypers)[0].agent
    for field in dataclasses.fields(hypers):
        changed = dataclasses.replace(hypers, **{field.name: getattr(hypers, field.name) * 0.7 + 0.001})
        assert not equal(base, program(key, changed)[0].agent), f"{field.name} changes nothing"


@over_agents
def test_no_key_is_used_twice(case, setups):
    setup = setups(case)
    key, hypers = jax.random.key(0), cast_hypers(case.hypers)
    with jax.debug_key_reuse(True):  # looks at what is traced: nothing need be compiled, or run
        jax.jit(lambda key, hypers: train(setup, key, hypers, iterations=3)).lower(key, hypers)


@over_agents
def test_truncation_bootstraps_and_termination_does_not(case):
    env = envs.make(Ends(), 4)
    agent = case.make(env.spec)
    run, _ = jax.jit(
        lambda key: loop.train(key, agent, env, case.probe_hypers, iterations=case.probe_iterations, length=1),
        compiler_options=CHEAP,
    )(jax.random.key(0))
    values = case.values(run.agent, jnp.arange(4))
    gamma = getattr(case.probe_hypers, "discount", 0.0)  # to a bandit only the reward at hand counts
    expected = np.array([1 + 2 * gamma, 1.0, 1.0, 2.0])
    np.testing.assert_allclose(values, np.broadcast_to(expected[:, None], values.shape), atol=0.05)
