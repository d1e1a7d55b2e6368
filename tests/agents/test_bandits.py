"""The agents for bandits against loops over contextual experience, closed forms and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.feeding import fed, means, rows
from agents.tables_by_the_book import record, rollout_of, spec_of

from purerl import exploration
from purerl.agents import action_value_bandit, gradient_bandit, thompson_sampling
from purerl.base import Box, cast_hypers

CONTEXTS, ARMS, NUM_ENVS, LENGTH = 3, 4, 3, 40
CHUNKS = 1, 5, LENGTH
SEEDS = 0, 1
AGENTS = {
    "action_value_bandit": (action_value_bandit.action_value_bandit, action_value_bandit.Hypers),
    "gradient_bandit": (gradient_bandit.gradient_bandit, gradient_bandit.Hypers),
    "thompson_sampling": (thompson_sampling.thompson_sampling, thompson_sampling.Hypers),
}


@functools.cache
def made(name):
    """An agent and its compiled update, made once."""
    agent = AGENTS[name][0](spec_of(NUM_ENVS, CONTEXTS, ARMS))
    return agent, jax.jit(agent.update)


def experience_of(seed):
    return record(LENGTH, NUM_ENVS, seed, (CONTEXTS, ARMS))


def learned(name, experience, chunk, **numbers):
    """The state and the error of each update."""
    agent, update = made(name)
    hypers = cast_hypers(AGENTS[name][1](**numbers))
    state, metrics = fed(update, agent.init(jax.random.key(0), hypers), experience, hypers, chunk)
    return state, [row["error"] for row in metrics]


def rewards_of(experience):
    """The rewards of each pair of context and arm."""
    found = {pair: [] for pair in np.ndindex(CONTEXTS, ARMS)}
    for step in rows(experience):
        found[step.observation, step.action].append(step.reward)
    return found


def shares(name, state, context, *, greedy=False, count=20_000, **numbers):
    """How often each arm is chosen in a context."""
    agent, _ = made(name)
    hypers = cast_hypers(AGENTS[name][1](**numbers))
    observation = jnp.full(count, context, jnp.int32)
    action, memory = agent.act(jax.random.key(1), state, (), observation, hypers, greedy=greedy)
    assert (action.shape, action.dtype, memory) == ((count,), jnp.int32, ())
    return np.bincount(action, minlength=ARMS) / count


def assert_shares(found, expected, count=20_000):
    """Within four standard errors of what is expected exactly."""
    expected = np.asarray(expected, float)
    assert (np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / count) + 1e-6).all(), found


def softmax(preferences):
    weights = np.exp(preferences - np.max(preferences))
    return weights / weights.sum()


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_what_follows_and_how_an_episode_ends_does_not_matter(name):
    experience = experience_of(0)
    state, errors = learned(name, experience, 5)
    other = {
        "terminated": ~experience["terminated"],
        "truncated": ~experience["truncated"],
        "next_observation": (experience["next_observation"] + 1) % CONTEXTS,
    }
    again, same_errors = learned(name, experience | other, 5)
    jax.tree.map(np.testing.assert_array_equal, state, again)
    assert errors == same_errors


@pytest.mark.parametrize("name", AGENTS)
def test_other_spaces_are_refused(name):
    spec, box = spec_of(1, CONTEXTS, ARMS), Box((2,), np.dtype(np.float32), 0.0, 1.0)
    with pytest.raises(ValueError, match=f"^{name} needs a discrete observation space"):
        AGENTS[name][0](spec._replace(observation=box))
    with pytest.raises(ValueError, match=f"^{name} needs a discrete action space"):
        AGENTS[name][0](spec._replace(action=box))


# --- action values --------------------------------------------------------------------------------------------------


def test_as_they_stand_action_values_are_sample_averages():
    for seed in SEEDS:
        experience = experience_of(seed)
        rewards = rewards_of(experience)
        assert min(map(len, rewards.values())) > 1
        for chunk in CHUNKS:
            state, _ = learned("action_value_bandit", experience, chunk, initial_value=7.0)
            for pair, found in rewards.items():
                assert float(state.counts[pair]) == len(found)
                assert float(state.values[pair]) == pytest.approx(np.mean(found), abs=1e-6)


@pytest.mark.parametrize(("learning_rate", "decay"), [(0.3, 0.0), (0.9, 0.6), (1.0, 1.0)])
def test_action_values_are_those_of_a_loop(learning_rate, decay):
    numbers = {"learning_rate": learning_rate, "learning_rate_decay": decay, "initial_value": 2.0}
    for seed in SEEDS:
        experience = experience_of(seed)
        values, counts = np.full((CONTEXTS, ARMS), 2.0), np.zeros((CONTEXTS, ARMS))
        expected = np.zeros((LENGTH, NUM_ENVS))
        for step in rows(experience):
            cell = step.observation, step.action
            counts[cell] += 1
            error = step.reward - values[cell]
            values[cell] += learning_rate / counts[cell] ** decay * error
            expected[step.time, step.environment] = abs(error)
        for chunk in CHUNKS:
            state, errors = learned("action_value_bandit", experience, chunk, **numbers)
            np.testing.assert_allclose(state.values, values, atol=1e-5)
            np.testing.assert_array_equal(state.counts, counts)
            np.testing.assert_allclose(errors, means(expected, chunk), atol=1e-5)


def test_a_constant_rate_weighs_rewards_by_how_recent_they_are():
    """S&B equation 2.6: Q = (1 - alpha)^n Q_1 + sum_i alpha (1 - alpha)^(n - i) R_i."""
    experience = experience_of(0)
    state, _ = learned("action_value_bandit", experience, 5, learning_rate=0.2, learning_rate_decay=0, initial_value=3)
    for pair, found in rewards_of(experience).items():
        weights = 0.2 * 0.8 ** np.arange(len(found))[::-1]
        assert float(state.values[pair]) == pytest.approx(0.8 ** len(found) * 3 + weights @ found, abs=1e-5)


def test_action_values_are_acted_on_epsilon_greedily():
    state, _ = learned("action_value_bandit", experience_of(0), 5)
    for context in range(CONTEXTS):
        best = np.eye(ARMS)[int(jnp.argmax(state.values[context]))]
        assert_shares(shares("action_value_bandit", state, context, exploration=0.4), 0.6 * best + 0.4 / ARMS)
        assert_shares(shares("action_value_bandit", state, context, exploration=0.4, greedy=True), best)


def test_with_ucb_every_arm_is_tried_before_one_is_tried_again():
    agent = action_value_bandit.action_value_bandit(spec_of(1, 1, ARMS), explore=exploration.ucb)
    hypers = cast_hypers(action_value_bandit.Hypers(exploration=2.0))
    state, tried, update = agent.init(jax.random.key(0), hypers), [], jax.jit(agent.update)
    step = {name: leaf[:1, :1] * 0 for name, leaf in experience_of(0).items()}
    for time in range(ARMS):
        action, _ = agent.act(jax.random.key(time), state, (), jnp.zeros(1, jnp.int32), hypers)
        tried.append(int(action[0]))
        reward = np.float32([[100.0 if time == 0 else 0.0]])
        rollout = rollout_of(step | {"action": np.asarray(action)[None], "reward": reward})
        state, _ = update(jax.random.key(0), agent.observe(state, rollout, hypers), rollout, hypers)
    assert sorted(tried) == list(range(ARMS))
    action, _ = agent.act(jax.random.key(9), state, (), jnp.zeros(1, jnp.int32), hypers)
    assert int(action[0]) == tried[0]


# --- the gradient bandit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("baseline", [1.0, 0.0, 0.4])
def test_preferences_are_those_of_a_loop(baseline):
    """S&B equation 2.12, the average being of the rewards before, and for the first that reward."""
    for seed in SEEDS:
        experience = experience_of(seed)
        preferences, before = np.zeros((CONTEXTS, ARMS)), [[] for _ in range(CONTEXTS)]
        expected = np.zeros((LENGTH, NUM_ENVS))
        for step in rows(experience):
            context, rewards = step.observation, before[step.observation]
            policy = softmax(preferences[context])
            error = step.reward - baseline * (np.mean(rewards) if rewards else step.reward)
            for arm in range(ARMS):
                if arm == step.action:
                    preferences[context, arm] += 0.3 * error * (1 - policy[arm])
                else:
                    preferences[context, arm] -= 0.3 * error * policy[arm]
            rewards.append(step.reward)
            expected[step.time, step.environment] = abs(error)
        for chunk in CHUNKS:
            state, errors = learned("gradient_bandit", experience, chunk, learning_rate=0.3, baseline=baseline)
            np.testing.assert_allclose(state.preferences, preferences, atol=1e-5)
            np.testing.assert_allclose(state.average, [np.mean(rewards) for rewards in before], atol=1e-6)
            np.testing.assert_array_equal(state.count, [len(rewards) for rewards in before])
            np.testing.assert_allclose(errors, means(expected, chunk), atol=1e-5)


@pytest.mark.parametrize("baseline", [1.0, 0.0, -3.0])
def test_the_expected_step_is_along_the_gradient_of_the_expected_reward_whatever_the_baseline(baseline):
    state, _ = learned("gradient_bandit", experience_of(0), 5, learning_rate=0.5)
    worth, context, rate = np.float32([1.0, -2.0, 0.5, 3.0]), 1, 0.2
    before = state.preferences[context]
    assert float(jnp.abs(before).max()) > 0.1
    assert float(jnp.abs(state.average[context])) > 0.01
    agent = gradient_bandit.gradient_bandit(spec_of(1, CONTEXTS, ARMS))
    hypers = cast_hypers(gradient_bandit.Hypers(learning_rate=rate, baseline=baseline))
    one = rollout_of({name: leaf[:1, :1] for name, leaf in experience_of(0).items()})

    @jax.vmap
    def step(arm, reward):
        steps = {"observation": context, "action": arm, "reward": reward}
        steps = {name: jnp.asarray(leaf, one.steps.__dict__[name].dtype)[None, None] for name, leaf in steps.items()}
        rollout = type(one)(steps=type(one.steps)(**one.steps.__dict__ | steps), memory=())
        return agent.update(jax.random.key(0), state, rollout, hypers)[0].preferences - state.preferences

    taken = jax.nn.softmax(before) @ step(jnp.arange(ARMS), jnp.asarray(worth))[:, context]
    gradient = jax.grad(lambda preferences: jax.nn.softmax(preferences) @ worth)(before)
    np.testing.assert_allclose(taken, rate * gradient, atol=1e-6)


def test_the_gradient_bandit_acts_by_the_softmax_of_preferences_or_greedily():
    state, _ = learned("gradient_bandit", experience_of(0), 5, learning_rate=0.5)
    for context in range(CONTEXTS):
        preferences = np.asarray(state.preferences[context], float)
        assert_shares(shares("gradient_bandit", state, context), softmax(preferences))
        best = np.eye(ARMS)[preferences.argmax()]
        assert_shares(shares("gradient_bandit", state, context, greedy=True), best)


# --- Thompson sampling ----------------------------------------------------------------------------------------------

BELIEF = {"prior_mean": 0.7, "prior_deviation": 1.5, "reward_deviation": 0.6}


def posterior(rewards, prior_mean, prior_deviation, reward_deviation):
    """(mean, precision) of a normal mean with a normal prior, given all rewards at once."""
    precision = prior_deviation**-2 + len(rewards) * reward_deviation**-2
    return (prior_mean * prior_deviation**-2 + sum(rewards) * reward_deviation**-2) / precision, precision


@pytest.mark.parametrize("numbers", [{}, BELIEF, BELIEF | {"prior_deviation": 20.0, "reward_deviation": 3.0}])
def test_the_belief_is_bayes_given_all_rewards_at_once(numbers):
    full = {"prior_mean": 0.0, "prior_deviation": 1.0, "reward_deviation": 1.0} | numbers
    for seed in SEEDS:
        experience = experience_of(seed)
        for chunk in CHUNKS:
            state, _ = learned("thompson_sampling", experience, chunk, **numbers)
            for pair, rewards in rewards_of(experience).items():
                mean, precision = posterior(rewards, **full)
                assert float(state.mean[pair]) == pytest.approx(mean, abs=1e-5)
                assert float(state.precision[pair]) == pytest.approx(precision, rel=1e-5)


def test_the_error_is_of_rewards_from_what_was_believed_before():
    experience, seen = experience_of(0), {pair: [] for pair in np.ndindex(CONTEXTS, ARMS)}
    expected = np.zeros((LENGTH, NUM_ENVS))
    for step in rows(experience):
        rewards = seen[step.observation, step.action]
        expected[step.time, step.environment] = abs(step.reward - posterior(rewards, **BELIEF)[0])
        rewards.append(step.reward)
    for chunk in CHUNKS:
        _, errors = learned("thompson_sampling", experience, chunk, **BELIEF)
        np.testing.assert_allclose(errors, means(expected, chunk), atol=1e-5)


def test_thompson_sampling_takes_an_arm_as_often_as_its_draw_is_the_largest():
    """Some arms known well and others hardly: by 200 000 draws of NumPy."""
    mean = jnp.array([[0.0, 0.3, -0.2, 0.1], [1.0, 0.0, 0.0, 0.9], [0.5, 0.5, 0.5, 0.4]])
    precision = jnp.array([[1.0, 25.0, 0.25, 4.0], [400.0, 0.5, 2.0, 9.0], [1.0, 4.0, 100.0, 1e4]])
    state = thompson_sampling.State(mean=mean, precision=precision)
    rng, draws = np.random.default_rng(0), 200_000
    for context in range(CONTEXTS):
        deviation = np.asarray(precision[context], float) ** -0.5
        drawn = rng.normal(np.asarray(mean[context], float), deviation, size=(draws, ARMS)).argmax(axis=-1)
        expected = np.bincount(drawn, minlength=ARMS) / draws
        found = shares("thompson_sampling", state, context)
        error = np.sqrt(expected * (1 - expected) * (1 / draws + 1 / 20_000))
        assert (np.abs(found - expected) <= 4 * error + 1e-6).all(), (found, expected)
        best = np.eye(ARMS)[int(jnp.argmax(mean[context]))]
        if context != 2:
            assert_shares(shares("thompson_sampling", state, context, greedy=True), best)
    assert_shares(shares("thompson_sampling", state, 2, greedy=True), [1 / 3, 1 / 3, 1 / 3, 0])


def test_every_environment_draws_for_itself():
    state = thompson_sampling.State(mean=jnp.zeros((CONTEXTS, ARMS)), precision=jnp.ones((CONTEXTS, ARMS)))
    assert_shares(shares("thompson_sampling", state, 0), np.full(ARMS, 1 / ARMS))
