"""Distributions against scipy and distrax in float64, samples by chi-square and KS, and the ends of float32."""

import dataclasses
import functools

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from purerl.distributions import Categorical, Distribution, Gaussian, SquashedGaussian

DRAWS = 40_000
# A wrong sampler gives p-values near zero at 40 000 draws; a right one fails once in ten thousand seeds, and the seeds
# are fixed.
SMALL = 1e-4
KINDS = ["categorical", "gaussian", "squashed"]
BOUNDS = [(-1.0, 1.0), (-0.3, 1.7), (0.1, 0.3), (-1e-3, 5.0), (100.0, 101.0), (-7.0, -0.1)]


def f32(x):
    return jnp.asarray(x, jnp.float32)


def f64(x):
    return np.asarray(x, np.float64)


def categorical(logits):
    return Categorical(logits=f32(logits))


def gaussian(mean, log_deviation):
    mean = f32(mean)
    return Gaussian(mean=mean, log_deviation=jnp.broadcast_to(f32(log_deviation), mean.shape))


def squashed(mean, log_deviation, low=-1.0, high=1.0):
    base = gaussian(mean, log_deviation)
    low, high = (jnp.broadcast_to(f32(bound), base.mean.shape) for bound in (low, high))
    return SquashedGaussian(base=base, low=low, high=high)


def random(kind, leading=(), seed=0, size=3):
    """A distribution of `kind` with random parameters, of five actions or of `size` dimensions."""
    rng = np.random.default_rng(seed)
    if kind == "categorical":
        return categorical(2 * rng.normal(size=(*leading, 5)))
    mean, log_deviation = rng.normal(size=(*leading, size)), rng.uniform(-1, 0.3, size=(*leading, size))
    if kind == "gaussian":
        return gaussian(mean, log_deviation)
    low = rng.normal(size=size)
    return squashed(mean, log_deviation, low, low + rng.uniform(0.5, 3, size=size))


def everything(distribution, other, action, key):
    return {
        "sample": distribution.sample(key),
        "mode": distribution.mode(),
        "log_prob": distribution.log_prob(action),
        "entropy": distribution.entropy(),
        "kl": distribution.kl(other),
    }


def many(distribution, draws=DRAWS, seed=0):
    """Actions [draws, ...] of one call: the distribution `draws` times over, as a batch."""
    batch = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (draws, *leaf.shape)), distribution)
    return np.asarray(batch.sample(jax.random.key(seed)))


def gradients(function, one, other):
    return jax.tree.map(np.asarray, jax.jit(jax.grad(function, (0, 1)))(one, other))


def all_finite(tree):
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


# --- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("leading", [(), (4,), (2, 3)])
def test_batch_axes_are_kept(kind, leading):
    p, q = random(kind, leading), random(kind, leading, seed=1)
    assert isinstance(p, Distribution)
    found = jax.eval_shape(everything, p, q, p.mode(), jax.random.key(0))
    dtype, event = (jnp.int32, ()) if kind == "categorical" else (jnp.float32, (3,))
    for name in ("sample", "mode"):
        assert (found[name].shape, found[name].dtype) == ((*leading, *event), dtype)
    for name in ("log_prob", "entropy", "kl"):
        assert (found[name].shape, found[name].dtype) == (leading, jnp.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_each_row_of_a_batch_is_computed_alone_and_jit_and_vmap_change_nothing(kind):
    p, q = random(kind, (4,)), random(kind, (4,), seed=1)
    action, keys = random(kind, (4,), seed=2).mode(), jax.random.split(jax.random.key(0), 4)
    if kind == "squashed":
        q, action = dataclasses.replace(q, low=p.low, high=p.high), dataclasses.replace(p, base=q.base).mode()
    together = jax.jit(jax.vmap(everything))(p, q, action, keys)
    single = jax.jit(everything)
    for row in range(4):
        alone = single(*jax.tree.map(lambda leaf, row=row: leaf[row], (p, q, action)), keys[row])
        for name, found in alone.items():
            np.testing.assert_allclose(together[name][row], found, rtol=1e-5, atol=1e-6, err_msg=name)
    batch = everything(p, q, action, keys[0])
    for name in ("mode", "log_prob", "entropy", "kl"):
        np.testing.assert_allclose(batch[name], together[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_is_zero_from_itself_and_its_gradient_there_too(kind):
    p = random(kind, (50,))
    np.testing.assert_allclose(p.kl(p), 0, atol=1e-7)

    def divergence(of, to):
        return jnp.sum(of.kl(to))

    for leaf in jax.tree.leaves(gradients(divergence, p, p)):
        np.testing.assert_allclose(leaf, 0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_divergence_is_the_mean_log_ratio_under_the_first(kind):
    p, q = random(kind), random(kind, seed=1)
    if kind == "squashed":
        q = dataclasses.replace(q, low=p.low, high=p.high)
    actions = f32(many(p)) if kind != "categorical" else jnp.asarray(many(p))
    ratio = f64(jax.jit(jax.vmap(lambda action: p.log_prob(action) - q.log_prob(action)))(actions))
    error = ratio.std() / np.sqrt(DRAWS)
    assert abs(ratio.mean() - float(p.kl(q))) < 4 * error
    assert abs(float(q.kl(p)) - float(p.kl(q))) > 10 * error  # or both ways round would pass


@pytest.mark.parametrize("kind", KINDS)
def test_the_entropy_is_the_mean_of_minus_log_prob(kind):
    p = random(kind, seed=3)
    actions = jnp.asarray(many(p, seed=1))
    surprise = -f64(jax.vmap(p.log_prob)(actions))
    assert abs(surprise.mean() - float(p.entropy())) < 4 * surprise.std() / np.sqrt(DRAWS)


# --- categorical ----------------------------------------------------------------------------------------------------


def test_a_categorical_is_that_of_distrax_and_of_scipy():
    p, q = random("categorical", (40,)), random("categorical", (40,), seed=1)
    action = jnp.asarray(np.arange(40) % 5, jnp.int32)
    ours, theirs, other = p, distrax.Categorical(logits=p.logits), distrax.Categorical(logits=q.logits)
    np.testing.assert_allclose(ours.log_prob(action), theirs.log_prob(action), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.entropy(), theirs.entropy(), rtol=1e-5)
    np.testing.assert_allclose(ours.kl(q), theirs.kl_divergence(other), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours.mode(), theirs.mode())

    log_p, log_q = (special.log_softmax(f64(x.logits), axis=-1) for x in (p, q))
    np.testing.assert_allclose(ours.log_prob(action), log_p[np.arange(40), action], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.entropy(), stats.entropy(np.exp(log_p), axis=-1), rtol=1e-5)
    np.testing.assert_allclose(ours.kl(q), stats.entropy(np.exp(log_p), np.exp(log_q), axis=-1), rtol=1e-5, atol=1e-6)


def test_the_categorical_divergence_weighs_by_the_first():
    p, q = [0.9, 0.05, 0.05], [0.2, 0.7, 0.1]
    ours = categorical(np.log(p)), categorical(np.log(q))
    np.testing.assert_allclose(ours[0].kl(ours[1]), stats.entropy(p, q), rtol=1e-5)
    np.testing.assert_allclose(ours[1].kl(ours[0]), stats.entropy(q, p), rtol=1e-5)
    assert stats.entropy(q, p) > 1.2 * stats.entropy(p, q)


def test_categorical_samples_have_their_probabilities():
    logits = np.array(
        [[0.0, 1.0, -1.0, 2.0], [-np.inf, 0.0, 0.5, -np.inf], [3.0, 3.0, -1e4, 3.0], [1e4, -np.inf, 0, 0]]
    )
    actions = many(categorical(logits))
    for row, probabilities in enumerate(special.softmax(logits, axis=-1)):
        counts = np.bincount(actions[:, row], minlength=4)
        possible = probabilities > 0
        assert counts[~possible].sum() == 0
        if possible.sum() > 1:
            assert stats.chisquare(counts[possible], DRAWS * probabilities[possible]).pvalue > SMALL, row
    table = stats.contingency.crosstab(actions[:, 0], actions[:, 2]).count
    assert stats.chi2_contingency(table).pvalue > SMALL


def test_the_mode_is_the_likeliest_action_and_among_equals_the_first():
    logits = [[0.0, 2.0, 1.0], [3.0, 3.0, 3.0], [-np.inf, -5.0, -5.0], [1e4, -1e4, 1e4]]
    np.testing.assert_array_equal(categorical(logits).mode(), [1, 0, 1, 0])


@pytest.mark.parametrize("shift", [-1000.0, 3.0])
def test_a_constant_per_state_in_the_logits_changes_nothing(shift):
    rng = np.random.default_rng(0)
    # Multiples of 2^-10 up to 2^12: their sums with the shift are exact.
    logits, others = (f32(np.round(1024 * rng.normal(size=(20, 4))) / 1024) for _ in range(2))
    shifts = f32(np.floor(shift * np.arange(20)[:, None] / 10))
    action, key = jnp.asarray(rng.integers(4, size=20), jnp.int32), jax.random.key(0)

    def measures(logits):
        p = categorical(logits)
        return p.log_prob(action), p.entropy(), p.kl(categorical(others)), categorical(others).kl(p)

    both = jax.jit(lambda logits: (measures(logits), jax.jacobian(measures)(logits)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), both(logits), both(logits + shifts))
    np.testing.assert_array_equal(categorical(logits + shifts).mode(), categorical(logits).mode())
    np.testing.assert_array_equal(categorical(logits + shifts).sample(key), categorical(logits).sample(key))


def test_the_gradients_of_a_categorical_are_their_closed_forms():
    p, q = random("categorical", (), 1), random("categorical", (), 2)
    logits, others = p.logits, q.logits
    log_p, log_q = (special.log_softmax(f64(x)) for x in (logits, others))
    prob, action = np.exp(log_p), jnp.int32(3)
    one_hot = np.arange(5) == 3
    of = lambda x: categorical(x)  # noqa: E731
    found = jax.grad(lambda x: of(x).log_prob(action))(logits)
    np.testing.assert_allclose(found, one_hot - prob, atol=1e-6)
    found = jax.grad(lambda x: of(x).entropy())(logits)
    np.testing.assert_allclose(found, -prob * (log_p - prob @ log_p), atol=1e-6)
    first, second = gradients(lambda x, y: of(x).kl(of(y)), logits, others)
    ratio = log_p - log_q
    np.testing.assert_allclose(first, prob * (ratio - prob @ ratio), atol=2e-6)
    np.testing.assert_allclose(second, np.exp(log_q) - prob, atol=1e-6)


def test_the_hessian_of_the_divergence_at_equality_is_the_fisher_matrix():
    logits = random("categorical").logits
    prob = special.softmax(f64(logits))
    hessian = jax.jit(jax.hessian(lambda x: categorical(logits).kl(categorical(x))))(logits)
    np.testing.assert_allclose(hessian, np.diag(prob) - np.outer(prob, prob), atol=1e-6)


def test_impossible_actions_have_no_probability_and_no_share_in_anything():
    here = np.array([0, 2, 3])
    some, others = np.float32([0.5, 1.0, -2.0]), np.float32([-1.0, 0.3, 0.0])
    masked, other_masked = (jnp.full(5, -jnp.inf).at[here].set(x) for x in (some, others))

    def measures(p, q, action):
        return {"log_prob": p.log_prob(action), "entropy": p.entropy(), "kl": p.kl(q)}

    with jax.debug_nans(True):
        assert categorical(masked).log_prob(jnp.int32(1)) == -np.inf
        found = measures(categorical(masked), categorical(other_masked), jnp.int32(3))
    expected = measures(categorical(some), categorical(others), jnp.int32(2))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    for name in found:

        def measure(x, y, action, name=name):
            return measures(categorical(x), categorical(y), action)[name]

        with jax.debug_nans(True):
            gradient = jax.grad(measure, (0, 1))(masked, other_masked, jnp.int32(3))
        without = jax.grad(measure, (0, 1))(some, others, jnp.int32(2))
        for whole, part in zip(gradient, without, strict=True):
            np.testing.assert_allclose(whole[here], part, atol=1e-6, err_msg=name)
            np.testing.assert_array_equal(whole[np.array([1, 4])], 0, err_msg=name)


def test_the_log_probability_of_an_impossible_action_has_a_finite_gradient():
    gradient = jax.grad(lambda x: categorical(x).log_prob(jnp.int32(1)))(f32([0.0, -np.inf, 1.0]))
    np.testing.assert_allclose(gradient, [-0.2689414, 1, -0.7310586], rtol=1e-6)


def test_the_divergence_leaves_out_what_only_the_other_allows():
    p, q = categorical([0.0, -np.inf, 1.0]), categorical([0.0, 2.0, -1.0])
    with jax.debug_nans(True):
        found, gradient = p.kl(q), gradients(lambda x, y: x.kl(y), p, q)
    prob, other = special.softmax([0.0, -np.inf, 1.0]), special.softmax([0.0, 2.0, -1.0])
    np.testing.assert_allclose(found, stats.entropy(prob, other), rtol=1e-6)
    np.testing.assert_allclose(gradient[1].logits, other - prob, atol=1e-6)
    assert all_finite(gradient)


def test_the_divergence_from_what_excludes_an_action_is_infinite():
    p, q = categorical([0.0, 0.0, 1.0]), categorical([0.0, -np.inf, 1.0])
    assert p.kl(q) == np.inf
    assert np.isfinite(q.kl(p))


@pytest.mark.parametrize("logit", [-110.0, -1e4])
def test_the_divergence_from_what_excludes_a_hardly_possible_action_is_no_nan(logit):
    assert not np.isnan(categorical([0.0, logit]).kl(categorical([0.0, -np.inf])))


def test_a_single_possible_action_has_no_entropy():
    logits = f32([-np.inf, 2.0, -np.inf])
    with jax.debug_nans(True):
        entropy, gradient = jax.value_and_grad(lambda x: categorical(x).entropy())(logits)
        divergence = categorical(logits).kl(categorical(logits))
    assert (entropy, divergence) == (0, 0)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_extreme_logits_are_exact_and_have_finite_gradients(size):
    logits = f32([size, -size, 0.0, size])
    opposite = -logits
    log_p = special.log_softmax(f64(logits))
    with jax.debug_nans(True):
        p, q = categorical(logits), categorical(opposite)
        for action in range(4):
            np.testing.assert_allclose(p.log_prob(jnp.int32(action)), log_p[action], rtol=1e-6)
        np.testing.assert_allclose(p.entropy(), np.log(2), rtol=1e-6)
        log_q = special.log_softmax(f64(opposite))
        np.testing.assert_allclose(p.kl(q), np.exp(log_p) @ (log_p - log_q), rtol=1e-6)
        found = (
            jax.jacobian(lambda x: jax.vmap(categorical(x).log_prob)(jnp.arange(4)))(logits),
            jax.grad(lambda x: categorical(x).entropy())(logits),
            *gradients(lambda x, y: x.kl(y), p, q),
        )
    assert all_finite(found)
    np.testing.assert_allclose(found[0], np.eye(4) - [[0.5, 0, 0, 0.5]] * 4, atol=1e-6)
    np.testing.assert_allclose(found[3].logits, np.exp(log_q) - np.exp(log_p), atol=1e-6)


def test_categorical_divergences_of_a_hundredth_nat_are_exact_to_a_ten_thousandth():
    """Of the size that a trust region lets through; the average over states is what it compares."""
    p, q, exact = near_categoricals(0.15)
    assert 5e-3 < exact.mean() < 2e-2
    np.testing.assert_allclose(np.mean(p.kl(q)), exact.mean(), rtol=1e-5)
    np.testing.assert_allclose(p.kl(q), exact, atol=1e-6)


@pytest.mark.parametrize(("apart", "precision"), [(1e-2, 1e-3), (1e-3, 1e-2)])
def test_the_divergence_of_nearly_equal_categoricals_is_precise(apart, precision):
    p, q, exact = near_categoricals(apart)
    np.testing.assert_allclose(p.kl(q), exact, rtol=precision)


def near_categoricals(apart):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 6)).astype(np.float32)
    p, q = categorical(logits), categorical(logits + apart * rng.normal(size=logits.shape))
    log_p, log_q = (special.log_softmax(f64(x.logits), axis=-1) for x in (p, q))
    return p, q, np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


# --- Gaussian -------------------------------------------------------------------------------------------------------


def gaussian_divergence(p, q):
    """In float64, from variances."""
    mean, other_mean, deviation, other = (f64(x) for x in (p.mean, q.mean, p.log_deviation, q.log_deviation))
    variance, other_variance = np.exp(2 * deviation), np.exp(2 * other)
    terms = 0.5 * ((variance - other_variance + (mean - other_mean) ** 2) / other_variance) + other - deviation
    return terms.sum(axis=-1)


def test_a_gaussian_is_that_of_distrax_and_of_scipy():
    p, q = random("gaussian", (40,)), random("gaussian", (40,), seed=1)
    action = f32(2 * np.random.default_rng(2).normal(size=(40, 3)))
    theirs, other = (distrax.MultivariateNormalDiag(x.mean, jnp.exp(x.log_deviation)) for x in (p, q))
    np.testing.assert_allclose(p.log_prob(action), theirs.log_prob(action), rtol=1e-5)
    np.testing.assert_allclose(p.entropy(), theirs.entropy(), rtol=1e-5)
    np.testing.assert_allclose(p.kl(q), theirs.kl_divergence(other), rtol=1e-4)
    np.testing.assert_array_equal(p.mode(), theirs.mode())

    normal = stats.norm(f64(p.mean), np.exp(f64(p.log_deviation)))
    np.testing.assert_allclose(p.log_prob(action), normal.logpdf(f64(action)).sum(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(p.entropy(), normal.entropy().sum(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(p.kl(q), gaussian_divergence(p, q), rtol=1e-5)
    np.testing.assert_array_equal(p.mode(), p.mean)


def test_the_gaussian_divergence_is_from_the_first():
    narrow, wide = gaussian([0.0], np.log([0.5])), gaussian([1.0], np.log([2.0]))
    np.testing.assert_allclose(narrow.kl(wide), np.log(4) + (0.25 + 1) / 8 - 0.5, rtol=1e-6)
    np.testing.assert_allclose(wide.kl(narrow), np.log(1 / 4) + (4 + 1) / 0.5 - 0.5, rtol=1e-6)


def test_gaussian_samples_are_normal_and_independent():
    p = gaussian([[0.0, 3.0], [-50.0, 1.0]], [[0.0, -2.0], [1.5, -1.0]])
    actions = f64(many(p)).reshape(DRAWS, 4)
    mean, deviation = f64(p.mean).reshape(4), np.exp(f64(p.log_deviation)).reshape(4)
    for column in range(4):
        assert stats.kstest(actions[:, column], stats.norm(mean[column], deviation[column]).cdf).pvalue > SMALL
    correlation = np.corrcoef(actions.T) - np.eye(4)
    assert np.abs(correlation).max() < 4 / np.sqrt(DRAWS)


def test_gaussian_samples_are_differentiable_in_mean_and_deviation():
    p, key = random("gaussian", (5,)), jax.random.key(0)
    gradient = jax.grad(lambda x: jnp.sum(x.sample(key)))(p)
    np.testing.assert_allclose(gradient.mean, 1.0)
    np.testing.assert_allclose(gradient.log_deviation, p.sample(key) - p.mean, rtol=1e-4, atol=1e-6)


def test_the_gradients_of_a_gaussian_are_their_closed_forms():
    p, q, action = random("gaussian"), random("gaussian", seed=1), f32([0.3, -2.0, 1.1])
    mean, other_mean, deviation, other = (
        f64(x) for x in (p.mean, q.mean, jnp.exp(p.log_deviation), jnp.exp(q.log_deviation))
    )
    score = jax.grad(lambda x: x.log_prob(action))(p)
    distance = f64(action) - mean
    np.testing.assert_allclose(score.mean, distance / deviation**2, rtol=1e-4)
    np.testing.assert_allclose(score.log_deviation, (distance / deviation) ** 2 - 1, rtol=1e-4)
    np.testing.assert_array_equal(jax.grad(lambda x: x.entropy())(p).log_deviation, 1.0)
    first, second = gradients(lambda x, y: x.kl(y), p, q)
    difference = mean - other_mean
    np.testing.assert_allclose(first.mean, difference / other**2, rtol=1e-4)
    np.testing.assert_allclose(second.mean, -difference / other**2, rtol=1e-4)
    np.testing.assert_allclose(first.log_deviation, (deviation / other) ** 2 - 1, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        second.log_deviation, 1 - (deviation**2 + difference**2) / other**2, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4])
def test_the_divergence_of_nearly_equal_gaussians_is_precise(apart):
    rng = np.random.default_rng(0)
    mean, log_deviation = rng.normal(size=(200, 4)), rng.uniform(-1, 1, size=(200, 4))
    p = gaussian(mean, log_deviation)
    moved, widened = gaussian(mean + apart, log_deviation), gaussian(mean, log_deviation + apart)
    np.testing.assert_allclose(p.kl(moved), gaussian_divergence(p, moved), rtol=1e-5)
    # The third power of `apart` is left of numbers of its size, rounded: 1e-7 / apart.
    np.testing.assert_allclose(p.kl(widened), nearly_equal_divergence(p, widened), rtol=3e-7 / apart)


def nearly_equal_divergence(p, q):
    ratio = f64(p.log_deviation) - f64(q.log_deviation)
    return np.sum(0.5 * (np.expm1(2 * ratio) - 2 * ratio), axis=-1)


@pytest.mark.parametrize("log_deviation", [-20.0, 20.0])
def test_extreme_deviations_are_exact_and_have_finite_gradients(log_deviation):
    p, q = gaussian([1.0, 0.0], log_deviation), gaussian([1.0, 0.0], -log_deviation)
    action = f32([1.0 + 2.0**-20, 0.0])
    normal = stats.norm(f64(p.mean), np.exp(f64(p.log_deviation)))
    with jax.debug_nans(True):
        np.testing.assert_allclose(p.log_prob(action), normal.logpdf(f64(action)).sum(), rtol=1e-5)
        np.testing.assert_allclose(p.entropy(), normal.entropy().sum(), rtol=1e-6)
        np.testing.assert_allclose(p.kl(q), gaussian_divergence(p, q), rtol=1e-5)
        found = jax.grad(lambda x: x.log_prob(action))(p), gradients(lambda x, y: x.kl(y), p, q)
        sample = p.sample(jax.random.key(0))
    assert all_finite((found, sample))


# --- squashed -------------------------------------------------------------------------------------------------------


def squashed_log_density(p, action):
    """In float64, of actions within the bounds."""
    low, high, mean = f64(p.low), f64(p.high), f64(p.base.mean)
    within = (f64(action) - low) / (high - low) * 2 - 1
    slope = (high - low) / 2 * (1 - within**2)
    return (stats.norm(mean, np.exp(f64(p.base.log_deviation))).logpdf(np.arctanh(within)) - np.log(slope)).sum(axis=-1)


def within(low, high, size, seed=0):
    """Float32 actions strictly within the bounds, some of them a thousandth from one."""
    share = np.random.default_rng(seed).uniform(1e-3, 1 - 1e-3, size=(size, 1))
    return f32(low + (high - low) * share)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_the_squashed_density_is_that_of_its_definition_and_of_distrax(low, high):
    p = squashed(np.full((300, 1), 0.4), -0.3, low, high)
    action = within(low, high, 300)
    found = np.asarray(p.log_prob(action))
    # Rounding of an action counts against the width of the bounds.
    atol = 1e-5 + 4e-5 * max(abs(low), abs(high)) / (high - low)
    np.testing.assert_allclose(found, squashed_log_density(p, action), rtol=1e-5, atol=atol)
    if (low, high) == (-1.0, 1.0):
        theirs = distrax.Transformed(distrax.Normal(p.base.mean, jnp.exp(p.base.log_deviation)), distrax.Tanh())
        np.testing.assert_allclose(found, theirs.log_prob(action)[:, 0], rtol=1e-4, atol=1e-4)


def test_the_squashed_density_of_several_dimensions_is_their_product():
    p = random("squashed", (30,))
    action = dataclasses.replace(p, base=random("gaussian", (30,), seed=1)).mode()
    np.testing.assert_allclose(p.log_prob(action), squashed_log_density(p, action), rtol=1e-4, atol=1e-4)


def middles(low, high, number=20_000):
    """Middles [number, 1] of as many equal intervals between the bounds, and their length."""
    return f32(low + (high - low) * (np.arange(number)[:, None] + 0.5) / number), (high - low) / number


# The density falls to zero towards the bounds: sums over middles are all but exact.
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.3, 1.7), (100.0, 101.0)])
def test_the_squashed_density_integrates_to_one_within_the_bounds(low, high):
    action, length = middles(low, high)
    for mean, log_deviation in [(0.0, 0.0), (0.5, -1.0), (-1.0, -0.5), (0.3, -2.5)]:
        density = np.exp(f64(squashed(np.full_like(action, mean), log_deviation, low, high).log_prob(action)))
        np.testing.assert_allclose(density.sum() * length, 1.0, rtol=1e-4)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize(("mean", "log_deviation"), [(0.0, 0.0), (0.0, 3.0), (50.0, 0.0), (-50.0, 0.0), (8.0, 1.0)])
def test_squashed_samples_never_leave_the_bounds(low, high, mean, log_deviation):
    p = squashed([mean], log_deviation, low, high)
    actions = many(p)
    assert (actions >= np.float32(low)).all()
    assert (actions <= np.float32(high)).all()
    assert np.float32(low) <= p.mode()[0] <= np.float32(high)
    if abs(mean) == 50:
        np.testing.assert_allclose(actions, high if mean > 0 else low, atol=1e-6 * max(abs(low), abs(high)))


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.3, 1.7)])
def test_squashed_samples_are_distributed_as_their_density_says(low, high):
    nodes, weights = np.polynomial.legendre.leggauss(40)
    p = squashed([0.4], -0.4, low, high)
    edges = np.quantile(many(p, seed=9)[:, 0].astype(np.float64), np.linspace(0, 1, 21))
    edges[[0, -1]] = low, high
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    points = f32(middle[:, None] + half[:, None] * nodes).reshape(-1, 1)
    density = np.exp(f64(jax.vmap(p.log_prob)(points))).reshape(20, 40)
    probabilities = density @ weights * half
    counts = np.histogram(many(p)[:, 0], edges)[0]
    assert stats.chisquare(counts, DRAWS * probabilities / probabilities.sum()).pvalue > SMALL


def test_squashed_samples_are_differentiable_and_their_mode_is_the_median():
    p, key = squashed([0.4, -1.0], [-0.4, 0.1], [-0.3, 0.0], [1.7, 5.0]), jax.random.key(0)
    gradient = jax.jit(jax.jacobian(lambda x: x.sample(key)))(p)
    u = f64(p.base.sample(key))
    slope = (f64(p.high) - f64(p.low)) / 2 / np.cosh(u) ** 2
    np.testing.assert_allclose(gradient.base.mean, np.diag(slope), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        gradient.base.log_deviation, np.diag(slope * (u - f64(p.base.mean))), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_allclose((many(p) < np.asarray(p.mode())).mean(axis=0), 0.5, atol=4 * 0.5 / np.sqrt(DRAWS))


def test_the_gradients_of_the_squashed_log_density_are_those_of_the_normal_one():
    p, action = squashed([0.4, -1.0], [-0.4, 0.1], [-0.3, 0.0], [1.7, 5.0]), f32([1.5, 0.2])
    score = jax.grad(lambda x: x.log_prob(action))(p)
    low, high, deviation = f64(p.low), f64(p.high), np.exp(f64(p.base.log_deviation))
    distance = np.arctanh((f64(action) - low) / (high - low) * 2 - 1) - f64(p.base.mean)
    np.testing.assert_allclose(score.base.mean, distance / deviation**2, rtol=1e-4)
    np.testing.assert_allclose(score.base.log_deviation, (distance / deviation) ** 2 - 1, rtol=1e-4)


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize(("mean", "log_deviation"), [(0.0, 0.0), (0.3, -3.0), (50.0, 0.0), (-50.0, 1.0)])
def test_on_the_bounds_density_and_gradients_are_finite(low, high, mean, log_deviation):
    with jax.debug_nans(True):
        for bound in (low, high):
            p, action = squashed([mean], log_deviation, low, high), f32([bound])
            found = jax.value_and_grad(lambda x, action=action: x.log_prob(action))(p)
            assert all_finite((found[0], found[1].base))
            assert all_finite(jax.grad(p.log_prob)(action))


def test_on_the_bounds_the_density_is_that_beside():
    p = squashed([0.5, -0.2], [0.1, -0.3])
    ends = f32([1.0, -1.0])
    beside = jnp.nextafter(ends, jnp.zeros(2))
    assert (beside != ends).all()
    np.testing.assert_array_equal(p.log_prob(ends), p.log_prob(beside))
    np.testing.assert_allclose(p.log_prob(ends), squashed_log_density(p, beside), rtol=1e-5)


@pytest.mark.parametrize("mean", [-50.0, 50.0])
def test_an_extreme_mean_has_finite_entropy_samples_and_gradients(mean):
    p, q, key = squashed([mean], 0.0, -0.3, 1.7), squashed([-mean], 0.5, -0.3, 1.7), jax.random.key(0)
    with jax.debug_nans(True):
        found = jax.value_and_grad(lambda x: x.entropy())(p)
        assert all_finite((found[0], found[1].base))
        found = jax.value_and_grad(lambda x: jnp.sum(x.sample(key)))(p)
        assert all_finite((found[0], found[1].base))
        np.testing.assert_allclose(p.kl(q), gaussian_divergence(p.base, q.base), rtol=1e-5)


def squashed_entropy(mean, deviation, half):
    """In float64: -∫ p log p over actions, written over u."""
    normal = stats.norm(mean, deviation)

    def integrand(u):
        log_slope = np.log(half) + np.log(4.0) - 2 * np.logaddexp(u, -u)
        return -normal.pdf(u) * (normal.logpdf(u) - log_slope)

    ends = mean - 12 * deviation, mean + 12 * deviation
    kink = [0.0] if ends[0] < 0 < ends[1] else None
    return integrate.quad(integrand, *ends, points=[mean, *(kink or [])], limit=500)[0]


# What 32 nodes reach: beyond a deviation of one the bend of log(1 - tanh^2) at zero lies between nodes.
@pytest.mark.parametrize(("deviation", "accuracy"), [(0.05, 2e-6), (0.5, 2e-6), (1.0, 5e-6), (2.0, 3e-4), (5.0, 4e-2)])
def test_the_squashed_entropy_is_its_integral(deviation, accuracy):
    means = np.array([-5.0, -1.0, 0.0, 0.3, 1.0, 2.0, 3.0, 10.0])
    for low, high in [(-1.0, 1.0), (-0.3, 1.7), (0.1, 5.0)]:
        found = squashed(means[:, None], np.log(deviation), low, high).entropy()
        expected = [squashed_entropy(mean, deviation, (high - low) / 2) for mean in means]
        np.testing.assert_allclose(found, expected, rtol=2e-7, atol=accuracy)


@pytest.mark.parametrize("deviation", [0.05, 0.5, 1.0])
def test_the_gradient_of_the_squashed_entropy_is_that_of_its_integral(deviation):
    step = 1e-4
    for mean in (-2.0, 0.0, 0.7):
        found = jax.grad(lambda x: x.entropy())(squashed([mean], np.log(deviation), -0.3, 1.7)).base
        along_mean = [squashed_entropy(mean + sign * step, deviation, 1.0) for sign in (1, -1)]
        along_deviation = [squashed_entropy(mean, deviation * np.exp(sign * step), 1.0) for sign in (1, -1)]
        np.testing.assert_allclose(found.mean[0], np.subtract(*along_mean) / (2 * step), atol=1e-4)
        np.testing.assert_allclose(found.log_deviation[0], np.subtract(*along_deviation) / (2 * step), atol=1e-4)


def test_the_squashed_divergence_is_its_integral_over_actions():
    action, length = middles(-0.3, 1.7)
    p, q = squashed([0.5], -0.5, -0.3, 1.7), squashed([-0.4], 0.1, -0.3, 1.7)
    log_p, log_q = (f64(jax.vmap(x.log_prob)(action)) for x in (p, q))
    for one, other, log_one, log_other in [(p, q, log_p, log_q), (q, p, log_q, log_p)]:
        integral = np.sum(np.exp(log_one) * (log_one - log_other)) * length
        np.testing.assert_allclose(one.kl(other), integral, rtol=1e-4)
    assert abs(float(p.kl(q) - q.kl(p))) > 0.1
