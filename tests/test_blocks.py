"""Residual and transformer blocks: by hand in NumPy, what they can tell apart, learn and compute in, how they split."""

from __future__ import annotations

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scripts import load

from purerl import envs, loop, networks, policy_cli, precision, replay, sharding
from purerl.agents import dqn, ppo
from purerl.base import Box, Discrete, Spec, cast_hypers, from_linen
from purerl.layers import ResidualBlock, TransformerBlock

VECTOR = Box((4,), np.dtype(np.float32), -1.0, 1.0)
IMAGE = Box((4, 5, 3), np.dtype(np.float32), 0.0, 1.0)
KINDS = "residual", "transformer"
each_kind = pytest.mark.parametrize("blocks", KINDS)


def spec(observation=VECTOR):
    return Spec(observation=observation, action=Discrete(3), num_envs=2)


def shaken(params, seed=0):
    """The same with noise: what starts at zero or one would not be seen."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + np.float32(0.3 * rng.normal(size=leaf.shape)), params)


def started(network, *shape):
    """A network to call often, parameters, and what it reads, of this shape."""
    inputs = jax.random.normal(jax.random.key(1), shape)
    params = jax.jit(network.init)(jax.random.key(0), inputs)
    return network._replace(apply=jax.jit(network.apply)), shaken(params), inputs


def torso(observation, hidden, blocks, **options):
    """A torso, its parameters and observations [7, ...]."""
    return started(networks.torso(spec(observation), hidden, blocks=blocks, **options).network, 7, *observation.shape)


# --- by hand --------------------------------------------------------------------------------------------------------


def dense(layer, inputs):
    kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
    return inputs @ kernel + bias


def normalised(layer, inputs):
    centred = inputs - inputs.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return centred / deviation * np.asarray(layer["scale"]) + np.asarray(layer["bias"])


def residual(layers, stream):
    """What a residual block makes of [..., width]."""
    inside = np.tanh(dense(layers["mlp_up"], normalised(layers["LayerNorm_0"], stream)))
    assert inside.shape[-1] == 4 * stream.shape[-1]
    return stream + dense(layers["mlp_down"], inside)


def attention(layers, tokens, heads):
    """What the heads, one after another, make of [tokens, width], one token after another."""
    query, key, value, out = (layers[name] for name in ("query", "key", "value", "out"))
    head_size = tokens.shape[-1] // heads
    found = np.zeros(tokens.shape) + np.asarray(out["bias"])
    for head in range(heads):
        q, k, v = (
            tokens @ np.asarray(layer["kernel"])[:, head] + np.asarray(layer["bias"])[head]
            for layer in (query, key, value)
        )
        for place in range(len(tokens)):
            weights = np.exp([q[place] @ other / np.sqrt(head_size) for other in k])
            found[place] += (weights / weights.sum()) @ v @ np.asarray(out["kernel"])[head]
    return found


def transformer(layers, tokens, heads):
    tokens = tokens + attention(layers["attention"], normalised(layers["LayerNorm_0"], tokens), heads)
    return residual(layers["ResidualBlock_0"], tokens)


@pytest.mark.parametrize("leading", [(), (7,), (2, 3)])
def test_a_residual_block_adds_two_layers_to_its_stream(leading):
    block, params, stream = started(from_linen(ResidualBlock(nn.tanh)), *leading, 6)
    found = block.apply(params, stream)
    assert found.shape == stream.shape
    np.testing.assert_allclose(found, residual(params["params"], np.asarray(stream, np.float64)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_a_transformer_block_attends_head_by_head_and_then_adds_two_layers(heads):
    block, params, tokens = started(from_linen(TransformerBlock(heads, nn.tanh)), 2, 3, 5, 6)
    found = block.apply(params, tokens)
    assert found.shape == tokens.shape
    for place in np.ndindex(2, 3):
        expected = transformer(params["params"], np.asarray(tokens[place], np.float64), heads)
        np.testing.assert_allclose(found[place], expected, rtol=1e-5, atol=2e-5)


def test_a_residual_torso_is_a_layer_then_blocks_then_a_norm():
    network, params, observations = torso(VECTOR, (6, 6), "residual")
    layers = params["params"]
    stream = dense(layers["embed"], np.asarray(observations, np.float64))
    for number in range(2):
        stream = residual(layers[f"ResidualBlock_{number}"], stream)
    assert layers.keys() == {"embed", "ResidualBlock_0", "ResidualBlock_1", "LayerNorm_0"}
    found = network.apply(params, observations)
    np.testing.assert_allclose(found, normalised(layers["LayerNorm_0"], stream), rtol=1e-4, atol=1e-5)


def tokens_of(layers, observation):
    """The first tokens, of one observation."""
    if observation.ndim == 1:
        weight, bias = (np.asarray(layers["FeatureTokens_0"][name]) for name in ("weight", "bias"))
        return np.stack([x * weight[number] + bias[number] for number, x in enumerate(observation)])
    embed, place = (layers["PixelTokens_0"][name] for name in ("embed", "place"))
    pixels = [pixel for row in observation for pixel in row]
    return np.stack([dense(embed, pixel) + np.asarray(place)[number] for number, pixel in enumerate(pixels)])


@pytest.mark.parametrize("observation", [VECTOR, IMAGE], ids=["features", "pixels"])
def test_a_transformer_s_torso_is_the_mean_over_tokens(observation):
    network, params, observations = torso(observation, (6, 6), "transformer", heads=2)
    layers, expected = params["params"], []
    for one in np.asarray(observations, np.float64):
        tokens = tokens_of(layers, one)
        assert len(tokens) == (20 if observation is IMAGE else 4)
        for number in range(2):
            tokens = transformer(layers[f"TransformerBlock_{number}"], tokens, 2)
        expected.append(normalised(layers["LayerNorm_0"], tokens).mean(axis=0))
    np.testing.assert_allclose(network.apply(params, observations), expected, rtol=1e-4, atol=2e-5)


# --- what they read, and how they start -----------------------------------------------------------------------------


@each_kind
@pytest.mark.parametrize(
    ("space", "filters"),
    [
        (VECTOR, ()),
        (Discrete(6), ()),
        ({"a": Discrete(2), "b": VECTOR}, ()),
        (IMAGE, ()),
        (IMAGE, (2,)),
        (Box((4, 4, 2), np.dtype(bool), 0, 1), (2,)),
    ],
)
@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
def test_any_leading_axes_are_kept(leading, space, filters, blocks):
    network = networks.action_values(spec(space), (8, 8), filters=filters, blocks=blocks, heads=2)
    example = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), space)
    params = jax.eval_shape(network.init, jax.random.key(0), example)
    observation = jax.tree.map(lambda leaf: jnp.ones((*leading, *leaf.shape), leaf.dtype), space)
    values = jax.eval_shape(network.apply, params, observation)
    assert (values.shape, values.dtype) == ((*leading, 3), jnp.float32)


def test_more_leading_axes_change_nothing():
    network, params, images = torso(IMAGE, (8,), "transformer", filters=(2,))
    many = network.apply(params, images.reshape(7, 1, *IMAGE.shape))[:, 0]
    np.testing.assert_allclose(network.apply(params, images), many, atol=1e-5)


@each_kind
def test_a_width_is_a_block(blocks):
    for count in (1, 3):
        network = networks.state_values(spec(), (8,) * count, blocks=blocks)
        params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(4))["params"]["layers_0"]
        assert sum("Block_" in name for name in params) == count


@each_kind
def test_of_dueling_blocks_both_heads_read_the_features(blocks):
    network, params, observations = started(networks.action_values(spec(), (8,), blocks=blocks, dueling=True), 5, 4)
    own = params["params"]
    below = networks.torso(spec(), (8,), nn.relu, blocks=blocks).network
    features = np.asarray(below.apply({"params": own["Torso_0"]}, observations))
    value, advantage = (dense(own[name]["Dense_0"], features) for name in ("MLP_0", "MLP_1"))
    assert value.shape == (5, 1)
    expected = value + advantage - advantage.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(network.apply(params, observations), expected, atol=1e-5)


def test_a_transformer_knows_where_a_pixel_is_by_what_it_learned_of_places_alone():
    network, params, observations = torso(IMAGE, (8, 8), "transformer")
    swapped = observations.at[:, 0, 1].set(observations[:, 3, 2]).at[:, 3, 2].set(observations[:, 0, 1])
    apart = jnp.abs(network.apply(params, observations) - network.apply(params, swapped))
    assert (apart.max(axis=-1) > 1e-3).all()
    params["params"]["PixelTokens_0"]["place"] *= 0
    np.testing.assert_allclose(network.apply(params, observations), network.apply(params, swapped), atol=1e-5)


@each_kind
def test_features_are_told_apart(blocks):
    network, params, observations = torso(VECTOR, (8, 8), blocks)
    apart = jnp.abs(network.apply(params, observations) - network.apply(params, observations[:, ::-1]))
    assert (apart.max(axis=-1) > 1e-3).all()


# --- learning -------------------------------------------------------------------------------------------------------


@pytest.mark.fast_cases(2)
@each_kind
@pytest.mark.parametrize("observation", [VECTOR, IMAGE], ids=["features", "pixels"])
def test_every_parameter_has_a_finite_derivative(observation, blocks):
    network, params, observations = torso(observation, (8, 8), blocks)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(network.apply(params, observations)[:, 0] ** 2)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.isfinite(leaf).all()
        # A number that is added to all of a token's scores changes no weight of its softmax.
        without = "attention/key/bias" in sharding.path_of(path)
        assert without or jnp.abs(leaf).max() > 1e-6, sharding.path_of(path)


@each_kind
def test_a_product_is_learned(blocks):
    """Of two features, which neither a sum over features nor a linear map can tell."""
    network = networks.state_values(spec(), (16,), blocks=blocks, heads=2)
    observations = jax.random.normal(jax.random.key(1), (640, 4))
    params = jax.jit(network.init)(jax.random.key(0), observations)
    target = observations[:, 0] * observations[:, 1]
    optimizer = optax.adam(3e-3)

    def error(params, rows):
        return jnp.mean((network.apply(params, observations[rows]) - target[rows]) ** 2)

    def step(carry, key):
        params, state = carry
        changes, state = optimizer.update(jax.grad(error)(params, jax.random.randint(key, (64,), 0, 512)), state)
        return (optax.apply_updates(params, changes), state), None

    keys = jax.random.split(jax.random.key(2), 400)
    (learned, _), _ = jax.jit(partial(jax.lax.scan, step))((params, optimizer.init(params)), keys)
    unseen = jnp.arange(512, 640)
    assert error(learned, unseen) < 0.2 * jnp.var(target[unseen])


def agent_of(kind, env, options):
    if kind == "dqn":
        network = networks.action_values(env.spec, (8,), **options)
        buffer = replay.uniform(env.spec, 64)
        return replay.with_replay(dqn.dqn(env.spec, network), buffer, batch_size=4), dqn.Hypers()
    actor, critic = (make(env.spec, (8,), **options) for make in (networks.policy, networks.state_values))
    return ppo.ppo(env.spec, actor, critic, epochs=1, minibatches=2), ppo.Hypers()


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("kind", ["dqn", "ppo"])
@pytest.mark.parametrize(
    ("name", "filters"), [("Breakout-MinAtar", (2,)), ("Breakout-MinAtar", ()), ("CartPole-v1", ())]
)
@each_kind
def test_agents_learn_with_them(name, filters, blocks, kind):
    env = envs.make(name, 2)
    agent, hypers = agent_of(kind, env, {"blocks": blocks, "heads": 2, "filters": filters})
    hypers = cast_hypers(hypers)

    @jax.jit
    def trained(key):
        begun = loop.begin(key, agent, env, hypers)
        return begun.agent, *loop.advance(begun, agent, env, hypers, iterations=3, length=4, rows=1)

    before, run, metrics = trained(jax.random.key(0))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(metrics))
    moved = {
        sharding.path_of(path): not np.array_equal(leaf, old)
        for (path, leaf), old in zip(
            jax.tree_util.tree_leaves_with_path(run.agent), jax.tree.leaves(before), strict=True
        )
    }
    kernel = "attention/value/kernel" if blocks == "transformer" else "mlp_up/kernel"
    assert [path for path, new in moved.items() if path.endswith(kernel) and "params" in path and new]


# --- precision ------------------------------------------------------------------------------------------------------


def equations(jaxpr):
    """All equations of a program, those of its parts included."""
    for equation in jaxpr.eqns:
        yield equation
        for part in jax.core.jaxprs_in_params(equation.params):
            yield from equations(part)


def read(program, primitive):
    """The dtypes that operations of this name read."""
    found = [one for one in equations(program.jaxpr) if one.primitive.name == primitive]
    assert found
    return {variable.aval.dtype for one in found for variable in one.invars}


@pytest.mark.fast_cases(2)
@each_kind
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_products_are_small_and_softmax_norms_and_the_stream_are_not(kind, blocks):
    usual = networks.state_values(spec(), (16,), blocks=blocks)
    network = precision.preset(usual, kind)
    observations = jax.random.normal(jax.random.key(1), (8, 4))
    params = jax.jit(network.init)(jax.random.key(0), observations)
    program = jax.make_jaxpr(network.apply)(params, observations)
    assert read(program, "dot_general") == read(program, "tanh") == {jnp.dtype(kind)}
    assert read(program, "rsqrt") == {jnp.dtype(jnp.float32)}
    if blocks == "transformer":
        assert read(program, "exp") == {jnp.dtype(jnp.float32)}
    found, expected = network.apply(params, observations), usual.apply(getattr(params, "network", params), observations)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert jnp.abs(found - expected).max() > 0


@each_kind
def test_what_a_block_adds_to_a_large_stream_is_not_lost_in_bfloat16(blocks):
    block = ResidualBlock() if blocks == "residual" else TransformerBlock(2)
    usual, params, stream = started(from_linen(block), 5, 8)
    stream += 256  # from there to 512 bfloat16 has every other whole number
    found = precision.preset(from_linen(block), "bfloat16").apply(params, stream)
    np.testing.assert_allclose(found - stream, usual.apply(params, stream) - stream, atol=0.1)


# --- flags ----------------------------------------------------------------------------------------------------------


def paths(network, observation):
    params = jax.eval_shape(network.init, jax.random.key(0), observation)
    return [sharding.path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


@pytest.mark.parametrize("shared", [False, True])
def test_flags_of_agents_with_a_policy_choose_blocks(shared):
    settings = policy_cli.Settings(hidden=(8, 8), blocks="transformer", heads=2, shared_torso=shared)
    actor, critic, below = policy_cli.networks_of(settings, spec())
    for network in (actor, critic):
        assert any("TransformerBlock_1" in path for path in paths(network, jnp.zeros(8 if shared else 4))) != shared
    if below is not None:
        kernel = jax.eval_shape(below.init, jax.random.key(0), jnp.zeros(4))["params"]["TransformerBlock_0"]
        assert kernel["attention"]["query"]["kernel"].shape == (8, 2, 4)


@pytest.mark.parametrize("script", ["dqn", "dqn_minatar"])
def test_flags_of_dqn_choose_blocks(script):
    module, env = load(script), envs.make("Breakout-MinAtar", 2)
    layers = {"hidden": (6,), "blocks": "transformer", "heads": 3, "filters": (), "dueling": True}
    settings = module.Settings(env="Breakout-MinAtar", num_envs=2, **layers)
    agent = load("dqn").phases(settings, env.spec)[-1].agent
    state = jax.eval_shape(agent.init, jax.random.key(0), cast_hypers(settings.hypers))
    shapes = {sharding.path_of(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    assert next(shape for path, shape in shapes.items() if path.endswith("attention/query/kernel")) == (6, 3, 2)


# --- over devices ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("blocks", "observation", "sums"),
    [("residual", VECTOR, 1), ("transformer", IMAGE, 2)],
    ids=KINDS,
)
def test_over_two_devices_each_pair_of_layers_takes_one_sum_each_way_and_nothing_is_gathered(blocks, observation, sums):
    network = networks.state_values(spec(observation), (8, 8), blocks=blocks, heads=2)
    observations = jax.random.normal(jax.random.key(1), (6, *observation.shape))
    params = jax.jit(network.init)(jax.random.key(0), observations)
    layout = sharding.Layout(sharding.mesh(model=2))
    split, whole = sharding.shardings(layout, params), NamedSharding(layout.mesh, PartitionSpec())

    def error(params, observations):
        return jnp.mean(network.apply(params, observations) ** 2)

    both = jax.jit(jax.value_and_grad(error), in_shardings=(split, whole), out_shardings=(whole, split))
    program = both.lower(params, observations).compile()
    collectives = re.findall(r" (all-\w+|reduce-scatter|collective-\w+)(?:-start)?\(", program.as_text())
    assert collectives == ["all-reduce"] * (2 * 2 * sums)  # two blocks, forward and back
    placed = jax.device_put(params, split), jax.device_put(observations, whole)
    expected = jax.jit(jax.value_and_grad(error))(params, observations)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-5), program(*placed), expected)
    halves = [sharding.path_of(path) for path, leaf in jax.tree_util.tree_leaves_with_path(split) if leaf != whole]
    assert len(halves) == 2 * (3 if blocks == "residual" else 10)
