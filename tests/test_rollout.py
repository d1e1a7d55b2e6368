"""Rollouts: what the loop counts of episodes, and where it cuts memory, against a recount in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from purerl import envs, loop, rollout
from purerl.base import Agent

ENVIRONMENTS = {"Countdown": probes.Countdown, "Walk": probes.Walk}


def random_agent():
    """Acts at random; its state counts updates, its memory the steps since the episode's start."""

    def init(key, hypers):
        return jnp.int32(0)

    def start(num_envs):
        return jnp.zeros(num_envs, jnp.int32)

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return jax.random.randint(key, memory.shape, 0, 2), memory + 1

    def update(key, state, rollout, hypers):
        return state + 1, {"updates": jnp.float32(state)}

    return Agent(init=init, start=start, act=act, update=update)


def telling_agent():
    """As `random_agent`, but acts what it remembers: how many steps it has taken since the episode's start."""

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return memory, memory + 1

    return random_agent()._replace(act=act)


def rollouts(run, agent, env, *, iterations, length):
    """Act as the loop does, with its keys, but keep everything: a list of (rollout, episodes after it)."""

    @jax.jit
    def one(run_key, number, episodes):
        steps_key, _ = jax.random.split(run_key)
        keys = jax.tree.map(jax.vmap(lambda key: jax.random.fold_in(key, number)), rollout.step_keys(steps_key, length))
        return rollout.unroll(keys, agent, jnp.int32(0), env, env.params, episodes, ())[:2]

    found, episodes = [], run.episodes
    for number in range(iterations):
        episodes, experience = one(run.key, number, episodes)
        found.append(jax.device_get((experience, episodes)))
    return found


def recount(found, num_envs):
    """Return per rollout the list of (environment, return, length) of the episodes that ended in it, in order."""
    gathered, steps, ended = np.zeros(num_envs), np.zeros(num_envs, int), []
    for experience, _ in found:
        ended.append([])
        flags = experience.steps.terminated | experience.steps.truncated
        for t in range(len(flags)):
            gathered, steps = gathered + experience.steps.reward[t], steps + 1
            ended[-1] += [(n, gathered[n], steps[n]) for n in np.flatnonzero(flags[t])]
            gathered, steps = np.where(flags[t], 0, gathered), np.where(flags[t], 0, steps)
    return ended


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize(("iterations", "length", "rows"), [(60, 1, 3), (12, 7, 4)])
def test_sums_over_episodes_equal_a_recount_of_the_same_rollouts(name, iterations, length, rows):
    agent, env = random_agent(), envs.make(ENVIRONMENTS[name](), 3)
    run = loop.begin(jax.random.key(0), agent, env, ())
    _, metrics = loop.advance(run, agent, env, (), iterations=iterations, length=length, rows=rows)

    ended = recount(rollouts(run, agent, env, iterations=iterations, length=length), 3)
    per_row = iterations // rows
    for row in range(rows):
        episodes = list(itertools.chain(*ended[row * per_row : (row + 1) * per_row]))
        assert len(episodes) > 5
        assert metrics["episodes"][row] == len(episodes)
        assert metrics["episode_return"][row] == sum(episode[1] for episode in episodes)
        assert metrics["episode_length"][row] == sum(episode[2] for episode in episodes)
        assert metrics["updates"][row] == np.mean(np.arange(row * per_row, (row + 1) * per_row))
        if name == "Countdown":
            assert metrics["episode_return"][row] == metrics["episode_length"][row]


def test_the_recount_has_seen_every_kind_of_end():
    agent, env = random_agent(), envs.make(probes.Walk(), 3)
    run = loop.begin(jax.random.key(0), agent, env, ())
    found = rollouts(run, agent, env, iterations=60, length=1)
    flags = {(bool(x), bool(y)) for rolled, _ in found for x, y in zip(*_flags(rolled.steps), strict=True)}
    assert flags == {(False, False), (True, False), (False, True), (True, True)}


def _flags(steps):
    return steps.terminated.ravel(), steps.truncated.ravel()


@pytest.mark.parametrize("size", [4, 500])
def test_the_table_holds_the_first_episodes_in_the_order_of_time_and_then_of_environments(size):
    agent, env = random_agent(), envs.make(probes.Countdown(), 5)
    run = loop.begin(jax.random.key(1), agent, env, (), episode_table=size)
    # In two calls: the table goes on where it was.
    advance = jax.jit(functools.partial(loop.advance, agent=agent, env=env, hypers=(), iterations=10, length=6))
    after, _ = advance(run)
    after, metrics = advance(after)

    episodes = list(itertools.chain(*recount(rollouts(run, agent, env, iterations=20, length=6), 5)))
    kept = episodes[:size]
    assert 100 < len(episodes) < 500
    assert after.table.count == len(episodes)
    assert metrics["episodes"][0] < len(episodes)
    np.testing.assert_array_equal(after.table.episode_return[: len(kept)], [episode[1] for episode in kept])
    np.testing.assert_array_equal(after.table.episode_length[: len(kept)], [episode[2] for episode in kept])
    assert np.isnan(after.table.episode_return[len(kept) :]).all()
    assert (np.asarray(after.table.episode_length[len(kept) :]) == 0).all()


def test_without_being_asked_no_table_is_kept():
    run = loop.begin(jax.random.key(0), random_agent(), envs.make(probes.Countdown(), 2), ())
    assert run.table == ()


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize(("iterations", "length"), [(40, 1), (3, 30)])
def test_memory_starts_anew_where_an_episode_ended_and_only_there(name, iterations, length):
    agent, env = telling_agent(), envs.make(ENVIRONMENTS[name](), 3)
    run = loop.begin(jax.random.key(2), agent, env, ())
    before, age = run.episodes, np.zeros(3, int)
    for experience, after in rollouts(run, agent, env, iterations=iterations, length=length):
        np.testing.assert_array_equal(experience.memory, before.memory)  # as it was before step 0
        np.testing.assert_array_equal(after.memory, after.episode_length)
        ended = experience.steps.terminated | experience.steps.truncated
        for t in range(length):
            np.testing.assert_array_equal(experience.steps.action[t], age)  # what the agent remembered then
            age = np.where(ended[t], 0, age + 1)
        before = after
    assert (np.asarray(before.memory) == age).all()


def test_totals_count_the_step_that_ends_the_episode():
    agent, env = random_agent(), envs.make(probes.Countdown(), 4)
    episodes = rollout.start(jax.random.key(3), agent, env, env.params)
    keys = rollout.step_keys(jax.random.key(4), 40)
    _, experience, totals = rollout.unroll(keys, agent, jnp.int32(0), env, env.params, episodes, ())
    # The observation says the same: [steps remaining, steps so far].
    so_far = np.asarray(experience.steps.next_observation[..., 1])
    np.testing.assert_array_equal(totals.episode_length, so_far)
    np.testing.assert_array_equal(totals.episode_return, so_far)
    np.testing.assert_array_equal(experience.steps.next_observation[..., 0] == 0, experience.steps.terminated)


def test_successive_observations_are_those_of_the_environment():
    agent, env = random_agent(), envs.make(probes.Walk(), 3)
    run = loop.begin(jax.random.key(5), agent, env, ())
    ((experience, after),) = rollouts(run, agent, env, iterations=1, length=50)
    steps = experience.steps
    ended = steps.terminated | steps.truncated
    np.testing.assert_array_equal(steps.observation[0], run.episodes.observation)
    following = np.concatenate([steps.observation[1:], after.observation[None]])
    np.testing.assert_array_equal(following, np.where(ended, 3, steps.next_observation))


def test_keys_of_steps_differ_from_one_another():
    keys = rollout.step_keys(jax.random.key(0), 50)
    data = np.concatenate([jax.random.key_data(keys.act), jax.random.key_data(keys.env)])
    assert len(np.unique(data, axis=0)) == 100
