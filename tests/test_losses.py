"""TD errors and losses of policies against rlax, all losses against closed forms, selection against indexing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from purerl import losses
from purerl.base import select
from purerl.distributions import Categorical

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
    return losses.sarsa_target(reward, bootstrap, select(next_values, next_action))


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
    error = ours(x["reward"], bootstrap, x["next_values"], *rest) - select(x["values"], x["action"])

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
    np.testing.assert_array_equal(select(x["values"], x["action"]), expected)


def test_the_gradient_of_select_is_that_of_indexing():
    x = batch_of(seed=5)
    rows = jnp.arange(BATCH)
    ours = jax.grad(lambda q: jnp.sum(select(q, x["action"]) ** 3))(x["values"])
    indexing = jax.grad(lambda q: jnp.sum(q[rows, x["action"]] ** 3))(x["values"])
    np.testing.assert_allclose(ours, indexing, rtol=1e-6)


def test_the_gradient_of_select_is_no_scatter():
    x = batch_of(seed=6)
    gradient = jax.make_jaxpr(jax.grad(lambda q: jnp.sum(select(q, x["action"]))))(x["values"])
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


# --- values and policies ---------------------------------------------------------------------------------------------

# A loss, how many arrays it is given, and what numbers.
ELEMENTWISE = {
    "squared": (losses.squared, 1, []),
    "clipped_value": (losses.clipped_value, 3, [0.3]),
    "policy_gradient": (losses.policy_gradient, 2, []),
    "surrogate": (losses.surrogate, 2, []),
    "clipped_surrogate": (losses.clipped_surrogate, 2, [0.2]),
    "kl_estimate": (losses.kl_estimate, 1, []),
}


def arrays_of(seed, count, shape=(BATCH,)):
    return [jnp.asarray(array, jnp.float32) for array in np.random.default_rng(seed).normal(size=(count, *shape))]


def slopes(loss, *arguments):
    """The gradient of an elementwise loss with respect to its first argument."""
    return jax.grad(lambda first: jnp.sum(loss(first, *arguments[1:])))(arguments[0])


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3, 4)])
def test_losses_take_any_leading_axes_and_average_nothing(name, leading):
    loss, count, numbers = ELEMENTWISE[name]
    arguments, numbers = arrays_of(7, count, leading), [jnp.float32(number) for number in numbers]
    whole = jax.jit(loss)(*arguments, *numbers)
    assert (whole.shape, whole.dtype) == (leading, jnp.float32)
    one_by_one = lambda *scalars: loss(*scalars, *numbers)  # noqa: E731
    for _ in leading:
        one_by_one = jax.vmap(one_by_one)
    np.testing.assert_allclose(whole, one_by_one(*arguments), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("squared", [3.0], 4.5),
        ("squared", [-3.0], 4.5),
        ("clipped_value", [1.2, 5.0, 1.0, 0.3], 0.5 * 3.8**2),  # within the clip
        ("clipped_value", [2.0, 5.0, 1.0, 0.3], 0.5 * 3.7**2),  # beyond it, towards the target
        ("clipped_value", [0.0, 5.0, 1.0, 0.3], 0.5 * 5.0**2),  # beyond it, away from the target
        ("clipped_value", [3.0, -5.0, 1.0, 0.3], 0.5 * 8.0**2),
        ("clipped_value", [-1.0, -5.0, 1.0, 0.3], 0.5 * 5.7**2),
        ("policy_gradient", [np.log(0.25), 2.0], 2 * np.log(4)),
        ("policy_gradient", [np.log(0.25), -2.0], -2 * np.log(4)),
        ("surrogate", [np.log(3), 2.0], -6.0),
        ("surrogate", [np.log(3), -2.0], 6.0),
        ("clipped_surrogate", [np.log(1.1), 2.0, 0.2], -2.2),
        ("clipped_surrogate", [np.log(3), 2.0, 0.2], -2.4),
        ("clipped_surrogate", [np.log(3), -2.0, 0.2], 6.0),
        ("clipped_surrogate", [np.log(0.5), 2.0, 0.2], -1.0),
        ("clipped_surrogate", [np.log(0.5), -2.0, 0.2], 1.6),
        ("kl_estimate", [np.log(3)], 2 - np.log(3)),
        ("kl_estimate", [-np.log(3)], np.log(3) - 2 / 3),
    ],
)
def test_losses_by_hand(name, arguments, expected):
    found = ELEMENTWISE[name][0](*(jnp.float32(argument) for argument in arguments))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_gradient_of_the_squared_loss_is_the_error():
    (error,) = arrays_of(8, 1)
    np.testing.assert_allclose(slopes(losses.squared, error), error, rtol=1e-6)


def test_with_a_large_clip_the_clipped_loss_of_values_is_the_squared_one():
    value, target, old_value = arrays_of(9, 3)
    clipped = functools.partial(losses.clipped_value, clip=jnp.float32(100))
    np.testing.assert_allclose(clipped(value, target, old_value), losses.squared(value - target), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes(clipped, value, target, old_value), value - target, rtol=1e-5, atol=1e-6)


def test_the_clipped_loss_of_values_is_the_larger_of_the_two():
    value, target, old_value = arrays_of(10, 3)
    held = np.clip(value, old_value - 0.5, old_value + 0.5)
    plain, clipped = np.square(value - target) / 2, np.square(held - target) / 2
    found = losses.clipped_value(value, target, old_value, jnp.float32(0.5))
    assert 0 < np.mean(plain > clipped) < 0.9
    assert 0 < np.mean(plain < clipped) < 0.9
    np.testing.assert_allclose(found, np.maximum(plain, clipped), rtol=1e-5, atol=1e-6)


def test_a_value_beyond_the_clip_is_pulled_back_but_not_drawn_further():
    value = jnp.array([1.0, 1.2, 2.0, 2.0, 0.0, 0.0])
    target = jnp.array([5.0, 5.0, 5.0, -5.0, 5.0, -5.0])
    gradient = slopes(losses.clipped_value, value, target, jnp.ones(6), jnp.float32(0.3))
    np.testing.assert_allclose(gradient, [-4.0, -3.8, 0.0, 7.0, -5.0, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(gradient == 0, [False, False, True, False, False, True])


def test_the_policy_gradient_loss_and_its_gradient_are_those_of_rlax():
    (advantage,), (logits,) = arrays_of(11, 1), arrays_of(12, 1, (BATCH, ACTIONS))
    action = batch_of(seed=11)["action"]
    ours = lambda logits: jnp.mean(losses.policy_gradient(Categorical(logits=logits).log_prob(action), advantage))  # noqa: E731
    theirs = lambda logits: rlax.policy_gradient_loss(logits, action, advantage, jnp.ones(BATCH))  # noqa: E731
    for one, other in zip(*(jax.value_and_grad(loss)(logits) for loss in (ours, theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("clip", [0.05, 0.2, 0.9])
def test_the_clipped_surrogate_and_its_gradient_are_those_of_rlax(clip):
    log_ratio, advantage = arrays_of(13, 2)
    ours = lambda log_ratio: jnp.mean(losses.clipped_surrogate(log_ratio, advantage, jnp.float32(clip)))  # noqa: E731
    theirs = lambda log_ratio: rlax.clipped_surrogate_pg_loss(jnp.exp(log_ratio), advantage, clip)  # noqa: E731
    for one, other in zip(*(jax.value_and_grad(loss)(log_ratio) for loss in (ours, theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_the_entropy_of_a_policy_and_its_gradient_are_those_of_rlax():
    (weight,), (logits,) = arrays_of(14, 1), arrays_of(15, 1, (BATCH, ACTIONS))
    ours = lambda logits: -jnp.mean(weight * Categorical(logits=logits).entropy())  # noqa: E731
    theirs = lambda logits: rlax.entropy_loss(logits, weight)  # noqa: E731
    for one, other in zip(*(jax.value_and_grad(loss)(logits) for loss in (ours, theirs)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", [losses.surrogate, functools.partial(losses.clipped_surrogate, clip=jnp.float32(0.2))])
def test_at_the_old_policy_a_surrogate_has_the_policy_gradient(loss):
    log_prob, advantage = arrays_of(16, 2)
    expected = slopes(losses.policy_gradient, log_prob, advantage)
    np.testing.assert_allclose(slopes(loss, jnp.zeros(BATCH), advantage), expected, rtol=1e-6)


def test_the_gradient_of_the_clipped_surrogate_is_zero_just_where_it_pays_no_more_to_go_on():
    ratio = jnp.array([0.1, 0.5, 0.79, 0.81, 0.9, 1.0, 1.1, 1.19, 1.21, 1.5, 9.0])
    gradient = jax.vmap(jax.grad(losses.clipped_surrogate), (0, None, None))
    clip = jnp.float32(0.2)
    better, neither, worse = (gradient(jnp.log(ratio), jnp.float32(advantage), clip) for advantage in (2, 0, -2))
    np.testing.assert_array_equal(better == 0, ratio > 1.2)
    np.testing.assert_array_equal(worse == 0, ratio < 0.8)
    np.testing.assert_array_equal(neither, np.zeros(len(ratio)))
    np.testing.assert_allclose(better, np.where(ratio > 1.2, 0, -2 * ratio), rtol=1e-5)
    np.testing.assert_allclose(worse, np.where(ratio < 0.8, 0, 2 * ratio), rtol=1e-5)


@pytest.mark.parametrize("name", ["policy_gradient", "surrogate", "clipped_surrogate"])
def test_advantages_are_not_stopped(name):
    loss, _, numbers = ELEMENTWISE[name]
    found = jax.grad(loss, argnums=1)(jnp.log(jnp.float32(0.9)), jnp.float32(3), *map(jnp.float32, numbers))
    np.testing.assert_allclose(found, -np.log(0.9) if name == "policy_gradient" else -0.9, rtol=1e-5)


def test_targets_of_values_are_not_stopped():
    value, target, old_value, clip = map(jnp.float32, (2, 5, 2, 0.3))
    assert jax.grad(losses.clipped_value, argnums=1)(value, target, old_value, clip) == 3


def test_the_estimate_of_the_divergence_is_never_negative_and_zero_where_nothing_changed():
    magnitude = np.geomspace(1e-20, 80, 20_001).astype(np.float32)
    found = losses.kl_estimate(jnp.asarray(np.concatenate([magnitude, -magnitude])))
    assert np.all(found >= 0)
    assert np.all(np.isfinite(found))
    np.testing.assert_array_equal(losses.kl_estimate(jnp.array([0.0, -0.0])), [0.0, 0.0])
    assert jax.grad(losses.kl_estimate)(jnp.float32(0)) == 0


@pytest.mark.parametrize(("scale", "tolerance"), [(1e-4, 1e-2), (1e-2, 5e-4), (1.0, 1e-5)])
def test_the_estimate_of_the_divergence_is_precise_for_small_changes_too(scale, tolerance):
    log_ratio = scale * np.float32(np.linspace(0.5, 2, 1001))
    for signed in (log_ratio, -log_ratio):
        exact = np.expm1(signed.astype(np.float64)) - signed
        np.testing.assert_allclose(losses.kl_estimate(jnp.asarray(signed)), exact, rtol=tolerance)


@pytest.mark.parametrize(("change", "tolerance"), [(1e-3, 1e-2), (0.1, 1e-4), (3.0, 1e-5)])
def test_the_mean_estimate_under_the_old_policy_is_the_divergence_from_it(change, tolerance):
    logits, other = arrays_of(17, 2, (BATCH, ACTIONS))
    new, log_old = logits + change * other, jax.nn.log_softmax(logits)

    def mean_estimate(logits):
        return jnp.sum(jnp.exp(log_old) * losses.kl_estimate(jax.nn.log_softmax(logits) - log_old), axis=-1)

    def exact(logits):
        return Categorical(logits=log_old).kl(Categorical(logits=logits))

    p, q = (np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True) for x in np.float64([logits, new]))
    np.testing.assert_allclose(mean_estimate(new), (p * np.log(p / q)).sum(axis=-1), rtol=tolerance)
    np.testing.assert_allclose(slopes(mean_estimate, new), slopes(exact, new), rtol=1e-4, atol=1e-6)


def test_the_estimate_of_the_divergence_is_infinite_for_an_action_that_became_impossible():
    assert losses.kl_estimate(jnp.float32(-np.inf)) == np.inf
