"""DQN on a linear network against the same algorithm in NumPy, float64, its gradient by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.agents import dqn
from purerl.base import Box, Discrete, Network, Rollout, Spec, Transition, cast_hypers

FEATURES, ACTIONS = 3, 4
SPEC = Spec(
    observation=Box(shape=(FEATURES,), dtype=np.float32, low=-np.inf, high=np.inf),
    action=Discrete(ACTIONS),
    num_envs=2,
)


def initial(key, observation):
    return {"matrix": jax.random.normal(key, (*observation.shape, ACTIONS))}


LINEAR = Network(init=initial, apply=lambda params, observation: observation @ params["matrix"])
UPDATES = {double: jax.jit(dqn.dqn(SPEC, LINEAR, double=double).update) for double in (True, False)}


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
    target = target if target is not None else jax.random.normal(jax.random.key(seed + 100), (FEATURES, ACTIONS))
    return dataclasses.replace(state, target_params={"matrix": jnp.asarray(target, jnp.float32)})


def update(state, experience, hypers, double=True):
    leaves = {name: jnp.asarray(leaf) for name, leaf in experience.items()}
    return UPDATES[double](jax.random.key(0), state, Rollout(steps=Transition(**leaves), memory=()), hypers)


class Book:
    """The algorithm in float64."""

    def __init__(self, state, hypers, double):
        self.matrix, self.target = (np.float64(p["matrix"]) for p in (state.params, state.target_params))
        self.numbers = {name: float(number) for name, number in dataclasses.asdict(hypers).items()}
        self.double, self.count, self.first, self.second = double, 0, 0.0, 0.0

    def targets(self, x):
        judged = x["next_observation"] @ self.target
        chosen = np.argmax(x["next_observation"] @ (self.matrix if self.double else self.target), axis=-1)
        following = np.take_along_axis(judged, chosen[..., None], axis=-1)[..., 0]
        return x["reward"] + self.numbers["discount"] * np.where(x["terminated"], 0.0, following)

    def update(self, x):
        x = {name: np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf for name, leaf in x.items()}
        h, onehot = self.numbers, np.eye(ACTIONS)[x["action"]]
        value = np.sum((x["observation"] @ self.matrix) * onehot, axis=-1)
        error, delta = self.targets(x) - value, h["huber_delta"]
        size = np.abs(error)
        loss = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).mean()
        slope = -np.clip(error, -delta, delta) / error.size
        gradient = np.einsum("tn,tnf,tna->fa", slope, x["observation"], onehot)
        self.count += 1
        self.first = h["adam_b1"] * self.first + (1 - h["adam_b1"]) * gradient
        self.second = h["adam_b2"] * self.second + (1 - h["adam_b2"]) * gradient**2
        first = self.first / (1 - h["adam_b1"] ** self.count)
        second = self.second / (1 - h["adam_b2"] ** self.count)
        self.matrix = self.matrix - h["learning_rate"] * first / (np.sqrt(second) + h["adam_eps"])
        if self.count % int(h["target_period"]) == 0:
            self.target = self.matrix
        return loss, value.mean(), gradient


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("delta", [0.5, 100.0])
def test_updates_are_those_of_the_book(double, delta):
    hypers = cast_hypers(
        dqn.Hypers(
            learning_rate=0.05,
            discount=0.9,
            target_period=3,
            huber_delta=delta,
            adam_b1=0.8,
            adam_b2=0.95,
            adam_eps=1e-3,
        )
    )
    state = state_of(1, hypers)
    book = Book(state, hypers, double)
    for number in range(7):
        experience = record(number)
        loss, value, _ = book.update(experience)
        state, metrics = update(state, experience, hypers, double)
        assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
        assert metrics["value"] == pytest.approx(value, rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(state.params["matrix"], book.matrix, atol=2e-5)
        np.testing.assert_allclose(state.target_params["matrix"], book.target, atol=2e-5)
        assert state.updates == number + 1


def test_the_first_step_goes_the_rate_against_the_sign_of_the_gradient():
    hypers = cast_hypers(dqn.Hypers(learning_rate=0.01))
    state = state_of(2, hypers)
    experience = record(2) | {"action": np.int32([[0, 1]] * 4)}
    _, _, gradient = Book(state, hypers, double=True).update(experience)
    after, _ = update(state, experience, hypers)
    step = np.asarray(after.params["matrix"] - state.params["matrix"])
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
    state = dataclasses.replace(
        state_of(0, hypers, matrix_of(*target_row)), params={"matrix": jnp.asarray(matrix_of(*first_row), jnp.float32)}
    )
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
        before = state.target_params["matrix"]
        state, _ = update(state, record(number), hypers)
        expected = state.params["matrix"] if number % period == 0 else before
        np.testing.assert_array_equal(state.target_params["matrix"], expected)
        assert np.any(state.target_params["matrix"] != before) == (number % period == 0)


def test_it_starts_with_both_networks_the_same_and_nothing_counted():
    hypers = cast_hypers(dqn.Hypers())
    state = dqn.dqn(SPEC, LINEAR).init(jax.random.key(5), hypers)
    np.testing.assert_array_equal(state.params["matrix"], state.target_params["matrix"])
    assert (state.updates.dtype, int(state.updates)) == (jnp.int32, 0)
    other = dqn.dqn(SPEC, LINEAR).init(jax.random.key(6), hypers)
    assert np.all(state.params["matrix"] != other.params["matrix"])


def test_exploration_falls_with_the_updates_made():
    agent = dqn.dqn(SPEC, LINEAR)
    hypers = cast_hypers(dqn.Hypers(epsilon_start=0.8, epsilon_end=0.2, epsilon_horizon=10))
    state = dataclasses.replace(agent.init(jax.random.key(0), hypers), params={"matrix": matrix_of(0, 9, 1, 2)})
    observation = jnp.tile(jnp.array([1.0, 0, 0]), (10_000, 1))

    @jax.jit
    def others(updates):
        now = dataclasses.replace(state, updates=updates)
        return jnp.mean(agent.act(jax.random.key(1), now, (), observation, hypers)[0] != 1)

    for updates, epsilon in ((0, 0.8), (5, 0.5), (10, 0.2), (1000, 0.2)):
        # An exploring action is one of the three others three times in four.
        assert float(others(jnp.int32(updates))) == pytest.approx(0.75 * epsilon, abs=0.025)

    action, memory = agent.act(jax.random.key(1), state, (), observation, hypers, greedy=True)
    np.testing.assert_array_equal(action, 1)
    assert memory == ()


def test_the_loss_is_the_mean_over_time_and_environments():
    hypers = cast_hypers(dqn.Hypers())
    state, experience = state_of(4, hypers), record(4)
    flat = {name: leaf.reshape(1, -1, *leaf.shape[2:]) for name, leaf in experience.items()}
    (one, ours), (other, theirs) = update(state, experience, hypers), update(state, flat, hypers)
    assert ours["loss"] == pytest.approx(float(theirs["loss"]), rel=1e-5)
    np.testing.assert_allclose(one.params["matrix"], other.params["matrix"], atol=1e-6)


def test_a_zero_rate_changes_no_parameter():
    hypers = cast_hypers(dqn.Hypers(learning_rate=0.0))
    state = state_of(5, hypers)
    after, _ = update(state, record(5), hypers)
    np.testing.assert_array_equal(after.params["matrix"], state.params["matrix"])


def test_continuous_actions_are_refused_by_name():
    box = Box(shape=(2,), dtype=np.float32, low=-1, high=1)
    with pytest.raises(ValueError, match=r"dqn needs a discrete action space.*Box\(shape=\(2,\)"):
        dqn.dqn(SPEC._replace(action=box), LINEAR)
