"""The loop: neither how a run is cut into calls nor how it is measured changes it."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, loop, networks, replay
from purerl.agents import dqn, q_learning
from purerl.base import Agent, Transition, no_memory


def tabular():
    env = envs.make("CliffWalking-purerl", 2)
    return q_learning.q_learning(env.spec), env, q_learning.Hypers()


def deep():
    env = envs.make("CartPole-v1", 2)
    learner = dqn.dqn(env.spec, networks.action_values(env.spec, (8,)))
    agent = replay.with_replay(learner, replay.uniform(env.spec, 64), batch_size=8, updates=1)
    return agent, env, dqn.Hypers(learning_rate=1e-2, target_period=3.0)


def advance(agent, env, **options):
    return jax.jit(functools.partial(loop.advance, agent=agent, env=env, **options))


def in_pieces(run, program, pieces, hypers):
    found = []
    for _ in range(pieces):
        run, metrics = program(run, hypers=hypers)
        found.append(metrics)
    return run, jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)


@pytest.mark.parametrize(("make", "length"), [(tabular, 3), (deep, 1)])
def test_calls_and_rows_leave_the_run_as_it_is_bit_for_bit(make, length):
    agent, env, hypers = make()
    run = jax.jit(lambda key: loop.begin(key, agent, env, hypers, episode_table=9))(jax.random.key(0))

    whole, mean = advance(agent, env, iterations=12, length=length)(run, hypers=hypers)
    chunks, by_call = in_pieces(run, advance(agent, env, iterations=4, length=length), 3, hypers)
    three, by_row = advance(agent, env, iterations=12, length=length, rows=3)(run, hypers=hypers)

    assert whole.iteration == 12
    with pytest.raises(AssertionError):  # or nothing was learned, and nothing is shown
        chex.assert_trees_all_equal(whole.agent, run.agent)
    chex.assert_trees_all_equal(chunks, whole)
    chex.assert_trees_all_equal(three, whole)
    chex.assert_trees_all_close(by_call, by_row, rtol=1e-6)
    for name, column in by_row.items():
        reduce = np.sum if name.startswith("episode") else np.mean
        assert column.shape == (3,)
        np.testing.assert_allclose(mean[name], [reduce(column)], rtol=1e-5)


def test_a_row_per_iteration_leaves_the_run_as_it_is():
    agent, env, hypers = tabular()
    run = loop.begin(jax.random.key(0), agent, env, hypers)
    twelve, by_iteration = advance(agent, env, iterations=12, rows=12)(run, hypers=hypers)
    single, by_call = in_pieces(run, advance(agent, env, iterations=1), 12, hypers)
    chex.assert_trees_all_equal(twelve, single)
    chex.assert_trees_all_equal(by_iteration, by_call)


@pytest.mark.thorough
@pytest.mark.parametrize(("iterations", "length"), [(13, 1), (13, 3), (2, 20)])
def test_the_size_of_the_blocks_in_which_keys_are_drawn_changes_nothing(monkeypatch, iterations, length):
    agent, env, hypers = tabular()
    run = loop.begin(jax.random.key(1), agent, env, hypers)
    options = {"iterations": iterations, "length": length}
    expected, expected_metrics = advance(agent, env, **options)(run, hypers=hypers)
    # 8 steps a block: 8 + 5 iterations of one step. 24: 8 + 5 of three.
    for block in (8 * length, 1):
        monkeypatch.setattr(loop, "_STEPS_PER_BLOCK", block)
        after, metrics = advance(agent, env, **options)(run, hypers=hypers)
        assert after.iteration == iterations
        chex.assert_trees_all_equal(after, expected)
        chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-6)


def test_rows_that_the_blocks_do_not_divide_are_whole(monkeypatch):
    monkeypatch.setattr(loop, "_STEPS_PER_BLOCK", 8)
    agent, env, hypers = tabular()
    run = loop.begin(jax.random.key(1), agent, env, hypers)
    rows, by_row = advance(agent, env, iterations=33, rows=3)(run, hypers=hypers)
    calls, by_call = in_pieces(run, advance(agent, env, iterations=11), 3, hypers)
    chex.assert_trees_all_equal(rows, calls)
    chex.assert_trees_all_close(by_row, by_call, rtol=1e-6)


def test_train_is_begin_and_advance():
    agent, env, hypers = tabular()
    key, options = jax.random.key(2), {"iterations": 20, "length": 2, "rows": 4}

    @jax.jit
    def both(key):
        run = loop.begin(key, agent, env, hypers, episode_table=3)
        return loop.advance(run, agent, env, hypers, **options)

    trained = jax.jit(lambda key: loop.train(key, agent, env, hypers, episode_table=3, **options))(key)
    chex.assert_trees_all_equal(trained, both(key))


@pytest.mark.thorough
def test_vmapped_runs_equal_single_ones_and_differ_from_one_another():
    agent, env, hypers = tabular()
    train = jax.jit(lambda key: loop.train(key, agent, env, hypers, iterations=200))
    keys = jax.random.split(jax.random.key(3), 3)
    together = jax.jit(jax.vmap(train))(keys)
    singles = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[train(key) for key in keys])
    chex.assert_trees_all_equal(together, singles)
    values = np.asarray(together[0].agent.values)
    assert (values[0] != values[1]).any()
    assert (values[1] != values[2]).any()


def test_hypers_are_swept_in_one_trace_and_numbers_of_any_type_are_one_program():
    agent, env, _ = tabular()
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def train(rate):
        hypers = q_learning.Hypers(learning_rate=rate)
        return loop.train(jax.random.key(4), agent, env, hypers, iterations=200)[0].agent.values

    rates = jnp.array([0.1, 0.5, 1.0])
    together = np.asarray(jax.vmap(train)(rates))
    assert len({table.tobytes() for table in together}) == 3
    cast = [
        jax.make_jaxpr(lambda hypers=hypers: loop.begin(jax.random.key(0), agent, env, hypers).agent)()
        for hypers in (q_learning.Hypers(initial_value=1), q_learning.Hypers(initial_value=np.float64(1.0)))
    ]
    assert str(cast[0]) == str(cast[1])


def test_environment_parameters_given_replace_those_of_the_environment():
    agent, env, hypers = tabular()
    short = env.params.replace(max_steps_in_episode=jnp.int32(2))
    train = jax.jit(lambda params: loop.train(jax.random.key(5), agent, env, hypers, iterations=10, env_params=params))
    _, metrics = train(short)
    assert metrics["episodes"] == 10  # two environments, ten steps each, two steps an episode
    assert metrics["episode_length"] == 20


def test_every_environment_step_has_a_key_of_its_own():
    """An update sees what was acted: over many iterations no two act or update keys are alike."""
    agent, env, hypers = tabular()

    def spy(key, state, rollout, hypers):
        assert isinstance(rollout.steps, Transition)
        data = jax.random.key_data(key)
        return state, {"first": data[0].astype(jnp.float32), "second": data[1].astype(jnp.float32)}

    spying = agent._replace(update=spy)
    _, metrics = loop.train(jax.random.key(6), spying, env, hypers, iterations=30, rows=30)
    seen = set(zip(np.asarray(metrics["first"]), np.asarray(metrics["second"]), strict=True))
    assert len(seen) == 30


LENGTH, SHOWN = 3, 10


def watching():
    """An agent that keeps a record of what it is shown, and in which order."""

    def init(key, hypers):
        return {
            "observed": jnp.int32(0),
            "updated": jnp.int32(0),
            "before_update": jnp.bool_(True),  # whether every update came after as many observations as are due
            "the_same": jnp.bool_(True),  # whether every update was handed the rollout observed last
            "new": jnp.zeros((LENGTH, 2), jnp.int32),  # where the last new rollout was
            "visits": jnp.zeros((SHOWN, LENGTH, 2), jnp.int32),  # and all of them
        }

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return jax.random.randint(key, observation.shape, 0, 4), memory

    def observe(state, experience, hypers):
        seen = experience.steps.observation
        visits = state["visits"].at[state["observed"]].set(seen)
        return state | {"observed": state["observed"] + 1, "new": seen, "visits": visits}

    def update(key, state, experience, hypers):
        due = state["updated"] // hypers["updates"] + 1  # observations before this update
        seen = experience.steps.observation
        same = jnp.all(seen == state["new"]) if seen.shape == state["new"].shape else jnp.bool_(False)
        return state | {
            "updated": state["updated"] + 1,
            "before_update": state["before_update"] & (state["observed"] == due),
            "the_same": state["the_same"] & same,
        }, {"updated": state["updated"].astype(jnp.float32)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=observe)


def watched(agent, env, updates):
    hypers, options = {"updates": updates}, {"iterations": SHOWN, "length": LENGTH}
    return jax.jit(lambda key: loop.train(key, agent, env, hypers, **options)[0])(jax.random.key(8)).agent


def test_every_new_rollout_is_observed_once_and_before_the_update():
    env = envs.make("CliffWalking-purerl", 2)
    alone = watched(watching(), env, 1)
    assert alone["observed"] == alone["updated"] == SHOWN
    assert alone["before_update"]
    assert alone["the_same"]
    assert len(np.unique(alone["visits"], axis=0)) > SHOWN / 2  # or rollouts could be exchanged unseen

    # From replay it learns from samples, 5 sequences at a time, as often as asked; it observes the same as before.
    for updates in (0, 4):
        buffer = replay.uniform(env.spec, 64, length=LENGTH)
        agent = replay.with_replay(watching(), buffer, batch_size=5, updates=updates)
        sampling = watched(agent, env, max(updates, 1)).learner
        assert sampling["observed"] == SHOWN
        assert sampling["updated"] == SHOWN * updates
        assert sampling["before_update"]
        assert sampling["the_same"] == (updates == 0)
        np.testing.assert_array_equal(sampling["visits"], alone["visits"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"iterations": 0}, "iterations is 0; it takes"),
        ({"iterations": -3}, "iterations is -3; it takes"),
        ({"iterations": 4, "length": 0}, "length is 0; it takes"),
        ({"iterations": 4, "rows": 0}, "rows is 0; it takes"),
        ({"iterations": 4, "rows": 3}, "rows is 3, which does not divide the 4 iterations"),
    ],
)
def test_a_bad_count_is_named_with_what_it_takes(options, words):
    agent, env, hypers = tabular()
    run = loop.begin(jax.random.key(0), agent, env, hypers)
    with pytest.raises(ValueError, match=words):
        loop.advance(run, agent, env, hypers, **options)
    with pytest.raises(ValueError, match=words):
        loop.train(jax.random.key(0), agent, env, hypers, **options)


@pytest.mark.parametrize(
    ("leaf", "error", "words"),
    [
        (jnp.zeros(3), ValueError, "Hypers.learning_rate has shape (3,); it takes a number"),
        ([0.1, 0.2], ValueError, "Hypers.learning_rate has shape (2,); it takes a number"),
        ("0.5", TypeError, "Hypers.learning_rate is '0.5'; it takes a number"),
        (None, TypeError, "Hypers.learning_rate is None; it takes a number"),
        ("fast", TypeError, "Hypers.learning_rate is 'fast'; it takes a number"),
    ],
)
def test_a_bad_hyper_is_named_with_what_it_takes(leaf, error, words):
    agent, env, hypers = tabular()
    bad = q_learning.Hypers(learning_rate=leaf)
    run = loop.begin(jax.random.key(0), agent, env, hypers)
    with pytest.raises(error, match=re.escape(words)):
        loop.begin(jax.random.key(0), agent, env, bad)
    with pytest.raises(error, match=re.escape(words)):
        loop.advance(run, agent, env, bad, iterations=1)
