"""What the policy gradients do in expectation, all episodes being listed, against the derivative of the return."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.mdps import (
    action_values,
    begun,
    by_the_theorem,
    descending,
    episodes_of,
    expected_return,
    experience_of,
    gradient_of_return,
    moves_of,
    occupancy,
    policy_table,
    probability,
    random_mdp,
    softmax,
    value_table,
)
from agents.tables_by_the_book import spec_of

from purerl.agents import q_actor_critic, reinforce
from purerl.base import Rollout, Transition

STATES, ACTIONS = 4, 3
SEEDS = 0, 1, 2
SPEC = spec_of(1, STATES, ACTIONS)
POLICY = policy_table(STATES, ACTIONS)


def problem(seed):
    """An MDP, the logits of a policy, and values of no meaning."""
    rng = np.random.default_rng(100 + seed)
    return random_mdp(seed, STATES, ACTIONS), rng.normal(size=(STATES, ACTIONS)), rng.normal(size=STATES)


def assert_close(ours, exact, to=1e-5):
    np.testing.assert_allclose(ours, exact, rtol=0, atol=to * np.abs(exact).max())


def far_apart(one, other):
    """Whether two are a hundred times as far apart as those may be that count as close."""
    return np.abs(one - other).max() > 1e-3 * np.abs(other).max()


@functools.cache
def each_update(agent):
    """The agent's update of one state by each of many rollouts [B, T, N], compiled."""
    return jax.jit(jax.vmap(agent.update, in_axes=(None, None, 0, None)))


def gradients(agent, state, hypers, experiences):
    """What each rollout says is the gradient of what the agent maximises: [B, S, A], and [B, ...] by the critic."""
    leaves = {name: jnp.stack([one[name] for one in experiences]) for name in experiences[0]}
    rollouts = Rollout(steps=Transition(**leaves), memory=())
    return moves_of(each_update(agent)(jax.random.key(0), state, rollouts, hypers)[0])


def mean(weights, rows):
    return np.einsum("b,b...->...", weights, rows)


# --- the yardstick --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clock", [None, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_all_episodes_are_listed(seed, clock):
    mdp, logits, _ = problem(seed)
    episodes = episodes_of(mdp, clock)
    chances = [probability(mdp, logits, episode) for episode in episodes]
    returns = [sum(0.8**time * mdp.reward[step] for time, step in enumerate(episode)) for episode in episodes]
    assert sum(chances) == pytest.approx(1.0, rel=1e-12)
    with jax.enable_x64(True):
        assert np.dot(chances, returns) == pytest.approx(float(expected_return(mdp, logits, 0.8, clock)), rel=1e-12)
    assert {len(episode) for episode in episodes} == set(range(1, (clock or STATES) + 1))
    # A state is met at different times: what weighs times cannot be made up by what weighs states.
    times = {time for episode in episodes for time, step in enumerate(episode) if step[0] == STATES - 1}
    assert times == set(range(clock or STATES))


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_theorem_gives_the_derivative(seed, discount):
    mdp, logits, _ = problem(seed)
    value, q = action_values(mdp, logits, discount)
    with jax.enable_x64(True):
        assert mdp.start @ value == pytest.approx(float(expected_return(mdp, logits, discount)), rel=1e-12)
    exact = gradient_of_return(mdp, logits, discount)
    assert_close(by_the_theorem(occupancy(mdp, logits, discount), logits, q), exact, to=1e-12)


# --- REINFORCE ------------------------------------------------------------------------------------------------------


@functools.cache
def reinforce_of(baseline, discount_states):
    critic = value_table(STATES) if baseline else None
    return reinforce.reinforce(SPEC, POLICY, critic, window=1, discount_states=discount_states)


def reinforced(mdp, logits, discount, values=None, *, discount_states=True, clock=None):
    """The chances of all episodes, their lengths, and the gradients that REINFORCE takes from each."""
    agent, hypers = reinforce_of(values is not None, discount_states), descending(reinforce.Hypers, discount=discount)
    episodes = episodes_of(mdp, clock)
    # One step longer than the longest: each has steps of another episode after it, which must not count.
    experiences = [experience_of(mdp, episode, STATES + 1, clock) for episode in episodes]
    found = gradients(agent, begun(agent, hypers, logits, values), hypers, experiences)
    chances = np.array([probability(mdp, logits, episode) for episode in episodes])
    return chances, np.array([len(episode) for episode in episodes]), found


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("seed", SEEDS)
def test_reinforce_follows_the_gradient_of_the_return(seed, discount):
    mdp, logits, _ = problem(seed)
    chances, _, (actor,) = reinforced(mdp, logits, discount)
    assert_close(mean(chances, actor), gradient_of_return(mdp, logits, discount))


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("seed", SEEDS)
def test_any_baseline_leaves_the_expectation_as_it_is_though_no_single_update(seed, discount):
    mdp, logits, values = problem(seed)
    chances, _, (actor, _) = reinforced(mdp, logits, discount, values)
    assert_close(mean(chances, actor), gradient_of_return(mdp, logits, discount))
    _, _, (without,) = reinforced(mdp, logits, discount)
    assert (np.abs(actor - without).max(axis=(1, 2)) > 1e-3).all()


@pytest.mark.parametrize("baseline", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_without_the_discount_of_states_it_follows_something_else(seed, baseline):
    """It is the theorem's sum with states weighed as if nothing were discounted, and values that are (Thomas 2014)."""
    mdp, logits, values = problem(seed)
    values = values if baseline else None
    chances, _, (actor, *_) = reinforced(mdp, logits, 0.8, values, discount_states=False)
    assert far_apart(mean(chances, actor), gradient_of_return(mdp, logits, 0.8))
    _, q = action_values(mdp, logits, 0.8)
    assert_close(mean(chances, actor), by_the_theorem(occupancy(mdp, logits, 1.0), logits, q))
    chances, _, (actor, *_) = reinforced(mdp, logits, 1.0, values, discount_states=False)
    assert_close(mean(chances, actor), gradient_of_return(mdp, logits, 1.0))


@pytest.mark.parametrize("seed", SEEDS)
def test_cut_by_a_clock_it_follows_without_a_critic_the_gradient_of_what_was_seen(seed):
    mdp, logits, _ = problem(seed)
    chances, _, (actor,) = reinforced(mdp, logits, 0.8, clock=2)
    exact = gradient_of_return(mdp, logits, 0.8, clock=2)
    assert_close(mean(chances, actor), exact)
    assert far_apart(exact, gradient_of_return(mdp, logits, 0.8))


@pytest.mark.parametrize("seed", SEEDS)
def test_cut_by_a_clock_it_knows_from_an_exact_critic_what_would_have_followed(seed):
    mdp, logits, _ = problem(seed)
    value, q = action_values(mdp, logits, 0.8)
    chances, _, (actor, _) = reinforced(mdp, logits, 0.8, value, clock=2)
    exact = by_the_theorem(occupancy(mdp, logits, 0.8, clock=2), logits, q)
    assert_close(mean(chances, actor), exact)
    assert far_apart(exact, gradient_of_return(mdp, logits, 0.8, clock=2))


@pytest.mark.parametrize("clock", [None, 2])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_exact_baseline_stands_still_in_expectation(seed, clock):
    # Its loss is a mean over steps: times their number, it is a sum over the episode, which the theorem speaks of.
    mdp, logits, _ = problem(seed)
    value, _ = action_values(mdp, logits, 0.8)
    chances, lengths, (_, critic) = reinforced(mdp, logits, 0.8, value, clock=clock)
    sums = lengths[:, None] * critic
    assert np.abs(mean(chances, np.abs(sums))).min() > 0.01
    np.testing.assert_allclose(mean(chances, sums), 0.0, atol=1e-6)


# --- QAC ------------------------------------------------------------------------------------------------------------


QAC = q_actor_critic.q_actor_critic(SPEC, POLICY, value_table(STATES, ACTIONS))


def taught(mdp, logits, discount, values, experiences):
    hypers = descending(q_actor_critic.Hypers, discount=discount, critic_speed=1.0)
    return gradients(QAC, begun(QAC, hypers, logits, values), hypers, experiences)


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("seed", SEEDS)
def test_an_actor_taught_by_exact_values_follows_the_gradient_of_the_return(seed, discount):
    mdp, logits, _ = problem(seed)
    _, q = action_values(mdp, logits, discount)
    pairs = list(np.ndindex(STATES, ACTIONS))
    # What one transition teaches the actor does not depend on where it led: here to the end, so that nothing waits.
    actor, _ = taught(mdp, logits, discount, q, [experience_of(mdp, [(*pair, STATES)], 1) for pair in pairs])
    weight = occupancy(mdp, logits, discount)
    chances = (weight / weight.sum())[:, None] * softmax(logits)
    exact = gradient_of_return(mdp, logits, discount)
    assert_close(weight.sum() * mean(chances.ravel(), actor), exact)


def sums_over_episodes(mdp, logits, discount, values):
    """The expected sums of what QAC takes from the transitions of an episode, by actor and critic."""
    total = [0.0, 0.0]
    for length in range(1, STATES + 1):
        episodes = [episode for episode in episodes_of(mdp) if len(episode) == length]
        chances = length * np.array([probability(mdp, logits, episode) for episode in episodes])
        found = taught(mdp, logits, discount, values, [experience_of(mdp, episode, length) for episode in episodes])
        total = [one + mean(chances, rows) for one, rows in zip(total, found, strict=True)]
    return total


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize("seed", SEEDS)
def test_over_episodes_exact_values_teach_by_states_that_are_not_discounted_and_stay(seed, discount):
    mdp, logits, _ = problem(seed)
    _, q = action_values(mdp, logits, discount)
    actor, critic = sums_over_episodes(mdp, logits, discount, q)
    assert_close(actor, by_the_theorem(occupancy(mdp, logits, 1.0), logits, q))
    assert far_apart(actor, gradient_of_return(mdp, logits, discount)) == (discount < 1)
    np.testing.assert_allclose(critic, 0.0, atol=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_other_values_teach_something_else_unless_only_a_baseline_sets_them_apart(seed):
    mdp, logits, values = problem(seed)
    _, q = action_values(mdp, logits, 1.0)
    wrong = q + values[:, None]  # as a baseline would, what is added to all actions leaves the actor's expectation
    actor, critic = sums_over_episodes(mdp, logits, 1.0, wrong)
    assert_close(actor, gradient_of_return(mdp, logits, 1.0))
    assert np.abs(critic).min() > 1e-4
    wrong = q + np.eye(STATES, ACTIONS)
    actor, _ = sums_over_episodes(mdp, logits, 1.0, wrong)
    assert far_apart(actor, gradient_of_return(mdp, logits, 1.0))
