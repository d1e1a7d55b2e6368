"""Steps against one of another implementation and against dense matrices in float64; what is left alone, bit for bit.

tests/truths/trpo_categorical.npz holds one whole policy step on CartPole: 512 transitions, a tanh network 4-16-16-2,
its weights [out, in] before ("b/...") and after ("a/..."), the divergence and the surrogate after it.
"""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from purerl.distributions import Categorical, Gaussian
from purerl.trust_region import (
    conjugate_gradient,
    fisher_vector_product,
    gauss_newton_product,
    line_search,
    natural_step,
)

KINDS = ["categorical", "gaussian"]


class Problem(NamedTuple):
    """A policy, what it did, and how well that was."""

    params: Any
    observation: Any
    action: Any
    advantage: Any
    shift: Any  # [states, 1], added to the logits
    penalty: Any  # times the squared distance from the old parameters, taken off the surrogate


def network(problem, params):
    x = problem.observation
    for layer, (weight, bias) in enumerate(params["layers"]):
        x = jnp.matmul(jnp.tanh(x) if layer else x, weight, precision="highest") + bias
    return x + problem.shift


def our_policy(problem, params):
    outputs = network(problem, params)
    if "log_deviation" not in params:
        return Categorical(logits=outputs)
    return Gaussian(mean=outputs, log_deviation=jnp.broadcast_to(params["log_deviation"], outputs.shape))


def their_policy(problem, params):
    outputs = network(problem, params)
    if "log_deviation" not in params:
        return distrax.Categorical(logits=outputs)
    return distrax.MultivariateNormalDiag(outputs, jnp.broadcast_to(jnp.exp(params["log_deviation"]), outputs.shape))


def functions(problem, policy, divergence):
    """Surrogate, KL(old‖new) and KL(new‖old), averaged over states."""
    old = policy(problem, problem.params)
    log_prob = old.log_prob(problem.action)

    def surrogate(params):
        ratio = jnp.exp(policy(problem, params).log_prob(problem.action) - log_prob)
        apart = jax.tree.map(lambda new, before: jnp.sum((new - before) ** 2), params, problem.params)
        return jnp.mean(ratio * problem.advantage) - problem.penalty * sum(jax.tree.leaves(apart))

    def mean_kl(params):
        return jnp.mean(divergence(old, policy(problem, params)))

    def reverse_kl(params):
        return jnp.mean(divergence(policy(problem, params), old))

    return surrogate, mean_kl, reverse_kl


def ours(problem):
    return functions(problem, our_policy, lambda p, q: p.kl(q))


def gauss_newton(problem):
    old = our_policy(problem, problem.params)
    return gauss_newton_product(
        functools.partial(our_policy, problem), lambda policy: jnp.mean(old.kl(policy)), problem.params
    )


def take_step(problem, delta, damping, coefficient, named, **changes):
    surrogate, mean_kl, reverse_kl = ours(problem)
    return natural_step(
        problem.params,
        surrogate,
        mean_kl,
        delta=delta,
        damping=damping,
        cg_iterations=15 if len(problem.advantage) == 512 else 60,
        max_backtracks=10,
        backtrack_coefficient=coefficient,
        acceptance_kl=None if named is None else lambda params: named["reverse"] * reverse_kl(params) - named["off"],
        **changes,
    )


compiled = jax.jit(take_step)


def step(problem, delta=0.01, damping=0.01, coefficient=0.8, acceptance=None):
    """Ours, from the old parameters; `acceptance` is None, "reverse" or "any", with which any rise is accepted."""
    named = {None: None, "reverse": {"reverse": 1.0, "off": 0.0}, "any": {"reverse": 0.0, "off": 1.0}}[acceptance]
    return compiled(problem, *jax.tree.map(jnp.float32, (delta, damping, coefficient, named)))


def flat(tree):
    return np.concatenate([np.asarray(leaf, np.float64).reshape(-1) for leaf in jax.tree.leaves(tree)])


def whole_step(problem, delta, damping):
    """The step before any backtracking, in float64, and the information on it."""
    moved, info = step(problem, delta, damping, acceptance="any")
    assert info.accepted
    assert info.backtracks == 0
    return flat(moved) - flat(problem.params), info


def same_bits(one, other):
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@functools.cache
def problem_of(kind):
    if kind == "cartpole":
        return cartpole()
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    outputs = 3 if kind == "categorical" else 2
    params = {"layers": [(normal(4, 6) / 2, normal(6) / 3), (normal(6, outputs), normal(outputs).at[0].set(-0.0))]}
    if kind == "gaussian":
        params["log_deviation"] = jnp.asarray([-0.5, 0.3], jnp.float32)
    problem = complete(params, normal(64, 4), None, normal(64))
    return problem._replace(action=our_policy(problem, params).sample(jax.random.key(0)))


def complete(params, observation, action, advantage):
    return Problem(params, observation, action, advantage, jnp.zeros((len(advantage), 1), jnp.float32), jnp.float32(0))


def cartpole():
    truth, advantage = truths(), truths()["adv"]
    advantage = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
    observation, action = jnp.asarray(truth["obs"]), jnp.asarray(truth["act"][:, 0], jnp.int32)
    return complete(cartpole_params("b"), observation, action, jnp.asarray(advantage))


@functools.cache
def truths():
    with np.load(Path(__file__).parent / "truths" / "trpo_categorical.npz") as file:
        return dict(file)


def cartpole_params(when):
    names = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2", "action_net"]
    layers = [(truths()[f"{when}/{name}.weight"].T, truths()[f"{when}/{name}.bias"]) for name in names]
    return {"layers": jax.tree.map(jnp.asarray, layers)}


# --- in float64, with dense matrices --------------------------------------------------------------------------------


class Dense(NamedTuple):
    gradient: np.ndarray  # of the surrogate
    hessian: np.ndarray  # of KL(old‖new) at the old parameters
    values: Any  # flat parameters -> the surrogate and the divergence


@functools.cache
def wide(kind):
    narrow = problem_of(kind)
    with jax.enable_x64(True):
        return jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int32 else leaf.astype(jnp.float64), narrow)


@functools.cache
def dense(kind):
    problem = wide(kind)
    with jax.enable_x64(True):
        surrogate, mean_kl, _ = functions(problem, their_policy, lambda p, q: p.kl_divergence(q))
        old, unflatten = ravel_pytree(problem.params)
        assert old.dtype == jnp.float64
        values = jax.jit(lambda x: (surrogate(unflatten(x)), mean_kl(unflatten(x))))
        gradient = jax.jit(jax.grad(lambda x: surrogate(unflatten(x))))(old)
        hessian = jax.jit(jax.hessian(lambda x: mean_kl(unflatten(x))))(old)

    def widely(params):
        with jax.enable_x64(True):
            return [float(value) for value in values(jnp.asarray(params, jnp.float64))]

    return Dense(np.asarray(gradient), np.asarray(hessian), widely)


def dense_direction(kind, damping):
    oracle = dense(kind)
    damped = oracle.hessian + damping * np.eye(len(oracle.gradient))
    return np.linalg.solve(damped, oracle.gradient), damped


@functools.cache
def scores_and_fisher(kind):
    """Gradients of log-probabilities of the actions taken [states, parameters], and the Fisher matrix, from Jacobians.

    The mean over states of J'MJ: J of the policy's outputs by its parameters, M the Fisher matrix of the outputs.
    """
    problem = wide(kind)
    with jax.enable_x64(True):
        old, unflatten = ravel_pytree(problem.params)

        def outputs(x):
            params = unflatten(x)
            mean = network(problem, params)
            if kind == "categorical":
                return mean
            return jnp.concatenate([mean, jnp.broadcast_to(params["log_deviation"], mean.shape)], axis=-1)

        def log_prob(x):
            return their_policy(problem, unflatten(x)).log_prob(problem.action)

        scores = jax.jit(jax.jacobian(log_prob))(old)
        jacobian, at = np.asarray(jax.jit(jax.jacobian(outputs))(old)), np.asarray(outputs(old))
    if kind == "categorical":
        prob = np.exp(at) / np.exp(at).sum(axis=-1, keepdims=True)
        metric = prob[:, :, None] * np.eye(3) - prob[:, :, None] * prob[:, None, :]
    else:
        metric = np.concatenate([np.exp(-2 * at[:, 2:]), np.full((len(at), 2), 2.0)], axis=-1)[:, :, None] * np.eye(4)
    return np.asarray(scores), np.einsum("sip,sij,sjq->pq", jacobian, metric, jacobian) / len(at)


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# --- a whole step ---------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_step_is_that_of_another_implementation():
    problem, truth = problem_of("cartpole"), truths()
    moved, info = step(problem, 0.01, 0.1, acceptance="reverse")
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), moved, cartpole_params("a"))
    assert max(np.abs(flat(moved) - flat(problem.params))) > 5e-3  # or standing still would do
    assert info.accepted
    assert info.backtracks == 0
    before = ours(problem)[0](problem.params)
    np.testing.assert_allclose(info.kl, truth["kl"], atol=1e-5)
    np.testing.assert_allclose(before + info.improvement, truth["obj"], atol=1e-5)


def test_the_policy_of_the_truth_is_the_one_that_acted():
    problem = problem_of("cartpole")
    log_prob = our_policy(problem, problem.params).log_prob(problem.action)
    np.testing.assert_allclose(log_prob, truths()["logp"], atol=1e-5)


def test_a_step_says_what_came_of_it():
    problem = problem_of("categorical")
    surrogate, mean_kl, _ = ours(problem)
    moved, info = step(problem)
    floats = info.kl, info.improvement, info.expected_improvement
    assert [(leaf.shape, leaf.dtype) for leaf in floats] == [((), jnp.float32)] * 3
    assert (info.backtracks.shape, info.backtracks.dtype) == ((), jnp.int32)
    assert (info.accepted.shape, info.accepted.dtype) == ((), jnp.bool_)
    np.testing.assert_allclose(info.kl, mean_kl(moved), atol=1e-6)
    np.testing.assert_allclose(info.improvement, surrogate(moved) - surrogate(problem.params), atol=1e-6)
    assert 0 < info.kl < 0.01


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize(
    ("kind", "damping"),
    [("categorical", 0.01), ("categorical", 0.3), ("gaussian", 0.01), ("gaussian", 0.3), ("cartpole", 0.1)],
)
def test_the_whole_step_is_that_of_a_dense_solve(kind, damping):
    direction, damped = dense_direction(kind, damping)
    gradient = dense(kind).gradient
    beta = np.sqrt(2 * 0.01 / (gradient @ direction))
    found, info = whole_step(problem_of(kind), 0.01, damping)
    assert relative_error(found, beta * direction) < 1e-3
    assert relative_error(found, beta * gradient) > 0.05  # not a step along the gradient
    np.testing.assert_allclose(0.5 * found @ damped @ found, 0.01, rtol=1e-3)
    np.testing.assert_allclose(info.expected_improvement, gradient @ found, rtol=1e-3)


def test_a_product_that_is_handed_over_takes_the_place_of_the_default():
    problem, oracle = problem_of("gaussian"), dense("gaussian")

    @jax.jit
    def moved(problem, factor):
        product = gauss_newton(problem)
        scaled = lambda vector: jax.tree.map(lambda part: factor * part, product(vector))  # noqa: E731
        return take_step(problem, 0.01, 0.01, 0.8, {"reverse": 0.0, "off": 1.0}, fisher_product=scaled)[0]

    for factor in (1.0, 0.25):
        damped = factor * oracle.hessian + 0.01 * np.eye(len(oracle.gradient))
        direction = np.linalg.solve(damped, oracle.gradient)
        expected = np.sqrt(2 * 0.01 / (oracle.gradient @ direction)) * direction
        assert relative_error(flat(moved(problem, factor)) - flat(problem.params), expected) < 1e-3
        if factor == 1:
            found, _ = whole_step(problem, 0.01, 0.01)
            assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_the_step_the_closer_to_the_quadratic_and_the_linear_model(kind):
    oracle, old = dense(kind), flat(problem_of(kind).params)
    off = []
    for delta in (1e-3, 1e-4, 1e-5):
        found, info = whole_step(problem_of(kind), delta, 0.01)
        value, divergence = oracle.values(old + found)
        rise = value - oracle.values(old)[0]
        quadratic, linear = 0.5 * found @ oracle.hessian @ found, oracle.gradient @ found
        assert quadratic < delta
        off.append([abs(divergence / quadratic - 1), abs(rise / linear - 1)])
        np.testing.assert_allclose(info.improvement, rise, atol=1e-6)
    off = np.array(off)
    # Both models err in proportion to the length of the step, the root of delta.
    assert (off[1:] < 0.5 * off[:-1]).all(), off
    assert (off[2] < 0.02).all(), off


def test_with_little_damping_the_whole_step_overshoots_and_is_shortened():
    problem = problem_of("cartpole")
    _, mean_kl, _ = ours(problem)
    whole, _ = step(problem, 0.01, 1e-4, acceptance="any")
    overshoot = float(mean_kl(whole)) / 0.01
    assert 1.8 < overshoot < 3.5
    moved, info = step(problem, 0.01, 1e-4)
    assert info.accepted
    assert info.backtracks >= 1
    assert info.kl < 0.01
    shortened = 0.8 ** int(info.backtracks) * (flat(whole) - flat(problem.params))
    np.testing.assert_allclose(flat(moved) - flat(problem.params), shortened, atol=1e-6)
    longer = jax.tree.map(lambda new, old: old + (new - old) / 0.8, moved, problem.params)
    assert mean_kl(longer) >= 0.01


def test_a_constant_per_state_in_the_logits_changes_nothing():
    for kind in ("categorical", "cartpole"):
        problem = problem_of(kind)
        shift = jnp.asarray(np.random.default_rng(1).normal(size=problem.shift.shape), jnp.float32)
        (one, info), (other, shifted) = step(problem), step(problem._replace(shift=shift))
        old = flat(problem.params)
        assert relative_error(flat(other) - old, flat(one) - old) < 1e-4
        np.testing.assert_allclose(shifted.kl, info.kl, atol=1e-6)


def test_a_surrogate_of_another_scale_has_the_same_step():
    problem = problem_of("gaussian")
    (one, _), (other, _) = step(problem), step(problem._replace(advantage=100 * problem.advantage))
    old = flat(problem.params)
    assert relative_error(flat(other) - old, flat(one) - old) < 1e-3


# --- the Fisher matrix ----------------------------------------------------------------------------------------------


@jax.jit
def products(problem, damping):
    """All rows of H + damping I and, by Gauss and Newton, of H: from their products with unit vectors."""
    _, mean_kl, _ = ours(problem)
    old, unflatten = ravel_pytree(problem.params)
    whole = functools.partial(fisher_vector_product, mean_kl, problem.params, damping=damping)
    units = jnp.eye(len(old), dtype=jnp.float32)
    return [
        jax.vmap(lambda vector, product=product: ravel_pytree(product(unflatten(vector)))[0])(units)
        for product in (whole, gauss_newton(problem))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_with_the_fisher_matrix_over_all_actions_not_over_the_sampled_ones(kind):
    problem = problem_of(kind)
    scores, fisher = scores_and_fisher(kind)
    hessian = dense(kind).hessian
    np.testing.assert_allclose(hessian, fisher, atol=1e-12)
    for found in products(problem, 0.0):
        np.testing.assert_allclose(found, hessian, atol=1e-6 * np.abs(hessian).max())
    sampled = scores.T @ scores / len(scores)
    assert relative_error(sampled, hessian) > 0.2


def test_damping_adds_its_multiple_of_the_vector():
    problem = problem_of("gaussian")
    apart = products(problem, 0.7)[0] - products(problem, 0.0)[0]
    np.testing.assert_allclose(apart, 0.7 * np.eye(len(apart)), atol=1e-6)


def test_products_are_those_with_the_hessian_where_the_divergence_is_not_zero_too():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(5, 5))
    at, vector = {"a": rng.normal(size=3), "b": (rng.normal(size=2),)}, {"a": rng.normal(size=3), "b": (np.ones(2),)}

    def function(tree):
        x = jnp.concatenate([tree["a"], tree["b"][0]])
        return jnp.sum(jnp.sin(weights @ x)) + jnp.sum(x**4)

    x = flat(at)
    hessian = -weights.T @ np.diag(np.sin(weights @ x)) @ weights + np.diag(12 * x**2)
    found = fisher_vector_product(function, *(jax.tree.map(jnp.float32, tree) for tree in (at, vector)), damping=0.5)
    assert jax.tree.structure(found) == jax.tree.structure(vector)
    np.testing.assert_allclose(flat(found), hessian @ flat(vector) + 0.5 * flat(vector), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_old_parameters_divergences_and_their_gradients_are_zero(kind):
    problem = problem_of(kind)
    divergences = ours(problem)[1:]
    for value, gradient in jax.jit(lambda params: [jax.value_and_grad(f)(params) for f in divergences])(problem.params):
        np.testing.assert_allclose(value, 0, atol=1e-7)
        np.testing.assert_allclose(flat(gradient), 0, atol=1e-6)


# --- what is left alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {"penalty": 1e9},  # it falls wherever one goes
        {"penalty": np.nan},
        {"advantage": 0.0},
        {"advantage": np.nan},
        {"advantage": np.inf},
        {"delta": 0.0},
        {"delta": np.nan},
    ],
    ids=str,
)
def test_where_nothing_is_accepted_the_parameters_stay_bit_for_bit(kind, changes):
    problem, delta = problem_of(kind), changes.get("delta", 0.01)
    assert step(problem)[1].accepted
    if "advantage" in changes:
        problem = problem._replace(advantage=jnp.full_like(problem.advantage, changes["advantage"]))
    problem = problem._replace(penalty=jnp.float32(changes.get("penalty", 0)))
    moved, info = step(problem, delta)
    assert same_bits(moved, problem.params)
    assert not info.accepted
    assert info.backtracks == 9
    np.testing.assert_allclose(info.kl, 0, atol=1e-7)


SIMPLE = {"x": jnp.asarray([1.0, -2.0, -0.0], jnp.float32)}


def simple_step(surrogate=lambda params: params["x"][0], mean_kl=None, **changes):
    """From SIMPLE, with a quadratic divergence."""
    settings = {
        "delta": 0.5,
        "damping": 0.0,
        "cg_iterations": 3,
        "max_backtracks": 4,
        "backtrack_coefficient": 0.5,
    }
    quadratic = lambda params: 0.5 * jnp.sum((params["x"] - SIMPLE["x"]) ** 2)  # noqa: E731
    return natural_step(SIMPLE, surrogate, mean_kl or quadratic, **settings | changes)


def test_a_quadratic_divergence_and_a_linear_surrogate_are_exactly_followed():
    moved, info = simple_step(delta=2.0, acceptance_kl=lambda params: jnp.float32(0))
    np.testing.assert_allclose(moved["x"], [3, -2, 0], rtol=1e-6)
    np.testing.assert_allclose([info.improvement, info.expected_improvement], 2, rtol=1e-6)
    assert (info.backtracks, info.accepted) == (0, True)


@pytest.mark.parametrize(
    "changes",
    [
        {"acceptance_kl": lambda params: jnp.float32(np.inf)},
        {"acceptance_kl": lambda params: jnp.float32(np.nan)},
        {"acceptance_kl": lambda params: jnp.float32(0.5)},  # delta itself is too much
        {"max_backtracks": 0},
        {"surrogate": lambda params: jnp.where(params["x"][0] == 1, params["x"][0], jnp.nan)},
        {"surrogate": lambda params: 2.0 + 0 * params["x"][0]},
        {"surrogate": lambda params: jnp.minimum(params["x"][0], 1.0)},  # it never rises
        {"mean_kl": lambda params: jnp.float32(np.nan) * params["x"][0]},
        {"mean_kl": lambda params: -jnp.sum((params["x"] - SIMPLE["x"]) ** 2)},  # no curvature to go by
        {"cg_iterations": 0},
        {"cg_tolerance": 1.5},  # the gradient squared is 1
    ],
)
def test_whatever_is_not_acceptable_the_parameters_stay_bit_for_bit(changes):
    moved, info = simple_step(**changes)
    assert same_bits(moved, SIMPLE)
    assert not info.accepted


@pytest.mark.parametrize(
    "changes",
    [
        {"surrogate": lambda params: 2.0 + 0 * params["x"][0]},
        {"mean_kl": lambda params: -jnp.sum((params["x"] - SIMPLE["x"]) ** 2)},
    ],
)
def test_without_gradient_or_curvature_nothing_is_expected(changes):
    with jax.debug_nans(True):
        _, info = simple_step(**changes)
    assert (info.kl, info.improvement, info.expected_improvement) == (0, 0, 0)


# --- which divergence decides ---------------------------------------------------------------------------------------


def bernoulli_divergence(logit, other):
    p, q = (1 / (1 + np.exp(-x)) for x in (logit, other))
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


@pytest.mark.parametrize("old", [-3.0, 3.0])
def test_the_divergence_of_the_new_policy_from_the_old_one_decides_unless_another_is_named(old):
    start, delta, coefficient = jnp.asarray([old], jnp.float32), 0.2, 0.9

    def as_policy(x):
        return Categorical(logits=jnp.concatenate([x, jnp.zeros(1)]))

    @functools.partial(jax.jit, static_argnames="reverse")
    def information(start, reverse):
        named = {"acceptance_kl": lambda x: as_policy(x).kl(as_policy(start))} if reverse else {}
        return natural_step(
            start,
            lambda x: -x[0] * jnp.sign(start[0]),
            lambda x: as_policy(start).kl(as_policy(x)),
            delta=delta,
            damping=0.0,
            cg_iterations=2,
            max_backtracks=40,
            backtrack_coefficient=coefficient,
            **named,
        )[1]

    whole = -np.sign(old) * np.sqrt(2 * delta / (np.exp(old) / (1 + np.exp(old)) ** 2))
    tried = old + whole * coefficient ** np.arange(40)
    forward, reverse = bernoulli_divergence(old, tried), bernoulli_divergence(tried, old)
    first, second = np.argmax(forward < delta), np.argmax(reverse < delta)
    assert first != second
    default, named = information(start, reverse=False), information(start, reverse=True)
    assert (default.backtracks, named.backtracks) == (first, second)
    np.testing.assert_allclose([default.kl, named.kl], [forward[first], reverse[second]], rtol=1e-4)


# --- conjugate gradient ---------------------------------------------------------------------------------------------


def spd(size, seed=0, condition=30.0):
    """A symmetric matrix of eigenvalues between 1 and `condition`, and a target."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(size, size)))
    return basis @ np.diag(np.geomspace(1, condition, size)) @ basis.T, rng.normal(size=size)


def solve(matrix, target, iterations, tolerance=1e-10):
    matrix = jnp.asarray(matrix, jnp.float32)
    target = jnp.asarray(target, jnp.float32)
    product = lambda x: jnp.matmul(matrix, x, precision="highest")  # noqa: E731
    return np.asarray(conjugate_gradient(product, target, iterations=iterations, tolerance=tolerance))


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_conjugate_gradient_solves_as_numpy_does(size):
    matrix, target = spd(size)
    np.testing.assert_allclose(solve(matrix, target, 80), np.linalg.solve(matrix, target), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("iterations", [0, 1, 2, 5])
def test_after_k_iterations_it_is_the_best_of_the_krylov_space(iterations):
    matrix, target = spd(12, seed=1)
    found = solve(matrix, target, iterations)
    if iterations == 0:
        np.testing.assert_array_equal(found, 0)
        return
    powers = [target]
    for _ in range(iterations - 1):
        powers.append(matrix @ powers[-1])
    space, _ = np.linalg.qr(np.stack(powers, axis=1))
    best = space @ np.linalg.solve(space.T @ matrix @ space, space.T @ target)
    np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-5)
    assert relative_error(found, np.linalg.solve(matrix, target)) > 1e-2


def test_it_stops_when_the_squared_residual_falls_below_the_tolerance():
    matrix, target = spd(12, seed=1)
    solutions = [solve(matrix, target, k) for k in range(9)]
    left = [np.sum((target - matrix @ x) ** 2) for x in solutions]
    np.testing.assert_array_equal(solve(matrix, target, 50, 1.01 * left[0]), 0)
    np.testing.assert_array_equal(solve(matrix, target, 1, 0.99 * left[0]), solutions[1])
    checked = 0
    for k in range(1, 9):
        lowest = min(left[:k])
        if left[k] < 0.8 * lowest:
            tolerance = np.sqrt(left[k] * lowest)
            np.testing.assert_array_equal(solve(matrix, target, 50, tolerance), solutions[k])
            checked += 1
    assert checked >= 3


def test_it_takes_any_pytree():
    matrix, target = spd(9, seed=2)
    tree = {"a": jnp.asarray(target[:6].reshape(2, 3), jnp.float32), "b": (jnp.asarray(target[6:], jnp.float32),)}
    _, unflatten = ravel_pytree(tree)
    product = lambda x: unflatten(jnp.asarray(matrix, jnp.float32) @ ravel_pytree(x)[0])  # noqa: E731
    found = conjugate_gradient(product, tree, iterations=30)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    np.testing.assert_allclose(ravel_pytree(found)[0], np.linalg.solve(matrix, target), rtol=1e-4, atol=1e-5)


def test_it_solves_within_its_iterations_not_within_the_size():
    # Two eigenvalues: two iterations.
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
    matrix, target = basis @ np.diag(np.repeat([2.0, 5.0], 15)) @ basis.T, np.ones(30)
    np.testing.assert_allclose(solve(matrix, target, 2), np.linalg.solve(matrix, target), rtol=1e-4, atol=1e-5)


def test_of_a_zero_target_the_solution_is_zero():
    with jax.debug_nans(True):
        np.testing.assert_array_equal(solve(spd(5)[0], np.zeros(5), 10), 0)
        np.testing.assert_array_equal(solve(np.zeros((5, 5)), np.zeros(5), 10), 0)


def test_lanes_that_are_done_wait_as_they_are():
    matrices = np.stack([np.eye(12), spd(12, seed=3)[0], spd(12, seed=4, condition=300.0)[0], spd(12, seed=5)[0]])
    targets = np.stack([np.ones(12), np.zeros(12), spd(12, seed=4)[1], 1e-6 * np.ones(12)])
    run = functools.partial(solve_lane, iterations=200)
    together = np.asarray(jax.jit(jax.vmap(run))(*(jnp.asarray(x, jnp.float32) for x in (matrices, targets))))
    for lane in range(4):
        alone = run(*(jnp.asarray(x[lane], jnp.float32) for x in (matrices, targets)))
        np.testing.assert_allclose(together[lane], alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(together[0], 1)
    np.testing.assert_array_equal(together[[1, 3]], 0)
    np.testing.assert_allclose(together[2], np.linalg.solve(matrices[2], targets[2]), rtol=1e-3, atol=1e-4)


def solve_lane(matrix, target, iterations):
    return conjugate_gradient(
        lambda x: jnp.matmul(matrix, x, precision="highest"), target, iterations=iterations, tolerance=1e-9
    )


# --- line search ----------------------------------------------------------------------------------------------------


def search(acceptable, max_backtracks=6, coefficient=0.5):
    params, step = {"x": jnp.asarray([10.0, -0.0])}, {"x": jnp.asarray([32.0, 0.0])}
    found, tried, accepted = line_search(
        params, step, acceptable, max_backtracks=max_backtracks, backtrack_coefficient=coefficient
    )
    return np.asarray(found["x"]), int(tried), bool(accepted)


@pytest.mark.parametrize(("bound", "first"), [(100.0, 0), (42.0, 0), (41.9, 1), (26.0, 1), (20.0, 2), (11.0, 5)])
def test_the_first_acceptable_step_is_taken(bound, first):
    found, tried, accepted = search(lambda params: params["x"][0] <= bound)
    assert (tried, accepted) == (first, True)
    np.testing.assert_allclose(found[0], 10 + 32 * 0.5**first)


def test_the_first_acceptable_step_is_taken_even_if_a_shorter_one_is_not():
    found, tried, accepted = search(lambda params: (params["x"][0] == 26) | (params["x"][0] == 14))
    assert (found[0], tried, accepted) == (26, 1, True)


def test_it_tries_so_often_and_no_more():
    for most, accepted in [(5, False), (6, True)]:
        assert search(lambda params: params["x"][0] <= 11, max_backtracks=most)[2] == accepted
    found, tried, accepted = search(lambda params: params["x"][0] < 10)
    assert (tried, accepted) == (5, False)
    assert found.tobytes() == np.float32([10.0, -0.0]).tobytes()


@pytest.mark.parametrize("coefficient", [0.3, 0.8, 1.0])
def test_each_step_is_a_multiple_of_the_whole_one(coefficient):
    found, tried, accepted = search(lambda params: params["x"][0] <= 10 + 32 * coefficient**3 + 1e-3, 6, coefficient)
    assert (tried, accepted) == (0 if coefficient == 1 else 3, True)
    np.testing.assert_allclose(found[0], 10 + 32 * coefficient**3, rtol=1e-6)


# --- as a program ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_are_what_each_would_be_alone_and_rejected_ones_stay_as_they_are(kind):
    problem, rng = problem_of(kind), np.random.default_rng(3)
    lanes = 5
    several = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (lanes, *leaf.shape)), problem)
    several = several._replace(
        params=jax.tree.map(lambda leaf: leaf * jnp.float32(rng.uniform(0.7, 1.3, size=leaf.shape)), several.params),
        advantage=several.advantage * jnp.asarray([[1.0], [1.0], [0.0], [1.0], [-3.0]], jnp.float32),
        penalty=jnp.asarray([0.0, 1e9, 0.0, 0.0, 0.0], jnp.float32),
    )
    delta = jnp.asarray([0.01, 0.01, 0.01, 1e-3, 0.1], jnp.float32)
    damping = jnp.asarray([0.01, 0.1, 0.1, 0.01, 1e-3], jnp.float32)
    moved, info = jax.jit(jax.vmap(take_step, (0, 0, 0, None, None)))(several, delta, damping, 0.8, None)
    assert info.accepted.tolist() == [True, False, False, True, True]
    assert len(set(info.backtracks.tolist())) > 1
    for lane in range(lanes):
        one = jax.tree.map(lambda leaf, lane=lane: leaf[lane], several)
        alone, alone_info = step(one, delta[lane], damping[lane])
        here = jax.tree.map(lambda leaf, lane=lane: leaf[lane], moved)
        np.testing.assert_allclose(flat(here), flat(alone), atol=1e-5)
        assert (info.accepted[lane], info.backtracks[lane]) == (alone_info.accepted, alone_info.backtracks)
        assert same_bits(here, one.params) != bool(info.accepted[lane])


def test_new_numbers_need_no_new_program():
    traces = []

    @jax.jit
    def program(params, delta, damping, coefficient, tolerance):
        def surrogate(params):
            traces.append(None)
            return params["x"][0]

        return natural_step(
            params,
            surrogate,
            lambda params: 0.5 * jnp.sum((params["x"] - SIMPLE["x"]) ** 2 * jnp.arange(1.0, 4.0)),
            delta=delta,
            damping=damping,
            cg_iterations=3,
            max_backtracks=5,
            backtrack_coefficient=coefficient,
            cg_tolerance=tolerance,
        )

    moved, counts = [], []
    for numbers in NUMBERS:
        moved.append(program(SIMPLE, *numbers)[0]["x"][0])
        counts.append(len(traces))
    assert len(set(counts)) == 1
    expected = []
    for delta, damping, coefficient, _ in NUMBERS:
        whole = np.sqrt(2 * delta / (1 + damping))
        lengths = whole * coefficient ** np.arange(5)
        expected.append(1 + lengths[np.argmax(0.5 * lengths**2 < delta)])
    np.testing.assert_allclose(moved, expected, rtol=1e-6)


# delta, damping, backtracking coefficient, tolerance
NUMBERS = [(0.5, 0.1, 0.5, 1e-10), (0.02, 0.1, 0.5, 1e-10), (0.02, 3.0, 0.5, 1e-8), (0.02, 0.1, 0.9, 1e-10)]
