"""Prioritized sweeping against a heap after the book's pseudo-code, by hand, and against planning."""

import dataclasses
import functools
import heapq

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.feeding import everything_once, fed, means, rows
from agents.tables_by_the_book import joined, path, record, rollout_of, spec_of

from purerl import envs, planning
from purerl.agents import dyna_q, prioritized_sweeping
from purerl.base import Box, Discrete, Spec, cast_hypers

STATES, ACTIONS, NUM_ENVS, LENGTH = 5, 3, 2, 30
CHUNKS = 1, 5, LENGTH
SEEDS = 3, 4, 7  # in which no two priorities are closer than rounding could tell
NUMBERS = {"learning_rate": 0.6, "discount": 0.9, "initial_value": 0.3}
HYPERS = prioritized_sweeping.Hypers


@functools.cache
def made(planning_steps, num_envs=NUM_ENVS, states=STATES, actions=ACTIONS):
    """An agent and its compiled update, made once."""
    agent = prioritized_sweeping.prioritized_sweeping(spec_of(num_envs, states, actions), planning_steps=planning_steps)
    return agent, jax.jit(agent.update)


def stochastic(seed):
    return record(LENGTH, NUM_ENVS, seed, (STATES, ACTIONS))


def deterministic(seed):
    """Experience in which every pair always has the same reward, successor and end."""
    experience, rng = stochastic(seed), np.random.default_rng(100 + seed)
    pair = experience["observation"], experience["action"]
    table = STATES, ACTIONS
    terminated = rng.random(table) < 0.2
    fixed = {
        "reward": rng.normal(size=table).astype(np.float32),
        "next_observation": rng.integers(STATES, size=table, dtype=np.int32),
        "terminated": terminated,
    }
    return experience | {name: leaf[pair] for name, leaf in fixed.items()}


def swept(planning_steps, experience, chunk, **numbers):
    """The state and the td_error of each update."""
    agent, update = made(planning_steps, experience["reward"].shape[1])
    hypers = cast_hypers(HYPERS(**numbers))
    state, metrics = fed(update, agent.init(jax.random.key(0), hypers), experience, hypers, chunk)
    return state, [row["td_error"] for row in metrics]


# --- the loop -------------------------------------------------------------------------------------------------------


class Queue:
    """A heap of pairs; one that queues already keeps the higher priority."""

    def __init__(self):
        self.heap, self.priority = [], {}
        self.gap = np.inf  # between the two highest priorities, at the least

    def insert(self, pair, priority):
        if priority > self.priority.get(pair, 0.0):
            self.priority[pair] = priority
            heapq.heappush(self.heap, (-priority, pair))

    def first(self):
        """Take out the pair with the highest priority; None if none queues."""
        highest = heapq.nlargest(2, self.priority.values())
        self.gap = min(self.gap, highest[0] - highest[1]) if len(highest) == 2 else self.gap
        while self.heap:
            priority, pair = heapq.heappop(self.heap)
            if self.priority.get(pair) == -priority:  # else it queues with another one by now, or no more
                del self.priority[pair]
                return pair
        return None


def by_the_book(experience, planning_steps, learning_rate, discount, initial_value, threshold):
    """S&B 8.4. Returns Q, the queue with the pairs that are left, the errors [T, N] and the number of backups."""
    values = np.full((STATES, ACTIONS), initial_value)
    model, queue, backups = {}, Queue(), 0
    errors = np.zeros(experience["reward"].shape)

    def error_of(pair):
        reward, successor, terminated = model[pair]
        return reward + (0.0 if terminated else discount * max(values[successor])) - values[pair]

    for step in rows(experience):
        pair = step.observation, step.action
        model[pair] = step.reward, step.next_observation, step.terminated
        errors[step.time, step.environment] = abs(error_of(pair))
        if abs(error_of(pair)) > threshold:
            queue.insert(pair, abs(error_of(pair)))
        for _ in range(planning_steps):
            pair = queue.first()
            if pair is None:
                break
            values[pair] += learning_rate * error_of(pair)
            backups += 1
            for before, (_, successor, terminated) in model.items():
                if successor == pair[0] and not terminated and abs(error_of(before)) > threshold:
                    queue.insert(before, abs(error_of(before)))
    return values, queue, errors, backups


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("threshold", [1e-4, 0.3])
@pytest.mark.parametrize(
    ("kind", "planning_steps"), [(deterministic, 1), (deterministic, 2), (stochastic, 1), (stochastic, 4)]
)
def test_it_is_the_book_s_however_the_experience_is_cut(kind, planning_steps, threshold):
    numbers = NUMBERS | {"threshold": threshold}
    for seed in SEEDS:
        experience, found = kind(seed), []
        values, queue, expected_errors, backups = by_the_book(experience, planning_steps, **numbers)
        assert backups > LENGTH / 2
        assert queue.gap > 2e-5
        for chunk in CHUNKS:
            state, errors = swept(planning_steps, experience, chunk, **numbers)
            np.testing.assert_allclose(state.values, values, atol=1e-5)
            np.testing.assert_allclose(errors, means(expected_errors, chunk), atol=1e-5)
            left = {tuple(pair): float(state.priority[tuple(pair)]) for pair in np.argwhere(state.priority).tolist()}
            assert left == pytest.approx(queue.priority, abs=1e-5)
            found.append(state)
        for state in found[1:]:
            jax.tree.map(np.testing.assert_array_equal, state, found[0])


def test_the_loops_leave_pairs_that_queue_and_queues_that_are_empty():
    few = by_the_book(deterministic(0), 1, **NUMBERS, threshold=1e-4)[1]
    none = by_the_book(deterministic(0), 4, **NUMBERS, threshold=2.5)[1]
    assert len(few.priority) > 2
    assert not none.priority


def test_the_model_holds_what_came_last():
    experience = stochastic(0)
    model = swept(1, experience, LENGTH, **NUMBERS)[0].model
    last = {(step.observation, step.action): step for step in rows(experience)}
    for pair in np.ndindex(STATES, ACTIONS):
        assert bool(model.seen[pair]) == (pair in last)
        if pair in last:
            found = float(model.reward[pair]), int(model.next_observation[pair]), bool(model.terminated[pair])
            assert found == (last[pair].reward, last[pair].next_observation, last[pair].terminated)


@pytest.mark.parametrize("planning_steps", [1, 4])
def test_masked_actions_stay_masked_and_nothing_is_nan(planning_steps):
    masked = {(0, 0), (1, 1), (1, 2), (4, 0)}
    mask = np.zeros((STATES, ACTIONS), bool)
    mask[tuple(zip(*masked, strict=True))] = True
    agent, update = made(planning_steps)
    hypers = cast_hypers(HYPERS(**NUMBERS))
    start = agent.init(jax.random.key(0), hypers)
    start = dataclasses.replace(start, values=jnp.where(mask, -jnp.inf, start.values))
    experience = record(LENGTH, NUM_ENVS, 0, (STATES, ACTIONS), masked)
    state, _ = fed(update, start, experience, hypers, 5)
    np.testing.assert_array_equal(np.isneginf(state.values), mask)
    assert np.isfinite(np.asarray(state.values)[~mask]).all()
    assert np.isfinite(state.priority).all()


# --- by hand --------------------------------------------------------------------------------------------------------

PLAIN = {"learning_rate": 1.0, "discount": 0.5}


@pytest.mark.parametrize(("planning_steps", "expected"), [(1, [0, 0, 8]), (2, [0, 4, 8]), (9, [2, 4, 8])])
def test_a_reward_goes_back_along_the_way_a_step_of_planning_at_a_time(planning_steps, expected):
    walk = path((0, 0, 0), (1, 0, 0), (2, 0, 8), 3, terminated=True)
    state, errors = swept(planning_steps, walk, 1, **PLAIN)
    np.testing.assert_array_equal(state.values[:3, 0], expected)
    assert errors == [0, 0, 8]
    assert np.count_nonzero(state.values) == np.count_nonzero(expected)


@pytest.mark.parametrize(("terminated", "truncated"), [(True, False), (False, True), (True, True)])
def test_a_step_that_ended_it_leads_nowhere_unless_the_clock_did(terminated, truncated):
    """State 1 is worth 8 from the second path on; what ended there has no part in it."""
    ended = path((0, 0, 1), 1, terminated=terminated, truncated=truncated)
    state, _ = swept(9, joined(ended, path((1, 0, 8), 2, terminated=True)), 1, **PLAIN)
    assert float(state.values[0, 0]) == (1 if terminated else 1 + 0.5 * 8)
    assert not state.priority.any()


@pytest.mark.parametrize(("reward", "moved"), [(0.99, 0), (1.0, 0), (1.01, 1.01), (-1.01, -1.01), (-0.99, 0)])
def test_only_errors_above_the_threshold_queue(reward, moved):
    state, errors = swept(1, path((0, 0, reward), 1, terminated=True), 1, threshold=1.0, **PLAIN)
    assert float(state.values[0, 0]) == pytest.approx(moved)
    assert errors == pytest.approx([abs(reward)])


def test_predecessors_queue_by_the_threshold_too():
    walk = path((0, 0, 0), (1, 0, 0), (2, 0, 8), 3, terminated=True)
    state, _ = swept(9, walk, 1, threshold=3.0, **PLAIN)  # 8 and half of it queue, a quarter does not
    np.testing.assert_array_equal(state.values[:3, 0], [0, 4, 8])


def test_a_pair_that_queues_keeps_the_higher_priority_and_the_first_is_moved_first():
    """Both (0, 0) and (1, 0) lead to 2, which becomes worth 8: they queue with 4.

    Then 2 becomes worth 2 only, and their errors 1: they queue with 4 all the same, before what has 3.
    """
    worth = [path((2, 0, reward), 3, terminated=True) for reward in (8, 2)]
    before = [path((0, 0, 0), 2, truncated=True), path((1, 0, 0), 2, truncated=True)]
    first, _ = swept(1, joined(*before, worth[0]), 1, **PLAIN)
    np.testing.assert_array_equal(first.priority[:2, 0], [4, 4])
    second, _ = swept(1, joined(*before, *worth), 1, **PLAIN)
    # The error of (2, 0) is 6, so it comes first and leaves those before it as they are.
    np.testing.assert_array_equal(second.priority[:3, 0], [4, 4, 0])
    np.testing.assert_array_equal(second.values[:3, 0], [0, 0, 2])
    third, _ = swept(1, joined(*before, *worth, path((4, 0, 3), 3, terminated=True)), 1, **PLAIN)
    assert float(third.values[4, 0]) == 0
    assert float(third.priority[4, 0]) == 3
    assert sorted(third.values[:2, 0].tolist()) == [0, 1]


# --- planning -------------------------------------------------------------------------------------------------------


def test_having_seen_everything_once_it_plans_to_the_exact_values_where_dyna_q_is_far_from_them():
    """As many backups for both, at most: Dyna-Q's one of experience for each transition is not even counted."""
    mdp, planning_steps, discount = envs.enumerate_mdp("DynaMaze-purerl"), 10, 0.95
    states, actions = mdp.reward.shape
    pairs, experience = everything_once(mdp)
    exact = np.asarray(planning.value_iteration(*mdp.arrays, discount).action_value)[*pairs.T]
    spec = Spec(Discrete(states), Discrete(actions), num_envs=1)
    found = {}
    for name, make, make_hypers in (
        ("prioritized sweeping", prioritized_sweeping.prioritized_sweeping, HYPERS),
        ("dyna_q", dyna_q.dyna_q, dyna_q.Hypers),
    ):
        agent = make(spec, planning_steps=planning_steps)
        hypers = cast_hypers(make_hypers(learning_rate=1.0, discount=discount))
        start = agent.init(jax.random.key(0), hypers)
        found[name], _ = jax.jit(agent.update)(jax.random.key(0), start, rollout_of(experience), hypers)
    assert not found["prioritized sweeping"].priority.any()
    errors = {name: np.abs(np.asarray(state.values)[*pairs.T] - exact).max() for name, state in found.items()}
    assert errors["prioritized sweeping"] < 1e-3
    assert errors["dyna_q"] > 0.2


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("planning_steps", [0, -1])
def test_bad_arguments_are_named(planning_steps):
    spec = spec_of(NUM_ENVS, STATES, ACTIONS)
    with pytest.raises(ValueError, match=f"^planning_steps is {planning_steps}; it takes a whole number of at least 1"):
        prioritized_sweeping.prioritized_sweeping(spec, planning_steps=planning_steps)
    box = Box((2,), np.dtype(np.float32), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"^prioritized_sweeping needs a discrete observation space"):
        prioritized_sweeping.prioritized_sweeping(spec._replace(observation=box), planning_steps=1)
    with pytest.raises(ValueError, match=r"^prioritized_sweeping needs a discrete action space"):
        prioritized_sweeping.prioritized_sweeping(spec._replace(action=box), planning_steps=1)
