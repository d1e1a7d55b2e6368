"""Running moments against numpy in float64, and agents that learn from what is normalised by them."""

import dataclasses
import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from gymnax.environments import environment, spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from purerl import envs, evaluate, loop, networks, normalize, replay, rollout
from purerl.agents import a2c, dqn, ppo
from purerl.base import Agent, Box, Discrete, Rollout, Spec, Transition, cast_hypers, no_memory, pytree_dataclass

EXAMPLES = settings(max_examples=40, deadline=None, derandomize=True)
KEY = jax.random.key(0)


def box(*shape, dtype=np.float32):
    return Box(shape=shape, dtype=dtype, low=0, high=255)


# --- moments --------------------------------------------------------------------------------------------------------


merge = jax.jit(normalize.merge)


def after(chunks):
    return functools.reduce(merge, map(jnp.asarray, chunks), normalize.no_moments(chunks[0].shape[1:]))


def digit(number):
    """How far apart float32 numbers of this size are."""
    return np.spacing(np.abs(number).astype(np.float32)).astype(float)


def assert_moments(moments, samples):
    """Right to a millionth of the deviation, where the last digits of the mean are smaller than that."""
    exact = samples.astype(float)
    assert moments.count == len(exact)
    assert_close(moments, exact.mean(axis=0), exact.var(axis=0), digits=0.5)


def assert_close(moments, mean, variance, *, digits=0.5):
    """What an error of a millionth of the deviation, and of `digits` last digits in the mean, makes at most.

    In the variance that error counts by its square, as it does in the variance about another number than the mean.
    """
    leaves = {name: np.asarray(getattr(moments, name)) for name in ("mean", "variance")}
    assert all(leaf.dtype == np.float32 and leaf.shape == np.shape(mean) for leaf in leaves.values())
    step, deviation = digits * digit(mean), np.sqrt(variance)
    np.testing.assert_array_less(np.abs(leaves["mean"] - mean), 1e-30 + step + 1e-6 * deviation)
    error = np.abs(leaves["variance"] - variance)
    np.testing.assert_array_less(error, 1e-30 + step**2 + 2e-6 * variance)


def chunked(seed, shape, sizes, mean, deviation):
    """Samples of which each chunk has a mean and a deviation of its own, about these."""
    rng = np.random.default_rng(seed)
    shift, scale = rng.normal(size=len(sizes)), rng.uniform(0.2, 2.0, size=len(sizes))
    noise = [rng.normal(size=(size, *shape)) for size in sizes]
    return [
        (mean + deviation * (shift[index] + scale[index] * chunk)).astype(np.float32)
        for index, chunk in enumerate(noise)
    ]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@EXAMPLES
@given(
    sizes=st.lists(st.sampled_from([1, 2, 5, 16]), min_size=1, max_size=12),
    about=st.sampled_from([(0.0, 1.0), (-3.0, 100.0), (1000.0, 1.0), (1e4, 0.1), (1e-3, 1e-3)]),
    seed=st.integers(0, 99),
    shuffled=st.randoms(),
)
def test_moments_of_any_chunks_in_any_order_are_those_of_all_samples(shape, sizes, about, seed, shuffled):
    chunks = chunked(seed, shape, sizes, *about)
    everything = np.concatenate(chunks)
    for _ in range(2):
        assert_moments(after(chunks), everything)
        shuffled.shuffle(chunks)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (1000.0, 1.0), (1e4, 0.1)])
def test_moments_of_samples_one_at_a_time_are_those_of_all(mean, deviation):
    samples = np.concatenate(chunked(1, (3,), [400], mean, deviation))
    assert_moments(after(np.split(samples, 400)), samples)


# Mean and deviation of samples, the last of them hard: at 10^4 a float32 has digits of 10^-3.
FAR = [(0.0, 1.0), (1.0, 1.0), (-3.0, 100.0), (1000.0, 1.0), (1e4, 0.1)]


def far(blocks, size, seed=0):
    """Blocks of samples [blocks, size, 5], one dimension for each of FAR."""
    mean, deviation = np.array(FAR).T
    return (mean + deviation * np.random.default_rng(seed).normal(size=(blocks, size, len(FAR)))).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("rounds", "forget"))
def feed(moments, blocks, rounds, *, forget=False):
    """Merge all blocks `rounds` times; `forget` what rounding kept from the sums after each."""

    def one(moments, number):
        moments = normalize.merge(moments, blocks[number % len(blocks)])
        if forget:
            nothing = jnp.zeros_like(moments.mean)
            moments = dataclasses.replace(moments, mean_rest=nothing, variance_rest=nothing)
        return moments, None

    return jax.lax.scan(one, moments, jnp.arange(rounds * len(blocks)))[0]


def together(count, mean, variance, blocks, rounds):
    """The exact moments of `count` samples of these moments, and of the blocks `rounds` times."""
    new = blocks.astype(float)
    total = count + rounds * new.shape[0] * new.shape[1]
    weight, distance = 1 - count / total, new.mean(axis=(0, 1)) - mean
    spread = (1 - weight) * variance + weight * new.var(axis=(0, 1)) + weight * (1 - weight) * distance**2
    return total, mean + weight * distance, spread


@pytest.mark.parametrize("size", [7, 1000, 4096])
def test_moments_of_a_single_chunk_are_those_of_its_samples(size):
    for seed in range(3):
        samples = far(1, size, seed)[0]
        assert_moments(after([samples]), samples)


def test_moments_of_a_hundred_million_samples_are_right_to_the_last_digit():
    blocks, rounds = far(50, 1000), 2000
    moments = feed(normalize.no_moments((len(FAR),)), jnp.asarray(blocks), rounds)
    total, mean, variance = together(0, 0.0, 0.0, blocks, rounds)
    assert moments.count == total == 100_000_000
    assert_close(moments, mean, variance)


@pytest.mark.parametrize(("size", "batches"), [(1, 200_000), (8, 1_000_000)])
def test_small_batches_still_count_after_a_hundred_million_samples(size, batches):
    # Each moves the mean by about a ten-millionth of the deviation, which is less than its last digit.
    blocks, (mean, deviation) = far(500, size), np.array(FAR, np.float32).T
    start_mean, start_variance = mean + 2 * deviation, deviation**2 / 2
    start = normalize.Moments(
        count=jnp.int32(100_000_000),
        mean=jnp.asarray(start_mean),
        variance=jnp.asarray(start_variance),
        mean_rest=jnp.zeros(len(FAR)),
        variance_rest=jnp.zeros(len(FAR)),
    )
    exact = together(10**8, start_mean.astype(float), start_variance.astype(float), blocks, batches // 500)
    assert np.all(np.abs(exact[1] - start_mean) > 1e-3 * deviation)  # all together they did
    moments = feed(start, jnp.asarray(blocks), batches // 500)
    assert moments.count == exact[0]
    assert_close(moments, *exact[1:])
    # Of sums that are not compensated a thousand times as much is wrong.
    plain = feed(start, jnp.asarray(blocks), batches // 500, forget=True)
    assert np.all((np.abs(plain.mean - exact[1]) / deviation)[:4] > 1e-3)
    assert np.all((np.abs(plain.variance - exact[2]) / deviation**2)[:4] > 1e-5)


def test_sums_of_squares_would_be_wrong_where_moments_are_right():
    samples = far(1, 1000)[0]
    exact = samples.astype(float)
    naive = np.mean(samples**2, axis=0, dtype=np.float32) - np.mean(samples, axis=0, dtype=np.float32) ** 2
    wrong = np.abs(naive / exact.var(axis=0) - 1)
    assert wrong[:2].max() < 1e-5
    assert wrong[3] > 1e-2
    assert wrong[4] > 1
    assert_moments(after([samples]), samples)


def test_the_count_stays_at_its_largest_and_samples_then_count_all_alike():
    most, start = 2**30, normalize.no_moments(())
    moments = dataclasses.replace(start, count=jnp.int32(most - 5))
    for step in range(1, 4):
        moments = merge(moments, jnp.ones(8))
        assert (moments.count, moments.count.dtype) == (most, np.int32)
        np.testing.assert_allclose(moments.mean, step * 8 / most, rtol=1e-6)


def test_vmapped_moments_are_each_as_alone():
    chunks = [np.stack([far(1, size, seed)[0] for seed in range(3)]) for size in (1, 8, 100)]
    many = jax.vmap(lambda _: normalize.no_moments((len(FAR),)))(jnp.arange(3))
    for chunk in chunks:
        many = jax.jit(jax.vmap(normalize.merge))(many, jnp.asarray(chunk))
    for seed in range(3):
        # Not bit for bit: XLA fuses the two programs in different ways.
        alone, one = after([chunk[seed] for chunk in chunks]), jax.tree.map(lambda leaf: leaf[seed], many)  # noqa: B023
        assert_moments(one, np.concatenate([chunk[seed] for chunk in chunks]))
        assert one.count == alone.count
        np.testing.assert_allclose(one.mean, alone.mean, rtol=2e-7, atol=1e-7)
        np.testing.assert_allclose(one.variance, alone.variance, rtol=1e-6)


def test_by_no_samples_nothing_is_changed_and_by_some_it_is_shown_in_deviations_from_the_mean():
    none = normalize.no_moments((2,))
    values = jnp.array([[0.0, 3.0], [-9.9, 1e-3], [11.0, -1e30]])
    np.testing.assert_allclose(normalize.normalized(none, values), jnp.clip(values, -10, 10), rtol=1e-6)
    samples = np.concatenate(chunked(3, (2,), [50], 7.0, 2.0))
    found = normalize.normalized(after([samples]), jnp.asarray(samples))
    exact = samples.astype(float)
    np.testing.assert_allclose(found, (exact - exact.mean(axis=0)) / exact.std(axis=0), rtol=1e-5, atol=1e-5)


# --- observations ---------------------------------------------------------------------------------------------------


@pytree_dataclass
class Hypers:
    discount: float = 0.9


HYPERS = cast_hypers(Hypers())
NUM_ENVS = 3


def spec_of(observation, num_envs=NUM_ENVS):
    return Spec(observation=observation, action=box(), num_envs=num_envs)


def spy():
    """An agent that acts what it is shown, counts steps in its memory (greedy ones twice), and keeps its rollouts."""

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return observation, memory + 1 + greedy

    def observe(state, rollout, hypers):
        return state | {"observed": rollout}

    def update(key, state, rollout, hypers):
        return state | {"learned": rollout}, {"discount": hypers.discount}

    def start(num_envs):
        return jnp.zeros(num_envs)

    return Agent(init=lambda key, hypers: {}, start=start, act=act, update=update, observe=observe)


def compiled(agent):
    return agent._replace(observe=jax.jit(agent.observe), update=jax.jit(agent.update))


@functools.cache
def normalizing():
    return compiled(normalize.with_observation_norm(spy(), spec_of(box(2))))


def rollout_of(observation, next_observation=None, reward=None, terminated=None, truncated=None, memory=()):
    """A rollout [T, N] of which only this matters."""
    leading = np.shape(jax.tree.leaves(observation)[0])[:2]
    no = np.zeros(leading, bool)
    steps = Transition(
        observation=observation,
        action=jnp.zeros(leading),
        reward=jnp.zeros(leading) if reward is None else jnp.asarray(reward, jnp.float32),
        terminated=jnp.asarray(no if terminated is None else terminated),
        truncated=jnp.asarray(no if truncated is None else truncated),
        next_observation=observation if next_observation is None else next_observation,
    )
    return Rollout(steps=jax.tree.map(jnp.asarray, steps), memory=memory)


def shown(agent, state, observation, **options):
    return agent.act(KEY, state, agent.start(NUM_ENVS), jax.tree.map(jnp.asarray, observation), HYPERS, **options)[0]


def learn(agent, state, experience, hypers=HYPERS):
    """Observe and update, as the loop does; also what the learner was handed in the one and in the other."""
    state, _ = agent.update(KEY, agent.observe(state, experience, hypers), experience, hypers)
    learner = state
    while not isinstance(learner, dict):
        learner = learner.learner
    return state, learner["observed"], learner["learned"]


def deviations(value, samples):
    """How `value` is to be shown after `samples`: in deviations from their mean, at most 10."""
    samples = np.reshape(samples, (-1, *np.shape(value)[2:])).astype(float)
    return np.clip((value - samples.mean(axis=0)) / samples.std(axis=0), -10, 10)


def walks(seed, count, length=5, shape=(2,)):
    """Pairs of an observation and its successor [T, N, ...] that drift: each rollout has moments of its own."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        pair = rng.normal(size=(2, length, NUM_ENVS, *shape)) * (1 + number) + number - 20.0 * np.arange(np.prod(shape))
        yield pair.astype(np.float32)


def test_all_is_seen_by_the_moments_that_acted_and_then_by_those_of_all_so_far():
    agent = normalizing()
    state, seen = agent.init(KEY, HYPERS), []
    for number, (observation, successor) in enumerate(walks(0, 4)):
        # At first nothing is known: mean 0 and deviation 1. The second dimension is then beyond 10.
        by = functools.partial(deviations, samples=np.stack(seen)) if seen else lambda x: np.clip(x, -10, 10)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
        close(shown(agent, state, observation[0]), by(observation)[0])
        close(shown(agent, state, observation[0], greedy=True), by(observation)[0])
        state, *handed = learn(agent, state, rollout_of(observation, successor))
        for experience in handed:
            close(experience.steps.observation, by(observation))
            close(experience.steps.next_observation, by(successor))
        seen.append(observation)
        for moments in (state.moments[0], state.acting[0]):
            assert moments.count == 5 * NUM_ENVS * (number + 1)
            assert_moments(moments, np.concatenate(seen).reshape(-1, 2))


def test_before_the_update_it_acts_as_before():
    agent = normalizing()
    state = agent.init(KEY, HYPERS)
    for observation, _ in walks(1, 2):
        noted = agent.observe(state, rollout_of(observation), HYPERS)
        chex.assert_trees_all_equal(noted.acting, state.acting)
        assert noted.moments[0].count == state.moments[0].count + 5 * NUM_ENVS
        np.testing.assert_array_equal(shown(agent, noted, observation[0]), shown(agent, state, observation[0]))
        state = learn(agent, state, rollout_of(observation))[0]


@pytest.mark.parametrize("wrap", [normalize.with_observation_norm, normalize.with_return_scaling])
def test_memory_passes_through_and_so_does_what_is_greedy(wrap):
    agent = wrap(spy(), spec_of(box(2)))
    state, memory = agent.init(KEY, HYPERS), agent.start(NUM_ENVS)
    np.testing.assert_array_equal(memory, np.zeros(NUM_ENVS))
    for greedy, steps in ((False, 1), (True, 2)):
        _, after_it = agent.act(KEY, state, memory + 3, jnp.zeros((NUM_ENVS, 2)), HYPERS, greedy=greedy)
        np.testing.assert_array_equal(after_it, np.full(NUM_ENVS, 3.0 + steps))


def test_rewards_flags_actions_metrics_and_memory_of_a_rollout_stay_as_they_are():
    agent = normalizing()
    state, rng = agent.init(KEY, HYPERS), np.random.default_rng(0)
    memory = agent.start(NUM_ENVS)
    flags = rng.random((2, 5, NUM_ENVS)) < 0.5
    for observation, successor in walks(2, 2):
        given_one = rollout_of(observation, successor, rng.normal(size=(5, NUM_ENVS)), *flags, memory=memory + 5)
        state, *handed = learn(agent, state, given_one)
        for experience in handed:
            chex.assert_trees_all_equal(experience.memory, memory + 5)
            for name in ("action", "reward", "terminated", "truncated"):
                np.testing.assert_array_equal(getattr(experience.steps, name), getattr(given_one.steps, name))
    assert agent.update(KEY, state, given_one, HYPERS)[1] == {"discount": HYPERS.discount}


PARTS = {"flag": box(2, dtype=bool), "place": (Discrete(9), box()), "pixels": box(3, 2, dtype=np.uint8)}


def parts(rng):
    return {
        "flag": rng.random((5, NUM_ENVS, 2)) < 0.3,
        "place": (
            rng.integers(9, size=(5, NUM_ENVS)).astype(np.int32),
            rng.normal(7.0, 2.0, size=(5, NUM_ENVS)).astype(np.float32),
        ),
        "pixels": rng.integers(256, size=(5, NUM_ENVS, 3, 2)).astype(np.uint8),
    }


def test_arrays_of_any_dtype_become_float32_and_integers_stay_as_they_are():
    agent, rng = normalize.with_observation_norm(spy(), spec_of(PARTS)), np.random.default_rng(0)
    state = agent.init(KEY, HYPERS)
    first, second, successor = (parts(rng) for _ in range(3))
    state, *_ = learn(agent, state, rollout_of(first))
    assert [moments and moments.mean.shape for moments in state.moments] == [(2,), (3, 2), None, ()]
    acted = shown(agent, state, jax.tree.map(lambda leaf: leaf[0], second))
    _, observed, learned = learn(agent, state, rollout_of(second, successor))
    seen = [
        (jax.tree.map(lambda leaf: leaf[None], acted), jax.tree.map(lambda leaf: leaf[:1], second)),
        *((experience.steps.observation, second) for experience in (observed, learned)),
        *((experience.steps.next_observation, successor) for experience in (observed, learned)),
    ]
    for found, raw in seen:
        assert jax.tree.structure(found) == jax.tree.structure(raw)
        assert found["place"][0].dtype == np.int32
        np.testing.assert_array_equal(found["place"][0], raw["place"][0])
        for at in (lambda tree: tree["flag"], lambda tree: tree["place"][1], lambda tree: tree["pixels"]):
            assert at(found).dtype == np.float32
            expected = deviations(at(raw).astype(float), at(first))
            np.testing.assert_allclose(at(found), expected, rtol=1e-5, atol=1e-5)


def test_what_is_far_off_is_held_at_ten_deviations_and_what_is_always_the_same_stays_finite():
    agent = normalize.with_observation_norm(spy(), spec_of(box(3)))
    state = agent.init(KEY, HYPERS)
    for observation, _ in walks(3, 3, shape=(3,)):
        observation[..., 1:] = 3.0, 0.0
        state, *_ = learn(agent, state, rollout_of(observation))
    off = shown(agent, state, np.array([[1e30, 3.0, 0.0], [-1e6, 4.0, 1e-3], [0.0, -np.inf, 1e-5]], np.float32))
    np.testing.assert_allclose(off[:2], [[10, 0, 0], [-10, 10, 10]], atol=1e-6)
    np.testing.assert_allclose(off[2, 1:], [-10, 1e-5 / np.sqrt(1e-8)], rtol=1e-4)
    assert np.abs(off[2, 0]) < 10


@pytest.mark.parametrize("observation", [Discrete(5), {"one": Discrete(5), "two": (Discrete(2), Discrete(3))}])
def test_where_there_is_no_array_it_is_refused(observation):
    with pytest.raises(ValueError, match=r"observations are .*Discrete\(5\).*; with_observation_norm takes some that"):
        normalize.with_observation_norm(spy(), spec_of(observation))


# --- in the loop, in evaluation, in replay ----------------------------------------------------------------------------


@struct.dataclass
class EchoState(environment.EnvState):
    level: Any


class Echo(environment.Environment):
    """Observes 100 + level, which is drawn from 0..9 and rises by one a step; four steps; the reward is the action."""

    name = property(lambda self: "Echo-probe")
    default_params = property(lambda self: environment.EnvParams(max_steps_in_episode=4))

    def reset_env(self, key: jax.Array, params: Any):
        state = EchoState(time=jnp.int32(0), level=jax.random.randint(key, (), 0, 10))
        return self._observation(state), state

    def step_env(self, key: jax.Array, state: EchoState, action: Any, params: Any):
        state = EchoState(time=state.time + 1, level=state.level + 1)
        return self._observation(state), state, action, jnp.bool_(False), {}

    def _observation(self, state: EchoState) -> jax.Array:
        return 100.0 + state.level.astype(jnp.float32)

    def is_truncated(self, state: EchoState, params: Any) -> jax.Array:
        return state.time >= params.max_steps_in_episode

    def observation_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(100.0, 113.0, (), jnp.float32)

    def action_space(self, params: Any = None) -> spaces.Box:
        return spaces.Box(-200.0, 200.0, (), jnp.float32)


def echoing():
    """An agent that acts what it is shown and counts its updates."""

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return observation, memory

    def update(key, state, rollout, hypers):
        return state + 1, {}

    return Agent(init=lambda key, hypers: jnp.int32(0), start=no_memory, act=act, update=update)


@pytree_dataclass
class Recorded:
    inner: Any
    number: Any  # rollouts so far
    observation: Any  # all of them, as the environments gave them
    reward: Any


def recording(agent, spec, iterations, length):
    """`agent`, and beside its state all the rollouts of a run."""
    leading = iterations, length, spec.num_envs

    def init(key, hypers):
        observation = jnp.zeros((*leading, *spec.observation.shape))
        return Recorded(
            inner=agent.init(key, hypers), number=jnp.int32(0), observation=observation, reward=jnp.zeros(leading)
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return agent.act(key, state.inner, memory, observation, hypers, greedy=greedy)

    def observe(state, rollout, hypers):
        return Recorded(
            inner=agent.observe(state.inner, rollout, hypers),
            number=state.number + 1,
            observation=state.observation.at[state.number].set(rollout.steps.observation),
            reward=state.reward.at[state.number].set(rollout.steps.reward),
        )

    def update(key, state, rollout, hypers):
        inner, metrics = agent.update(key, state.inner, rollout, hypers)
        return dataclasses.replace(state, inner=inner), metrics

    return Agent(init=init, start=agent.start, act=act, update=update, observe=observe)


def trained(agent, env, hypers, *, iterations, length, chunks):
    """The state after `iterations`, in so many calls."""
    agent = recording(agent, env.spec, iterations, length)
    run = jax.jit(lambda key: loop.begin(key, agent, env, hypers))(KEY)
    options = {"iterations": iterations // chunks, "length": length}
    advance = jax.jit(lambda run: loop.advance(run, agent, env, hypers, **options)[0])
    for _ in range(chunks):
        run = advance(run)
    assert run.agent.number == iterations
    return run.agent


def echo():
    env = envs.make(Echo(), NUM_ENVS)
    return normalize.with_observation_norm(echoing(), env.spec), env


def assert_seen(state, iterations):
    """Every step was counted once, and acted on by the moments of all steps before its rollout."""
    for moments in (state.inner.moments[0], state.inner.acting[0]):
        assert moments.count == iterations * 3 * NUM_ENVS
        assert_moments(moments, state.observation.reshape(-1))
    np.testing.assert_array_equal(state.reward[0], np.full((3, NUM_ENVS), 10.0))
    for number in range(1, iterations):
        expected = deviations(state.observation[number], np.asarray(state.observation[:number]))
        np.testing.assert_allclose(state.reward[number], expected, rtol=1e-5, atol=1e-4)


def test_over_a_run_each_step_is_counted_once_and_acted_on_by_all_before_its_rollout():
    agent, env = echo()
    assert_seen(trained(agent, env, HYPERS, iterations=8, length=3, chunks=4), 8)


def test_vmapped_runs_have_each_its_own_moments():
    agent, env = echo()
    agent = recording(agent, env.spec, 5, 3)

    def train(key):
        return loop.train(key, agent, env, HYPERS, iterations=5, length=3)[0].agent

    many = jax.jit(jax.vmap(train))(jax.random.split(KEY, 2))
    for number in range(2):
        assert_seen(jax.tree.map(lambda leaf: leaf[number], many), 5)  # noqa: B023
    assert many.inner.moments[0].mean[0] != many.inner.moments[0].mean[1]


def test_evaluation_acts_on_the_moments_of_the_run_and_leaves_them_alone():
    judged = envs.make(Echo(), 20)
    agent = normalize.with_observation_norm(echoing(), judged.spec)
    first, second = (np.float32(100 + np.random.default_rng(seed).integers(13, size=(5, NUM_ENVS))) for seed in (0, 1))
    state, experience = agent.init(KEY, HYPERS), rollout_of(first)
    state, _ = agent.update(KEY, agent.observe(state, experience, HYPERS), experience, HYPERS)
    # As it is between observing and learning, when it does not yet act by all that it has seen.
    state = agent.observe(state, rollout_of(second), HYPERS)
    before = jax.device_get(state)
    judge = jax.jit(lambda key, state: evaluate.evaluate(key, agent, state, judged, HYPERS, max_steps=9))
    found = judge(KEY, state)
    assert (found.episode_length == 4).all()
    # Rewards are what it was shown: of an episode that began at level L, (100 + L) + ... + (100 + L + 3).
    acting = before.acting[0]
    level = np.asarray((found.episode_return * np.sqrt(acting.variance) + 4 * acting.mean - 406) / 4)
    np.testing.assert_allclose(level, np.round(level), atol=1e-3)
    levels = set(np.round(level))
    assert levels <= set(range(10))
    assert len(levels) > 4
    chex.assert_trees_all_equal(jax.device_get(state), before)
    chex.assert_trees_all_equal(judge(KEY, state), found)


@pytest.mark.thorough
def test_from_replay_each_step_is_learned_from_many_times_and_counted_once():
    env = envs.make("CartPole-v1", 2)
    learner = normalize.with_observation_norm(dqn.dqn(env.spec, networks.action_values(env.spec, (8,))), env.spec)
    buffer = replay.uniform(env.spec, 2 * 128)
    agent = replay.with_replay(learner, buffer, batch_size=8, updates=4)
    state = trained(agent, env, dqn.Hypers(learning_rate=1e-2), iterations=10, length=3, chunks=2)
    assert state.inner.learner.learner.updates == 40
    raw = np.asarray(state.observation).reshape(-1, 4)
    for moments in (state.inner.learner.moments[0], state.inner.learner.acting[0]):
        assert moments.count == len(raw) == 10 * 3 * 2
        assert_moments(moments, raw)
    sampled, _ = buffer.sample(KEY, state.inner.buffer, 500)
    kept = np.asarray(sampled.steps.observation).reshape(-1, 4)
    np.testing.assert_array_equal(np.unique(kept, axis=0), np.unique(raw, axis=0))


def test_what_comes_from_replay_is_seen_as_what_is_acted_on():
    spec = spec_of(box(2))
    buffer = replay.uniform(spec, 30 * NUM_ENVS)
    agent = normalize.with_observation_norm(spy(), spec)
    state, seen = agent.init(KEY, HYPERS), []
    held = buffer.init()
    for observation, successor in walks(4, 3):
        experience = rollout_of(observation, successor)
        held = buffer.add(held, experience)
        sampled, _ = buffer.sample(KEY, held, 50)
        noted = agent.observe(state, experience, HYPERS)
        state, _ = agent.update(KEY, noted, sampled, HYPERS)
        if seen:
            expected = deviations(np.asarray(sampled.steps.next_observation), np.stack(seen))
            found = state.learner["learned"].steps.next_observation
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        seen.append(observation)
        assert state.acting[0].count == len(seen) * 5 * NUM_ENVS


# --- returns ----------------------------------------------------------------------------------------------------------


def slow_scales(rollouts, discount):
    """After each rollout one over the deviation of all discounted returns so far."""
    running, sums = np.zeros(NUM_ENVS), []
    for experience in rollouts:
        steps = jax.tree.map(np.asarray, experience.steps)
        for time in range(len(steps.reward)):
            running = discount * running + steps.reward[time].astype(float)
            sums.append(running)
            running = np.where(steps.terminated[time] | steps.truncated[time], 0.0, running)
        yield 1 / np.std(sums)


ENDS = {"none": (0.0, 0.0), "terminated": (0.3, 0.0), "truncated": (0.0, 0.3), "both": (0.2, 0.2)}


def rewarded(seed, count, length=7, ends=ENDS["both"]):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        flags = (rng.random((length, NUM_ENVS)) < end for end in ends)
        reward = 5 + rng.normal(size=(length, NUM_ENVS)) * (rng.random((length, NUM_ENVS)) < 0.8)
        yield rollout_of(np.zeros((length, NUM_ENVS)), None, reward, *flags)


@functools.cache
def scaling():
    return compiled(normalize.with_return_scaling(spy(), spec_of(box())))


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_rewards_are_divided_by_the_deviation_of_discounted_returns_and_not_shifted(ends, discount):
    agent, rollouts = scaling(), list(rewarded(0, 6, ends=ENDS[ends]))
    hypers, state = cast_hypers(Hypers(discount=discount)), agent.init(KEY, HYPERS)
    for experience, scale in zip(rollouts, slow_scales(rollouts, discount), strict=True):
        state, *handed = learn(agent, state, experience, hypers)
        for seen in handed:
            np.testing.assert_allclose(seen.steps.reward, scale * experience.steps.reward, rtol=1e-5)
            chex.assert_trees_all_equal(
                dataclasses.replace(seen.steps, reward=()), dataclasses.replace(experience.steps, reward=())
            )
    assert state.moments.count == 6 * 7 * NUM_ENVS


def test_a_rollout_of_one_step_goes_on_with_the_return_under_way():
    agent, long = scaling(), next(iter(rewarded(1, 1, length=12)))
    short = [
        Rollout(steps=jax.tree.map(lambda leaf: leaf[time : time + 1], long.steps), memory=())  # noqa: B023
        for time in range(12)
    ]
    whole, pieces = (
        functools.reduce(lambda state, one: learn(agent, state, one)[0], rollouts, agent.init(KEY, HYPERS))
        for rollouts in ([long], short)
    )
    np.testing.assert_array_equal(whole.running, pieces.running)
    assert whole.moments.count == pieces.moments.count
    np.testing.assert_allclose(whole.moments.mean, pieces.moments.mean, rtol=1e-6)
    np.testing.assert_allclose(whole.moments.variance, pieces.moments.variance, rtol=1e-6)


def test_the_discount_is_a_number_and_no_part_of_the_program():
    chex.clear_trace_counter()
    agent, rollouts = scaling(), list(rewarded(2, 3))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def last_reward(hypers):
        state = agent.init(KEY, hypers)
        for experience in rollouts:
            state, _, learned = learn(agent, state, experience, hypers)
        return learned.steps.reward

    for discount in (0.5, 0.99):
        *_, scale = slow_scales(rollouts, discount)
        found = last_reward(cast_hypers(Hypers(discount=discount)))
        np.testing.assert_allclose(found, scale * rollouts[-1].steps.reward, rtol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 0.1, -2.5, 1234.567])
@pytest.mark.parametrize("length", [1, 333])
def test_where_all_returns_were_the_same_rewards_stay_as_they_are(reward, length):
    # The deviation of a thousand numbers that are all alike is not exactly zero: their mean is rounded.
    agent, hypers = scaling(), cast_hypers(Hypers(discount=0.0))
    state, same = agent.init(KEY, HYPERS), np.full((length, NUM_ENVS), reward, np.float32)
    for _ in range(3):
        state, *handed = learn(agent, state, rollout_of(same, None, same), hypers)
        for seen in handed:
            np.testing.assert_array_equal(seen.steps.reward, same)


def test_rewards_of_zero_stay_zero_before_and_after_others():
    agent = scaling()
    state, zero = agent.init(KEY, HYPERS), rollout_of(np.zeros((7, NUM_ENVS)))
    for experience in [zero, zero, *rewarded(3, 2), zero]:
        state, *handed = learn(agent, state, experience)
        for seen in handed:
            assert np.isfinite(seen.steps.reward).all()
            np.testing.assert_array_equal(seen.steps.reward == 0, experience.steps.reward == 0)


def test_returns_need_the_number_of_environments_they_were_made_for():
    agent = scaling()
    with pytest.raises(ValueError, match=r"with_return_scaling was made for 3 environments .* handed a rollout of 2"):
        agent.observe(agent.init(KEY, HYPERS), rollout_of(np.zeros((7, 2))), HYPERS)


def test_from_replay_returns_are_counted_once_and_rewards_kept_as_they_were():
    env = envs.make(Echo(), NUM_ENVS)
    buffer = replay.uniform(env.spec, NUM_ENVS * 64)
    agent = replay.with_replay(normalize.with_return_scaling(echoing(), env.spec), buffer, batch_size=8, updates=4)
    state = trained(agent, env, HYPERS, iterations=8, length=3, chunks=2)
    flags = (np.arange(24) % 4 == 3).reshape(8, 3, 1) & np.ones(NUM_ENVS, bool)
    rollouts = [rollout_of(reward, None, reward, None, end) for reward, end in zip(state.reward, flags, strict=True)]
    *_, scale = slow_scales(rollouts, 0.9)
    assert state.inner.learner.learner == 8 * 4
    assert state.inner.learner.moments.count == 8 * 3 * NUM_ENVS
    np.testing.assert_allclose(state.inner.learner.moments.variance, scale**-2, rtol=1e-5)
    kept = buffer.sample(KEY, state.inner.buffer, 500)[0].steps.reward
    np.testing.assert_array_equal(np.unique(kept), np.unique(state.reward))


def test_what_comes_from_replay_is_scaled_as_what_is_new():
    agent, rollouts = scaling(), list(rewarded(4, 2))
    state, (_, scale) = agent.init(KEY, HYPERS), slow_scales(rollouts, 0.9)
    for experience in rollouts:
        state = agent.observe(state, experience, HYPERS)
    other = rollout_of(np.zeros((1, 20)), None, np.arange(20.0)[None])
    updated, _ = agent.update(KEY, state, other, HYPERS)
    np.testing.assert_allclose(updated.learner["learned"].steps.reward, scale * other.steps.reward, rtol=1e-5)
    chex.assert_trees_all_equal(dataclasses.replace(updated, learner=()), dataclasses.replace(state, learner=()))


# --- both -------------------------------------------------------------------------------------------------------------


def test_both_together_do_the_same_in_either_order():
    spec = spec_of(box(2))
    norm, scale = normalize.with_observation_norm, normalize.with_return_scaling
    agents = norm(scale(spy(), spec), spec), scale(norm(spy(), spec), spec)
    states = [agent.init(KEY, HYPERS) for agent in agents]
    rewards, seen = list(rewarded(5, 4, length=5)), []
    for (observation, successor), plain, factor in zip(walks(5, 4), rewards, slow_scales(rewards, 0.9), strict=True):
        flags = plain.steps.terminated, plain.steps.truncated
        experience = rollout_of(observation, successor, plain.steps.reward, *flags)
        acted = [shown(agent, state, observation[0]) for agent, state in zip(agents, states, strict=True)]
        np.testing.assert_array_equal(*acted)
        states, *handed = zip(*(learn(*pair, experience) for pair in zip(agents, states, strict=True)), strict=True)
        for one, other in handed:
            chex.assert_trees_all_equal(one, other)
            np.testing.assert_allclose(one.steps.reward, factor * plain.steps.reward, rtol=1e-5)
            if seen:
                expected = deviations(successor, np.stack(seen))
                np.testing.assert_allclose(one.steps.next_observation, expected, rtol=1e-5, atol=1e-5)
        seen.append(observation)


def a2c_on_cartpole(env):
    learner = a2c.a2c(env.spec, networks.policy(env.spec, (8,)), networks.state_values(env.spec, (8,)))
    return normalize.with_observation_norm(normalize.with_return_scaling(learner, env.spec), env.spec)


def test_a_run_that_is_saved_and_taken_up_again_goes_on_bit_for_bit():
    env = envs.make("CartPole-v1", 2)
    agent, hypers = a2c_on_cartpole(env), a2c.Hypers(learning_rate=1e-2)
    begun = jax.jit(lambda key: loop.begin(key, agent, env, hypers))(KEY)

    @functools.partial(jax.jit, static_argnames="iterations")
    def advance(run, iterations):
        return loop.advance(run, agent, env, hypers, iterations=iterations, length=4)[0]

    whole, run = advance(begun, 12), begun
    for _ in range(4):
        run = advance(run, 3)
        leaves, structure = jax.tree.flatten(dataclasses.replace(run, key=jax.random.key_data(run.key)))
        saved = [np.array(leaf) for leaf in leaves]
        run = structure.unflatten([jnp.asarray(leaf) for leaf in saved])
        run = dataclasses.replace(run, key=jax.random.wrap_key_data(run.key))
    chex.assert_trees_all_equal(dataclasses.replace(run, key=()), dataclasses.replace(whole, key=()))
    assert whole.agent.moments[0].count == whole.agent.learner.moments.count == 12 * 4 * 2
    with pytest.raises(AssertionError):  # or nothing was learned, and nothing is shown
        chex.assert_trees_all_equal(whole.agent.learner.learner, begun.agent.learner.learner)


def test_ppo_learns_from_the_probabilities_with_which_it_acted():
    env = envs.make("Pendulum-v1", 4)
    actor, critic = networks.policy(env.spec, (16,)), networks.state_values(env.spec, (16,))
    learner = ppo.ppo(env.spec, actor, critic, epochs=1, minibatches=1)
    acted = []

    def log_prob(state, observation, action):
        return actor.apply(state.params.actor, observation).log_prob(action)

    def act(key, state, memory, observation, hypers, *, greedy=False):
        action, memory = learner.act(key, state, memory, observation, hypers, greedy=greedy)
        jax.debug.callback(acted.append, log_prob(state, observation, action), ordered=True)
        return action, memory

    def update(key, state, rollout, hypers):
        again = log_prob(state, rollout.steps.observation, rollout.steps.action)
        state, metrics = learner.update(key, state, rollout, hypers)
        return state, metrics | {"log_prob": again}

    agent = normalize.with_observation_norm(learner._replace(act=act, update=update), env.spec)
    hypers = cast_hypers(ppo.Hypers(learning_rate=0.1))
    run = jax.jit(lambda key: loop.begin(key, agent, env, hypers))(KEY)
    state, episodes = run.agent, run.episodes

    @jax.jit
    def collect(key, state, episodes):
        keys = rollout.step_keys(key, 16)
        return rollout.unroll(keys, agent, state, env, env.params, episodes, hypers)[:2]

    learn = jax.jit(
        lambda key, state, experience: agent.update(key, agent.observe(state, experience, hypers), experience, hypers)
    )
    for number in range(4):
        acted.clear()
        key = jax.random.key(number)
        mean = state.acting[0].mean
        episodes, experience = collect(key, state, episodes)
        jax.effects_barrier()
        state, metrics = learn(key, state, experience)
        np.testing.assert_allclose(metrics["log_prob"], np.stack(acted), rtol=1e-5, atol=1e-5)
        assert metrics["kl"] < 1e-9
        assert metrics["clipped"] == 0
        assert np.abs(state.acting[0].mean - mean).max() > 0.01  # or nothing is shown
