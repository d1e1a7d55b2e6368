"""Precision: what layers compute in, and what stays float32 whatever they do; loss scaling; int8 to act with."""

from __future__ import annotations

import dataclasses
import signal
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.tree_util import GetAttrKey
from scripts import load

from purerl import (
    cli,
    distributions,
    driver,
    envs,
    export,
    loop,
    loss_scale,
    losses,
    networks,
    normalize,
    optimizers,
    precision,
    replay,
    results,
    returns,
    rollout,
    scores,
    trust_region,
)
from purerl.agents import a2c, dqn, ppo, q_actor_critic, q_learning, reinforce, trpo
from purerl.base import Box, Network, Spec, cast_hypers, from_linen
from purerl.checkpoint import Checkpoints
from purerl.interrupts import Stopped
from purerl.loss_scale import LossScale

N = 4
ENVS = "CartPole-v1", "Pendulum-v1"
CARTPOLE, PENDULUM = (envs.make(name, N) for name in ENVS)
IMAGES = Spec(observation=Box((6, 6, 2), np.dtype(bool), False, True), action=CARTPOLE.spec.action, num_envs=N)

NETWORKS = {
    "action values": (CARTPOLE.spec, partial(networks.action_values, hidden=(16, 16))),
    "dueling": (CARTPOLE.spec, partial(networks.action_values, hidden=(16, 16), dueling=True)),
    "action values of images": (IMAGES, partial(networks.action_values, hidden=(16,), filters=(4,))),
    "categorical": (CARTPOLE.spec, partial(networks.policy, hidden=(16, 16))),
    "gaussian": (PENDULUM.spec, partial(networks.policy, hidden=(16, 16))),
    "squashed": (PENDULUM.spec, partial(networks.policy, hidden=(16, 16), squash=True)),
    "state values": (CARTPOLE.spec, partial(networks.state_values, hidden=(16, 16))),
    "torso": (CARTPOLE.spec, lambda spec: networks.torso(spec, hidden=(16, 16)).network),
}
HALVES = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}


def made(name, kind=None, batch=8):
    """A network, its parameters and a batch of observations."""
    spec, make = NETWORKS[name]
    network = make(spec)
    network = network if kind is None else precision.preset(network, kind)
    drawn = jax.random.normal(jax.random.key(1), (batch, *spec.observation.shape))
    observation = drawn > 0 if spec.observation.dtype == bool else drawn
    return network, network.init(jax.random.key(0), observation), observation


def parts_of(equation):
    """The programs within an equation, such as the body of a scan."""
    found = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda leaf: isinstance(leaf, ClosedJaxpr | Jaxpr))
    return [getattr(part, "jaxpr", part) for part in found if isinstance(part, ClosedJaxpr | Jaxpr)]


def equations(jaxpr):
    """All equations of a program, those of its parts included."""
    for equation in jaxpr.eqns:
        yield equation
        for part in parts_of(equation):
            yield from equations(part)


def dtypes(equation, *, made=False):
    """Of what an equation reads; with `made` of what it makes, too."""
    variables = [*equation.invars, *(equation.outvars if made else ())]
    return {variable.aval.dtype for variable in variables if hasattr(variable.aval, "dtype")}


# --- networks -------------------------------------------------------------------------------------------------------


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("name", NETWORKS)
def test_products_and_activations_are_small_and_what_comes_out_is_float32(name, kind):
    network, params, observation = made(name, kind)
    program = jax.make_jaxpr(network.apply)(params, observation)
    products = [equation for equation in equations(program.jaxpr) if equation.primitive.name == "dot_general"]
    assert products
    assert {dtype for equation in products for dtype in dtypes(equation)} == {jnp.dtype(HALVES[kind])}
    activations = [equation for equation in equations(program.jaxpr) if equation.primitive.name in ("tanh", "max")]
    assert activations
    assert {dtype for equation in activations for dtype in dtypes(equation)} == {jnp.dtype(HALVES[kind])}
    assert {leaf.dtype for leaf in jax.tree.leaves(network.apply(params, observation))} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_same_network_but_for_roundings(name):
    usual, params, observation = made(name)
    expected = usual.apply(params, observation)
    for kind, tolerance in {"bfloat16": 2e-2, "float16": 2e-3}.items():
        network, own, _ = made(name, kind)
        chex.assert_trees_all_equal(getattr(own, "network", own), params)  # the same draws
        found = network.apply(own, observation)
        chex.assert_trees_all_close(found, expected, atol=tolerance, rtol=tolerance)
        with pytest.raises(AssertionError):
            chex.assert_trees_all_equal(found, expected)


def test_float32_is_the_very_network():
    network, _, _ = made("categorical")
    assert precision.preset(network, "float32") is network
    assert precision.with_precision(network, precision.float32) is network


def test_the_last_layer_sums_in_float32():
    """Two actions whose values differ by one part in a thousand are told apart; bfloat16 has one number for both."""
    network = precision.preset(networks.action_values(CARTPOLE.spec, ()), "bfloat16")
    params = network.init(jax.random.key(0), jnp.zeros(4))
    observation = jnp.array([1.0, 0.0, 0.0, 2.0**-9])
    kernel = jnp.zeros((4, 2)).at[0].set(1.0).at[3, 1].set(1.0)
    params = jax.tree.map(lambda leaf: kernel if leaf.shape == kernel.shape else leaf, params)
    found = network.apply(params, observation)
    np.testing.assert_array_equal(found, [1.0, 1.0 + 2.0**-9])
    assert jnp.bfloat16(found[0]) == jnp.bfloat16(found[1])


def test_layers_with_a_dtype_of_their_own_keep_it_and_others_of_flax_take_it():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            first = nn.LayerNorm()(nn.Dense(3)(x))
            return first, nn.Dense(3, dtype=jnp.float32)(first)

    module = Own()
    network = precision.preset(from_linen(module), "bfloat16")
    params = network.init(jax.random.key(0), jnp.ones(2))
    program = jax.make_jaxpr(network.apply)(params, jnp.ones(2))
    first, second = (equation for equation in equations(program.jaxpr) if equation.primitive.name == "dot_general")
    assert dtypes(first) == {jnp.dtype(jnp.bfloat16)}
    assert dtypes(second) == {jnp.dtype(jnp.float32)}
    one, _ = module.apply(params, jnp.ones(2))
    assert one.dtype == jnp.float32  # once it is applied without, nothing is left behind


def test_a_network_of_which_nothing_would_be_small_is_refused():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, dtype=jnp.float32)(x) @ self.param("w", nn.initializers.ones, (3, 2))

    plain = Network(init=lambda key, x: {"w": jnp.ones(2)}, apply=lambda params, x: params["w"] * x)
    for usual in (plain, from_linen(Own())):
        network = precision.preset(usual, "bfloat16")
        with pytest.raises(TypeError, match="network has no flax layer that takes a dtype"):
            network.apply(network.init(jax.random.key(0), jnp.ones(2)), jnp.ones(2))


def test_parameters_without_a_scale_are_refused_in_float16():
    usual, params, observation = made("categorical")
    with pytest.raises(TypeError, match=r"params is .*; it takes what the init of a network in float16 returned"):
        precision.preset(usual, "float16").apply(params, observation)


@pytest.mark.parametrize("kind", HALVES)
def test_patches_of_images_are_small_as_well(kind):
    network, params, observation = made("action values of images", kind)
    program = jax.make_jaxpr(network.apply)(params, observation)
    (patches,) = (equation for equation in equations(program.jaxpr) if equation.primitive.name == "concatenate")
    assert dtypes(patches) == {jnp.dtype(HALVES[kind])}


@pytest.mark.parametrize("param", ["float32", "float16"])
@pytest.mark.parametrize("output", ["float32", "float16"])
def test_other_parameters_and_outputs_have_derivatives_of_their_own_types(param, output):
    usual, _, observation = made("state values")
    network = precision.with_precision(usual, precision.Precision(param, jnp.float16, output))
    params = network.init(jax.random.key(0), observation)
    value, gradient = jax.value_and_grad(lambda params: jnp.mean(network.apply(params, observation)))(params)
    assert value.dtype == output
    assert floats(gradient.network) == {jnp.dtype(param)}
    assert all(bool((jnp.isfinite(leaf) & (leaf != 0)).any()) for leaf in jax.tree.leaves(gradient.network))


# --- what stays float32 ---------------------------------------------------------------------------------------------

SMALL = {"learning_rate": 1e-3}


def agents(kind, observation_dtype=None):
    """Agents whose networks all compute in `kind`: name -> (environment, agent, hypers)."""
    cartpole, pendulum = (envs.make(name, N, observation_dtype=observation_dtype) for name in ENVS)
    wrap = partial(precision.preset, name=kind)

    def pair(spec, critic=networks.state_values):
        return wrap(networks.policy(spec, (8,))), wrap(critic(spec, (8,)))

    values = wrap(networks.action_values(cartpole.spec, (8,)))
    learner = dqn.dqn(cartpole.spec, values)
    actor, critic = networks.policy(pendulum.spec, (8,)), networks.state_values(pendulum.spec, (8,))
    policy = precision.preset(actor, "bfloat16" if kind == "float16" else kind)  # of trpo, which takes no float16
    normalized = normalize.normalized_spec(cartpole.spec)
    return {
        "dqn": (
            cartpole,
            replay.with_replay(learner, replay.uniform(cartpole.spec, 64), batch_size=8),
            dqn.Hypers(**SMALL, target_rate=0.005, target_period=1.0),
        ),
        "ppo": (
            cartpole,
            normalize.with_observation_norm(
                normalize.with_return_scaling(
                    ppo.ppo(normalized, *pair(normalized), epochs=2, minibatches=2), cartpole.spec
                ),
                cartpole.spec,
            ),
            ppo.Hypers(**SMALL),
        ),
        "a2c": (cartpole, a2c.a2c(cartpole.spec, *pair(cartpole.spec)), a2c.Hypers(**SMALL)),
        "reinforce": (
            cartpole,
            reinforce.reinforce(cartpole.spec, *pair(cartpole.spec), window=20),
            reinforce.Hypers(**SMALL),
        ),
        "q_actor_critic": (
            cartpole,
            q_actor_critic.q_actor_critic(cartpole.spec, *pair(cartpole.spec, networks.action_values)),
            q_actor_critic.Hypers(**SMALL),
        ),
        "trpo": (
            pendulum,
            trpo.trpo(pendulum.spec, policy, wrap(critic), critic_epochs=2, critic_minibatches=2),
            trpo.Hypers(**SMALL),
        ),
    }


NAMES = ("dqn", "ppo", "a2c", "reinforce", "q_actor_critic", "trpo")


def floats(tree):
    return {leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.fixture
def watched(monkeypatch):
    """What functions outside of networks are handed, and return, while something is traced: name -> dtypes."""
    seen = {}

    def watch(owner, name):
        function = getattr(owner, name)

        def watching(*arguments, **named):
            found = function(*arguments, **named)
            tree = [leaf for leaf in jax.tree.leaves((arguments, named, found)) if hasattr(leaf, "dtype")]
            seen.setdefault(name, set()).update(floats(tree))
            return found

        monkeypatch.setattr(owner, name, watching)

    for owner, name in [
        (returns, "gae"),
        (returns, "n_step"),
        (returns, "standardized"),
        (losses, "double_q_learning_target"),
        (losses, "huber"),
        (losses, "clipped_surrogate"),
        (losses, "clipped_value"),
        (losses, "kl_estimate"),
        (losses, "squared"),
        (optimizers, "descend"),
        (optimizers, "start"),
        (dqn.optax, "incremental_update"),
        (normalize, "merge"),
        (normalize, "normalized"),
        (trust_region, "conjugate_gradient"),
        (trust_region, "line_search"),
        (distributions.Categorical, "log_prob"),
        (distributions.Categorical, "entropy"),
        (distributions.Categorical, "sample"),
        (distributions.Gaussian, "log_prob"),
        (distributions.Gaussian, "kl"),
    ]:
        watch(owner, name)
    return seen


def trace(env, agent, hypers):
    """Trace two iterations; return the shapes of the run and its metrics."""
    hypers = cast_hypers(hypers)
    return jax.eval_shape(lambda key: loop.train(key, agent, env, hypers, iterations=2, length=4), jax.random.key(0))


@pytest.mark.fast_cases(7)
@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("name", NAMES)
def test_all_that_is_kept_and_told_is_float32(name, kind):
    """Parameters, target networks, optimizers, moments, counters as integers, metrics."""
    run, metrics = trace(*agents(kind)[name])
    assert floats(run.agent) == {jnp.dtype(jnp.float32)}
    assert floats(metrics) == {jnp.dtype(jnp.float32)}
    counters = [leaf for path, leaf in jax.tree.leaves_with_path(run.agent) if "updates" in jax.tree_util.keystr(path)]
    whole = [leaf for leaf in counters if jnp.issubdtype(leaf.dtype, jnp.integer)]
    assert whole
    assert {leaf.dtype for leaf in whole} == {jnp.dtype(jnp.int32)}


@pytest.mark.parametrize(("name", "kind"), [("dqn", "float16"), ("ppo", "bfloat16"), ("a2c", "float16")])
def test_observations_kept_in_bfloat16_are_all_that_is(name, kind, watched):
    """Kept in rollouts, replay and the episodes under way; whoever computes with them makes them float32."""
    env, agent, hypers = agents(kind, "bfloat16")[name]
    run, metrics = trace(env, agent, hypers)
    small = [path for path, leaf in jax.tree.leaves_with_path(run) if leaf.dtype == jnp.bfloat16]
    assert small
    assert all("observation" in jax.tree_util.keystr(path) for path in small)
    assert floats(metrics) == {jnp.dtype(jnp.float32)}
    assert watched
    assert {function: found for function, found in watched.items() if not found <= {jnp.dtype(jnp.float32)}} == {}


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 1 / 2), ("uint8", 1 / 4), ("bool", 1 / 32)])
def test_what_pictures_take_in_replay_is_told_by_their_dtype(dtype, share):
    def size(dtype):
        env = envs.make("Breakout-MinAtar", N, observation_dtype=dtype)
        return precision.size(jax.eval_shape(replay.uniform(env.spec, 1024).init).observation)

    assert abs(size(dtype) / size("float32") - share) < 0.01 * share


@pytest.mark.parametrize(("dtype", "share"), [("bfloat16", 1 / 2), ("uint8", 1 / 4), ("bool", 1 / 4)])
def test_what_pictures_take_in_rollouts_is_told_by_their_dtype(dtype, share):
    def size(dtype):
        env = envs.make("Breakout-MinAtar", N, observation_dtype=dtype)
        network = networks.policy(env.spec, (4,)), networks.state_values(env.spec, (4,))
        agent, hypers = a2c.a2c(env.spec, *network), cast_hypers(a2c.Hypers())

        def acted(key):
            episodes = rollout.start(key, agent, env, env.params)
            keys, state = rollout.step_keys(key, 8), agent.init(key, hypers)
            steps = rollout.unroll(keys, agent, state, env, env.params, episodes, hypers)[1].steps
            return steps.observation, steps.next_observation

        return precision.size(jax.eval_shape(acted, jax.random.key(0)))

    assert size(dtype) == share * size("float32")


def outside(jaxpr):
    """All equations of a program that belong to no network, but for loops: those only hand on what networks left."""
    for equation in jaxpr.eqns:
        if precision.SCOPE in str(equation.source_info.name_stack):
            continue
        if not (within := parts_of(equation)):
            yield equation
        for part in within:
            yield from outside(part)


def small_ones(found):
    """Those of some equations that read or make numbers of 16 bits."""
    small = {jnp.dtype(dtype) for dtype in HALVES.values()}
    return [equation for equation in found if small & dtypes(equation, made=True)]


@pytest.mark.parametrize("name", NAMES)
def test_outside_of_networks_nothing_is_computed_in_small_numbers(name):
    env, agent, hypers = agents("bfloat16")[name]
    hypers = cast_hypers(hypers)
    program = jax.make_jaxpr(lambda key: loop.train(key, agent, env, hypers, iterations=2, length=4))(jax.random.key(0))
    assert small_ones(outside(program.jaxpr)) == []
    assert small_ones(equations(program.jaxpr)) != []


WATCHED = {
    "dqn": {"n_step", "double_q_learning_target", "huber", "descend", "start", "incremental_update"},
    "ppo": {
        *("gae", "standardized", "clipped_surrogate", "clipped_value", "kl_estimate", "descend", "start"),
        *("merge", "normalized", "log_prob", "entropy", "sample"),
    },
    "trpo": {"gae", "standardized", "squared", "conjugate_gradient", "line_search", "descend", "log_prob", "kl"},
}


@pytest.mark.parametrize("kind", HALVES)
@pytest.mark.parametrize("name", WATCHED)
def test_all_that_is_computed_outside_of_networks_is_float32(name, kind, watched):
    """Targets, returns, advantages, log-probabilities, ratios, divergences, conjugate gradients, steps, moments."""
    trace(*agents(kind)[name])
    assert WATCHED[name] <= set(watched)
    assert {function: found for function, found in watched.items() if not found <= {jnp.dtype(jnp.float32)}} == {}


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("name", NAMES)
def test_agents_learn_a_step_in_small_numbers(name):
    """Something moves, and nothing is lost."""
    env, agent, hypers = agents("bfloat16")[name]
    hypers = cast_hypers(hypers)
    begun = loop.begin(jax.random.key(0), agent, env, hypers)
    iterations = 12 if name == "reinforce" else 3
    program = jax.jit(lambda run: loop.advance(run, agent, env, hypers, iterations=iterations, length=4))
    run, _ = program(begun)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(run.agent) if leaf.dtype == jnp.float32)
    old, new = (weights(of.agent) for of in (begun, run))
    assert old
    assert all(bool((new[path] != old[path]).any()) for path in old)


def weights(state):
    """The matrices that a state has by the name of params: path -> array."""
    leaves = jax.tree.leaves_with_path(state)
    return {path: leaf for path, leaf in leaves if GetAttrKey("params") in path and leaf.ndim == 2}


# --- loss scaling ---------------------------------------------------------------------------------------------------


def linear(x):
    """A network in float16 with one weight matrix, its parameters, and the gradient of a loss times `factor`."""
    network = precision.preset(networks.state_values(CARTPOLE.spec, (8,)), "float16")
    params = network.init(jax.random.key(0), x)

    def gradient(params, factor):
        return jax.grad(lambda params: factor * jnp.mean(network.apply(params, x)))(params)

    return network, params, gradient


X = jax.random.normal(jax.random.key(2), (32, 4))


def apart(found, expected):
    """The norm of a difference, in parts of what is expected."""
    difference = jax.tree.map(jnp.subtract, found, expected)
    return float(optax.global_norm(difference) / optax.global_norm(expected))


def inner(params):
    """What is learned of all layers but the last, which sums in float32."""
    return params["params"]["layers_0"]


def test_small_derivatives_survive():
    _, params, gradient = linear(X)
    usual = networks.state_values(CARTPOLE.spec, (8,))
    expected = jax.grad(lambda params: 5e-7 * jnp.mean(usual.apply(params, X)))(params.network)
    found = gradient(params, 5e-7).network
    assert apart(found, expected) < 3e-3
    unscaled = dataclasses.replace(params, loss_scale=LossScale(scale=jnp.float32(1.0), good_updates=jnp.float32(0.0)))
    assert apart(inner(found), inner(expected)) < 1e-2
    assert apart(inner(gradient(unscaled, 5e-7).network), inner(expected)) > 0.9


def test_the_gradient_does_not_depend_on_the_scale_and_that_of_the_scale_is_zero():
    _, params, gradient = linear(X)
    found = [
        gradient(dataclasses.replace(params, loss_scale=LossScale(scale=jnp.float32(scale), good_updates=0.0)), 1.0)
        for scale in (2.0**6, 2.0**12)
    ]
    chex.assert_trees_all_close(found[0].network, found[1].network, rtol=2e-3, atol=1e-6)
    assert float(found[0].loss_scale.scale) == 0.0


def test_derivatives_of_inputs_are_those_of_float32():
    """A torso learns through the heads that read it."""
    network, params, _ = linear(X)
    usual = networks.state_values(CARTPOLE.spec, (8,))
    found = jax.grad(lambda x: jnp.mean(network.apply(params, x)))(X)
    expected = jax.grad(lambda x: jnp.mean(usual.apply(params.network, x)))(X)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-5)


def descended(params, gradient, state, scale=1.0):
    hypers = cast_hypers(optimizers.Hypers(learning_rate=1e-2))
    return optimizers.descend(params, gradient, state, hypers, jnp.int32(0), scale=scale)


def test_an_update_that_overflows_is_skipped_and_halves_the_scale_and_training_goes_on():
    _, params, gradient = linear(X)
    state = optimizers.start(params)
    bad = gradient(params, 1e4)
    assert not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(bad))
    after, state_after = descended(params, bad, state)
    chex.assert_trees_all_equal(after.network, params.network)
    chex.assert_trees_all_equal(state_after, state)
    assert float(after.loss_scale.scale) == loss_scale.FIRST / 2
    skipped = 1
    while not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient(after, 1e4))):
        after, state_after = descended(after, gradient(after, 1e4), state_after)
        skipped += 1
    assert float(after.loss_scale.scale) == loss_scale.FIRST / 2**skipped
    moved, _ = descended(after, gradient(after, 1e4), state_after)
    assert any(
        bool((new != old).any())
        for new, old in zip(jax.tree.leaves(moved.network), jax.tree.leaves(after.network), strict=True)
    )
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(moved))
    assert float(moved.loss_scale.good_updates) == 1.0


def test_after_so_many_good_updates_the_scale_doubles_within_bounds():
    good, bad = jnp.bool_(True), jnp.bool_(False)
    params = {"w": jnp.ones(2), "scale": loss_scale.start()}
    learned = loss_scale.without(params)

    def after(scale, count, good):
        start = params | {"scale": LossScale(scale=jnp.float32(scale), good_updates=jnp.float32(count))}
        found = loss_scale.adapted(start, learned, good)["scale"]
        return float(found.scale), float(found.good_updates)

    last = loss_scale.GOOD_UPDATES - 1
    assert after(8.0, 0, good) == (8.0, 1.0)
    assert after(8.0, last - 1, good) == (8.0, last)
    assert after(8.0, last, good) == (16.0, 0.0)
    assert after(8.0, last, bad) == (4.0, 0.0)
    assert after(loss_scale.MOST, last, good) == (loss_scale.MOST, 0.0)
    assert after(loss_scale.LEAST, 3, bad) == (loss_scale.LEAST, 0.0)


def test_without_a_scale_descending_is_what_it_was():
    """Not even a NaN is skipped: it is to be seen."""
    params = {"w": jnp.ones(2)}
    moved, _ = descended(params, {"w": jnp.array([jnp.nan, 1.0])}, optimizers.start(params))
    assert not bool(jnp.isfinite(moved["w"]).all())


def test_trpo_refuses_a_policy_in_float16():
    """Of 2048 states its products with the Fisher matrix would be a third of what they are, and of other directions."""
    actor, critic = networks.policy(CARTPOLE.spec, (8,)), networks.state_values(CARTPOLE.spec, (8,))
    with pytest.raises(ValueError, match=r"actor or torso computes in float16.*trpo takes float32 or bfloat16"):
        trpo.trpo(CARTPOLE.spec, precision.preset(actor, "float16"), critic)


def test_a_run_whose_loss_overflows_skips_and_goes_on():
    """DQN with rewards of ten thousand: its first gradients are beyond float16."""
    env, agent, hypers = agents("float16")["dqn"]
    hypers = cast_hypers(dataclasses.replace(hypers, huber_delta=1e6))

    def update(key, state, rollout, hypers):
        steps = dataclasses.replace(rollout.steps, reward=rollout.steps.reward * 1e4)
        return agent.update(key, state, dataclasses.replace(rollout, steps=steps), hypers)

    large = agent._replace(update=update)
    run, metrics = jax.jit(lambda key: loop.train(key, large, env, hypers, iterations=40, length=1))(jax.random.key(0))
    begun = loop.begin(jax.random.key(0), large, env, hypers).agent.learner.params
    after = run.agent.learner.params
    assert float(after.loss_scale.scale) < loss_scale.FIRST
    assert float(after.loss_scale.good_updates) > 0
    kept = [leaf for leaf in jax.tree.leaves((run.agent, metrics)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in kept)
    moved = zip(jax.tree.leaves(begun.network), jax.tree.leaves(after.network), strict=True)
    assert all(bool((old != new).any()) for old, new in moved)


# --- int8 -----------------------------------------------------------------------------------------------------------


@pytest.mark.fast_cases(4)
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_of_int8_are_within_half_a_step_and_take_a_quarter(name):
    network, params, observation = made(name)
    acting, small = precision.quantise(network, params)
    for weights, found in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(small, is_leaf=lambda leaf: isinstance(leaf, precision.Quantised)),
        strict=True,
    ):
        if weights.ndim < 2:
            np.testing.assert_array_equal(found, weights)
            continue
        assert found.values.dtype == jnp.int8
        assert found.scale.shape == (1, weights.shape[-1])
        half = 0.5 * np.abs(weights).max(axis=0) / 127
        assert (np.abs(found.values * found.scale - weights) <= half * (1 + 1e-5)).all()
    shapes = jax.tree.map(jnp.shape, acting.apply(small, observation))
    assert shapes == jax.tree.map(jnp.shape, network.apply(params, observation))


def test_a_column_of_zeros_stays_one():
    network = from_linen(nn.Dense(2))
    params = jax.tree.map(jnp.zeros_like, network.init(jax.random.key(0), jnp.ones(3)))
    acting, small = precision.quantise(network, params)
    np.testing.assert_array_equal(acting.apply(small, jnp.ones(3)), [0.0, 0.0])


def test_a_large_network_takes_a_quarter_of_the_bytes_and_is_exported_as_any(tmp_path):
    actor, critic = networks.policy(CARTPOLE.spec, (256, 256)), networks.state_values(CARTPOLE.spec, (8,))
    agent = normalize.with_observation_norm(a2c.a2c(CARTPOLE.spec, actor, critic), CARTPOLE.spec)
    hypers = cast_hypers(a2c.Hypers())
    state = agent.init(jax.random.key(0), hypers)
    acting, small = precision.quantise_agent(agent, state)
    bytes_of = {}
    for name, (one, kept) in {"usual": (agent, state), "small": (acting, small)}.items():
        export.save_policy(tmp_path / name, one, kept, CARTPOLE, hypers)
        bytes_of[name] = sum(leaf.nbytes for leaf in export.load_policy(tmp_path / name).arrays.values())
    assert 0.25 < bytes_of["small"] / bytes_of["usual"] < 0.27
    own, expected = (precision.size(params.actor) for params in (small.learner.params, state.learner.params))
    assert 0.25 < own / expected < 0.27
    observation = jax.random.normal(jax.random.key(1), (200, 4))
    found = export.load_policy(tmp_path / "small")(observation)
    np.testing.assert_array_equal(found, acting.act(jax.random.key(0), small, (), observation, hypers, greedy=True)[0])
    # By hand: the network with its own weights rounded.
    network, params = precision.quantise(actor, state.learner.params.actor)
    by_hand = network.apply(params, jnp.clip(observation, -10.0, 10.0)).mode()
    np.testing.assert_array_equal(found, by_hand)


def test_layers_that_are_stacked_have_scales_of_their_own_and_keep_their_biases():
    class Ensemble(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.vmap(nn.Dense, {"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)(5)(x)

    network = from_linen(Ensemble())
    x = jax.random.normal(jax.random.key(1), (3,))
    params = network.init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf.at[0].multiply(1e-3), params)
    acting, small = precision.quantise(network, params)
    expected = network.apply(params, x)
    error = jnp.abs(acting.apply(small, x) - expected).max(axis=1)
    assert (error < 0.02 * jnp.abs(expected).max(axis=1)).all()


def test_a_table_has_nothing_to_quantise():
    env = envs.make("CliffWalking-purerl", 1)
    agent = q_learning.q_learning(env.spec)
    state = agent.init(jax.random.key(0), cast_hypers(q_learning.Hypers()))
    with pytest.raises(ValueError, match="in which no params are matrices; it takes that of a deep agent"):
        precision.quantise_agent(agent, state)


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_the_script_tells_of_four_precisions_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    script = load("precision")
    out, flags = tmp_path / "run", ["--total-steps", "2048", "--seeds", "2", "--eval-episodes", "2"]
    kept = Checkpoints.save

    def asked(self, *arguments, **named):
        kept(self, *arguments, **named)
        signal.raise_signal(signal.SIGTERM)

    settings = cli.parse(script.Settings, [*flags, "--checkpoint-every", "1024", "--out", str(out), "--resume", "auto"])
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", asked)
        with pytest.raises(Stopped, match=r"^float32: stopped after 1,\d* of 2,048 steps$"):
            script.main(settings)
    assert not (out / "parts").exists()
    script.main(settings)
    names = {"settings.json", "metrics.npz", "summary.json", "precision.png", "policy_int8.zip"}
    assert {path.name for path in out.iterdir()} == names
    found = results.load(out)
    told = found.summary["precisions"]
    assert list(told) == ["float32", "bfloat16", "float16", "int8"]
    assert told["int8"]["bytes"] < 0.3 * told["float32"]["bytes"]
    assert told["int8"]["agreement"] > 0.9
    assert [one["gaps"][1][1] > 0 for one in told.values() if "gaps" in one] == [False, True, True]
    assert found.metrics["gaps in bfloat16"].shape == (2, 2, 2)
    printed = capsys.readouterr().out
    assert all(f"\n{kind} " in printed for kind in told)
    env = envs.make("CartPole-v1", 2)
    observation, _ = env.reset(jax.random.key(0), env.params)
    assert [export.load_policy(out / "policy_int8.zip", run)(observation).shape for run in range(2)] == [(2,), (2,)]


def greedy_returns(script, kind, steps, seeds=10, **more):
    """The mean greedy return at the end of every seed of a script's agent."""
    settings = script.Settings(precision=kind, total_steps=steps, seeds=seeds, **more)
    env = envs.make(settings.env, settings.num_envs, observation_dtype=settings.observation_dtype)
    judge = envs.make(settings.env, 20, observation_dtype=settings.observation_dtype)
    outcome = driver.drive(
        driver.seed_keys(0, seeds),
        script.phases(settings, env.spec),
        env,
        cli.annealed(settings, settings.hypers),
        length=settings.length,
        log_every=steps // 10,
        eval_env=judge,
        eval_every=steps,
        eval_max_steps=2_500,
    )
    assert not outcome.diverged.any()
    return outcome.evaluation_returns[:, -1].mean(axis=1)


def difference(one, other):
    """The difference of interquartile means, and its 95 % interval by bootstrap over seeds, in parts of the latter."""
    rng = np.random.default_rng(0)
    means = [scores.interquartile_mean(sample) for sample in (one, other)]
    draws = [
        [scores.interquartile_mean(rng.choice(sample, len(sample))) for _ in range(2_000)] for sample in (one, other)
    ]
    low, high = np.quantile(np.subtract(*draws), [0.025, 0.975]) / means[1]
    return (means[0] - means[1]) / means[1], low, high


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("name", "steps"), [("ppo", 200_000), ("dqn", 500_000), ("trpo", 200_000)])
def test_bfloat16_learns_as_float32_does_on_cartpole(name, steps, slow_result):
    script = load(name)
    found = {kind: greedy_returns(script, kind, steps) for kind in ("float32", "bfloat16")}
    apart, low, high = difference(found["bfloat16"], found["float32"])
    means = {kind: scores.interquartile_mean(values) for kind, values in found.items()}
    slow_result(
        f"IQM {means['bfloat16']:.1f} in bfloat16, {means['float32']:.1f} in float32: "
        f"{100 * apart:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}], 10 seeds of {steps:,} steps"
    )
    assert abs(apart) < 0.05


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_weights_of_int8_act_as_those_that_they_were_made_of(tmp_path, slow_result):
    """The script as it stands: PPO on CartPole, ten seeds of 200,000 steps."""
    script = load("precision")
    script.main(cli.parse(script.Settings, ["--out", str(tmp_path / "run")]))
    told = results.load(tmp_path / "run").summary["precisions"]
    usual, small = told["float32"], told["int8"]
    slow_result(
        f"{100 * small['agreement']:.2f} % of greedy actions the same, IQM {small['iqm']:.1f} of {usual['iqm']:.1f} "
        f"[{usual['ci95'][0]:.1f}, {usual['ci95'][1]:.1f}], {small['bytes']} of {usual['bytes']} bytes; "
        f"bfloat16 {told['bfloat16']['iqm']:.1f}, float16 {told['float16']['iqm']:.1f}"
    )
    assert small["agreement"] > 0.99
    low, high = usual["ci95"]
    assert low <= small["iqm"] <= high
    assert small["bytes"] < 0.3 * usual["bytes"]
    for kind in ("bfloat16", "float16"):
        assert abs(told[kind]["iqm"] - usual["iqm"]) < 0.05 * usual["iqm"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_bfloat16_learns_as_float32_does_on_breakout(slow_result):
    script, steps = load("ppo_minatar"), 1_000_000
    script.phases = load("ppo").phases
    found = {kind: greedy_returns(script, kind, steps, seeds=3) for kind in ("float32", "bfloat16")}
    means = {kind: values.mean() for kind, values in found.items()}
    told = "; ".join(f"{kind} {' '.join(f'{value:.1f}' for value in np.sort(found[kind]))}" for kind in found)
    slow_result(f"greedy returns of 3 seeds after {steps:,} steps: {told}")
    assert means["bfloat16"] > 0.75 * means["float32"]
