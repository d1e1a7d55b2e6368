"""A2C on tables against a slow loop in float64, its gradient by hand; with a shared torso against rlax and optax."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rlax
from agents.mdps import (
    Adam,
    begun,
    descending,
    entropy,
    entropy_slope,
    moves_of,
    policy_table,
    score,
    softmax,
    tables_of,
    value_table,
)
from agents.tables_by_the_book import path, record, rollout_of, spec_of
from probes import Walk

from purerl import envs, loop, networks
from purerl.agents import a2c
from purerl.base import Box, Discrete, cast_hypers

STATES, ACTIONS, NUM_ENVS, LENGTH = 3, 3, 3, 7
LOGITS = np.array([[0.3, -0.2, 0.1], [-0.5, 0.0, 0.4], [0.2, 0.6, -0.1]])
VALUES = np.array([0.5, -1.0, 0.8])

# Not so small an epsilon, because Adam by itself is blind to a factor of all gradients.
GENERIC = a2c.Hypers(
    learning_rate=0.3,
    learning_rate_end_fraction=0.3,
    learning_rate_horizon=3.0,
    max_gradient_norm=0.3,
    adam_b1=0.8,
    adam_b2=0.95,
    adam_eps=0.3,
    discount=0.9,
    trace_decay=0.9,
    value_weight=0.6,
    entropy_weight=0.2,
)


@functools.cache
def made(num_envs=NUM_ENVS):
    """An agent and its compiled update, made once."""
    spec = spec_of(num_envs, STATES, ACTIONS)
    agent = a2c.a2c(spec, policy_table(STATES, ACTIONS), value_table(STATES))
    return agent, jax.jit(agent.update)


def random_experience(seed):
    return record(LENGTH, NUM_ENVS, seed, (STATES, ACTIONS))


def target_of(x, time, environment, next_value, discount, trace_decay):
    """The mixture of what is seen after 1, 2, ... steps, up to the end of the rollout or the episode.

    `next_value` [T, N] are the values of the successors.
    """
    sights, rewards = [], 0.0
    for steps in range(1, len(x["reward"]) - time + 1):
        now = time + steps - 1, environment
        rewards += discount ** (steps - 1) * x["reward"][now]
        last = x["terminated"][now] or x["truncated"][now] or time + steps == len(x["reward"])
        after = 0.0 if x["terminated"][now] else next_value[now]
        sights.append(rewards + discount**steps * after)
        if last:
            break
    weights = [(1 - trace_decay) * trace_decay**number for number in range(len(sights) - 1)]
    return float(np.dot([*weights, 1 - sum(weights)], sights))


def targets_of(x, next_value, discount, trace_decay):
    found = np.zeros(x["reward"].shape)
    for here in np.ndindex(*found.shape):
        found[here] = target_of(x, *here, next_value, discount, trace_decay)
    return found


class Book:
    """The algorithm, one step after the other."""

    def __init__(self, hypers):
        self.logits, self.values, self.adam = LOGITS, VALUES, Adam(hypers)

    def update(self, x):
        h, size = self.adam.numbers, x["reward"].size
        value, next_value = self.values[x["observation"]], self.values[x["next_observation"]]
        target = targets_of(x, next_value, h["discount"], h["trace_decay"])
        actor, critic = np.zeros_like(self.logits), np.zeros_like(self.values)
        metrics = {"policy_loss": 0.0, "value_loss": 0.0, "entropy": 0.0}
        for here in np.ndindex(*target.shape):
            state, action, error = x["observation"][here], x["action"][here], target[here] - value[here]
            row = self.logits[state]
            actor[state] -= (error * score(row, action) + h["entropy_weight"] * entropy_slope(row)) / size
            critic[state] -= h["value_weight"] * error / size
            metrics["policy_loss"] -= error * np.log(softmax(row)[action]) / size
            metrics["value_loss"] += error**2 / 2 / size
            metrics["entropy"] += entropy(row) / size
        actor_step, critic_step = self.adam.steps([actor, critic])
        self.logits, self.values = self.logits + actor_step, self.values + critic_step
        return metrics


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"trace_decay": 1.0},
        {"trace_decay": 0.0},
        {"discount": 1.0, "trace_decay": 1.0},
        {"entropy_weight": 0.0},
        {"value_weight": 2.0},
        {"max_gradient_norm": 1e9},
    ],
    ids=str,
)
def test_updates_are_those_of_the_book(numbers):
    hypers = cast_hypers(dataclasses.replace(GENERIC, **numbers))
    (agent, update), book = made(), Book(hypers)
    state = begun(agent, hypers, LOGITS, VALUES)
    for number in range(5):
        experience = random_experience(number)
        expected = book.update(experience)
        state, metrics = update(jax.random.key(0), state, rollout_of(experience), hypers)
        assert set(metrics) == set(expected)
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
        for ours, theirs in zip(tables_of(state), (book.logits, book.values), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)
        assert state.updates == number + 1
    assert np.abs(book.logits - LOGITS).max() > 0.05
    if not numbers:
        assert sum(norm > GENERIC.max_gradient_norm for norm in book.adam.norms) > 2


def test_the_experience_holds_all_that_can_happen():
    ends = set()
    for seed in range(5):
        experience = random_experience(seed)
        ends |= set(zip(experience["terminated"].ravel(), experience["truncated"].ravel(), strict=True))
    assert len(ends) == 4


# --- by hand --------------------------------------------------------------------------------------------------------


def learn(experience, **numbers):
    """What it moves, by logits and by values, with steps of minus the gradient, and the metrics."""
    hypers = descending(a2c.Hypers, **({"discount": 0.5, "value_weight": 1.0} | numbers))
    agent, update = made(experience["reward"].shape[1])
    state, metrics = update(jax.random.key(0), begun(agent, hypers, LOGITS, VALUES), rollout_of(experience), hypers)
    return *moves_of(state), metrics


@pytest.mark.parametrize(
    ("terminated", "truncated", "after"),
    [(True, False, 0.0), (False, True, 0.8), (True, True, 0.0), (False, False, 0.8)],
)
def test_returns_go_on_with_the_value_unless_the_episode_terminated(terminated, truncated, after):
    # Rewards 1 and 4, the discount 1/2; the last state is worth .8 unless it is the end.
    experience = path((0, 1, 1), (1, 2, 4), 2, terminated=terminated, truncated=truncated)
    last = 4 + 0.5 * after
    errors = np.array([1 + 0.5 * last, last]) - VALUES[:2]
    actor, critic, metrics = learn(experience)
    np.testing.assert_allclose(critic, [*errors / 2, 0], atol=1e-5)
    np.testing.assert_allclose(actor[0], errors[0] / 2 * score(LOGITS[0], 1), atol=1e-5)
    np.testing.assert_allclose(actor[1], errors[1] / 2 * score(LOGITS[1], 2), atol=1e-5)
    np.testing.assert_array_equal(actor[2], 0)
    assert metrics["value_loss"] == pytest.approx(np.mean(errors**2) / 2, rel=1e-5)


def test_nothing_of_the_next_episode_counts():
    for ended in ({"terminated": True}, {"truncated": True}):
        first = path((0, 1, 1), 2, **ended)
        moves = [
            learn({name: np.concatenate([first[name], path((1, 2, reward), 0)[name]]) for name in first})
            for reward in (4, 99)
        ]
        np.testing.assert_array_equal(moves[0][0][0], moves[1][0][0])
        assert moves[0][1][0] == moves[1][1][0] != 0
        assert moves[0][1][1] != moves[1][1][1]


def test_advantages_are_held_constant():
    """By the policy's loss no value moves, and by that of the values no logit, nor do the values that targets hold."""
    experience = path((0, 1, 1), (1, 2, 4), 2)
    _, critic, _ = learn(experience, value_weight=0.0)
    np.testing.assert_array_equal(critic, 0)
    actor, critic, _ = learn(experience, value_weight=3.0)
    assert critic[2] == 0  # which is in both targets and no observation
    assert np.all(critic[:2] != 0)
    np.testing.assert_allclose(actor, learn(experience, value_weight=0.0)[0], atol=1e-6)


# --- with networks --------------------------------------------------------------------------------------------------

KINDS = {
    "categorical": Discrete(ACTIONS),
    "gaussian": Box(shape=(2,), dtype=np.float32, low=-1.0, high=1.0),
}


@pytest.mark.parametrize("kind", [pytest.param("categorical", marks=pytest.mark.thorough), "gaussian"])
def test_with_a_shared_torso_the_gradient_is_that_of_all_losses_together(kind):
    features = Box(shape=(2,), dtype=np.float32, low=-np.inf, high=np.inf)
    spec = spec_of(NUM_ENVS)._replace(observation=features, action=KINDS[kind])
    torso = networks.torso(spec, (5,))
    actor, critic = networks.policy(torso.spec, ()), networks.state_values(torso.spec, ())
    agent = a2c.a2c(spec, actor, critic, torso=torso.network)
    hypers = cast_hypers(GENERIC)
    state = agent.init(jax.random.key(0), hypers)
    rng = np.random.default_rng(0)
    experience = random_experience(0) | {
        name: np.float32(rng.normal(size=(LENGTH, NUM_ENVS, 2))) for name in ("observation", "next_observation")
    }
    if kind == "gaussian":
        experience["action"] = np.float32(rng.normal(size=(LENGTH, NUM_ENVS, 2)))
    # Within an episode the next observation is that of the next step.
    ended = experience["terminated"] | experience["truncated"]
    goes_on = ~ended[:-1, :, None]
    experience["next_observation"][:-1] = np.where(
        goes_on, experience["observation"][1:], experience["next_observation"][:-1]
    )

    def outputs(params, observation):
        read = torso.network.apply(params.torso, jnp.asarray(observation))
        return actor.apply(params.actor, read), critic.apply(params.critic, read)

    value, next_value = (
        np.float64(outputs(state.params, experience[name])[1]) for name in ("observation", "next_observation")
    )
    target = targets_of(experience, next_value, GENERIC.discount, GENERIC.trace_decay)
    advantage, target = (jnp.asarray(one.reshape(-1), jnp.float32) for one in (target - value, target))
    observation, action = (
        experience[name].reshape(-1, *experience[name].shape[2:]) for name in ("observation", "action")
    )
    ones = jnp.ones(len(target))

    def loss(params):
        policy, value = outputs(params, observation)
        if kind == "gaussian":
            deviation = jnp.exp(policy.log_deviation)
            log_prob = jax.scipy.stats.norm.logpdf(action, policy.mean, deviation).sum(axis=-1)
            by_policy = -jnp.mean(log_prob * advantage)
            by_entropy = -jnp.mean(jnp.sum(jnp.log(2 * np.pi * np.e * deviation**2) / 2, axis=-1))
        else:
            by_policy = rlax.policy_gradient_loss(policy.logits, action, advantage, ones)
            by_entropy = rlax.entropy_loss(policy.logits, ones)
        by_value = jnp.mean(rlax.l2_loss(value, target))
        return by_policy + GENERIC.value_weight * by_value + GENERIC.entropy_weight * by_entropy

    optimizer = optax.chain(
        optax.clip_by_global_norm(GENERIC.max_gradient_norm),
        optax.adam(GENERIC.learning_rate, b1=GENERIC.adam_b1, b2=GENERIC.adam_b2, eps=GENERIC.adam_eps),
    )
    step, _ = optimizer.update(jax.jit(jax.grad(loss))(state.params), optimizer.init(state.params))
    after, _ = jax.jit(agent.update)(jax.random.key(0), state, rollout_of(experience), hypers)
    chex.assert_trees_all_close(after.params, optax.apply_updates(state.params, step), atol=1e-5)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(step))


# --- the program ----------------------------------------------------------------------------------------------------


def best_walk(discount, slip=0.25, step_reward=-0.125):
    """The optimal values [A, S] of moves left and right on a `Walk` whose clock costs nothing."""
    values = np.zeros(7)
    arrival = step_reward + np.eye(7)[6]
    for _ in range(200):
        worth = arrival + discount * values
        left, right = worth[:5], worth[2:]
        moves = np.array([(1 - slip) * left + slip * right, (1 - slip) * right + slip * left])
        values[1:6] = moves.max(axis=0)
    return moves


def test_it_learns_where_to_walk_and_where_to_end_it():
    env = envs.make(Walk(), 8)
    agent = a2c.a2c(env.spec, policy_table(7, 2), value_table(7))
    hypers = a2c.Hypers(learning_rate=0.05, discount=0.9, trace_decay=0.9)
    train = jax.jit(lambda key: loop.train(key, agent, env, hypers, iterations=400, length=8)[0].agent)
    best = best_walk(0.9)
    assert set(best.argmax(axis=0)) == {0, 1}
    for seed in range(2):
        logits, values = tables_of(train(jax.random.key(seed)))
        policy = softmax(logits[1:6])
        np.testing.assert_array_equal(policy.argmax(axis=-1), best.argmax(axis=0))
        assert np.all(policy.max(axis=-1) > 0.8)
        np.testing.assert_allclose(values[2:6], best.max(axis=0)[1:], atol=0.3)


def test_numbers_are_traced():
    agent, alone = made()
    state, traces = begun(agent, GENERIC, LOGITS, VALUES), []

    @jax.jit
    @jax.vmap
    def together(hypers):
        traces.append(hypers)
        return agent.update(jax.random.key(0), state, rollout_of(random_experience(0)), hypers)[0].params

    for weights in ([0.0, 0.5], [0.1, 1.0]):
        points = [cast_hypers(dataclasses.replace(GENERIC, entropy_weight=weight)) for weight in weights]
        after = together(jax.tree.map(lambda *leaves: jnp.stack(leaves), *points))
        assert np.abs(after.actor["by"][0] - after.actor["by"][1]).max() > 1e-3
        for lane, hypers in enumerate(points):
            mine = jax.tree.map(lambda leaf: leaf[lane], after)  # noqa: B023
            theirs = alone(jax.random.key(0), state, rollout_of(random_experience(0)), hypers)[0].params
            chex.assert_trees_all_close(mine, theirs, atol=1e-6)
    assert len(traces) == 1


def test_a_zero_rate_changes_no_parameter():
    hypers = cast_hypers(dataclasses.replace(GENERIC, learning_rate=0.0))
    agent, update = made()
    state = begun(agent, hypers, LOGITS, VALUES)
    after, _ = update(jax.random.key(0), state, rollout_of(random_experience(0)), hypers)
    chex.assert_trees_all_equal(after.params, state.params)
    assert after.updates == 1


def test_a_rollout_of_another_number_of_environments_is_refused():
    agent, update = made(NUM_ENVS + 1)
    state, hypers = begun(agent, GENERIC, LOGITS, VALUES), cast_hypers(GENERIC)
    with pytest.raises(ValueError, match=r"a2c was made for 4 environments .* handed a rollout of 3"):
        update(jax.random.key(0), state, rollout_of(random_experience(0)), hypers)
