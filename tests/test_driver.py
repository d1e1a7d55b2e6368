"""The host's side: neither watching a run, nor judging it, nor the other seeds change it; and when it stops."""

import dataclasses
import functools
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from purerl import driver, envs, loop, networks, replay, spread
from purerl.agents import dqn, q_learning
from purerl.base import Agent, cast_hypers, no_memory
from purerl.driver import Phase
from purerl.metrics import Progress

CLIFF = "CliffWalking-purerl"


def q_learn(seeds=2, steps=600, num_envs=2, **options):
    env = envs.make(CLIFF, num_envs)
    agent = q_learning.q_learning(env.spec)
    options = {"log_every": 100} | options
    keys = driver.seed_keys(0, seeds)
    return driver.drive(keys, [Phase(agent, steps)], env, q_learning.Hypers(), **options)


def judged(**options):
    """Options with which the policy is judged in three environments."""
    return {"eval_env": envs.make(CLIFF, 3), "eval_max_steps": 60} | options


def follower():
    """Acts 1 when greedy and else 0, and learns nothing."""

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return jnp.full(observation.shape[0], int(greedy), jnp.int32), memory

    def update(key, state, rollout, hypers):
        return state + 1, {}

    return Agent(init=lambda key, hypers: jnp.int32(0), start=no_memory, act=act, update=update)


@pytest.fixture(scope="module")
def plain():
    return q_learn()


def test_every_metric_is_a_row_per_chunk_of_every_seed(plain):
    assert {"environment_steps", "seconds", "episodes", "episode_return", "episode_length", "td_error"} == set(
        plain.metrics
    )
    assert {column.shape for column in plain.metrics.values()} == {(2, 6)}
    np.testing.assert_array_equal(plain.metrics["environment_steps"], [[100, 200, 300, 400, 500, 600]] * 2)
    assert (np.diff(plain.metrics["seconds"]) > 0).all()
    assert (plain.metrics["seconds"] > 0).all()
    assert plain.metrics["seconds"].max() <= plain.run_seconds
    assert plain.compile_seconds > 0
    assert all(plain.run(seed).iteration == 300 for seed in range(2))
    assert plain.evaluation_steps.shape == (0,)
    assert plain.evaluation_returns.shape == (2, 0, 0)


def test_a_seed_gives_the_run_that_the_loop_gives_and_each_seed_another(plain):
    env = envs.make(CLIFF, 2)
    agent = q_learning.q_learning(env.spec)
    first = jax.random.split(driver.seed_keys(0, 1)[0])[0]
    run, metrics = jax.jit(
        lambda key: loop.train(key, agent, env, q_learning.Hypers(), iterations=300, rows=6, episode_table=0)
    )(first)
    chex.assert_trees_all_equal(plain.run(0), run)
    with np.errstate(invalid="ignore"):
        returns = np.asarray(metrics["episode_return"]) / np.asarray(metrics["episodes"])
    np.testing.assert_allclose(plain.metrics["episode_return"][0], returns, rtol=1e-6)
    np.testing.assert_array_equal(plain.metrics["episodes"][0], metrics["episodes"])
    assert (plain.run(0).agent.values != plain.run(1).agent.values).any()


def test_neither_rows_nor_evaluations_change_the_run(plain):
    coarse = q_learn(log_every=300)
    watched = q_learn(log_every=50, **judged(eval_every=100))
    chex.assert_trees_all_equal(coarse.runs, plain.runs)
    chex.assert_trees_all_equal(watched.runs, plain.runs)
    assert coarse.metrics["episodes"].shape == (2, 2)
    np.testing.assert_array_equal(coarse.metrics["episodes"].sum(1), plain.metrics["episodes"].sum(1))
    np.testing.assert_array_equal(watched.evaluation_steps, [100, 200, 300, 400, 500, 600])
    assert watched.evaluation_returns.shape == (2, 6, 3)
    assert watched.evaluation_returns.dtype == np.float32
    assert (watched.evaluation_returns <= -13).all()  # thirteen steps at least, or sixty at the cap


def test_a_seed_does_not_depend_on_how_many_there_are(plain):
    three = q_learn(seeds=3)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[:2], three.runs), plain.runs)
    data = jax.random.key_data(driver.seed_keys(0, 3))
    np.testing.assert_array_equal(data[:2], jax.random.key_data(driver.seed_keys(0, 2)))
    others = jax.random.key_data(driver.seed_keys(1, 3))
    assert len(np.unique(np.concatenate([data, others]), axis=0)) == 6


def test_steps_are_rounded_up_to_whole_iterations_and_the_last_chunk_is_what_is_left():
    outcome = q_learn(seeds=1, steps=249, log_every=99)  # chunks of fifty iterations in two environments
    np.testing.assert_array_equal(outcome.metrics["environment_steps"], [[100, 200, 250]])


@pytest.fixture(scope="module")
def two_phases():
    """A function of `log_every`: a random phase and a learning one, of numbers that do not divide one another."""
    env = envs.make("CliffWalking-purerl", 2)
    learner = q_learning.q_learning(env.spec)
    buffer = replay.uniform(env.spec, 40)
    collect, learn = (replay.with_replay(learner, buffer, batch_size=4, updates=updates) for updates in (0, 1))
    phases = [driver.Phase(collect, 26), driver.Phase(learn, 75)]

    @functools.cache
    def run(log_every):
        return driver.drive(driver.seed_keys(0, 1), phases, env, q_learning.Hypers(), log_every=log_every)

    return run


@pytest.mark.thorough
def test_how_often_is_logged_changes_no_phase_and_no_bit(two_phases):
    outcome = two_phases(7)
    assert outcome.metrics["environment_steps"][0, -1] == 26 + 76
    chex.assert_trees_all_equal(outcome.run(0), two_phases(50).run(0))


def test_more_seeds_than_memory_holds_are_refused_before_they_begin():
    env = envs.make(CLIFF, 2)
    agent = replay.with_replay(q_learning.q_learning(env.spec), replay.uniform(env.spec, 10**6), batch_size=4)
    with pytest.raises(MemoryError, match=r"runs keep .* GiB and there are 10.00 MiB of memory: fewer seeds"):
        driver.drive(
            driver.seed_keys(0, 3), [Phase(agent, 4)], env, q_learning.Hypers(), log_every=4, memory=10 * 2**20
        )


def test_a_large_replay_is_not_copied_when_several_seeds_advance():
    env = envs.make("CartPole-v1", 2)
    learner = dqn.dqn(env.spec, networks.action_values(env.spec, (8,)))
    agent = replay.with_replay(learner, replay.uniform(env.spec, 200_000), batch_size=4)
    here, seeds = spread.choose(3, devices=1), 3
    hypers, params = spread.replicate(here, (cast_hypers(dqn.Hypers()), env.params))
    keys = spread.place(here, driver.seed_keys(0, seeds))
    begin = driver._begin(agent, env, here)
    places = spread.of_runs(here, jax.eval_shape(begin, keys, hypers, params))
    runs = jax.jit(begin, out_shardings=places)(keys, hypers, params)
    program = driver._advance(agent, env, 10, 1, here, places).lower(runs, hypers, params).compile()
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes > seeds * 200_000 * 4 * 4  # the observations, donated
    assert memory.temp_size_in_bytes < 1.2 * memory.alias_size_in_bytes / seeds  # one run at a time is taken out


def test_runs_that_diverge_are_told_apart_and_leave_the_others_as_they_are():
    env = envs.make("CliffWalking-purerl", 1)
    agent = q_learning.q_learning(env.spec)

    def broken(key, state, rollout, hypers):
        state, metrics = agent.update(key, state, rollout, hypers)
        bad = jax.random.key_data(key)[0] % 2 == 0  # some seeds, some time
        return dataclasses.replace(state, values=jnp.where(bad, jnp.nan, state.values)), metrics

    keys = driver.seed_keys(0, 8)
    outcome = driver.drive(
        keys, [driver.Phase(agent._replace(update=broken), 1)], env, q_learning.Hypers(), log_every=1
    )
    assert 0 < outcome.diverged.sum() < 8
    found = [bool(jnp.isnan(outcome.run(seed).agent.values).any()) for seed in range(8)]
    assert found == outcome.diverged.tolist()


def test_ctrl_c_ends_the_runs_after_a_chunk_and_keeps_what_they_did():
    class Pressed(Progress):
        def update(self, steps_done, **_):
            if steps_done == 60:
                signal.raise_signal(signal.SIGINT)

    progress, before = Pressed(600, description="", enabled=False), signal.getsignal(signal.SIGINT)
    outcome = q_learn(seeds=1, steps=600, log_every=20, progress=progress)
    assert outcome.interrupted
    assert outcome.metrics["environment_steps"][0].tolist() == [20, 40, 60, 80]
    assert signal.getsignal(signal.SIGINT) is before


def test_the_last_policy_is_judged_once_whether_or_not_an_evaluation_was_due():
    between = q_learn(seeds=1, **judged(eval_every=400))
    np.testing.assert_array_equal(between.evaluation_steps, [400, 600])
    never = q_learn(seeds=1, **judged(eval_every=0))
    np.testing.assert_array_equal(never.evaluation_steps, [600])
    # One step count is one evaluation, whatever else was judged before.
    assert never.evaluation_returns.shape == (1, 1, 3)


def walk(steps, **options):
    """Drive `follower` in a `Walk` without chance: it fails in training (-0.375), and is greedily right (0.625)."""
    env = envs.make(probes.Walk(), 1)
    options |= {"env_params": env.params.replace(slip=jnp.float32(0.0)), "log_every": 10}
    return driver.drive(driver.seed_keys(0, 2), [Phase(follower(), steps)], env, (), **options)


def test_a_run_stops_one_chunk_after_an_evaluation_that_was_good_enough():
    outcome = walk(200, eval_env=envs.make(probes.Walk(), 2), eval_every=30, stop_at_return=0.6)
    np.testing.assert_array_equal(outcome.evaluation_returns[:, 0], np.full((2, 2), 0.625))
    np.testing.assert_array_equal(outcome.metrics["environment_steps"][0], [10, 20, 30, 40])
    assert [int(outcome.run(seed).iteration) for seed in range(2)] == [40, 40]
    np.testing.assert_array_equal(outcome.evaluation_steps, [30, 40])


def test_a_run_without_evaluations_stops_by_what_it_gathers_in_training():
    outcome = walk(200, stop_at_return=-0.4)
    np.testing.assert_array_equal(outcome.metrics["environment_steps"][0], [10, 20])


@pytest.mark.parametrize("judge", [False, True])
def test_a_return_that_is_not_reached_stops_nothing(judge):
    options = {"eval_env": envs.make(probes.Walk(), 2), "eval_every": 30} if judge else {}
    outcome = walk(100, stop_at_return=0.7, **options)
    assert outcome.metrics["episodes"].shape == (2, 10)


def test_with_evaluations_the_training_return_stops_nothing():
    # In training -0.375, judged 0.625: reached is -0.4 in training at once, but judged only after 50 steps.
    outcome = walk(100, eval_env=envs.make(probes.Walk(), 2), eval_every=50, stop_at_return=-0.4)
    np.testing.assert_array_equal(outcome.metrics["environment_steps"][0], [10, 20, 30, 40, 50, 60])


def test_phases_share_one_state_and_the_first_can_only_collect():
    env = envs.make("CartPole-v1", 2)
    learner = dqn.dqn(env.spec, networks.action_values(env.spec, (8,)))
    buffer = replay.uniform(env.spec, 400)
    collect, learn = (replay.with_replay(learner, buffer, batch_size=8, updates=updates) for updates in (0, 1))
    hypers = dqn.Hypers()
    phases = [Phase(collect, 100), Phase(learn, 60)]
    outcome = driver.drive(driver.seed_keys(0, 2), phases, env, hypers, log_every=20)

    np.testing.assert_array_equal(outcome.metrics["environment_steps"][0], np.arange(20, 161, 20))
    assert [int(outcome.run(seed).agent.learner.updates) for seed in range(2)] == [
        30,
        30,
    ]  # sixty steps of two environments
    assert outcome.run(1).agent.buffer.held.tolist() == [80, 80]
    assert (outcome.metrics["loss"][:, :5] == 0).all()
    assert (outcome.metrics["loss"][:, 5:] > 0).all()


class Listener(Progress):
    """Shows nothing and remembers what it was told."""

    def __init__(self):
        super().__init__(1, description="", enabled=False)
        self.calls = []

    def update(self, steps_done, *, episode_return=None, evaluation=None):
        self.calls.append((steps_done, episode_return, evaluation))


def test_progress_hears_every_chunk_and_every_evaluation():
    listener = Listener()
    walk(40, eval_env=envs.make(probes.Walk(), 2), eval_every=20, progress=listener)
    steps, returns, evaluations = zip(*listener.calls, strict=True)
    assert steps == (20, 40, 60, 80)  # of both seeds together
    assert set(returns) == {-0.375}
    assert evaluations == (None, 0.625, None, 0.625)


def test_progress_hears_of_an_evaluation_that_comes_after_the_last_chunk():
    listener = Listener()
    walk(20, eval_env=envs.make(probes.Walk(), 2), eval_every=0, progress=listener)
    assert listener.calls == [(20, -0.375, None), (40, -0.375, None), (40, None, 0.625)]
