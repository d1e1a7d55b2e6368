"""Both gridworlds against gymnasium's table, the book's dynamics and exact optimal values."""

import gymnasium
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs
from purerl.envs.gridworlds import CliffWalking, CliffWalkingParams, EnvState, WindyGridworld

UP, RIGHT, DOWN, LEFT = range(4)
WIND = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)


def states_at(positions, time=0):
    positions = jnp.asarray(positions, jnp.int32)
    return EnvState(time=jnp.full_like(positions, time), position=positions)


def table(env, params=None):
    """Next state, reward, terminated: [states, actions] each, of a deterministic environment."""
    params = env.default_params if params is None else params
    num_states, num_actions = env.observation_space(params).n, env.num_actions
    state, action = jnp.divmod(jnp.arange(num_states * num_actions), num_actions)
    step = jax.jit(jax.vmap(env.step_env, in_axes=(None, 0, 0, None)))
    observation, after, reward, terminated, info = step(jax.random.key(0), states_at(state), action, params)
    np.testing.assert_array_equal(observation, after.position)
    np.testing.assert_array_equal(info["discount"], 1.0 - np.asarray(terminated, np.float32))
    shape = (num_states, num_actions)
    return tuple(np.asarray(x).reshape(shape) for x in (observation, reward, terminated))


def best_value(env, epsilon=0.0, sweeps=2000):
    """V(start) under the epsilon-soft optimality operator, gamma 1, float64."""
    next_state, reward, terminated = table(env)
    values = np.zeros(len(next_state))
    for _ in range(sweeps):
        action_values = reward + ~terminated * values[next_state]
        values = (1 - epsilon) * action_values.max(1) + epsilon * action_values.mean(1)
    return values[env.start]


def test_cliff_walking_has_gymnasiums_transition_table():
    outside = gymnasium.make("CliffWalking-v1").unwrapped.P
    next_state, reward, terminated = table(CliffWalking())
    reachable, frontier = {36}, [36]
    while frontier:
        state = frontier.pop()
        for action in range(4):
            ((probability, successor, witness_reward, ended),) = outside[state][action]
            here = (state, action)
            assert probability == 1.0
            assert (next_state[here], reward[here], terminated[here]) == (
                successor,
                witness_reward,
                ended,
            ), here
            if not ended and successor not in reachable:
                reachable.add(successor)
                frontier.append(successor)
    assert reachable == set(range(37))  # all but the ten cells of the cliff and the goal


@pytest.mark.parametrize(
    ("env", "epsilon", "expected"),
    [
        (CliffWalking(), 0.0, -13.0),
        (CliffWalking(), 0.1, -20.7077),
        (WindyGridworld(), 0.0, -15.0),
        (WindyGridworld(), 0.1, -17.0483),
        (WindyGridworld(kings_moves=True), 0.0, -7.0),
        (WindyGridworld(kings_moves=True, with_stay=True), 0.0, -7.0),
    ],
)
def test_best_values_are_the_exact_ones(env, epsilon, expected):
    assert best_value(env, epsilon) == pytest.approx(expected, abs=1e-3)


def test_windy_moves_go_where_the_book_says():
    env = WindyGridworld(kings_moves=True, with_stay=True)
    next_state, reward, terminated = table(env)
    moves = [(-1, 0), (0, 1), (1, 0), (0, -1), (-1, 1), (1, 1), (1, -1), (-1, -1), (0, 0)]
    for state in range(70):
        row, column = divmod(state, 10)
        for action, (down, right) in enumerate(moves):
            expected_row = min(max(row + down - WIND[column], 0), 6)
            expected_column = min(max(column + right, 0), 9)
            assert next_state[state, action] == 10 * expected_row + expected_column
    assert (reward == -1).all()
    np.testing.assert_array_equal(terminated, next_state == 37)
    # The book's own example: left of the cell right of the goal leads just above the goal.
    assert next_state[38, LEFT] == 27
    for fewer in (WindyGridworld(), WindyGridworld(kings_moves=True)):
        np.testing.assert_array_equal(table(fewer)[0], next_state[:, : fewer.num_actions])
    assert WindyGridworld().num_actions == 4
    assert WindyGridworld(kings_moves=True).num_actions == 8
    assert env.action_space().n == 9


def test_staying_needs_kings_moves():
    with pytest.raises(ValueError, match="needs kings_moves=True"):
        WindyGridworld(with_stay=True)


def test_stochastic_wind_is_a_third_each_and_only_where_there_is_wind():
    env, samples = WindyGridworld(stochastic_wind=True), 20_000
    keys = jax.random.split(jax.random.key(3), samples)
    step = jax.jit(jax.vmap(env.step_env, in_axes=(0, None, None, None)))
    for column, wind in ((1, 0), (4, 1), (8, 1), (6, 2)):
        state = EnvState(time=jnp.int32(0), position=jnp.int32(50 + column))
        observation = np.asarray(step(keys, state, jnp.int32(RIGHT), env.default_params)[0])
        assert (observation % 10 == column + 1).all()
        lifts, counts = np.unique(5 - observation // 10, return_counts=True)
        if wind == 0:
            assert lifts.tolist() == [0]
            continue
        assert lifts.tolist() == [wind - 1, wind, wind + 1]
        # Four standard errors of a frequency of 1/3.
        error = 4 * np.sqrt(2 / 9 / samples)
        np.testing.assert_allclose(counts / samples, 1 / 3, atol=error)


@pytest.mark.parametrize(
    ("env", "before_goal", "into_goal"), [(CliffWalking(), 35, DOWN), (WindyGridworld(), 48, LEFT)]
)
def test_time_limit_truncates_and_the_goal_terminates(env, before_goal, into_goal):
    params = env.default_params.replace(max_steps_in_episode=7)
    key = jax.random.key(0)
    outcomes = {}
    for time in (5, 6):
        for position, action in ((0, UP), (before_goal, into_goal)):
            state = EnvState(time=jnp.int32(time), position=jnp.int32(position))
            observation, after, _, terminated, truncated, info = env.step(key, state, jnp.int32(action), params)
            outcomes[time, position] = (bool(terminated), bool(truncated))
            ended = terminated | truncated
            assert after.position == observation == (env.start if ended else position)
            assert after.time == (0 if ended else time + 1)
            assert info["final_observation"] == (0 if position == 0 else env.goal)
    assert outcomes == {
        (5, 0): (False, False),
        (6, 0): (False, True),
        (5, before_goal): (True, False),
        (6, before_goal): (True, True),
    }
    assert env.default_params.max_steps_in_episode == 10_000


def test_registering_twice_is_harmless():
    envs.register()
    before = list(gymnax.registered_envs)
    envs.register()
    assert gymnax.registered_envs == before
    for name, kind in (
        ("CliffWalking-purerl", CliffWalking),
        ("WindyGridworld-purerl", WindyGridworld),
    ):
        env, params = gymnax.make(name)
        assert before.count(name) == 1
        assert isinstance(env, kind)
        assert env.name == name
        assert params == env.default_params
    assert gymnax.make("WindyGridworld-purerl", kings_moves=True)[0].num_actions == 8


def test_rewards_are_traced_parameters():
    env, cliff = CliffWalking(), jnp.array([-100.0, -10.0, 3.0])
    axes = CliffWalkingParams(max_steps_in_episode=None, step_reward=None, cliff_reward=0)
    state = EnvState(time=jnp.int32(0), position=jnp.int32(36))

    def reward(action, params):
        return env.step_env(jax.random.key(0), state, action, params)[2]

    swept = jax.jit(jax.vmap(reward, in_axes=(None, axes)))
    params = CliffWalkingParams(step_reward=-0.5, cliff_reward=cliff)
    np.testing.assert_array_equal(swept(RIGHT, params), cliff)
    np.testing.assert_array_equal(swept(UP, params), [-0.5] * 3)
    windy = WindyGridworld()
    halved = windy.default_params.replace(step_reward=jnp.float32(-0.5))
    assert (table(windy, halved)[1] == -0.5).all()


@pytest.mark.parametrize("env", [CliffWalking(), WindyGridworld(), WindyGridworld(True, True, stochastic_wind=True)])
def test_types_are_strong_and_stable(env):
    key, params = jax.random.key(0), env.default_params
    observation, state = jax.eval_shape(env.reset_env, key, params)
    stepped = jax.eval_shape(env.step_env, key, state, jnp.int32(0), params)

    def types(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.weak_type), tree)

    integer = ((), jnp.dtype(jnp.int32), False)
    assert types(state) == types(stepped[1]) == EnvState(time=integer, position=integer)
    assert types(observation) == types(stepped[0]) == integer
    assert types(stepped[2]) == types(stepped[4]["discount"]) == ((), jnp.dtype("float32"), False)
    assert types(stepped[3]) == ((), jnp.dtype(bool), False)
    space = env.observation_space(params)
    assert (space.shape, space.dtype) == ((), jnp.int32)

    def body(carry, action):  # scan refuses a carry whose type changes
        step = env.step(key, carry, action, params)
        return step[1], step[0]

    start = env.reset(key, params)[1]
    jax.eval_shape(lambda: jax.lax.scan(body, start, jnp.zeros(3, jnp.int32)))
