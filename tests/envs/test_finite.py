"""Finite MDPs as environments: what is drawn is what is listed, there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, planning
from purerl.envs.finite import EnvState
from purerl.mdps import Successors

FINITE = [
    envs.BairdsCounterexample(),
    envs.CliffWalking(),
    envs.CornerGridworld(),
    envs.DynaMaze(),
    envs.Gambler(),
    envs.JumpingGridworld(),
    envs.RandomWalk(),
    envs.ShortCorridor(),
    envs.WindyGridworld(stochastic_wind=True),
]
over_finite = pytest.mark.parametrize("env", FINITE, ids=lambda env: type(env).__name__)


def dense(mdp):
    """Transitions [S, A, S] of an enumerated MDP."""
    state, probability = np.asarray(mdp.transition.state), np.asarray(mdp.transition.probability)
    result = np.zeros((*mdp.reward.shape, len(mdp.reward)))
    for place in np.ndindex(*state.shape):
        result[*place[:2], state[place]] += probability[place]
    return result


def arrays(seed=0, states=5, actions=2):
    rng = np.random.default_rng(seed)
    transition = jnp.asarray(rng.dirichlet(np.full(states, 0.5), size=(states, actions)), jnp.float32)
    reward = jnp.asarray(rng.normal(size=(states, actions)), jnp.float32)
    return transition, reward, jnp.arange(states) == states - 1


@over_finite
def test_every_name_is_known_and_enumerated(env):
    mdp = envs.enumerate_mdp(env.name)
    assert np.isclose(mdp.start.sum(), 1)
    assert mdp.reward.shape == (len(mdp.terminal), env.num_actions)
    assert not (np.asarray(mdp.start) * np.asarray(mdp.terminal)).any()
    np.testing.assert_allclose(dense(mdp)[~np.asarray(mdp.terminal)].sum(axis=-1), 1, atol=1e-6)


@over_finite
def test_steps_are_drawn_as_they_are_listed(env):
    """In a sample of states, by 4000 draws of each action: within five standard errors, and nothing impossible."""
    mdp, params, draws = envs.enumerate_mdp(env), env.default_params, 4000
    step = jax.jit(jax.vmap(env.step_env, in_axes=(0, None, None, None)))
    rng, expected = np.random.default_rng(0), dense(mdp)
    alive = np.flatnonzero(~np.asarray(mdp.terminal))
    for position in rng.choice(alive, size=min(6, alive.size), replace=False):
        state = EnvState(time=jnp.int32(3), position=jnp.int32(position))
        action = int(rng.integers(env.num_actions))
        keys = jax.random.split(jax.random.key(int(position)), draws)
        _, after, reward, terminated, _ = step(keys, state, jnp.int32(action), params)
        frequency = np.bincount(after.position, minlength=len(mdp.terminal)) / draws
        probability = expected[position, action]
        error = np.sqrt(probability * np.clip(1 - probability, 0, 1) / draws) + 1e-6
        assert (np.abs(frequency - probability) <= 5 * error).all()
        spread = 5 * float(np.std(reward)) / np.sqrt(draws)
        assert float(np.mean(reward)) == pytest.approx(float(mdp.reward[position, action]), abs=spread + 1e-5)
        np.testing.assert_array_equal(terminated, np.asarray(mdp.terminal)[after.position])
        np.testing.assert_array_equal(after.time, 4)


@over_finite
def test_episodes_start_as_listed(env):
    mdp, draws = envs.enumerate_mdp(env), 4000
    keys = jax.random.split(jax.random.key(0), draws)
    _, state = jax.vmap(env.reset_env, (0, None))(keys, env.default_params)
    frequency = np.bincount(state.position, minlength=len(mdp.start)) / draws
    probability = np.asarray(mdp.start, np.float64)
    assert (np.abs(frequency - probability) <= 5 * np.sqrt(probability * (1 - probability) / draws) + 1e-9).all()


@pytest.mark.thorough
@over_finite
def test_it_runs_vectorised(env):
    made = envs.make(env, 3)
    observation, state = made.reset(jax.random.key(0), made.params)
    action = jnp.zeros(3, jnp.int32)
    for _ in range(2):
        observation, state, reward, terminated, truncated, _ = made.step(jax.random.key(1), state, action, made.params)
    assert observation.shape == reward.shape == terminated.shape == truncated.shape == (3,)
    assert (observation < made.spec.observation.n).all()


# --- from arrays and back -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", [False, True])
def test_an_environment_of_arrays_is_enumerated_as_those_arrays(sparse):
    transition, reward, terminal = arrays()
    given = transition
    if sparse:
        given = Successors(state=jnp.broadcast_to(jnp.arange(5), transition.shape), probability=transition)
    start = jnp.array([0.5, 0.25, 0.25, 0.0, 0.0])
    mdp = envs.enumerate_mdp(envs.tabular_mdp(given, reward, terminal, start, max_steps=30))
    np.testing.assert_allclose(dense(mdp), transition, atol=1e-7)
    np.testing.assert_allclose(mdp.reward, reward, atol=1e-6)
    np.testing.assert_array_equal(mdp.terminal, terminal)
    np.testing.assert_array_equal(mdp.start, start)


def test_it_is_drawn_from_as_given_and_its_clock_runs_out():
    transition, reward, terminal = arrays()
    env = envs.tabular_mdp(transition, reward, terminal, start=1, max_steps=30)
    _, state = env.reset_env(jax.random.key(0), env.default_params)
    assert state.position == 1
    keys = jax.random.split(jax.random.key(1), 4000)
    step = jax.jit(jax.vmap(env.step_env, in_axes=(0, None, None, None)))
    _, after, gains, *_ = step(keys, state, jnp.int32(1), env.default_params)
    frequency = np.bincount(after.position, minlength=5) / 4000
    np.testing.assert_allclose(frequency, transition[1, 1], atol=5 * np.sqrt(0.25 / 4000))
    np.testing.assert_allclose(gains, reward[1, 1], rtol=1e-6)
    *_, truncated, _ = env.step(keys[0], state.replace(time=29), jnp.int32(1), env.default_params)
    assert truncated


def test_what_is_impossible_is_never_drawn():
    transition = jnp.zeros((3, 1, 3)).at[:, 0, 1].set(1.0)
    env = envs.tabular_mdp(transition, jnp.zeros((3, 1)), jnp.zeros(3, bool))
    state = EnvState(time=jnp.int32(0), position=jnp.int32(0))
    keys = jax.random.split(jax.random.key(0), 100_000)
    after = jax.vmap(env.step_env, (0, None, None, None))(keys, state, jnp.int32(0), env.default_params)[1]
    assert (after.position == 1).all()


def test_many_mdps_are_one_program():
    """The arrays are the environment's parameters: vmapped over, each lane acts in an MDP of its own."""
    many = [arrays(seed) for seed in range(3)]
    env = envs.make(envs.tabular_mdp(*many[0]), 2)
    params = [envs.tabular_mdp(*one).default_params for one in many]
    batch = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *params)

    def first_rewards(params):
        _, state = env.reset(jax.random.key(0), params)
        return env.step(jax.random.key(1), state, jnp.zeros(2, jnp.int32), params)[2]

    found = jax.vmap(first_rewards)(batch)
    np.testing.assert_allclose(found, [[reward[0, 0]] * 2 for _, reward, _ in many], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start": 5}, "start is 5; it takes one of the states 0 .. 4"),
        ({"start": -1}, "start is -1"),
        ({"start": jnp.ones(4) / 4}, r"start has the shape \(4,\); it takes the probabilities of 5 states"),
        ({"start": jnp.ones(5)}, "start takes rows that sum to 1"),
        ({"transition": jnp.ones((5, 2, 5))}, "transition takes rows that sum to 1"),
        ({"max_steps": 0}, "max_steps is 0; it takes a whole number of at least 1"),
    ],
)
def test_what_is_no_mdp_makes_no_environment(changes, sentence):
    transition, reward, terminal = arrays()
    given = {"transition": transition, "reward": reward, "terminal": terminal} | changes
    with pytest.raises(ValueError, match=sentence):
        envs.tabular_mdp(**given)


def test_what_cannot_be_enumerated_says_so():
    with pytest.raises(TypeError, match=r"'CartPole-v1' cannot be enumerated; it takes an envs.FiniteEnvironment"):
        envs.enumerate_mdp("CartPole-v1")
    with pytest.raises(ValueError, match="maze is 'labyrinth'; it takes dyna, blocking, shortcut"):
        envs.DynaMaze("labyrinth")
    with pytest.raises(ValueError, match="does not change"):
        _ = envs.DynaMaze().changed_params
    with pytest.raises(ValueError, match="states is 0"):
        envs.RandomWalk(0)


def test_changed_mazes_leave_only_the_way_that_the_book_draws():
    env = envs.DynaMaze("shortcut")
    open_before, open_after = (
        set(np.flatnonzero(~np.asarray(params.walls)[3])) for params in (env.default_params, env.changed_params)
    )
    assert (open_before, open_after) == ({0}, {0, 8})
    mdp = envs.enumerate_mdp(env, env.changed_params)
    assert planning.value_iteration(*mdp.arrays, 0.95).iterations > 10
