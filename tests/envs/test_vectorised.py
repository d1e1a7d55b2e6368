"""Vectorised environments: against gymnax stepped one environment at a time, and every environment's types."""

import re

import chex
import gymnax
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import probes
import pytest
from gymnax.environments import spaces
from scipy import stats

from purerl import envs
from purerl.base import Box, Discrete

N = 3
DOWNLOADS = {"MNISTBandit-bsuite"}
PROBES = {"Ends": probes.Ends, "Countdown": probes.Countdown, "Walk": probes.Walk}
EVERY = [name for name in envs.names() if name not in DOWNLOADS] + list(PROBES)
OVERRIDING = "DeepSea-bsuite"  # has a `step` of its own, which carries sums from one episode to the next
# What compiles long is compiled as it stands; and what is not fused is not rounded differently either.
PLAIN = {"xla_backend_optimization_level": 0}


class Parts(probes.Countdown):
    """Observed as a dict."""

    def _observation(self, state):
        return {"remaining": state.remaining, "both": super()._observation(state)}

    def observation_space(self, params=None):
        return spaces.Dict({"remaining": spaces.Discrete(6), "both": super().observation_space(params)})


class Shows(probes.Countdown):
    """Shows one number at the start of an episode that never ends, and another one later."""

    def __init__(self, first, later):
        self.first, self.later = first, later

    def _observation(self, state):
        return jnp.where(state.time == 0, jnp.float32(self.first), jnp.float32(self.later))[None]

    def step_env(self, key, state, action, params):
        observation, state, reward, _, info = super().step_env(key, state, action, params)
        return observation, state, reward, jnp.bool_(False), info

    def observation_space(self, params=None):
        return spaces.Box(0.0, 1.0, (1,), jnp.float32)


def thing(name):
    """Return what `envs.make` takes: a probe as an object, the others by name."""
    return PROBES[name]() if name in PROBES else name


def random_actions(key, env):
    space = env.spec.action
    shape = (env.spec.num_envs, *space.shape)
    if isinstance(space, Discrete):
        return jax.random.randint(key, shape, 0, space.n, jnp.int32)
    return jax.random.uniform(key, shape, space.dtype, space.low, space.high)


def unroll(env, key, length, params=None):
    """Reset and take `length` random steps; returns the first observation and state, and everything [T, N, ...]."""
    params = env.params if params is None else params
    reset_key, steps_key = jax.random.split(key)
    observation, state = env.reset(reset_key, params)

    def step(carry, key):
        _, state = carry
        act_key, step_key = jax.random.split(key)
        action = random_actions(act_key, env)
        following = env.step(step_key, state, action, params)
        return following[:2], {"key": step_key, "before": state, "action": action, "result": following}

    _, steps = jax.lax.scan(step, (observation, state), jax.random.split(steps_key, length))
    return observation, state, steps


def types(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def weak(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.weak_type]


LONG_TO_COMPILE = {"Asterix-MinAtar", "Freeway-MinAtar", "Seaquest-MinAtar"}  # of these the types are looked at alone


FEW = {"CartPole-v1", "Pendulum-v1", "FrozenLake-misc", "Catch-bsuite", "CliffWalking-purerl", "Walk", OVERRIDING}


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.thorough) for name in EVERY]
)
def test_every_environment_has_the_types_that_its_spec_says_and_keeps_them(name):
    env = envs.make(thing(name), N)
    assert env.spec.num_envs == N
    key = jax.random.key(0)

    reset = jax.eval_shape(env.reset, key, env.params)
    action = jax.eval_shape(lambda key: random_actions(key, env), key)
    step = jax.eval_shape(env.step, key, reset[1], action, env.params)
    observation, state, reward, terminated, truncated, next_observation = step
    assert types((observation, state)) == types(reset)
    assert types(next_observation) == types(observation)
    assert not weak((reset, step, env.params))
    assert types(reward) == ((N,), jnp.float32)
    assert types((terminated, truncated)) == (((N,), bool), ((N,), bool))
    assert types(observation) == ((N, *env.spec.observation.shape), env.spec.observation.dtype)
    assert action.dtype == env.spec.action.dtype

    if name in LONG_TO_COMPILE:
        return
    first, _, steps = jax.jit(lambda key: unroll(env, key, 5), compiler_options=PLAIN)(key)
    chex.assert_tree_all_finite((first, steps["result"][0], steps["result"][2], steps["result"][5]))
    if isinstance(env.spec.observation, Discrete):
        for observation in (first, steps["result"][0], steps["result"][5]):
            assert (np.asarray(observation) >= 0).all()
            assert (np.asarray(observation) < env.spec.observation.n).all()


@pytest.mark.parametrize("name", ["CartPole-v1", "Catch-bsuite", "FrozenLake-misc", "Walk", OVERRIDING])
def test_a_step_equals_that_of_gymnax_one_environment_at_a_time(name):
    environment = thing(name) if name in PROBES else gymnax.make(name)[0]
    env = envs.make(environment, N)
    length, params = 200, env.params
    _, _, steps = jax.jit(lambda key: unroll(env, key, length), compiler_options=PLAIN)(jax.random.key(1))

    def own_start(keys, state, action):
        step_key, reset_key = keys
        final, state, reward, terminated, _ = environment.step_env(step_key, state, action, params)
        truncated = environment.is_truncated(state, params)
        reset = environment.reset_env(reset_key, params)
        ended = terminated | truncated
        observation, state = jax.tree.map(lambda new, old: jnp.where(ended, new, old), reset, (final, state))
        return observation, state, reward, terminated, truncated, final

    def gymnax_start(keys, state, action):
        observation, state, reward, terminated, truncated, info = environment.step(keys[0], state, action, params)
        return observation, state, reward, terminated, truncated, info["final_observation"]

    def one_environment_at_a_time(steps):
        step_keys, reset_keys = jax.vmap(jax.random.split, out_axes=1)(steps["key"])
        if name == OVERRIDING:
            step_keys = steps["key"]
        keys = jax.vmap(lambda key: jax.random.split(key, N))
        arguments = (keys(step_keys), keys(reset_keys)), steps["before"], steps["action"]
        flat = jax.tree.map(lambda leaf: leaf.reshape(length * N, *leaf.shape[2:]), arguments)
        return jax.lax.map(lambda one: (gymnax_start if name == OVERRIDING else own_start)(*one), flat)

    ours = jax.tree.map(lambda leaf: leaf.reshape(length * N, *leaf.shape[2:]), steps["result"])
    witness = jax.jit(one_environment_at_a_time, compiler_options=PLAIN)(steps)
    # CartPole's sines and products are rounded by two programs: its floats may differ in the last bit, no more.
    tolerance = 1e-6 if name == "CartPole-v1" else 0.0
    chex.assert_trees_all_close(ours, witness, rtol=tolerance, atol=tolerance)

    observation, _, _, terminated, truncated, next_observation = jax.device_get(ours)
    goes_on = ~(terminated | truncated)
    np.testing.assert_array_equal(observation[goes_on], next_observation[goes_on])
    assert (~goes_on).sum() >= 5  # or nothing was seen of starting anew
    assert not np.array_equal(observation[~goes_on], next_observation[~goes_on])


def test_every_start_is_a_new_draw_from_the_distribution_of_starts():
    num_envs, length = 64, 200
    env = envs.make("CartPole-v1", num_envs)

    def always_right(key):
        reset_key, steps_key = jax.random.split(key)
        first, state = env.reset(reset_key, env.params)

        def step(state, key):
            observation, state, _, terminated, truncated, _ = env.step(key, state, jnp.ones(num_envs, int), env.params)
            return state, (observation, terminated | truncated)

        return first, jax.lax.scan(step, state, jax.random.split(steps_key, length))[1]

    first, (observation, ended) = jax.device_get(jax.jit(always_right)(jax.random.key(2)))
    later = observation[ended]
    assert len(later) > 1000
    for starts in (first, later):
        for component in starts.T:
            assert stats.kstest(component, "uniform", (-0.05, 0.1)).pvalue > 1e-3
    starts = np.concatenate([first, later])
    assert len(np.unique(starts, axis=0)) == len(starts)  # no two environments or episodes alike


def test_both_flags_at_once_and_each_alone_come_through():
    num_envs = 64
    env = envs.make(probes.Ends(), num_envs)

    @jax.jit
    def step(key):
        observation, state = env.reset(key, env.params)
        return observation, env.step(key, state, jnp.zeros(num_envs, jnp.int32), env.params)

    start, (_, _, reward, terminated, truncated, next_observation) = jax.device_get(step(jax.random.key(3)))
    assert set(start) == {0, 1, 2, 3}
    np.testing.assert_array_equal(terminated, start != 0)
    np.testing.assert_array_equal(truncated, (start == 0) | (start == 2))
    np.testing.assert_array_equal(reward, np.where(start == 3, 2, 1))
    assert (next_observation == 3).all()


def test_an_environment_registered_with_gymnax_is_made_by_name_and_equals_the_object():
    name = "Walk-test-vectorised"
    if name not in gymnax.registered_envs:
        gymnax.register(name, probes.Walk)
    assert name in envs.names()
    named, given = envs.make(name, N), envs.make(probes.Walk(), N)
    assert (named.name, given.name) == (name, "Walk-probe")
    assert named.spec == given.spec
    key = jax.random.key(4)
    chex.assert_trees_all_equal(*(jax.jit(lambda env=env: unroll(env, key, 30))() for env in (named, given)))


def test_constructor_arguments_reach_the_environment():
    env = envs.make("Catch-bsuite", N, rows=7, columns=4)
    assert env.spec.observation.shape == (7, 4)


def test_frozen_lake_observes_the_index_of_its_cell():
    env = envs.make("FrozenLake-misc", N)
    assert env.spec.observation == Discrete(16)
    observation, _ = env.reset(jax.random.key(0), env.params)
    assert (observation.shape, observation.dtype) == ((N,), jnp.int32)


def test_a_box_keeps_its_bounds():
    space = envs.make("Pendulum-v1", N).spec.action
    assert isinstance(space, Box)
    assert (space.shape, space.low, space.high) == ((1,), -2.0, 2.0)


@pytest.mark.parametrize("name", ["UmbrellaChain-bsuite", "BernoulliBandit-misc"])
def test_whole_number_rewards_become_float32_and_keep_their_value(name):
    environment = gymnax.make(name)[0]
    env = envs.make(environment, N)
    _, state = env.reset(jax.random.key(0), env.params)
    action = jnp.ones(N, jnp.int32)
    seen = set()
    step, witness_step = jax.jit(env.step), jax.jit(environment.step_env)
    for number in range(20):
        key = jax.random.key(number)
        _, following, reward, *_ = step(key, state, action, env.params)
        keys = jax.random.split(jax.random.split(key)[0], N)
        for n in range(N):
            one = jax.tree.map(lambda leaf, n=n: leaf[n], state)
            witness = witness_step(keys[n], one, action[n], env.params)[2]
            assert jnp.issubdtype(witness.dtype, jnp.integer)  # or this test has nothing to show
            assert float(reward[n]) == int(witness)
            seen.add(int(witness))
        assert reward.dtype == jnp.float32
        state = following
    assert len(seen) > 1


def test_environment_parameters_are_swept_in_one_trace():
    env = envs.make("CartPole-v1", N)
    gravities = jnp.array([1.0, 9.8, 30.0])
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(gravity):
        params = env.params.replace(gravity=gravity)
        return unroll(env, jax.random.key(5), 40, params)[2]["result"]

    together = jax.vmap(run)(gravities)
    positions = np.asarray(together[5][:, 5, 0, 3])  # what fell faster turns faster
    assert len(set(positions)) == 3
    alone = jax.jit(lambda params: unroll(env, jax.random.key(5), 40, params)[2]["result"])
    for number, gravity in enumerate(gravities):
        one = jax.tree.map(lambda leaf, number=number: leaf[number], together)
        chex.assert_trees_all_close(one, alone(env.params.replace(gravity=gravity)), atol=1e-4)


def test_changed_parameters_are_no_second_trace():
    env = envs.make("CartPole-v1", N)
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(env.step, n=1))
    _, state = env.reset(jax.random.key(0), env.params)
    for gravity in (1.0, 9.8):
        params = env.params.replace(gravity=jnp.float32(gravity), max_steps_in_episode=jnp.int32(gravity))
        _, state, *_, truncated, _ = step(jax.random.key(1), state, jnp.zeros(N, jnp.int32), params)
        assert truncated.all() == (gravity == 1.0)  # the limit is one step, then nine


# --- observed in another dtype --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dtype"), [("Breakout-MinAtar", bool), (OVERRIDING, np.uint8)])
def test_observations_in_another_dtype_are_those_of_the_environment_cast(name, dtype):
    usual, other = envs.make(thing(name), N), envs.make(thing(name), N, observation_dtype=dtype)
    assert other.spec.action == usual.spec.action
    assert (other.spec.observation.shape, other.spec.observation.dtype) == (usual.spec.observation.shape, dtype)
    assert isinstance(other.spec.observation.dtype, np.dtype)

    def both(key):
        return [unroll(env, key, 60) for env in (usual, other)]

    (first, start, one), (other_first, other_start, two) = jax.jit(both, compiler_options=PLAIN)(jax.random.key(7))
    assert np.any(np.diff(one["result"][0], axis=0))
    assert one["result"][3].any()  # a new episode's first observation is seen as well
    for shown, cast in [(first, other_first)] + [(one["result"][part], two["result"][part]) for part in (0, 5)]:
        assert cast.dtype == dtype
        np.testing.assert_array_equal(cast, np.asarray(shown).astype(dtype))
        np.testing.assert_array_equal(np.asarray(cast).astype(shown.dtype), shown)
    # Nothing else is changed, the state that the environment keeps least of all.
    chex.assert_trees_all_equal(start, other_start)
    chex.assert_trees_all_equal(*(steps["result"][1:5] for steps in (one, two)))
    chex.assert_trees_all_equal(*(steps["before"] for steps in (one, two)))
    assert types(start) == types(other_start)


def test_observations_in_bfloat16_are_rounded_and_nothing_else_is():
    """A number is as near as eight bits come to it; what is beyond them is no number of theirs."""
    usual, other = envs.make("CartPole-v1", N), envs.make("CartPole-v1", N, observation_dtype="bfloat16")
    assert other.spec.observation.dtype == jnp.bfloat16

    def both(key):
        return [unroll(env, key, 60) for env in (usual, other)]

    (_, _, one), (_, _, two) = jax.jit(both, compiler_options=PLAIN)(jax.random.key(7))
    shown, rounded = one["result"][0], two["result"][0]
    chex.assert_trees_all_equal(rounded, shown.astype(jnp.bfloat16))
    assert float(jnp.abs(rounded.astype(jnp.float32) - shown).max()) > 0.0
    chex.assert_trees_all_equal(*(steps["result"][1:5] for steps in (one, two)))
    with pytest.raises(ValueError, match="observation_dtype is bfloat16, which does not hold all that Shows-probe"):
        envs.make(Shows(0.0, np.nan), N, observation_dtype="bfloat16")


def test_whole_numbers_are_held_whole_or_not_at_all():
    class Numbers(Shows):
        def _observation(self, state):
            return jnp.where(state.time == 0, self.first, self.later)[None]

        def observation_space(self, params=None):
            return spaces.Box(0, 1_001, (1,), jnp.int32)

    assert envs.make(Numbers(0, 1_000), N, observation_dtype="bfloat16").spec.observation.dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="observation_dtype is bfloat16, which does not hold all that"):
        envs.make(Numbers(0, 1_001), N, observation_dtype="bfloat16")


def test_each_part_of_an_observation_is_cast():
    env = envs.make(Parts(), N, observation_dtype=np.uint8)
    assert jax.tree.map(lambda space: (space.shape, space.dtype), env.spec.observation) == {
        "remaining": ((), np.uint8),
        "both": ((2,), np.uint8),
    }
    usual = envs.make(Parts(), N)
    shown, cast = (made.reset(jax.random.key(0), made.params)[0] for made in (usual, env))
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf.astype(jnp.uint8), shown), cast)


@pytest.mark.parametrize(("first", "later"), [(0.5, 1.0), (1.0, 0.5), (2.0, 0.0), (0.0, np.nan)])
def test_a_dtype_must_hold_the_first_observation_and_the_later_ones(first, later):
    with pytest.raises(ValueError, match="observation_dtype is bool, which does not hold all that Shows-probe shows"):
        envs.make(Shows(first, later), N, observation_dtype=bool)


def test_a_dtype_that_holds_all_that_is_shown_is_taken():
    assert envs.make(Shows(1.0, 0.0), N, observation_dtype=bool).spec.observation.dtype == bool


@pytest.fixture
def unchecked():
    """What a user has: no run-time check of annotations, which would speak before the function does."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("Cartpole-v1", 1), {}, ValueError, "'Cartpole-v1'.*did you mean CartPole-v1"),
        (("zzzzzzzz", 1), {}, ValueError, "'zzzzzzzz'.*known are .*CartPole-v1.*CliffWalking-purerl"),
        (("CartPole-v1", 0), {}, ValueError, "num_envs is 0; it takes"),
        (("CartPole-v1", -2), {}, ValueError, "num_envs is -2; it takes"),
        (("CartPole-v1", 2.0), {}, ValueError, "num_envs is 2.0; it takes a whole number"),
        (("CartPole-v1", True), {}, ValueError, "num_envs is True; it takes"),
        ((7, 1), {}, TypeError, "env is 7; it takes the name of an environment or a gymnax Environment"),
        ((probes.Walk, 1), {}, TypeError, "env is <class .*Walk.*it takes"),
        ((probes.Walk(), 1), {"rows": 3}, ValueError, "{'rows': 3} beside an environment object"),
        (("Catch-bsuite", 1), {"lines": 3}, ValueError, "Catch-bsuite does not take {'lines': 3}.*lines"),
        (("WindyGridworld-purerl", 1), {"with_stay": True}, ValueError, "needs kings_moves=True"),
        (
            ("CartPole-v1", 1),
            {"observation_dtype": bool},
            ValueError,
            "observation_dtype is bool, which does not hold all that CartPole-v1 shows",
        ),
        (
            ("CliffWalking-purerl", 1),
            {"observation_dtype": bool},
            ValueError,
            "observation_dtype is bool, and CliffWalking.* is observed as an integer, no array",
        ),
    ],
)
def test_bad_input_is_named_with_what_it_takes(arguments, options, error, words):
    with pytest.raises(error, match=re.compile(words, re.DOTALL)):
        envs.make(*arguments, **options)


@pytest.mark.usefixtures("unchecked")
def test_an_action_space_of_another_kind_is_named():
    class Odd(probes.Walk):
        def action_space(self, params=None):
            return spaces.Tuple([spaces.Discrete(2)])

    with pytest.raises(ValueError, match=r"action space .*Tuple.* is not supported; it takes a Discrete or a Box"):
        envs.make(Odd(), 1)


def test_an_observation_of_several_parts_has_a_space_for_each():
    env = envs.make(Parts(), N)
    _, _, steps = jax.jit(lambda key: unroll(env, key, 20))(jax.random.key(6))
    observation, _, _, terminated, _, final = jax.device_get(steps["result"])
    for part, space in env.spec.observation.items():
        assert (observation[part].shape, observation[part].dtype) == ((20, N, *space.shape), space.dtype)
    assert terminated.any()
    for ended in (observation, final):
        np.testing.assert_array_equal(ended["both"][..., 0], ended["remaining"])
    assert (final["remaining"][terminated] == 0).all()
    assert (observation["remaining"] > 0).all()


@pytest.mark.parametrize("name", ["Pendulum-v1", "MountainCarContinuous-v0"])
def test_actions_beyond_the_bounds_are_those_on_them_also_under_other_parameters(name):
    env = envs.make(name, N)
    bound = {"Pendulum-v1": {"max_torque": 2.0}, "MountainCarContinuous-v0": {"max_action": 1.0}}[name]
    ((field, limit),) = bound.items()
    _, state = env.reset(jax.random.key(0), env.params)
    step = jax.jit(env.step)

    def after(action, params):
        return step(jax.random.key(1), state, jnp.full((N, 1), action), params)

    chex.assert_trees_all_equal(after(5.0 * limit, env.params), after(limit, env.params))
    wider = env.params.replace(**{field: jnp.float32(3.0 * limit)})
    chex.assert_trees_all_equal(after(5.0 * limit, wider), after(3.0 * limit, wider))
    assert (after(3.0 * limit, wider)[2] != after(limit, env.params)[2]).all()  # the reward


def test_without_restart_an_episode_stays_where_it_ended():
    env = envs.make("CliffWalking-purerl", 2, restart=False)
    observation, state = env.reset(jax.random.key(0), env.params)
    for action in [0, *[1] * 11, 2]:
        observation, state, _, terminated, truncated, following = env.step(
            jax.random.key(0), state, jnp.full(2, action), env.params
        )
    assert terminated.tolist() == [True, True]
    assert not truncated.any()
    assert observation.tolist() == following.tolist() == state.position.tolist() == [47, 47]
    with pytest.raises(ValueError, match="restart is False; DeepSea-bsuite starts its episodes anew"):
        envs.make("DeepSea-bsuite", 1, restart=False)
