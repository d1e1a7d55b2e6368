"""TD errors against rlax, the Huber loss against its closed form, selection against indexing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from purerl import losses

BATCH, ACTIONS = 64, 5


def batch_of(seed, leading=(BATCH,)):
    """Random float32 inputs of every TD error; about a third of the transitions terminate."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(10 * rng.normal(size=shape), jnp.float32)  # noqa: E731
    policy = rng.dirichlet(np.ones(ACTIONS), size=leading)
    return {
        "values": normal(*leading, ACTIONS),
        "action": jnp.asarray(rng.integers(ACTIONS, size=leading), jnp.int32),
        "reward": normal(*leading),
        "terminated": jnp.asarray(rng.random(leading) < 0.3),
        "next_values": normal(*leading, ACTIONS),
        "selector": normal(*leading, ACTIONS),
        "next_action": jnp.asarray(rng.integers(ACTIONS, size=leading), jnp.int32),
        "policy": jnp.asarray(policy, jnp.float32),
    }


def sarsa_target(reward, bootstrap, next_values, next_action):
    """Ours is given the value of the next action, rlax's error all values and the action."""
    return losses.sarsa_target(reward, bootstrap, losses.select(next_values, next_action))


# What our target and rlax's error are given besides the reward, the discount and Q(s', .).
TD_ERRORS = {
    "q_learning": (losses.q_learning_target, rlax.q_learning, []),
    "double_q_learning": (losses.double_q_learning_target, rlax.double_q_learning, ["selector"]),
    "sarsa": (sarsa_target, rlax.sarsa, ["next_action"]),
    "expected_sarsa": (losses.expected_sarsa_target, rlax.expected_sarsa, ["policy"]),
}


@pytest.mark.parametrize("name", TD_ERRORS)
@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_td_errors_are_those_of_rlax(name, discount):
    ours, theirs, extra = TD_ERRORS[name]
    x = batch_of(seed=1)
    rest = [x[key] for key in extra]
    bootstrap = losses.bootstrap_weight(jnp.float32(discount), x["terminated"])
    error = ours(x["reward"], bootstrap, x["next_values"], *rest) - losses.select(x["values"], x["action"])

    discount_t = discount * (1.0 - x["terminated"].astype(jnp.float32))
    witness = jax.vmap(theirs)(x["values"], x["action"], x["reward"], discount_t, x["next_values"], *rest)
    assert error.dtype == jnp.float32
    np.testing.assert_allclose(error, witness, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", TD_ERRORS)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3, 4)])
def test_targets_take_any_leading_axes(name, leading):
    target, _, extra = TD_ERRORS[name]
    x = batch_of(seed=2, leading=leading)
    bootstrap = losses.bootstrap_weight(jnp.float32(0.9), x["terminated"])
    arguments = [x["reward"], bootstrap, x["next_values"], *(x[key] for key in extra)]
    whole = target(*arguments)
    assert whole.shape == leading
    one_by_one = target
    for _ in leading:
        one_by_one = jax.vmap(one_by_one)
    np.testing.assert_allclose(whole, one_by_one(*arguments), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TD_ERRORS)
def test_a_terminated_transition_has_its_reward_as_target(name):
    target, _, extra = TD_ERRORS[name]
    x = batch_of(seed=3)
    bootstrap = losses.bootstrap_weight(jnp.float32(0.99), jnp.ones(BATCH, bool))
    np.testing.assert_array_equal(
        target(x["reward"], bootstrap, x["next_values"], *(x[key] for key in extra)), x["reward"]
    )


def test_targets_are_not_stopped():
    gradient = jax.grad(lambda q: losses.q_learning_target(jnp.float32(0), jnp.float32(0.5), q))(jnp.array([1.0, 2.0]))
    np.testing.assert_array_equal(gradient, [0.0, 0.5])


def test_double_q_learning_judges_with_one_estimate_what_the_other_chose():
    target = losses.double_q_learning_target(
        jnp.float32(1), jnp.float32(0.5), jnp.array([10.0, 20.0, 30.0]), jnp.array([0.0, 9.0, 3.0])
    )
    assert target == 1 + 0.5 * 20


def test_bootstrap_is_the_discount_or_nothing():
    bootstrap = losses.bootstrap_weight(jnp.float32(0.9), jnp.array([[True, False]]))
    np.testing.assert_array_equal(bootstrap, np.float32([[0.0, 0.9]]))


@pytest.mark.parametrize("leading", [(), (7,), (2, 3, 4)])
def test_select_is_indexing(leading):
    x = batch_of(seed=4, leading=leading)
    expected = np.take_along_axis(np.asarray(x["values"]), np.asarray(x["action"])[..., None], axis=-1)[..., 0]
    np.testing.assert_array_equal(losses.select(x["values"], x["action"]), expected)


def test_the_gradient_of_select_is_that_of_indexing():
    x = batch_of(seed=5)
    rows = jnp.arange(BATCH)
    ours = jax.grad(lambda q: jnp.sum(losses.select(q, x["action"]) ** 3))(x["values"])
    indexing = jax.grad(lambda q: jnp.sum(q[rows, x["action"]] ** 3))(x["values"])
    np.testing.assert_allclose(ours, indexing, rtol=1e-6)


def test_the_gradient_of_select_is_no_scatter():
    x = batch_of(seed=6)
    gradient = jax.make_jaxpr(jax.grad(lambda q: jnp.sum(losses.select(q, x["action"]))))(x["values"])
    assert "scatter" not in str(gradient)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_huber_is_its_closed_form(delta):
    error = np.linspace(-8, 8, 65).reshape(5, 13)  # any leading axes; both ends of the bend are among them
    expected = np.array([0.5 * e * e if abs(e) <= delta else delta * (abs(e) - delta / 2) for e in error.flat])
    huber = losses.huber(jnp.asarray(error, jnp.float32), jnp.float32(delta))
    np.testing.assert_allclose(huber, expected.reshape(5, 13), rtol=1e-6)


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_the_gradient_of_huber_is_the_clipped_error(delta):
    error = jnp.asarray([0.0, -0.0, 0.25, -0.25, delta, -delta, 5.0, -5.0, 1e15, -1e15, 1e25, -1e25], jnp.float32)
    gradient = jax.vmap(jax.grad(losses.huber), (0, None))(error, jnp.float32(delta))
    np.testing.assert_array_equal(gradient, np.clip(error, -delta, delta))
    assert gradient[0] == 0.0
    np.testing.assert_array_equal(gradient[6:], delta * np.sign(error[6:]))


def test_the_gradient_of_huber_passes_the_nan_checker():
    with jax.debug_nans(True):
        gradient = jax.jit(jax.vmap(jax.grad(losses.huber), (0, None)))(jnp.array([0.0, 1e25]), jnp.float32(1))
    np.testing.assert_array_equal(gradient, [0.0, 1.0])
