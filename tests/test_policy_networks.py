"""Networks of policies and state values: what they return, how they start, and on a shared torso."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import networks
from purerl.base import Box, Discrete, Spec
from purerl.distributions import Categorical, Gaussian, SquashedGaussian


def box(*shape, low=-1.0, high=2.0):
    return Box(shape=shape, dtype=np.dtype(np.float32), low=np.float32(low), high=np.float32(high))


def spec(action, observation=None):
    return Spec(observation=observation or box(5), action=action, num_envs=1)


def made(network, *leading, shape=(5,)):
    observation = jax.random.normal(jax.random.key(0), (*leading, *shape))
    return network.apply(network.init(jax.random.key(1), jnp.zeros(shape)), observation)


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_a_policy_returns_distributions_that_suit_the_actions(leading):
    discrete = made(networks.policy(spec(Discrete(4)), (8,)), *leading)
    assert isinstance(discrete, Categorical)
    assert discrete.logits.shape == (*leading, 4)
    gaussian = made(networks.policy(spec(box(2)), (8,)), *leading)
    assert isinstance(gaussian, Gaussian)
    assert gaussian.mean.shape == gaussian.log_deviation.shape == (*leading, 2)
    squashed = made(networks.policy(spec(box(2)), (8,), squash=True), *leading)
    assert isinstance(squashed, SquashedGaussian)
    action = squashed.sample(jax.random.key(2))
    assert action.shape == (*leading, 2)
    assert ((action >= -1) & (action <= 2)).all()
    assert made(networks.state_values(spec(Discrete(4)), (8,)), *leading).shape == leading


def test_at_first_all_actions_are_about_as_likely_and_deviations_are_one():
    logits = made(networks.policy(spec(Discrete(4))), 100).logits
    assert 0 < jnp.abs(logits - logits.mean(axis=-1, keepdims=True)).max() < 0.1
    gaussian = made(networks.policy(spec(box(2))), 100)
    assert 0 < jnp.abs(gaussian.mean).max() < 0.1
    np.testing.assert_array_equal(gaussian.log_deviation, 0)


def test_deviations_are_learned_and_the_same_in_every_state():
    network = networks.policy(spec(box(2)), (8,))
    params = network.init(jax.random.key(0), jnp.zeros(5))
    gradient = jax.grad(lambda p: network.apply(p, jnp.ones((7, 5))).log_prob(jnp.ones((7, 2))).sum())(params)
    moved = jax.tree.map(lambda leaf, more: leaf + more, params, gradient)
    deviations = network.apply(moved, jax.random.normal(jax.random.key(1), (7, 5))).log_deviation
    assert (deviations != 0).all()
    np.testing.assert_array_equal(deviations, jnp.broadcast_to(deviations[:1], deviations.shape))


def test_heads_on_a_torso_read_its_features():
    torso = networks.torso(spec(Discrete(3)), (8, 6))
    params = torso.network.init(jax.random.key(0), jnp.zeros(5))
    features = torso.network.apply(params, jnp.ones((2, 5)))
    assert features.shape == (2, 6)
    assert jnp.abs(features).max() <= 1  # the last layer has its activation too
    actor, critic = networks.policy(torso.spec, ()), networks.state_values(torso.spec, ())
    assert made(actor, 2, shape=(6,)).logits.shape == (2, 3)
    assert made(critic, 2, shape=(6,)).shape == (2,)


def test_pictures_go_through_convolutions():
    pictures = spec(Discrete(3), box(6, 6, 2))
    options = {"filters": (4,), "hidden": (8,)}
    assert made(networks.policy(pictures, **options), 7, shape=(6, 6, 2)).logits.shape == (7, 3)
    assert made(networks.state_values(pictures, **options), 7, shape=(6, 6, 2)).shape == (7,)
    assert made(networks.torso(pictures, **options).network, 7, shape=(6, 6, 2)).shape == (7, 8)
    for factory in (networks.policy, networks.state_values, networks.torso):
        with pytest.raises(ValueError, match="convolutions take images"):
            factory(spec(Discrete(3)), filters=(4,))
        with pytest.raises(ValueError, match=re.escape("hidden is (0,); each layer takes at least 1")):
            factory(spec(Discrete(3)), (0,))


@pytest.mark.parametrize(
    ("action", "options", "sentence"),
    [
        (box(2, 3), {}, "takes discrete actions or arrays [D]"),
        (box(), {}, "takes discrete actions or arrays [D]"),
        (Discrete(2), {"squash": True}, "squash takes an action space with finite bounds"),
        (box(2, high=np.inf), {"squash": True}, "squash takes an action space with finite bounds"),
    ],
)
def test_what_no_policy_can_be_made_for_is_refused(action, options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        networks.policy(spec(action), **options)


def test_a_torso_without_layers_is_refused():
    with pytest.raises(ValueError, match=re.escape("hidden is ()")):
        networks.torso(spec(Discrete(2)), ())
