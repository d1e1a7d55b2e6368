"""Tables against planning: on small random MDPs each agent comes to the very values that it should."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import envs, loop, planning, tables
from purerl.agents import (
    double_q_learning,
    dyna_q,
    expected_sarsa,
    monte_carlo_control,
    n_step_sarsa,
    prioritized_sweeping,
    q_learning,
    sarsa,
    sarsa_lambda,
)
from purerl.base import cast_hypers

STATES, ACTIONS, DISCOUNT, EPSILON = 6, 3, 0.8, 0.5
# Rates that fall: with a constant one values keep trembling where chance is at work.
RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
AGENTS = {
    "q_learning": (q_learning.q_learning, tables.Hypers),
    "double_q_learning": (double_q_learning.double_q_learning, tables.Hypers),
    "sarsa": (sarsa.sarsa, tables.Hypers),
    "expected_sarsa": (expected_sarsa.expected_sarsa, tables.Hypers),
    "n_step_sarsa": (lambda spec: n_step_sarsa.n_step_sarsa(spec, n=3), tables.Hypers),
    "sarsa_lambda": (sarsa_lambda.sarsa_lambda, sarsa_lambda.Hypers),
    "monte_carlo_control": (
        lambda spec: monte_carlo_control.monte_carlo_control(spec, window=20),
        functools.partial(monte_carlo_control.Hypers, learning_rate_decay=0.0),
    ),
}
# These take the environment to be deterministic, and learn in such a one.
MODELS = {
    "dyna_q": (lambda spec: dyna_q.dyna_q(spec, planning_steps=5), tables.Hypers),
    "prioritized_sweeping": (
        lambda spec: prioritized_sweeping.prioritized_sweeping(spec, planning_steps=5),
        prioritized_sweeping.Hypers,
    ),
}
OFF_POLICY = ("q_learning", "double_q_learning")


def random_mdp(seed):
    """An MDP with one terminal state, to which every step leads with a probability of at least 5 %."""
    rng = np.random.default_rng(seed)
    transition = 0.95 * rng.dirichlet(np.full(STATES, 0.5), size=(STATES, ACTIONS))
    transition[:, :, -1] += 0.05
    reward = rng.normal(size=(STATES, ACTIONS))
    return jnp.asarray(transition, jnp.float32), jnp.asarray(reward, jnp.float32), jnp.arange(STATES) == STATES - 1


def best_values(transition, reward, terminal, epsilon):
    """Q of the best policy among those that take an action by chance with probability epsilon."""
    share = (1 - epsilon) * jnp.eye(ACTIONS) + epsilon / ACTIONS
    soft = jnp.einsum("ab,sbt->sat", share, transition), reward @ share.T, terminal
    value = planning.value_iteration(*soft, DISCOUNT).value
    return planning.action_values(value, transition, reward, terminal, DISCOUNT)


@pytest.mark.thorough
@pytest.mark.parametrize("name", AGENTS)
def test_each_comes_to_the_values_that_planning_computes(name):
    """Off the policy to those of the best; on it to those of the best that explores as much."""
    make, hypers = AGENTS[name]
    starts = jnp.where(jnp.arange(STATES) < STATES - 1, 1 / (STATES - 1), 0.0)
    env = envs.make(envs.tabular_mdp(*random_mdp(0), starts, max_steps=20), 8)
    agent = make(env.spec)

    @jax.jit
    def learn(run, hypers, params):
        return loop.advance(run, agent, env, hypers, iterations=6_000, length=8, env_params=params)[0]

    for seed in range(3):
        mdp = random_mdp(seed)
        params = jax.tree.map(jnp.asarray, envs.tabular_mdp(*mdp, starts, max_steps=20).default_params)
        run = loop.begin(jax.random.key(seed), agent, env, cast_hypers(hypers()), env_params=params)
        for rate in RATES:
            numbers = hypers(learning_rate=rate, discount=DISCOUNT, exploration=EPSILON)
            run = learn(run, cast_hypers(numbers), params)
        state = run.agent
        values = (state.first + state.second) / 2 if name == "double_q_learning" else state.values
        expected = best_values(*mdp, 0.0 if name in OFF_POLICY else EPSILON)
        np.testing.assert_allclose(values[:-1], expected[:-1], atol=0.1)
        # Close enough to tell one from the other.
        other = best_values(*mdp, EPSILON if name in OFF_POLICY else 0.0)
        assert np.abs(values[:-1] - other[:-1]).max() > 0.3


@pytest.mark.parametrize("name", MODELS)
def test_each_that_has_a_model_comes_to_the_best_values_where_nothing_is_left_to_chance(name):
    make, hypers = MODELS[name]
    starts = jnp.where(jnp.arange(STATES) < STATES - 1, 1 / (STATES - 1), 0.0)

    def certain(seed):
        transition, reward, terminal = random_mdp(seed)
        return jax.nn.one_hot(jnp.argmax(transition, axis=-1), STATES), reward, terminal

    env = envs.make(envs.tabular_mdp(*certain(0), starts, max_steps=20), 4)
    agent = make(env.spec)
    numbers = cast_hypers(hypers(learning_rate=0.5, discount=DISCOUNT, exploration=EPSILON))

    @jax.jit
    def learned(key, numbers, params):
        return loop.train(key, agent, env, numbers, iterations=500, length=4, env_params=params)[0].agent.values

    for seed in range(3):
        params = envs.tabular_mdp(*certain(seed), starts, max_steps=20).default_params
        values = learned(jax.random.key(seed), numbers, jax.tree.map(jnp.asarray, params))
        expected = planning.value_iteration(*certain(seed), DISCOUNT).action_value
        np.testing.assert_allclose(values[:-1], expected[:-1], atol=1e-3)
