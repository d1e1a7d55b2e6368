"""DQN on a linear network against the same algorithm in NumPy, float64, its gradient by hand."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from purerl import exploration, replay
from purerl.agents import dqn
from purerl.base import Box, Discrete, Network, Rollout, Spec, Transition, cast_hypers

FEATURES, ACTIONS = 3, 4
SPEC = Spec(
    observation=Box(shape=(FEATURES,), dtype=np.float32, low=-np.inf, high=np.inf),
    action=Discrete(ACTIONS),
    num_envs=2,
)


def initial(key, observation):
    matrix_key, bias_key = jax.random.split(key)
    return {
        "matrix": jax.random.normal(matrix_key, (*observation.shape, ACTIONS)),
        "bias": 0.3 * jax.random.normal(bias_key, (ACTIONS,)),
    }


LINEAR = Network(init=initial, apply=lambda params, observation: observation @ params["matrix"] + params["bias"])


@functools.cache
def update_of(double, n_step):
    return jax.jit(dqn.dqn(SPEC, LINEAR, double=double, n_step=n_step).update)


def record(seed, time=4, num_envs=2):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=(time, num_envs, *shape)).astype(np.float32)  # noqa: E731
    return {
        "observation": draw(FEATURES),
        "action": rng.integers(ACTIONS, size=(time, num_envs)).astype(np.int32),
        "reward": draw(),
        "terminated": rng.random((time, num_envs)) < 0.3,
        "truncated": rng.random((time, num_envs)) < 0.3,
        "next_observation": draw(FEATURES),
    }


def state_of(seed, hypers, target=None):
    """A state whose target network is not the network."""
    agent = dqn.dqn(SPEC, LINEAR)
    state = agent.init(jax.random.key(seed), hypers)
    if target is None:
        return dataclasses.replace(state, target_params=initial(jax.random.key(seed + 100), jnp.zeros(FEATURES)))
    return dataclasses.replace(state, target_params=params_of(target))


def params_of(matrix):
    return {"matrix": jnp.asarray(matrix, jnp.float32), "bias": jnp.zeros(ACTIONS)}


def rollout_of(experience):
    return Rollout(steps=Transition(**{name: jnp.asarray(leaf) for name, leaf in experience.items()}), memory=())


def update(state, experience, hypers, double=True, n_step=1):
    return update_of(double, n_step)(jax.random.key(0), state, rollout_of(experience), hypers)


def weights(params):
    """Matrix and bias as one: [features + 1, actions]."""
    return np.concatenate([np.float64(params["matrix"]), np.float64(params["bias"])[None]])


def difference(one, other):
    return np.abs(weights(one.params) - weights(other.params)).max()


class Book:
    """The algorithm in float64; a bias is the weight of a feature that is always 1."""

    def __init__(self, state, hypers, double, n_step=1):
        self.weights, self.target = weights(state.params), weights(state.target_params)
        self.numbers = {name: float(number) for name, number in dataclasses.asdict(hypers).items()}
        self.double, self.n_step = double, n_step
        self.count, self.first, self.second = 0, 0.0, 0.0
        self.norms = []  # of the gradients before they are clipped

    def worth(self, observation):
        """Return what the state after the last reward is worth."""
        judged = observation @ self.target
        return judged[np.argmax(observation @ (self.weights if self.double else self.target))]

    def targets(self, x):
        time, num_envs = x["reward"].shape
        found = np.zeros((time - self.n_step + 1, num_envs))
        for first, environment in np.ndindex(found.shape):
            weight = 1.0
            for now in range(first, first + self.n_step):
                here = now, environment
                found[first, environment] += weight * x["reward"][here]
                weight *= self.numbers["discount"]
                if x["terminated"][here]:
                    weight = 0.0
                if x["terminated"][here] or x["truncated"][here]:
                    break
            found[first, environment] += weight * self.worth(x["next_observation"][here])
        return found

    def update(self, x):
        x = {name: np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf for name, leaf in x.items()}
        for name in ("observation", "next_observation"):
            x[name] = np.concatenate([x[name], np.ones((*x["reward"].shape, 1))], axis=-1)
        h, targets = self.numbers, self.targets(x)
        observation, onehot = x["observation"][: len(targets)], np.eye(ACTIONS)[x["action"][: len(targets)]]
        value = np.sum((observation @ self.weights) * onehot, axis=-1)
        error, delta = targets - value, h["huber_delta"]
        size = np.abs(error)
        loss = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).mean()
        slope = -np.clip(error, -delta, delta) / error.size
        gradient = np.einsum("tn,tnf,tna->fa", slope, observation, onehot)
        self.norms.append(np.sqrt(np.sum(gradient**2)))
        gradient = gradient * min(1.0, h["max_gradient_norm"] / self.norms[-1])
        share = min(1.0, self.count / h["learning_rate_horizon"])
        rate = h["learning_rate"] * (1 - share + share * h["learning_rate_end_fraction"])
        self.count += 1
        self.first = h["adam_b1"] * self.first + (1 - h["adam_b1"]) * gradient
        self.second = h["adam_b2"] * self.second + (1 - h["adam_b2"]) * gradient**2
        first = self.first / (1 - h["adam_b1"] ** self.count)
        second = self.second / (1 - h["adam_b2"] ** self.count)
        self.weights = self.weights - rate * first / (np.sqrt(second) + h["adam_eps"])
        if self.count % int(h["target_period"]) == 0:
            self.target = self.target + h["target_rate"] * (self.weights - self.target)
        return loss, value.mean(), gradient


GENERIC = dqn.Hypers(
    learning_rate=0.05,
    learning_rate_end_fraction=0.4,
    learning_rate_horizon=5.0,
    discount=0.9,
    target_period=3.0,
    huber_delta=100.0,
    adam_b1=0.8,
    adam_b2=0.95,
    adam_eps=1e-3,
)


def assert_updates_are_those_of_the_book(hypers, *, double=True, n_step=1, time=4, seed=1, updates=7):
    """Return the book and the state after some updates that agree with it."""
    hypers = cast_hypers(hypers)
    state = state_of(seed, hypers)
    book = Book(state, hypers, double, n_step)
    for number in range(updates):
        experience = record(number, time)
        loss, value, _ = book.update(experience)
        state, metrics = update(state, experience, hypers, double, n_step)
        assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
        assert metrics["value"] == pytest.approx(value, rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(weights(state.params), book.weights, atol=2e-5)
        np.testing.assert_allclose(weights(state.target_params), book.target, atol=2e-5)
        assert state.updates == number + 1
    return book, state


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("delta", [0.5, 100.0])
def test_updates_are_those_of_the_book(double, delta):
    assert_updates_are_those_of_the_book(dataclasses.replace(GENERIC, huber_delta=delta), double=double)


# --- several steps --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_step", "double"), [(1, True), (2, True), (3, True), (3, False), (5, True)])
def test_updates_by_several_rewards_are_those_of_the_book(n_step, double):
    # Seven steps are 7, 6, 5 and 3 windows; a third of the steps ends by each kind, some by both.
    assert any((x["terminated"] & x["truncated"]).any() for x in (record(number, 7) for number in range(7)))
    assert_updates_are_those_of_the_book(GENERIC, double=double, n_step=n_step, time=7)


def test_a_rollout_of_just_so_many_steps_is_one_window():
    assert_updates_are_those_of_the_book(GENERIC, n_step=5, time=5)


def test_steps_that_too_few_follow_are_learned_from_only_by_the_windows_before_them():
    hypers = cast_hypers(GENERIC)
    state, experience = state_of(2, hypers), record(2, 7)
    other = experience | {"observation": experience["observation"].copy(), "action": experience["action"].copy()}
    other["observation"][5:] = 9.0
    other["action"][5:] = 0
    (one, ours), (two, theirs) = (update(state, x, hypers, n_step=3) for x in (experience, other))
    assert difference(one, two) == 0
    assert ours == theirs


@pytest.mark.parametrize("double", [True, False])
def test_a_window_of_two_steps_has_the_value_of_the_last_successor(double):
    # Rewards 1 and 2; the network chooses action 3 everywhere, the target's best is action 0.
    unit = np.eye(FEATURES, dtype=np.float32)
    no = np.zeros((2, 1), bool)
    experience = {
        "observation": unit[[0, 1]][:, None],
        "action": np.int32([[0], [0]]),
        "reward": np.float32([[1], [2]]),
        "terminated": no,
        "truncated": no,
        "next_observation": unit[[1, 2]][:, None],
    }
    matrix = np.zeros((FEATURES, ACTIONS), np.float32)
    matrix[:, 3] = 3.0
    target = np.float32([[5, 0, 0, 7], [90, 0, 0, 70], [800, 0, 0, 400]])
    hypers = cast_hypers(dqn.Hypers(discount=0.5, huber_delta=1e6))
    begun = dataclasses.replace(state_of(0, hypers, target), params=params_of(matrix))
    value = 400 if double else 800

    def loss(experience):
        return float(update(begun, experience, hypers, double, n_step=2)[1]["loss"])

    assert loss(experience) == pytest.approx((1 + 0.5 * 2 + 0.25 * value) ** 2 / 2)
    first, second = np.array([[True], [False]]), np.array([[False], [True]])
    assert loss(experience | {"terminated": second}) == pytest.approx((1 + 0.5 * 2) ** 2 / 2)
    assert loss(experience | {"terminated": first}) == pytest.approx(1 / 2)
    assert loss(experience | {"terminated": first, "truncated": first}) == pytest.approx(1 / 2)
    value = 70 if double else 90  # of the first successor
    assert loss(experience | {"truncated": first}) == pytest.approx((1 + 0.5 * value) ** 2 / 2)


def test_a_rollout_shorter_than_the_steps_is_refused():
    hypers = cast_hypers(GENERIC)
    with pytest.raises(ValueError, match=r"dqn was made for n_step 5 and is handed 4 steps at a time; .*length=5"):
        update(state_of(0, hypers), record(0, 4), hypers, n_step=5)
    for n_step in (0, -1):
        with pytest.raises(ValueError, match=f"n_step is {n_step}; it takes a whole number of at least 1"):
            dqn.dqn(SPEC, LINEAR, n_step=n_step)


# --- the target network and the gradient ----------------------------------------------------------------------------


@pytest.mark.parametrize("period", [1.0, 3.0])
@pytest.mark.parametrize("rate", [0.3, 0.0])
def test_the_target_goes_part_of_the_way_to_the_network(period, rate):
    hypers = dataclasses.replace(GENERIC, target_period=period, target_rate=rate)
    book, state = assert_updates_are_those_of_the_book(hypers)
    between = np.abs(weights(state.target_params) - book.weights).max()
    assert between > 0.01  # or a copy would have passed as well


@pytest.mark.parametrize("limit", [0.05, 0.5])
def test_gradients_are_scaled_down_to_the_norm_allowed(limit):
    # A large epsilon, because Adam by itself is blind to a factor of all gradients. The norm is of matrix and bias.
    hypers = dataclasses.replace(GENERIC, adam_eps=0.1)
    free, unclipped = assert_updates_are_those_of_the_book(hypers)
    _, clipped = assert_updates_are_those_of_the_book(dataclasses.replace(hypers, max_gradient_norm=limit))
    assert (np.array(free.norms) > limit).sum() >= 5
    assert difference(clipped, unclipped) > 0.01


def test_gradients_below_the_norm_allowed_are_left_as_they_are():
    hypers = [cast_hypers(dataclasses.replace(GENERIC, max_gradient_norm=limit)) for limit in (1e3, 1e9)]
    state, experience = state_of(6, hypers[0]), record(6)
    assert difference(*(update(state, experience, one)[0] for one in hypers)) == 0


def test_the_first_step_goes_the_rate_against_the_sign_of_the_gradient():
    hypers = cast_hypers(dqn.Hypers(learning_rate=0.01))
    state = state_of(2, hypers)
    experience = record(2) | {"action": np.int32([[0, 1]] * 4)}
    _, _, gradient = Book(state, hypers, double=True).update(experience)
    after, _ = update(state, experience, hypers)
    step = weights(after.params) - weights(state.params)
    np.testing.assert_allclose(step, -0.01 * np.sign(gradient), atol=1e-5)
    np.testing.assert_array_equal(step[:, 2:], 0.0)  # actions not taken are not moved
    assert np.all(step[:, :2] != 0)


def one_step(**leaves):
    """One transition from and to the first unit vector: Q(s, .) is the first row of the matrix."""
    unit = np.float32([[[1, 0, 0]]])
    step = {
        "observation": unit,
        "action": np.int32([[0]]),
        "reward": np.float32([[1]]),
        "terminated": np.array([[False]]),
        "truncated": np.array([[False]]),
        "next_observation": unit,
    }
    return step | leaves


def matrix_of(*first_row):
    return jnp.zeros((FEATURES, ACTIONS)).at[0].set(jnp.array(first_row))


def loss_of(first_row, target_row, experience, double=True, **numbers):
    hypers = cast_hypers(dqn.Hypers(**({"discount": 0.5, "huber_delta": 1000.0} | numbers)))
    state = dataclasses.replace(state_of(0, hypers, matrix_of(*target_row)), params=params_of(matrix_of(*first_row)))
    return float(update(state, experience, hypers, double)[1]["loss"])


def test_double_chooses_by_the_network_and_judges_by_the_target():
    # Q = 0 1 2 3 chooses the last action, which the target network says is worth 4; its own best is worth 8.
    rows = (0.0, 1.0, 2.0, 3.0), (8.0, 0.0, 0.0, 4.0)
    assert loss_of(*rows, one_step(), double=True) == pytest.approx((1 + 0.5 * 4) ** 2 / 2)
    assert loss_of(*rows, one_step(), double=False) == pytest.approx((1 + 0.5 * 8) ** 2 / 2)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(
    ("terminated", "truncated", "target"), [(False, False, 5), (True, False, 1), (False, True, 5), (True, True, 1)]
)
def test_truncated_transitions_bootstrap_and_terminated_ones_do_not(double, terminated, truncated, target):
    step = one_step(terminated=np.array([[terminated]]), truncated=np.array([[truncated]]))
    loss = loss_of((0.0, 0.0, 0.0, 3.0), (0.0, 0.0, 0.0, 8.0), step, double)
    assert loss == pytest.approx(target**2 / 2)


def test_the_discount_multiplies_the_bootstrap():
    rows = (0.0, 0.0, 0.0, 3.0), (0.0, 0.0, 0.0, 8.0)
    for discount, target in ((0.0, 1), (0.25, 3), (1.0, 9)):
        assert loss_of(*rows, one_step(), discount=discount) == pytest.approx(target**2 / 2)


def test_beyond_delta_the_loss_is_linear():
    # The error is 5.
    rows = (0.0, 0.0, 0.0, 3.0), (0.0, 0.0, 0.0, 8.0)
    for delta, loss in ((1.0, 4.5), (2.0, 8.0), (5.0, 12.5), (50.0, 12.5)):
        assert loss_of(*rows, one_step(), huber_delta=delta) == pytest.approx(loss)


@pytest.mark.parametrize("period", [1, 2, 4])
def test_the_target_is_copied_at_multiples_of_its_period(period):
    hypers = cast_hypers(dqn.Hypers(learning_rate=0.01, target_period=period))
    state = state_of(3, hypers)
    for number in range(1, 10):
        before = weights(state.target_params)
        state, _ = update(state, record(number), hypers)
        expected = weights(state.params) if number % period == 0 else before
        np.testing.assert_array_equal(weights(state.target_params), expected)
        assert np.any(weights(state.target_params) != before) == (number % period == 0)


def test_it_starts_with_both_networks_the_same_and_nothing_counted():
    hypers = cast_hypers(dqn.Hypers())
    state = dqn.dqn(SPEC, LINEAR).init(jax.random.key(5), hypers)
    np.testing.assert_array_equal(weights(state.params), weights(state.target_params))
    assert (state.updates.dtype, int(state.updates)) == (jnp.int32, 0)
    other = dqn.dqn(SPEC, LINEAR).init(jax.random.key(6), hypers)
    assert np.all(weights(state.params) != weights(other.params))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (exploration.linear_schedule, {0: 0.8, 5: 0.5, 10: 0.2, 1000: 0.2}),
        (exploration.exponential_schedule, {0: 0.8, 5: 0.2 + 0.6 * np.exp(-0.5), 10: 0.2 + 0.6 / np.e, 1000: 0.2}),
    ],
)
def test_exploration_falls_with_the_updates_made(schedule, expected):
    agent = dqn.dqn(SPEC, LINEAR, schedule=schedule)
    hypers = cast_hypers(dqn.Hypers(exploration_start=0.8, exploration_end=0.2, exploration_horizon=10))
    state = dataclasses.replace(agent.init(jax.random.key(0), hypers), params=params_of(matrix_of(0, 9, 1, 2)))
    observation = jnp.tile(jnp.array([1.0, 0, 0]), (10_000, 1))

    @jax.jit
    def others(updates):
        now = dataclasses.replace(state, updates=updates)
        return jnp.mean(agent.act(jax.random.key(1), now, (), observation, hypers)[0] != 1)

    for updates, epsilon in expected.items():
        # An exploring action is one of the three others three times in four.
        assert float(others(jnp.int32(updates))) == pytest.approx(0.75 * epsilon, abs=0.025)

    action, memory = agent.act(jax.random.key(1), state, (), observation, hypers, greedy=True)
    np.testing.assert_array_equal(action, 1)
    assert memory == ()


def test_it_can_explore_by_a_softmax_of_its_values():
    agent = dqn.dqn(SPEC, LINEAR, explore=exploration.boltzmann)
    hypers = cast_hypers(dqn.Hypers(exploration_start=2.0, exploration_end=0.5, exploration_horizon=10))
    row = np.array([0.0, 1.5, 1.0, -1.0])
    state = dataclasses.replace(agent.init(jax.random.key(0), hypers), params=params_of(matrix_of(*row)))
    assert state.visits == ()
    observation = jnp.tile(jnp.array([1.0, 0, 0]), (20_000, 1))
    act = jax.jit(lambda state: agent.act(jax.random.key(1), state, (), observation, hypers)[0])
    for updates, temperature in ((0, 2.0), (5, 1.25), (10, 0.5)):
        actions = np.asarray(act(dataclasses.replace(state, updates=jnp.int32(updates))))
        chances = np.exp(row / temperature) / np.exp(row / temperature).sum()
        assert stats.chisquare(np.bincount(actions, minlength=ACTIONS), 20_000 * chances).pvalue > 1e-4
    np.testing.assert_array_equal(agent.act(jax.random.key(1), state, (), observation, hypers, greedy=True)[0], 1)


STATES = 5
TABLE_SPEC = Spec(observation=Discrete(STATES), action=Discrete(ACTIONS), num_envs=2)
TABLE = Network(
    init=lambda key, observation: {"table": jax.random.normal(key, (STATES, ACTIONS))},
    apply=lambda params, observation: params["table"][observation],
)


def visited(seed, time):
    rng = np.random.default_rng(seed)
    observation = rng.integers(STATES, size=(2, time, 2)).astype(np.int32)
    return record(seed, time) | {"observation": observation[0], "next_observation": observation[1]}


def test_ucb_counts_what_is_new_and_not_what_replay_samples():
    learner = dqn.dqn(TABLE_SPEC, TABLE, explore=exploration.ucb)
    agent = replay.with_replay(learner, replay.uniform(TABLE_SPEC, 60), batch_size=8, updates=3)
    hypers = cast_hypers(dqn.Hypers(exploration_start=1.5, exploration_end=0.5, exploration_horizon=12))
    state, expected = agent.init(jax.random.key(0), hypers), np.zeros((STATES, ACTIONS), int)
    observe, update = jax.jit(agent.observe), jax.jit(agent.update)
    for number in range(4):
        experience = visited(number, 6)
        np.add.at(expected, (experience["observation"], experience["action"]), 1)
        state = observe(state, rollout_of(experience), hypers)
        np.testing.assert_array_equal(state.learner.visits, expected)
        state, _ = update(jax.random.key(number), state, rollout_of(experience), hypers)
        np.testing.assert_array_equal(state.learner.visits, expected)
    assert state.learner.updates == 12
    assert expected.sum() == 48

    # It acts by those counts, and by the c due after twelve updates.
    observation = jnp.arange(STATES)
    values = np.asarray(state.learner.params["table"], np.float64)
    with np.errstate(divide="ignore"):
        bounds = values + 0.5 * np.sqrt(np.log(expected.sum(axis=-1, keepdims=True)) / expected)
    bounds[expected == 0] = np.inf
    best = bounds == bounds.max(axis=-1, keepdims=True)
    act = jax.jit(lambda key: agent.act(key, state, (), observation, hypers)[0])
    actions = np.stack([act(jax.random.key(seed)) for seed in range(200)])
    for row in range(STATES):
        assert set(actions[:, row]) == set(np.flatnonzero(best[row]))
    assert any(best.sum(axis=-1) == 1)
    assert any(values.argmax(axis=-1) != bounds.argmax(axis=-1))
    greedy = agent.act(jax.random.key(0), state, (), observation, hypers, greedy=True)[0]
    np.testing.assert_array_equal(greedy, values.argmax(axis=-1))


def test_other_ways_to_explore_count_nothing():
    hypers = cast_hypers(dqn.Hypers())
    learner = dqn.dqn(TABLE_SPEC, TABLE)
    state = learner.init(jax.random.key(0), hypers)
    assert state.visits == ()
    assert learner.observe(state, rollout_of(visited(0, 4)), hypers).visits == ()


def test_ucb_is_refused_where_observations_cannot_be_counted():
    with pytest.raises(ValueError, match="ucb, which counts visits, needs a discrete observation space"):
        dqn.dqn(SPEC, LINEAR, explore=exploration.ucb)


def test_several_updates_from_replay_are_those_made_one_by_one():
    buffer = replay.uniform(SPEC, 60, length=3)
    learner = dqn.dqn(SPEC, LINEAR, n_step=2)
    agent = replay.with_replay(learner, buffer, batch_size=8, updates=3)
    hypers = cast_hypers(GENERIC)
    state = begun = agent.init(jax.random.key(0), hypers)
    together, sample = jax.jit(agent.update), jax.jit(functools.partial(buffer.sample, batch_size=8))
    alone, kept = begun.learner, begun.buffer
    for number in range(3):
        new = rollout_of(record(number, 6))
        state, metrics = together(jax.random.key(number), state, new, hypers)
        kept, losses = buffer.add(kept, new), []
        for key in jax.random.split(jax.random.key(number), 3):
            sample_key, update_key = jax.random.split(key)
            sampled, _ = sample(sample_key, kept)
            alone, one = update_of(True, 2)(update_key, alone, sampled, hypers)
            losses.append(one["loss"])
        assert alone.updates == state.learner.updates == 3 * (number + 1)
        assert metrics["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        for ours, theirs in zip(jax.tree.leaves(state.learner), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert difference(state.learner, begun.learner) > 0.1


def test_each_way_to_learn_makes_a_difference():
    hypers = cast_hypers(dataclasses.replace(GENERIC, target_period=1.0))
    begun, experience = state_of(7, hypers), record(7, 7)

    def learned(hypers=hypers, **options):
        return update(begun, experience, hypers, **options)[0]

    usual = learned()
    assert difference(learned(double=False), usual) > 1e-3
    assert difference(learned(n_step=2), usual) > 1e-3
    assert difference(learned(n_step=3), learned(n_step=2)) > 1e-3
    slow = learned(cast_hypers(dataclasses.replace(GENERIC, target_period=1.0, target_rate=0.1)))
    assert np.abs(weights(slow.target_params) - weights(usual.target_params)).max() > 0.1


def test_the_loss_is_the_mean_over_time_and_environments():
    hypers = cast_hypers(dqn.Hypers())
    state, experience = state_of(4, hypers), record(4)
    flat = {name: leaf.reshape(1, -1, *leaf.shape[2:]) for name, leaf in experience.items()}
    (one, ours), (other, theirs) = update(state, experience, hypers), update(state, flat, hypers)
    assert ours["loss"] == pytest.approx(float(theirs["loss"]), rel=1e-5)
    np.testing.assert_allclose(weights(one.params), weights(other.params), atol=1e-6)


def test_a_zero_rate_changes_no_parameter():
    hypers = cast_hypers(dqn.Hypers(learning_rate=0.0))
    state = state_of(5, hypers)
    after, _ = update(state, record(5), hypers)
    np.testing.assert_array_equal(weights(after.params), weights(state.params))


def test_continuous_actions_are_refused_by_name():
    box = Box(shape=(2,), dtype=np.float32, low=-1, high=1)
    with pytest.raises(ValueError, match=r"dqn needs a discrete action space.*Box\(shape=\(2,\)"):
        dqn.dqn(SPEC._replace(action=box), LINEAR)
