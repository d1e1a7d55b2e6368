"""n-step TD and TD(lambda) against loops after the book, by hand, and against planning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.feeding import fed, means, rows
from agents.tables_by_the_book import joined, path, record, rollout_of
from agents.test_tables_converge import random_mdp

from purerl import envs, features, loop, planning, prediction
from purerl.agents import n_step_td, td_lambda
from purerl.base import Box, Discrete, Spec, cast_hypers

STATES, ACTIONS, NUM_ENVS, LENGTH = 5, 2, 3, 20
CHUNKS = 1, 5, LENGTH
SEEDS = 0, 1
NUMBERS = {"learning_rate": 0.4, "discount": 0.9, "initial_value": 0.5}
# What tile coding sees of each state: some share tiles, one lies beyond the bounds.
POINTS = np.array([[0.1, 0.1], [0.2, 0.15], [0.7, 0.3], [0.62, 0.95], [1.5, -0.5]], np.float32)
KINDS = ["table", "tiles"]


@functools.cache
def spec_and_features(kind):
    if kind == "table":
        spec = Spec(observation=Discrete(STATES), action=Discrete(ACTIONS), num_envs=NUM_ENVS)
        return spec, features.table(spec)
    space = Box((2,), np.dtype(np.float32), 0.0, 1.0)
    spec = Spec(observation=space, action=Discrete(ACTIONS), num_envs=NUM_ENVS)
    return spec, features.tile_coding(spec, 2, 4)


@functools.cache
def made(kind, n=None):
    """n-step TD, or without n TD(lambda), and its compiled update, made once."""
    spec, active = spec_and_features(kind)
    policy = prediction.uniform(spec)
    agent = td_lambda.td_lambda(spec, active, policy) if n is None else n_step_td.n_step_td(spec, active, policy, n=n)
    return agent, jax.jit(agent.update)


@functools.cache
def vectors(kind):
    """The features [S, D] of each state, zeros and ones."""
    _, active = spec_and_features(kind)
    observations = np.arange(STATES) if kind == "table" else POINTS
    dense = np.zeros((STATES, active.size))
    np.put_along_axis(dense, np.asarray(active.active(jnp.asarray(observations))), 1.0, axis=-1)
    assert (dense.sum(axis=-1) == active.count).all()
    return dense


def experience_of(seed):
    return record(LENGTH, NUM_ENVS, seed, (STATES, ACTIONS))


def shown(experience, kind):
    """The experience as the agent sees it, that shown to the loops having the numbers of states."""
    if kind == "table":
        return experience
    seen = {name: POINTS[experience[name]] for name in ("observation", "next_observation")}
    return experience | seen


def learned(kind, n, experience, chunk, **numbers):
    """(weights, errors of the updates) of n-step TD, or of TD(lambda) without n."""
    agent, update = made(kind, n)
    hypers = cast_hypers((td_lambda.Hypers if n is None else n_step_td.Hypers)(**numbers))
    state, metrics = fed(update, agent.init(jax.random.key(0), hypers), shown(experience, kind), hypers, chunk)
    return np.asarray(state.weights), [row["td_error"] for row in metrics]


# --- the loops ------------------------------------------------------------------------------------------------------


def n_step_by_the_book(x, experience, n, learning_rate, discount, initial_value):
    """S&B 7.1 with time t and the time tau that is updated; R[i] is what came i steps after the episode's start.

    x [S, D] are the states' features. Returns the weights and the errors [T, N].
    """
    weights = np.full(x.shape[1], initial_value / x[0].sum())
    errors = np.zeros(experience["reward"].shape)
    episodes = [([], [None]) for _ in range(NUM_ENVS)]
    for step in rows(experience):
        visited, reward = episodes[step.environment]
        visited.append(step.observation)
        reward.append(step.reward)
        end = len(visited)  # T if the episode ended
        after = 0.0 if step.terminated else x[step.next_observation] @ weights
        for tau in range(max(end - n, 0), end) if step.ended else range(end - n, end - n + 1):
            if tau < 0:
                continue
            horizon = min(tau + n, end)
            target = sum(discount ** (i - tau - 1) * reward[i] for i in range(tau + 1, horizon + 1))
            target += discount ** (horizon - tau) * after
            here = x[visited[tau]]
            error = target - here @ weights
            weights = weights + learning_rate * error * here / here.sum()
            errors[step.time, step.environment] += abs(error)
        if step.ended:
            episodes[step.environment] = [], [None]
    return weights, errors


def lambda_by_the_book(x, experience, learning_rate, discount, initial_value, trace_decay):
    """S&B 12.2 without z: the eligibility of each step of an episode is (gamma lambda)^(steps since) its features."""
    weights = np.full(x.shape[1], initial_value / x[0].sum())
    errors = np.zeros(experience["reward"].shape)
    episodes = [[] for _ in range(NUM_ENVS)]
    for step in rows(experience):
        visited = episodes[step.environment]
        visited.append(step.observation)
        after = 0.0 if step.terminated else x[step.next_observation] @ weights
        error = step.reward + discount * after - x[step.observation] @ weights
        for steps_since, state in enumerate(reversed(visited)):
            eligible = (discount * trace_decay) ** steps_since * x[state]
            weights = weights + learning_rate * error * eligible / x[state].sum()
        errors[step.time, step.environment] = abs(error)
        if step.ended:
            visited.clear()
    return weights, errors


def test_the_experience_holds_all_that_can_happen():
    experiences = [experience_of(seed) for seed in SEEDS]
    ends = {pair for one in experiences for pair in zip(one["terminated"].flat, one["truncated"].flat, strict=True)}
    assert len(ends) == 4
    longest, length = 0, np.zeros(NUM_ENVS)
    for one in experiences:
        length[:] = 0
        for ended in one["terminated"] | one["truncated"]:
            length += 1
            longest = max(longest, length.max())
            length[ended] = 0
    assert longest > 6, "no episode is longer than the largest n"
    shared = vectors("tiles") @ vectors("tiles").T
    assert 0 in shared
    assert ((shared > 0) & (shared < 4)).any(), "no two states share a part of their tiles"


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_n_step_td_is_the_book_s_however_the_experience_is_cut(kind, n):
    for seed in SEEDS:
        experience, found = experience_of(seed), []
        expected, expected_errors = n_step_by_the_book(vectors(kind), experience, n, **NUMBERS)
        for chunk in CHUNKS if kind == "table" else CHUNKS[1:2]:
            weights, errors = learned(kind, n, experience, chunk, **NUMBERS)
            np.testing.assert_allclose(weights, expected, atol=1e-5)
            np.testing.assert_allclose(errors, means(expected_errors, chunk), atol=1e-5)
            found.append(weights)
        for weights in found[1:]:
            np.testing.assert_array_equal(weights, found[0])


@pytest.mark.parametrize("trace_decay", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_td_lambda_is_the_book_s_however_the_experience_is_cut(kind, trace_decay):
    numbers = NUMBERS | {"trace_decay": trace_decay}
    for seed in SEEDS:
        experience, found = experience_of(seed), []
        expected, expected_errors = lambda_by_the_book(vectors(kind), experience, **numbers)
        for chunk in CHUNKS:
            weights, errors = learned(kind, None, experience, chunk, **numbers)
            np.testing.assert_allclose(weights, expected, atol=2e-5)
            np.testing.assert_allclose(errors, means(expected_errors, chunk), atol=2e-5)
            found.append(weights)
        for weights in found[1:]:
            np.testing.assert_array_equal(weights, found[0])


# --- what they have in common ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_td_is_td_lambda_without_traces(kind):
    for seed in SEEDS:
        experience = experience_of(seed)
        one, errors = learned(kind, 1, experience, 5, **NUMBERS)
        other, other_errors = learned(kind, None, experience, 5, trace_decay=0.0, **NUMBERS)
        np.testing.assert_allclose(one, other, atol=1e-6)
        np.testing.assert_allclose(errors, other_errors, atol=1e-6)


def test_with_n_as_long_as_episodes_it_is_every_visit_monte_carlo_at_a_constant_rate():
    """Episodes of at most 5 steps: V(s_t) <- V(s_t) + alpha [G_t - V(s_t)] once they ended, in the order of time."""
    for seed in SEEDS:
        experience = experience_of(seed)
        experience["terminated"][4::5] |= ~experience["truncated"][4::5]
        value, episodes = np.full(STATES, 0.5), [[] for _ in range(NUM_ENVS)]
        for step in rows(experience):
            episode = episodes[step.environment]
            episode.append((step.observation, step.reward))
            if not step.ended:
                continue
            following, targets = 0.0 if step.terminated else value[step.next_observation], []
            for _, reward in reversed(episode):
                following = reward + 0.9 * following
                targets.insert(0, following)
            for (state, _), target in zip(episode, targets, strict=True):
                value[state] += 0.4 * (target - value[state])
            episode.clear()
        assert not any(episodes)
        np.testing.assert_allclose(learned("table", 5, experience, 5, **NUMBERS)[0], value, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "first", "second"),
    [
        (1, [0, 0, 0.5], [0, 0.25, 0.75]),
        (2, [0, 0.5, 0.5], [0.25, 0.75, 0.75]),
        (3, [0.5, 0.5, 0.5], [0.75, 0.75, 0.75]),
        (None, [0.125, 0.25, 0.5], [0.3125, 0.5, 0.75]),
    ],
)
def test_two_walks_to_a_reward_are_worth_what_is_worked_out_by_hand(n, first, second):
    """0 -> 1 -> 2 -> end with reward 1 at the end, twice; alpha a half, no discount, lambda a half."""
    spec = Spec(observation=Discrete(3), action=Discrete(1), num_envs=1)
    table, policy = features.table(spec), prediction.uniform(spec)
    walk = path((0, 0, 0), (1, 0, 0), (2, 0, 1), 0, terminated=True)
    numbers = {"learning_rate": 0.5, "discount": 1.0}
    if n is None:
        agent, hypers = td_lambda.td_lambda(spec, table, policy), td_lambda.Hypers(trace_decay=0.5, **numbers)
    else:
        agent, hypers = n_step_td.n_step_td(spec, table, policy, n=n), n_step_td.Hypers(**numbers)
    hypers, update = cast_hypers(hypers), jax.jit(agent.update)
    state, _ = fed(update, agent.init(jax.random.key(0), hypers), walk, hypers, 3)
    np.testing.assert_array_equal(state.weights, first)
    state, _ = fed(update, state, walk, hypers, 3)
    np.testing.assert_array_equal(state.weights, second)


@pytest.mark.parametrize("n", [3, None])
@pytest.mark.parametrize(
    ("terminated", "truncated", "bootstraps"), [(True, False, False), (False, True, True), (True, True, False)]
)
def test_what_follows_counts_where_the_clock_ended_it_alone_and_nothing_goes_on_into_the_next_episode(
    n, terminated, truncated, bootstraps
):
    ending = path((0, 0, 1), 1, terminated=terminated, truncated=truncated)
    experience = joined(*[joined(ending, path((2, 0, 8), 3, terminated=True))] * NUM_ENVS, axis=1)
    alone = {name: leaf.copy() for name, leaf in experience.items()}
    # The others go through states of their own, without error.
    for environment in (1, 2):
        for name in ("observation", "next_observation"):
            alone[name][:, environment] = 4
        alone["reward"][:, environment] = 0.5
        alone["terminated"][:, environment] = True
    weights, _ = learned("table", n, alone, 1, **NUMBERS)
    target = 1 + (0.9 * 0.5 if bootstraps else 0)
    np.testing.assert_allclose(weights, [0.5 + 0.4 * (target - 0.5), 0.5, 0.5 + 0.4 * 7.5, 0.5, 0.5], rtol=1e-6)


# --- planning -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, None])
def test_it_comes_to_the_value_of_the_policy_that_planning_computes(n):
    states, actions, discount, seeds = 6, 3, 0.8, (0, 1)
    starts = jnp.where(jnp.arange(states) < states - 1, 1 / (states - 1), 0.0)
    mdps = [random_mdp(seed) for seed in seeds]
    policy = jnp.asarray(np.random.default_rng(7).dirichlet(np.ones(actions), size=states), jnp.float32)
    env = envs.make(envs.tabular_mdp(*mdps[0], starts, max_steps=20), 8)
    table, follows = features.table(env.spec), prediction.of_table(policy)
    if n is None:
        agent, make_hypers = td_lambda.td_lambda(env.spec, table, follows), td_lambda.Hypers
    else:
        agent, make_hypers = n_step_td.n_step_td(env.spec, table, follows, n=n), n_step_td.Hypers

    @jax.jit
    def learn(run, hypers, params):
        return loop.advance(run, agent, env, hypers, iterations=2_000, length=8, env_params=params)[0]

    for mdp in mdps:
        params = jax.tree.map(jnp.asarray, envs.tabular_mdp(*mdp, starts, max_steps=20).default_params)
        run = loop.begin(jax.random.key(1), agent, env, cast_hypers(make_hypers()), env_params=params)
        for rate in (0.1, 0.01, 0.003, 0.001, 0.0003):
            run = learn(run, cast_hypers(make_hypers(learning_rate=rate, discount=discount)), params)
        value = np.asarray(run.agent.weights)[:-1]
        solved = planning.solve_policy(policy, *mdp, discount).value[:-1]
        np.testing.assert_allclose(solved, planning.evaluate_policy(policy, *mdp, discount).value[:-1], atol=1e-5)
        np.testing.assert_allclose(value, solved, atol=0.1)
        # Close enough to tell one policy from another.
        other = planning.solve_policy(jnp.full((states, actions), 1 / actions), *mdp, discount).value[:-1]
        assert np.abs(value - other).max() > 0.5


# --- policies and values --------------------------------------------------------------------------------------------


def test_the_agent_follows_its_policy_whatever_it_learned_greedy_or_not():
    policy = jnp.array([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.9, 0.1]])
    spec, table = spec_and_features("table")
    agents = [
        td_lambda.td_lambda(spec, table, prediction.of_table(policy)),
        n_step_td.n_step_td(spec, table, prediction.of_table(policy), n=2),
    ]
    observation = jnp.tile(jnp.arange(STATES), 4_000)
    for agent, greedy in zip(agents, (False, True), strict=True):
        state = agent.init(jax.random.key(0), cast_hypers(td_lambda.Hypers(initial_value=9.0)))
        action, memory = agent.act(jax.random.key(1), state, (), observation, td_lambda.Hypers(), greedy=greedy)
        assert memory == ()
        share = np.asarray(action).reshape(-1, STATES).mean(axis=0)
        assert (np.abs(share - policy[:, 1]) <= 4 * np.sqrt(np.prod(policy, axis=-1) / 4_000)).all()


def test_the_uniform_policy_takes_all_actions_alike_and_needs_discrete_ones():
    spec = Spec(observation=Box((2,), np.dtype(np.float32), 0.0, 1.0), action=Discrete(4), num_envs=1)
    action = prediction.uniform(spec)(jax.random.key(0), jnp.zeros((10_000, 2)))
    assert action.dtype == jnp.int32
    share = np.bincount(action, minlength=4) / 10_000
    assert np.abs(share - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 10_000)
    box = Box((1,), np.dtype(np.float32), -1.0, 1.0)
    with pytest.raises(ValueError, match="the uniform policy needs a discrete action space"):
        prediction.uniform(spec._replace(action=box))


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_starts_as_the_initial_one_and_a_full_step_moves_it_onto_its_target(kind):
    (_, active), move = spec_and_features(kind), jax.jit(prediction.move)
    observation = jnp.arange(STATES) if kind == "table" else jnp.asarray(POINTS)
    weights = prediction.start(active, td_lambda.Hypers(initial_value=3.0))
    np.testing.assert_allclose(jax.jit(prediction.value)(weights, active.active(observation)), 3.0, rtol=1e-6)
    here = active.active(observation[2])
    moved, error = move(weights, here, jnp.float32(5.0), jnp.float32(1.0), where=jnp.bool_(True))
    assert float(error) == pytest.approx(2.0)
    assert float(prediction.value(moved, here)) == pytest.approx(5.0)
    same, error = move(weights, here, jnp.float32(np.nan), jnp.float32(1.0), where=jnp.bool_(False))
    assert error == 0
    np.testing.assert_array_equal(same, weights)


def test_bad_arguments_are_named():
    spec, table = spec_and_features("table")
    with pytest.raises(ValueError, match=r"^n is 0; it takes a whole number of at least 1$"):
        n_step_td.n_step_td(spec, table, prediction.uniform(spec), n=0)
    fewer = record(4, NUM_ENVS - 1, 0, (STATES, ACTIONS))
    for name, n in (("n_step_td", 2), ("td_lambda", None)):
        agent, _ = made("table", n)
        hypers = cast_hypers(td_lambda.Hypers())
        state = agent.init(jax.random.key(0), hypers)
        sentence = rf"^{name} was made for 3 environments \(spec.num_envs\) and is handed a rollout of 2$"
        with pytest.raises(ValueError, match=sentence):
            agent.update(jax.random.key(0), state, rollout_of(fewer), hypers)
