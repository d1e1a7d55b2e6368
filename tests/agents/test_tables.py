"""Q-learning and SARSA on a table against loops written from the book."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, loop
from purerl.agents import q_learning, sarsa
from purerl.base import Box, Discrete, Rollout, Spec, Transition, cast_hypers

STATES, ACTIONS = 3, 2
AGENTS = {"q_learning": (q_learning.q_learning, q_learning.Hypers), "sarsa": (sarsa.sarsa, sarsa.Hypers)}


def spec_of(num_envs, states=STATES, actions=ACTIONS):
    return Spec(observation=Discrete(states), action=Discrete(actions), num_envs=num_envs)


def record(length, num_envs, seed, ends=0.3, states=STATES, actions=ACTIONS):
    """Random experience [T, N] over few states, so that environments meet; after an end a new episode begins."""
    rng = np.random.default_rng(seed)
    observation = rng.integers(states, size=num_envs)
    steps = []
    for _ in range(length):
        ended, kind = rng.random(num_envs) < ends, rng.integers(3, size=num_envs)
        successor = rng.integers(states, size=num_envs)
        steps.append(
            {
                "observation": np.int32(observation),
                "action": np.int32(rng.integers(actions, size=num_envs)),
                "reward": np.float32(rng.normal(size=num_envs)),
                "terminated": ended & (kind != 1),
                "truncated": ended & (kind != 0),
                "next_observation": np.int32(successor),
            }
        )
        observation = np.where(ended, rng.integers(states, size=num_envs), successor)
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def rollout_of(experience, first=0, last=None):
    return Rollout(
        steps=Transition(**{name: jnp.asarray(leaf[first:last]) for name, leaf in experience.items()}), memory=()
    )


def rows(experience):
    """The transitions one at a time, in the order of time and then of environments."""
    for time, environment in np.ndindex(*experience["reward"].shape):
        yield environment, {name: leaf[time, environment] for name, leaf in experience.items()}


def learn(name, experience, chunk, states=STATES, actions=ACTIONS, values=None, **hypers):
    """The state after feeding recorded experience in chunks, and the last metrics."""
    factory, make_hypers = AGENTS[name]
    length, num_envs = experience["reward"].shape
    agent, hypers = factory(spec_of(num_envs, states, actions)), cast_hypers(make_hypers(**hypers))
    state = agent.init(jax.random.key(0), hypers)
    if values is not None:
        leaves, structure = jax.tree.flatten(state)
        assert leaves[0] is state.values
        state = jax.tree.unflatten(structure, [jnp.asarray(values, jnp.float32), *leaves[1:]])
    update = jax.jit(agent.update)
    for first in range(0, length, chunk):
        state, metrics = update(jax.random.key(1), state, rollout_of(experience, first, first + chunk), hypers)
    return state, metrics


# --- Q-learning -----------------------------------------------------------------------------------------------------


def book_q_learning(experience, rate, discount, initial_value):
    values, errors = np.full((STATES, ACTIONS), initial_value, np.float32), []
    for _, step in rows(experience):
        here = step["observation"], step["action"]
        successor = 0.0 if step["terminated"] else values[step["next_observation"]].max()
        errors.append(step["reward"] + np.float32(discount) * successor - values[here])
        values[here] += np.float32(rate) * errors[-1]
    return values, np.abs(errors).mean()


@pytest.mark.parametrize("seed", range(5))
def test_q_learning_is_the_book_s_one_transition_at_a_time(seed):
    experience = record(5, 4, seed)
    state, metrics = learn("q_learning", experience, 5, learning_rate=0.4, discount=0.9, initial_value=0.5)
    expected, error = book_q_learning(experience, 0.4, 0.9, 0.5)
    assert state.values.dtype == jnp.float32
    np.testing.assert_allclose(state.values, expected, atol=1e-6)
    assert metrics["td_error"] == pytest.approx(error, abs=1e-6)
    # One step at a time is the same.
    np.testing.assert_array_equal(
        learn("q_learning", experience, 1, learning_rate=0.4, discount=0.9, initial_value=0.5)[0].values, state.values
    )


def meeting(num_envs, **leaves):
    """One step in which all environments are in cell (0, 0) and terminate."""
    zeros = np.zeros((1, num_envs), np.int32)
    step = {
        "observation": zeros,
        "action": zeros,
        "reward": np.ones((1, num_envs), np.float32),
        "terminated": zeros == 0,
        "truncated": zeros > 0,
        "next_observation": zeros,
    }
    return step | leaves


@pytest.mark.parametrize("name", AGENTS)
def test_environments_that_meet_in_one_cell_each_count_in_turn(name):
    # Rewards 1 and 3 at rate .5: 0 -> .5 -> 1.75. Summed it would be 2, the last one alone 1.5, the other order 1.25.
    experience = meeting(2, reward=np.float32([[1, 3]]))
    state, _ = learn(name, experience, 1, learning_rate=0.5)
    np.testing.assert_array_equal(state.values, [[1.75, 0], [0, 0], [0, 0]])


def test_q_learning_bootstraps_from_what_was_just_learned():
    # The second environment comes from state 1 into (0, 0), which the first has just raised to .5.
    experience = meeting(2, observation=np.int32([[0, 1]]), terminated=np.array([[True, False]]))
    state, _ = learn("q_learning", experience, 1, learning_rate=0.5, discount=1.0)
    np.testing.assert_array_equal(state.values, [[0.5, 0], [0.75, 0], [0, 0]])


@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"), [(True, False, 1.0), (False, True, 10.0), (True, True, 1.0)]
)
def test_a_truncated_episode_bootstraps_and_a_terminated_one_does_not(name, terminated, truncated, expected):
    # At rate 1 the value becomes the target: 1, or 1 + .9 * 10 with either action worth 10 in state 1.
    experience = meeting(
        1,
        terminated=np.array([[terminated]]),
        truncated=np.array([[truncated]]),
        next_observation=np.int32([[1]]),
    )
    values = [[0, 0], [10, 10], [0, 0]]
    state, _ = learn(name, experience, 1, values=values, learning_rate=1.0, discount=0.9)
    assert state.values[0, 0] == pytest.approx(expected)


# --- SARSA ----------------------------------------------------------------------------------------------------------


def book_sarsa(experience, rate, discount, epsilon, initial_value, values=None):
    """Per environment: S, A, R, S', then the A' that is executed in S'; the table is shared, in order of time."""
    if values is None:
        values = np.full((STATES, ACTIONS), initial_value)
    values, waiting = np.array(values, np.float64), {}

    def move(state, action, target):
        values[state, action] += rate * (target - values[state, action])

    for environment, step in rows(experience):
        if environment in waiting:
            state, action, reward = waiting.pop(environment)
            move(state, action, reward + discount * values[step["observation"], step["action"]])
        here = step["observation"], step["action"]
        if step["terminated"]:
            move(*here, step["reward"])
        elif step["truncated"]:
            successor = values[step["next_observation"]]
            greedy = successor == successor.max()
            policy = (1 - epsilon) * greedy / greedy.sum() + epsilon / len(successor)
            move(*here, step["reward"] + discount * policy @ successor)
        else:
            waiting[environment] = *here, step["reward"]
    return values, waiting


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_envs", [1, 4])
def test_sarsa_is_the_book_s_however_the_experience_is_cut(seed, num_envs):
    experience = record(20, num_envs, seed)
    numbers = {"epsilon": 0.3, "discount": 0.9, "initial_value": 0.5}
    expected, waiting = book_sarsa(experience, rate=0.4, **numbers)
    whole, _ = learn("sarsa", experience, 5, learning_rate=0.4, **numbers)
    steps, _ = learn("sarsa", experience, 1, learning_rate=0.4, **numbers)
    np.testing.assert_allclose(whole.values, expected, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, whole, steps)
    # What waits at the end is what has not met its next action.
    assert {environment for environment in range(num_envs) if whole.waiting.open[environment]} == set(waiting)
    for environment, (observation, action, reward) in waiting.items():
        kept = jax.tree.map(lambda leaf, environment=environment: leaf[environment], whole.waiting)
        assert (kept.observation, kept.action, kept.reward) == (observation, action, reward)


@pytest.mark.parametrize("chunk", [1, 3])
def test_sarsa_s_target_holds_the_action_executed_next(chunk):
    # 0 -a0-> 1 -a1-> 2 -a0-> end; Q(1, 0) = 100 is greedy, but action 1 was executed.
    experience = {
        "observation": np.int32([[0], [1], [2]]),
        "action": np.int32([[0], [1], [0]]),
        "reward": np.float32([[1], [2], [4]]),
        "terminated": np.array([[False], [False], [True]]),
        "truncated": np.zeros((3, 1), bool),
        "next_observation": np.int32([[1], [2], [0]]),
    }
    values = [[0, 0], [100, 10], [30, 0]]
    state, _ = learn("sarsa", experience, chunk, values=values, learning_rate=1.0, discount=0.5, epsilon=0.0)
    np.testing.assert_array_equal(state.values, [[1 + 5, 0], [100, 2 + 15], [4, 0]])


@pytest.mark.parametrize("chunk", [1, 2, 4])
@pytest.mark.parametrize(("terminated", "truncated"), [(True, False), (False, True), (True, True)])
def test_sarsa_never_learns_across_a_reset(chunk, terminated, truncated):
    # 0 -a0-> 1 -a1-> (2, end); the new episode starts in 3, whose value is huge. Policy in 2: .75 and .25 (epsilon .5).
    experience = {
        "observation": np.int32([[0], [1], [3], [3]]),
        "action": np.int32([[0], [1], [0], [0]]),
        "reward": np.float32([[1], [2], [0], [0]]),
        "terminated": np.array([[False], [terminated], [False], [False]]),
        "truncated": np.array([[False], [truncated], [False], [False]]),
        "next_observation": np.int32([[1], [2], [3], [3]]),
    }
    values = [[0, 0], [0, 6], [8, 4], [1e9, 1e9]]
    state, _ = learn("sarsa", experience, chunk, states=4, values=values, learning_rate=1.0, discount=0.5, epsilon=0.5)
    last = 2.0 if terminated else 2 + 0.5 * (0.75 * 8 + 0.25 * 4)
    np.testing.assert_allclose(state.values[:3], [[1 + 0.5 * 6, 0], [0, last], [8, 4]], rtol=1e-6)


def test_a_transition_waits_for_one_update_and_is_learned_from_once():
    experience = {
        "observation": np.int32([[0], [1], [2]]),
        "action": np.int32([[0], [0], [0]]),
        "reward": np.float32([[1], [1], [1]]),
        "terminated": np.zeros((3, 1), bool),
        "truncated": np.zeros((3, 1), bool),
        "next_observation": np.int32([[1], [2], [0]]),
    }
    hypers = {"learning_rate": 0.5, "discount": 0.0}
    after = [
        learn("sarsa", {k: leaf[:n] for k, leaf in experience.items()}, 1, **hypers)[0].values[:, 0].tolist()
        for n in (1, 2, 3)
    ]
    assert after == [[0, 0, 0], [0.5, 0, 0], [0.5, 0.5, 0]]


def test_nothing_waits_at_the_start():
    hypers = cast_hypers(sarsa.Hypers(initial_value=7.0))
    state = sarsa.sarsa(spec_of(3)).init(jax.random.key(0), hypers)
    assert not state.waiting.open.any()
    assert state.waiting.open.shape == (3,)
    np.testing.assert_array_equal(state.values, np.full((STATES, ACTIONS), 7.0))


def test_the_td_error_of_sarsa_is_the_mean_per_transition():
    # Both kinds of learning in one step: what waited (error 1) and the episode's end (error 3), of 2 environments.
    experience = record(2, 2, seed=0) | {
        "observation": np.int32([[0, 2], [1, 2]]),
        "action": np.zeros((2, 2), np.int32),
        "reward": np.float32([[1, 0], [3, 0]]),
        "terminated": np.array([[False, False], [True, False]]),
        "truncated": np.zeros((2, 2), bool),
        "next_observation": np.int32([[1, 2], [0, 2]]),
    }
    _, metrics = learn("sarsa", experience, 2, learning_rate=0.5)
    assert metrics["td_error"] == (1 + 3) / 4


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_the_agent_acts_epsilon_greedily_by_its_table(name):
    factory, make_hypers = AGENTS[name]
    agent, hypers = factory(spec_of(3)), cast_hypers(make_hypers(epsilon=0.4))
    state = agent.init(jax.random.key(0), hypers)
    table = jnp.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    leaves, structure = jax.tree.flatten(state)
    state = jax.tree.unflatten(structure, [table, *leaves[1:]])
    observation = jnp.array([0, 1, 2], jnp.int32)

    def mean_action(greedy):
        act = lambda key: agent.act(key, state, (), observation, hypers, greedy=greedy)[0]  # noqa: E731
        return np.asarray(jax.vmap(act)(jax.random.split(jax.random.key(1), 10_000)).mean(axis=0))

    np.testing.assert_allclose(mean_action(False), [0.2, 0.8, 0.5], atol=0.025)
    np.testing.assert_allclose(mean_action(True), [0.0, 1.0, 0.5], atol=0.025)
    np.testing.assert_array_equal(mean_action(True)[:2], [0.0, 1.0])


@pytest.mark.parametrize("name", AGENTS)
def test_continuous_spaces_are_refused_by_name(name):
    box = Box(shape=(2,), dtype=np.float32, low=0, high=1)
    with pytest.raises(ValueError, match=rf"{name} needs a discrete observation space.*Box"):
        AGENTS[name][0](Spec(observation=box, action=Discrete(2), num_envs=1))
    with pytest.raises(ValueError, match=rf"{name} needs a discrete action space.*Box"):
        AGENTS[name][0](Spec(observation=Discrete(2), action=box, num_envs=1))


@pytest.mark.parametrize("name", AGENTS)
def test_a_step_of_the_loop_copies_no_table(name):
    """A step costs the same whatever the table's size; a value read both before and after a write would copy it."""
    make, hypers = AGENTS[name]
    env = envs.make("CliffWalking-purerl", 1)
    agent = make(env.spec)

    def train(key, hypers):
        return loop.train(key, agent, env, hypers, iterations=100, rows=2)

    text = jax.jit(train).lower(jax.random.key(0), cast_hypers(hypers())).compile().as_text()
    assert "f32[48,4]" in text
    assert not re.findall(r"f32\[48,4\]\S* copy\(", text)
