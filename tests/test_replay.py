"""The replay buffer against Python lists, and an agent that learns from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl import networks
from purerl.agents import dqn
from purerl.base import Agent, Box, Discrete, Rollout, Spec, Transition, cast_hypers
from purerl.replay import uniform, with_replay

FIELDS = ("observation", "action", "reward", "terminated", "truncated", "next_observation")


def box(*shape, dtype=np.float32):
    return Box(shape=shape, dtype=dtype, low=0, high=255)


class Experience:
    """Random rollouts [T, N] in which no observation and no reward occurs twice; remembers every step added."""

    def __init__(self, ends, seed=0):
        self.rng = np.random.default_rng(seed)
        self.ends = np.asarray(ends)  # [N]: how often an episode ends, by environment
        self.count = 0
        self.observation = self.new()
        self.added = [[] for _ in self.ends]  # one dict per step

    def new(self):
        self.count += len(self.ends)
        return np.arange(self.count - len(self.ends), self.count, dtype=np.int32)

    def rollout(self, length):
        steps = []
        for _ in range(length):
            ended = self.rng.random(len(self.ends)) < self.ends
            kind = self.rng.integers(3, size=len(self.ends))  # terminated, truncated, both
            successor = self.new()
            step = {
                "observation": self.observation,
                "action": self.rng.integers(5, size=len(self.ends)).astype(np.int32),
                "reward": np.float32(self.observation) + 0.5,
                "terminated": ended & (kind != 1),
                "truncated": ended & (kind != 0),
                "next_observation": successor,
            }
            for environment, kept in enumerate(self.added):
                kept.append({name: leaf[environment] for name, leaf in step.items()})
            self.observation = np.where(ended, self.new(), successor)
            steps.append(step)
        stacked = {name: jnp.asarray(np.stack([step[name] for step in steps])) for name in FIELDS}
        return Rollout(steps=Transition(**stacked), memory=())

    def live(self, ring):
        """Per environment the indices of its live steps.

        Written one after another, every step's observation, behind an episode its last observation, and at the end the
        observation to come: of these the ring holds the last `ring`.
        """
        live = []
        for steps in self.added:
            written = []
            for index, step in enumerate(steps):
                written += [index, None] if step["terminated"] or step["truncated"] else [index]
            live.append([index for index in [*written, None][-ring:] if index is not None])
        return live

    def place(self, reward):
        """Environment and index of the step with this reward."""
        for environment, steps in enumerate(self.added):
            for index, step in enumerate(steps):
                if step["reward"] == reward:
                    return environment, index
        raise AssertionError(f"{reward} was never added")


def spec_of(num_envs, observation=None, action=None):
    return Spec(observation=observation or box(dtype=np.int32), action=action or Discrete(5), num_envs=num_envs)


def compiled(replay, batch_size):
    return jax.jit(replay.add), jax.jit(functools.partial(replay.sample, batch_size=batch_size))


def as_numpy(rollout):
    return {name: np.asarray(getattr(rollout.steps, name)) for name in FIELDS}


@pytest.mark.parametrize(("ends", "adds"), [([0.3, 0.3, 0.3], 60), ([1.0, 0.0, 0.5], 60), ([0.05] * 3, 60)])
@pytest.mark.parametrize("time", [1, 4])
def test_samples_are_exactly_the_live_transitions(time, ends, adds):
    ring = 11
    replay = uniform(spec_of(3), 3 * ring)
    add, sample = compiled(replay, 1500)
    experience, buffer = Experience(ends), replay.init()
    assert not sample(jax.random.key(0), buffer)[1]
    for number in range(adds):
        buffer = add(buffer, experience.rollout(time))
        rollout, ready = sample(jax.random.key(number), buffer)
        assert ready
        sampled = as_numpy(rollout)
        assert sampled["reward"].shape == (1, 1500)
        _, once = np.unique(sampled["reward"][0], return_index=True)
        places = set()
        for column in once:
            environment, index = experience.place(sampled["reward"][0, column])
            places.add((environment, index))
            for name, expected in experience.added[environment][index].items():
                # All columns of this step, not only the first.
                same = sampled["reward"][0] == sampled["reward"][0, column]
                assert np.all(sampled[name][0, same] == expected), name
        live = experience.live(ring)
        assert places == {(environment, index) for environment in range(3) for index in live[environment]}


def test_a_full_ring_holds_all_that_its_capacity_allows():
    # Of 11 observations one is that to come: 10 steps where no episode ends, 5 where each step ends one.
    replay = uniform(spec_of(3), 33)
    add, _ = compiled(replay, 1)
    experience, buffer = Experience([0.0, 1.0, 0.5]), replay.init()
    for _ in range(25):
        buffer = add(buffer, experience.rollout(4))
    live = np.asarray(buffer.held)
    assert live.tolist()[:2] == [10, 5]
    assert live.tolist() == [len(steps) for steps in experience.live(11)]


@pytest.mark.parametrize("ends", [[0.3, 0.3, 0.3], [1.0, 0.0, 0.5]])
@pytest.mark.parametrize("adds", [1, 2, 3, 40])
def test_sequences_are_consecutive_steps_and_all_starts_are_equally_likely(ends, adds):
    ring, length, draws = 12, 3, 12_000
    replay = uniform(spec_of(3), 3 * ring, length=length)
    add, sample = compiled(replay, draws)
    experience, buffer = Experience(ends, seed=adds), replay.init()
    for _ in range(adds):
        buffer = add(buffer, experience.rollout(4))
    rollout, ready = sample(jax.random.key(adds), buffer)
    sampled = as_numpy(rollout)
    assert ready
    assert sampled["reward"].shape == (length, draws)

    starts = {(e, i) for e, live in enumerate(experience.live(ring)) for i in live[: len(live) - length + 1]}
    rewards, once, counts = np.unique(sampled["reward"][0], return_index=True, return_counts=True)
    assert {experience.place(reward) for reward in rewards} == starts
    assert stats.chisquare(counts).pvalue > 1e-4
    over_a_boundary = 0
    for reward, column in zip(rewards, once, strict=True):
        environment, first = experience.place(reward)
        same = sampled["reward"][0] == reward
        for later in range(length):
            expected = experience.added[environment][first + later]
            for name in FIELDS:
                assert np.all(sampled[name][later, same] == expected[name]), name
        over_a_boundary += bool((sampled["terminated"] | sampled["truncated"])[:-1, column].any())
    assert over_a_boundary > 0


def test_environments_count_by_their_live_sequences():
    # Environment 0 ends at every step and so holds half as many steps as environment 1.
    replay = uniform(spec_of(2), 42)
    add, sample = compiled(replay, 30_000)
    experience, buffer = Experience([1.0, 0.0]), replay.init()
    for _ in range(10):
        buffer = add(buffer, experience.rollout(4))
    rewards = np.asarray(sample(jax.random.key(0), buffer)[0].steps.reward[0])
    of_zero = np.isin(rewards, [step["reward"] for step in experience.added[0]])
    assert abs(of_zero.mean() - 10 / 30) < 5 * np.sqrt(2 / 9 / 30_000)


def test_a_smallest_buffer_always_holds_a_sequence_once_it_did():
    for length in (1, 3):
        replay = uniform(spec_of(3), 3 * (2 * length + 1), length=length)
        add, sample = compiled(replay, 8)
        experience, buffer = Experience([1.0, 0.5, 0.0]), replay.init()
        for number in range(30):
            buffer = add(buffer, experience.rollout(1))
            live = [len(steps) for steps in experience.live(2 * length + 1)]
            assert buffer.held.tolist() == live
            assert bool(sample(jax.random.key(number), buffer)[1]) == (number + 1 >= length)
        assert min(live) >= length


def test_samples_differ_by_key_and_repeat_with_it():
    replay = uniform(spec_of(3), 60)
    add, sample = compiled(replay, 64)
    buffer = add(replay.init(), Experience([0.2] * 3).rollout(15))
    one, again, other = (np.asarray(sample(jax.random.key(seed), buffer)[0].steps.reward) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)


def test_every_part_keeps_its_dtype_and_value():
    observation = {
        "flag": box(2, dtype=bool),
        "picture": box(3, 3, dtype=bool),
        "pixels": box(3, 2, dtype=np.uint8),
        "where": Discrete(9),
    }
    spec = spec_of(2, observation=observation, action=(Discrete(3), box(2)))
    rng = np.random.default_rng(0)

    def part(*leading):
        return {
            "flag": jnp.asarray(rng.random((*leading, 2)) < 0.5),
            "picture": jnp.asarray(rng.random((*leading, 3, 3)) < 0.5),
            "pixels": jnp.asarray(rng.integers(256, size=(*leading, 3, 2)), jnp.uint8),
            "where": jnp.asarray(rng.integers(9, size=leading), jnp.int32),
        }

    no = jnp.zeros((1, 2), bool)
    steps = Transition(
        observation=part(1, 2),
        action=(jnp.array([[1, 2]], jnp.int32), jnp.asarray(rng.normal(size=(1, 2, 2)), jnp.float32)),
        reward=jnp.array([[1.0, 2.0]]),
        terminated=no,
        truncated=no,
        next_observation=part(1, 2),
    )
    replay = uniform(spec, 20)
    add, sample = compiled(replay, 16)
    sampled = sample(jax.random.key(0), add(replay.init(), Rollout(steps=steps, memory=())))[0]
    assert sampled.memory == ()
    environment = np.asarray(sampled.steps.reward[0], int) - 1
    assert set(environment.tolist()) == {0, 1}
    expected = jax.tree.map(lambda leaf: leaf[:, environment], steps)
    jax.tree.map(np.testing.assert_array_equal, sampled.steps, expected)
    assert jax.tree.map(lambda leaf: leaf.dtype, sampled.steps) == jax.tree.map(lambda leaf: leaf.dtype, steps)


def test_no_observation_is_stored_twice():
    num_envs, capacity = 4, 1000
    spec = spec_of(num_envs, observation=box(20, 20, dtype=np.uint8))
    buffer = jax.eval_shape(uniform(spec, capacity).init)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer))
    observation, action, reward, flags, counter = 400, 4, 4, 2, 4
    assert size <= capacity * (observation + action + reward + flags + counter) + num_envs * 4 * counter


# --- pictures of bool, stored as bits -------------------------------------------------------------------------------


BITS = 11  # more than any number of observations here has, and no whole number of bytes


def pictured(observation):
    """Numbers as pictures [..., 1, 11] of their binary digits."""
    return (np.asarray(observation)[..., None, None] >> np.arange(BITS)) % 2 == 1


def numbers(picture):
    assert picture.dtype == bool
    return np.sum(picture[..., 0, :] << np.arange(BITS), axis=-1)


def with_pictures(rollout, pictured=pictured):
    """The same experience, observed through `pictured`."""
    steps = {name: getattr(rollout.steps, name) for name in FIELDS}
    for name in ("observation", "next_observation"):
        steps[name] = jax.tree.map(jnp.asarray, pictured(steps[name]))
    return Rollout(steps=Transition(**steps), memory=())


@pytest.mark.parametrize("length", [1, 3])
def test_pictures_come_back_as_they_were_put_in(length):
    ring = 12
    replay = uniform(spec_of(3, observation=box(1, BITS, dtype=bool)), 3 * ring, length=length)
    add, sample = compiled(replay, 600)
    experience, buffer = Experience([0.3, 0.0, 1.0]), replay.init()
    for number in range(20):
        buffer = add(buffer, with_pictures(experience.rollout(4)))
        sampled = as_numpy(sample(jax.random.key(number), buffer)[0])
        assert sampled["observation"].shape == (length, 600, 1, BITS)
        for name in ("observation", "next_observation"):
            sampled[name] = numbers(sampled[name])
        seen = set()
        for column in np.unique(sampled["reward"][0], return_index=True)[1]:
            environment, first = experience.place(sampled["reward"][0, column])
            seen.add((environment, first))
            same = sampled["reward"][0] == sampled["reward"][0, column]
            for later in range(length):
                for name, expected in experience.added[environment][first + later].items():
                    assert np.all(sampled[name][later, same] == expected), name
        live = experience.live(ring)
        assert seen == {(e, i) for e in range(3) for i in live[e][: len(live[e]) - length + 1]}


@pytest.mark.parametrize(
    ("shape", "stored", "dtype"),
    [
        ((8,), (1,), np.uint8),
        ((9,), (2,), np.uint8),
        ((2, 4), (1,), np.uint8),
        ((3, 3), (2,), np.uint8),
        ((10, 10, 4), (50,), np.uint8),
        # Too small to be worth it.
        ((7,), (7,), bool),
        ((2, 3), (2, 3), bool),
        ((), (), bool),
    ],
)
def test_pictures_are_stored_as_bits(shape, stored, dtype):
    observation = jax.eval_shape(uniform(spec_of(3, observation=box(*shape, dtype=bool)), 30).init).observation
    assert (observation.shape, observation.dtype) == ((30, *stored), dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.float32])
def test_no_other_dtype_is_packed(dtype):
    observation = jax.eval_shape(uniform(spec_of(3, observation=box(4, 4, dtype=dtype)), 30).init).observation
    assert (observation.shape, observation.dtype) == ((30, 4, 4), dtype)


@pytest.mark.parametrize("shape", [(), (5,), (8,), (3, 3), (2, 3, 4)])
def test_every_pattern_of_bits_comes_back(shape):
    # One step of ten environments at a time; every picture occurs once.
    rng, num_envs = np.random.default_rng(0), 10
    replay = uniform(spec_of(num_envs, observation=box(*shape, dtype=bool)), 100 * num_envs)
    add, sample = compiled(replay, 300)
    pictures = rng.random((7, num_envs, *shape)) < 0.5
    pictures[0], pictures[1] = True, False
    no, buffer = jnp.zeros((1, num_envs), bool), replay.init()
    for time in range(6):
        steps = Transition(
            observation=jnp.asarray(pictures[time : time + 1]),
            action=jnp.zeros((1, num_envs), jnp.int32),
            reward=jnp.arange(num_envs, dtype=jnp.float32)[None] + num_envs * time,
            terminated=no,
            truncated=no,
            next_observation=jnp.asarray(pictures[time + 1 : time + 2]),
        )
        buffer = add(buffer, Rollout(steps=steps, memory=()))
    sampled = as_numpy(sample(jax.random.key(0), buffer)[0])
    time, environment = np.divmod(sampled["reward"][0].astype(int), num_envs)
    assert set(time.tolist()) == set(range(6))
    np.testing.assert_array_equal(sampled["observation"][0], pictures[time, environment])
    np.testing.assert_array_equal(sampled["next_observation"][0], pictures[time + 1, environment])


def test_pictures_among_other_parts_come_back_under_vmap():
    spaces = {"picture": box(1, BITS, dtype=bool), "number": box(dtype=np.int32), "odd": box(1, dtype=bool)}
    replay = uniform(spec_of(3, observation=spaces), 33)
    worlds = [Experience([0.5] * 3, seed=seed) for seed in range(2)]

    def parts(observation):
        return {
            "picture": pictured(observation),
            "number": observation,
            "odd": np.asarray(observation)[..., None] % 2 == 1,
        }

    buffers = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), replay.init())
    assert buffers.observation["picture"].shape == (2, 33, 2)
    assert buffers.observation["odd"].dtype == bool
    add = jax.jit(jax.vmap(replay.add))
    for _ in range(4):
        rollouts = [with_pictures(world.rollout(4), parts) for world in worlds]
        buffers = add(buffers, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rollouts))
    keys = jax.random.split(jax.random.key(0), 2)
    sampled, ready = jax.jit(jax.vmap(functools.partial(replay.sample, batch_size=50)))(keys, buffers)
    assert ready.all()
    for observed in (sampled.steps.observation, sampled.steps.next_observation):
        np.testing.assert_array_equal(numbers(np.asarray(observed["picture"])), observed["number"])
        np.testing.assert_array_equal(observed["odd"][..., 0], np.asarray(observed["number"]) % 2 == 1)
        assert len(np.unique(observed["number"])) > 15
    for seed, world in enumerate(worlds):
        for column in range(50):
            environment, index = world.place(np.asarray(sampled.steps.reward)[seed, 0, column])
            kept = world.added[environment][index]
            assert sampled.steps.observation["number"][seed, 0, column] == kept["observation"]
            assert sampled.steps.next_observation["number"][seed, 0, column] == kept["next_observation"]


def test_a_million_pictures_of_minatar_take_64_megabytes():
    # Of Breakout, 10 x 10 x 4 bits, that is 50 bytes, and 14 of action, reward, both ends and place: 64 000 096 bytes
    # with three counters for each of 8 environments. As float32, in which gymnax shows them, it would be 1.6 gigabytes.
    buffer = jax.eval_shape(uniform(spec_of(8, observation=box(10, 10, 4, dtype=bool)), 1_000_000).init)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer)) == 64_000_096
    buffer = jax.eval_shape(uniform(spec_of(8, observation=box(10, 10, 4)), 1_000_000).init)
    assert sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer)) == 1_614_000_096


# --- what it costs --------------------------------------------------------------------------------------------------


def rollout_shapes(spec, time=1):
    leading = (time, spec.num_envs)
    array = lambda dtype, *shape: jax.ShapeDtypeStruct((*leading, *shape), dtype)  # noqa: E731
    steps = Transition(
        observation=array(spec.observation.dtype, *spec.observation.shape),
        action=array(jnp.int32),
        reward=array(jnp.float32),
        terminated=array(bool),
        truncated=array(bool),
        next_observation=array(spec.observation.dtype, *spec.observation.shape),
    )
    return Rollout(steps=steps, memory=())


KEY = jax.eval_shape(lambda: jax.random.key(0))


def test_sampling_costs_the_same_at_any_capacity():
    costs = []
    for capacity in (1_000, 100_000):
        replay = uniform(spec_of(4, observation=box(8)), capacity, length=2)
        sample = jax.jit(functools.partial(replay.sample, batch_size=32))
        lowered = sample.lower(KEY, jax.eval_shape(replay.init))
        program = lowered.compile()
        # Bytes before fusion: of a fused gather XLA counts the whole operand, though it reads a few rows.
        before, after = lowered.cost_analysis(), program.cost_analysis()
        temporary = program.memory_analysis().temp_size_in_bytes
        costs.append((before["flops"], before["bytes accessed"], after["flops"], temporary))
    assert costs[0] == costs[1]


def test_a_donated_buffer_is_written_in_place():
    for time in (1, 4):
        temporary = []
        for capacity in (1_000, 100_000):
            spec = spec_of(4, observation=box(8))
            replay = uniform(spec, capacity)
            buffer = jax.eval_shape(replay.init)
            add = jax.jit(replay.add, donate_argnums=0)
            memory = add.lower(buffer, rollout_shapes(spec, time)).compile().memory_analysis()
            size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(buffer))
            assert memory.alias_size_in_bytes >= size
            temporary.append(memory.temp_size_in_bytes)
        assert temporary[0] == temporary[1]


def test_many_buffers_under_vmap_are_each_as_one_alone():
    replay = uniform(spec_of(3), 33)
    add, sample = compiled(replay, 50)
    worlds = [Experience([0.5] * 3, seed=seed) for seed in range(2)]
    alone = [replay.init() for _ in worlds]
    together = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), replay.init())
    add_together = jax.jit(jax.vmap(replay.add))
    for _ in range(5):
        rollouts = [world.rollout(4) for world in worlds]
        alone = [add(buffer, rollout) for buffer, rollout in zip(alone, rollouts, strict=True)]
        together = add_together(together, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rollouts))
    keys = jax.random.split(jax.random.key(0), 2)
    sampled, ready = jax.jit(jax.vmap(functools.partial(replay.sample, batch_size=50)))(keys, together)
    assert ready.all()
    for seed in range(2):
        one = sample(keys[seed], alone[seed])[0]
        for ours, theirs in zip(jax.tree.leaves(sampled), jax.tree.leaves(one), strict=True):
            np.testing.assert_array_equal(ours[seed], theirs)


def test_bad_sizes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"capacity is 100, which the 3 environments \(num_envs\) do not divide"):
        uniform(spec_of(3), 100)
    with pytest.raises(ValueError, match=r"capacity is 6, .*2 observations per environment.*length 1 .*at least 3"):
        uniform(spec_of(3), 6)
    with pytest.raises(ValueError, match=r"capacity is 18, .*6 observations per environment.*length 3 .*at least 7"):
        uniform(spec_of(3), 18, length=3)
    with pytest.raises(ValueError, match=r"capacity is 0"):
        uniform(spec_of(3), 0)
    with pytest.raises(ValueError, match=r"capacity is -30"):
        uniform(spec_of(3), -30)
    with pytest.raises(ValueError, match=r"length is 0.*at least 1"):
        uniform(spec_of(3), 30, length=0)
    agent, replay = spy(), uniform(spec_of(3), 30)
    with pytest.raises(ValueError, match=r"batch_size is 0.*at least 1"):
        with_replay(agent, replay, batch_size=0)
    with pytest.raises(ValueError, match="updates is -1; it takes a whole number of at least 0"):
        with_replay(agent, replay, batch_size=1, updates=-1)


# --- an agent that learns from it -----------------------------------------------------------------------------------


def spy(kept=8):
    """An agent with a memory that records the rewards and the key of each update, and does nothing else."""

    def init(key, hypers):
        return {"count": jnp.int32(0), "rewards": jnp.zeros((kept, 2)), "keys": jnp.zeros((kept, 2), jnp.uint32)}

    def start(num_envs):
        return jnp.zeros(num_envs)

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return jnp.full(memory.shape, 4 if greedy else 3, jnp.int32), memory + hypers

    def update(key, state, rollout, hypers):
        assert rollout.steps.reward.shape == (1, 2)
        count = state["count"]
        rewards = state["rewards"].at[count].set(rollout.steps.reward[0])
        keys = state["keys"].at[count].set(jax.random.key_data(key))
        return {"count": count + 1, "rewards": rewards, "keys": keys}, {"number": jnp.float32(count)}

    return Agent(init=init, start=start, act=act, update=update)


def test_memory_and_actions_pass_through():
    agent = with_replay(spy(), uniform(spec_of(3), 30), batch_size=2)
    memory = agent.start(3)
    state = agent.init(jax.random.key(0), 2.0)
    for greedy, expected in ((False, 3), (True, 4)):
        action, after = agent.act(jax.random.key(0), state, memory, jnp.zeros(3), 2.0, greedy=greedy)
        np.testing.assert_array_equal(action, [expected] * 3)
        np.testing.assert_array_equal(after, [2.0] * 3)


def test_each_update_has_a_sample_and_a_key_of_its_own():
    agent = with_replay(spy(), uniform(spec_of(3), 90), batch_size=2, updates=3)
    experience, state = Experience([0.2] * 3), agent.init(jax.random.key(0), 1.0)
    for number in range(2):
        state, metrics = jax.jit(agent.update)(jax.random.key(number), state, experience.rollout(20), 1.0)
        assert state.learner["count"] == 3 * (number + 1)
        assert metrics["number"] == 3 * number + 1  # the mean of three
    rewards, keys = np.asarray(state.learner["rewards"])[:6], np.asarray(state.learner["keys"])[:6]
    assert len(np.unique(keys, axis=0)) == 6
    assert len(np.unique(rewards, axis=0)) == 6
    for reward in rewards.flat:
        experience.place(reward)


def learner(updates, length=1, **hypers):
    """DQN on scalar observations, its hypers, and the wrapped agent."""
    spec = spec_of(3, observation=box())
    agent = dqn.dqn(spec, networks.action_values(spec, (8,)))
    replay = uniform(spec, 90, length=length)
    return with_replay(agent, replay, batch_size=4, updates=updates), cast_hypers(dqn.Hypers(**hypers))


def small(rollout):
    """The same experience with observations that a network likes."""
    steps = rollout.steps
    scale = lambda leaf: jnp.sin(leaf.astype(jnp.float32))  # noqa: E731
    steps = Transition(
        observation=scale(steps.observation),
        action=steps.action,
        reward=scale(steps.reward),
        terminated=steps.terminated,
        truncated=steps.truncated,
        next_observation=scale(steps.next_observation),
    )
    return Rollout(steps=steps, memory=())


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_without_updates_it_fills_and_learns_nothing():
    collecting, hypers = learner(updates=0)
    learning, _ = learner(updates=3, learning_rate=0.1)
    experience = Experience([0.2] * 3)
    begun = collecting.init(jax.random.key(0), hypers)
    assert jax.tree.structure(begun) == jax.tree.structure(learning.init(jax.random.key(0), hypers))
    state = begun
    for number in range(3):
        state, metrics = jax.jit(collecting.update)(jax.random.key(number), state, small(experience.rollout(4)), hypers)
    assert_same(state.learner, begun.learner)
    np.testing.assert_array_equal(state.buffer.held, [12] * 3)
    assert {name: float(value) for name, value in metrics.items()} == {"loss": 0.0, "value": 0.0}

    # What it collected, the learning agent goes on with.
    state, more = jax.jit(learning.update)(jax.random.key(9), state, small(experience.rollout(4)), hypers)
    assert jax.tree.map(lambda m: (m.shape, m.dtype), more) == jax.tree.map(lambda m: (m.shape, m.dtype), metrics)
    assert state.learner.updates == 3
    np.testing.assert_array_equal(state.buffer.held, [16] * 3)
    assert all(np.any(one != other) for one, other in zip(
        jax.tree.leaves(state.learner.params), jax.tree.leaves(begun.learner.params), strict=True
    ) if one.ndim > 1)  # fmt: skip


def test_what_is_new_is_observed_by_the_learner_and_nothing_else_changes():
    def observe(state, rollout, hypers):
        return state | {"count": state["count"] + rollout.steps.reward.shape[0] * hypers}

    agent = with_replay(spy()._replace(observe=observe), uniform(spec_of(3), 30), batch_size=2)
    begun = agent.init(jax.random.key(0), 1.0)
    state = agent.observe(begun, Experience([0.2] * 3).rollout(5), 2.0)
    assert state.learner["count"] == 10
    assert_same(state.buffer, begun.buffer)  # nothing is added before the update


@pytest.mark.parametrize("time", [1, 3])
def test_nothing_is_learned_before_the_buffer_holds_a_sequence(time):
    agent, hypers = learner(updates=2, length=4)
    experience = Experience([0.2] * 3)
    begun = state = agent.init(jax.random.key(0), hypers)
    update = jax.jit(agent.update)
    for number in range(3 // time):
        state, metrics = update(jax.random.key(number), state, small(experience.rollout(time)), hypers)
        assert_same(state.learner, begun.learner)
        assert all(value == 0 for value in metrics.values())
    state, metrics = update(jax.random.key(3), state, small(experience.rollout(time)), hypers)
    assert state.learner.updates == 2
    assert metrics["loss"] > 0


def test_an_update_of_a_donated_state_copies_no_buffer():
    temporary = []
    for capacity in (1_000, 100_000):
        spec = spec_of(4, observation=box(8))
        agent = with_replay(spy(), uniform(spec, capacity), batch_size=2, updates=3)
        hypers = jax.ShapeDtypeStruct((), jnp.float32)
        state = jax.eval_shape(agent.init, KEY, hypers)
        update = jax.jit(agent.update, donate_argnums=1)
        memory = update.lower(KEY, state, rollout_shapes(spec), hypers).compile().memory_analysis()
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.buffer))
        assert memory.alias_size_in_bytes >= size
        temporary.append(memory.temp_size_in_bytes)
    assert temporary[0] == temporary[1]


def test_places_stay_within_the_rings_however_long_it_runs():
    replay = uniform(spec_of(3), 33)
    add, _ = compiled(replay, 1)
    experience, buffer = Experience([0.0, 1.0, 0.5]), replay.init()
    for _ in range(30):
        buffer = add(buffer, experience.rollout(4))
        for places in (buffer.next_step, buffer.next_entry, buffer.entry, buffer.held):
            assert 0 <= int(places.min()) <= int(places.max()) < 11


def test_a_rollout_of_another_number_of_environments_is_refused():
    replay = uniform(spec_of(3), 33)
    with pytest.raises(ValueError, match="replay was made for 3 environments"):
        replay.add(replay.init(), Experience([0.2] * 2).rollout(1))
