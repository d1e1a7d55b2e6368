"""What a network reads, how it starts, and that starting many at once cannot hang."""

import math
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.base import Box, Discrete, Spec, from_linen
from purerl.layers import MLP, Convolutions, encode, orthogonal
from purerl.networks import action_values

LEADING = [(), (3,), (2, 3)]


def box(*shape, dtype=np.float32):
    return Box(shape=shape, dtype=dtype, low=0, high=255)


@pytest.mark.parametrize("leading", LEADING)
def test_integers_are_encoded_one_hot(leading):
    value = np.random.default_rng(0).integers(5, size=leading).astype(np.int32)
    encoded = encode(Discrete(5), jnp.asarray(value))
    assert encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded, np.eye(5)[value])


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool", "int32", "bfloat16"])
@pytest.mark.parametrize("shape", [(), (4,), (2, 3, 2)])
def test_arrays_are_encoded_flat_whatever_their_dtype(leading, dtype, shape):
    value = jnp.asarray(np.random.default_rng(1).integers(2, size=(*leading, *shape)), dtype)
    encoded = encode(box(*shape, dtype=jnp.dtype(dtype)), value)
    assert encoded.dtype == jnp.float32
    np.testing.assert_array_equal(encoded, np.asarray(value, np.float32).reshape(*leading, math.prod(shape)))


@pytest.mark.parametrize("leading", LEADING)
def test_parts_are_joined_in_the_order_of_the_space(leading):
    rng = np.random.default_rng(2)
    space = {"b": Discrete(3), "a": box(2, 2, dtype=np.uint8), "c": (box(), Discrete(2))}
    pixels = rng.integers(256, size=(*leading, 2, 2)).astype(np.uint8)
    kind, flag = (rng.integers(n, size=leading).astype(np.int32) for n in (3, 2))
    height = rng.normal(size=leading).astype(np.float32)
    encoded = encode(space, jax.tree.map(jnp.asarray, {"b": kind, "a": pixels, "c": (height, flag)}))
    expected = [pixels.reshape(*leading, 4), np.eye(3)[kind], height[..., None], np.eye(2)[flag]]
    np.testing.assert_array_equal(encoded, np.concatenate(expected, axis=-1))


@pytest.mark.parametrize("shape", [(64, 64), (4, 64), (64, 4), (3, 3, 8, 16), (1, 1), (256, 256)])
@pytest.mark.parametrize("scale", [1.0, math.sqrt(2), 0.01])
def test_orthogonal_matrices_have_orthonormal_rows_or_columns(shape, scale):
    tensor = jax.jit(orthogonal(scale), static_argnums=1)(jax.random.key(0), shape)
    assert (tensor.shape, tensor.dtype) == (shape, jnp.float32)
    matrix = np.asarray(tensor, np.float64).reshape(-1, shape[-1])
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    np.testing.assert_allclose(matrix.T @ matrix / scale**2, np.eye(matrix.shape[1]), atol=1e-5)


def test_no_draw_of_an_orthogonal_matrix_is_left_unfinished():
    # The iteration's length depends on the smallest singular value, which in some draws is tiny.
    matrices = jax.jit(jax.vmap(lambda key: orthogonal()(key, (16, 16))))(jax.random.split(jax.random.key(1), 2000))
    gram = np.einsum("kij,kil->kjl", matrices, matrices)
    assert np.abs(gram - np.eye(16)).max() < 1e-5


def test_orthogonal_takes_the_dtype_asked_for():
    assert orthogonal()(jax.random.key(0), (4, 2), jnp.bfloat16).dtype == jnp.bfloat16


def test_a_column_of_an_orthogonal_matrix_is_uniform_on_the_sphere():
    # n entries whose squares sum to one: mean 0, variance 1/n, fourth moment 3/(n (n + 2)); neighbours uncorrelated.
    n, draws = 8, 4000
    for shape in ((n, n), (n, 3)):
        draw = jax.jit(jax.vmap(lambda key, shape=shape: orthogonal()(key, shape)))
        matrices = np.asarray(draw(jax.random.split(jax.random.key(2), draws)), np.float64)
        for column in range(shape[1]):
            entries = matrices[:, :, column]
            five_errors = 5 / math.sqrt(draws)
            assert np.abs(entries.mean(axis=0)).max() < five_errors / math.sqrt(n)
            assert np.abs(n * entries.var(axis=0) - 1).max() < five_errors * math.sqrt(2)
            assert np.abs((entries**4).mean(axis=0) * n * (n + 2) / 3 - 1).max() < five_errors * math.sqrt(96 / 9)
            assert np.abs(n * (entries[:, :-1] * entries[:, 1:]).mean(axis=0)).max() < five_errors


def test_orthogonal_matrices_are_as_often_reflections_as_rotations():
    matrices = jax.jit(jax.vmap(lambda key: orthogonal()(key, (3, 3))))(jax.random.split(jax.random.key(3), 4000))
    assert abs(np.sign(np.linalg.det(matrices)).mean()) < 5 / math.sqrt(4000)


def test_different_keys_give_different_matrices_and_one_key_the_same():
    one, other, again = (orthogonal()(jax.random.key(seed), (8, 8)) for seed in (0, 1, 0))
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_array_equal(one, again)


def test_orthogonal_calls_no_lapack():
    def many(initialiser):
        draw = jax.jit(jax.vmap(lambda key: initialiser(key, (16, 16))))
        return draw.lower(jax.random.split(jax.random.key(0), 4))

    # That this can be seen at all: jax's own does call it.
    assert "@lapack_" in many(jax.nn.initializers.orthogonal()).as_text()
    ours = many(orthogonal())
    assert "custom_call" not in ours.as_text()
    assert "custom-call" not in ours.compile().as_text()


HANG = """
import jax, jax.numpy as jnp
from purerl.base import from_linen
from purerl.layers import MLP, orthogonal

network = from_linen(MLP((64, 64, 2), kernel_init=orthogonal(2.0**0.5)))
for program in range(3):
    init = jax.jit(jax.vmap(lambda key: network.init(key, jnp.zeros(4))))
    for attempt in range(10):
        params = jax.block_until_ready(init(jax.random.split(jax.random.key(attempt), 32)))
    assert params["params"]["Dense_1"]["kernel"].shape == (32, 64, 64)
print("not one hung")
"""


def test_many_orthogonal_networks_started_at_once_do_not_hang():
    # jax's own initialiser can wait for ever here, on two cores.
    done = subprocess.run([sys.executable, "-c", HANG], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "not one hung\n"


def test_an_mlp_activates_all_layers_but_the_last():
    network = from_linen(MLP((5, 3), nn.tanh, kernel_init=orthogonal()))
    params = network.init(jax.random.key(0), jnp.zeros(4))
    first, last = params["params"]["Dense_0"], params["params"]["Dense_1"]
    inputs = 10 * jax.random.normal(jax.random.key(1), (7, 2, 4))
    expected = np.tanh(inputs @ first["kernel"] + first["bias"]) @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(network.apply(params, inputs), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(first["kernel"] @ first["kernel"].T, np.eye(4), atol=1e-5)


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize(
    "space", [box(4), box(2, 3, dtype=np.uint8), box(), Discrete(6), {"a": Discrete(2), "b": box(2, dtype=bool)}]
)
def test_action_values_take_any_leading_axes(space, leading):
    network = action_values(Spec(observation=space, action=Discrete(3), num_envs=1), hidden=(8,))
    example = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), space)
    params = network.init(jax.random.key(0), example)
    observation = jax.tree.map(lambda leaf: jnp.ones((*leading, *leaf.shape), leaf.dtype), space)
    values = network.apply(params, observation)
    assert (values.shape, values.dtype) == ((*leading, 3), jnp.float32)
    np.testing.assert_allclose(values, np.broadcast_to(network.apply(params, example), values.shape), rtol=1e-5)


def test_action_values_have_the_hidden_layers_asked_for():
    spec = Spec(observation=box(4), action=Discrete(3), num_envs=1)

    def shapes(network):
        leaves = jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0), jnp.zeros(4)))
        return sorted(leaf.shape for leaf in leaves if leaf.ndim == 2)

    assert shapes(action_values(spec)) == sorted([(4, 120), (120, 84), (84, 3)])
    assert shapes(action_values(spec, hidden=[7])) == [(4, 7), (7, 3)]
    assert shapes(action_values(spec, hidden=())) == [(4, 3)]
    assert shapes(action_values(spec, dueling=True)) == sorted([(4, 120), (120, 84), (84, 1), (120, 84), (84, 3)])


def test_action_values_refuse_continuous_actions_by_name():
    space = box(2)
    with pytest.raises(ValueError, match="action-value network needs a discrete action space") as raised:
        action_values(Spec(observation=box(4), action=space, num_envs=1))
    assert str(space) in str(raised.value)


@pytest.mark.parametrize("widths", [{"hidden": (8, 0)}, {"filters": (-1,)}])
def test_widths_below_one_are_refused_by_name(widths):
    ((name, given),) = widths.items()
    spec = Spec(observation=box(5, 5, 2), action=Discrete(3), num_envs=1)
    with pytest.raises(ValueError, match=re.escape(f"{name} is {given}; each layer takes at least 1")):
        action_values(spec, **widths)


# --- dueling --------------------------------------------------------------------------------------------------------


def dense(layer, inputs):
    return inputs @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)


def shaken(params):
    """The same with noise: biases start at zero, and where they are added would not be seen."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + np.float32(0.3 * rng.normal(size=leaf.shape)), params)


def by_hand(mlp, inputs, activation):
    """The outputs of an MLP with these parameters."""
    for number in range(len(mlp)):
        inputs = dense(mlp[f"Dense_{number}"], activation(inputs) if number else inputs)
    return inputs


def heads(params, actions):
    """The parameters below the heads, of V, and of the advantages, told apart by how many outputs they have."""
    of = {1: None, actions: None}
    below = {}
    for name, mlp in params["params"].items():
        outputs = mlp[f"Dense_{len(mlp) - 1}"]["bias"].size if name.startswith("MLP") else None
        if outputs in of:
            of[outputs] = mlp
        else:
            below[name] = mlp
    return below, of[1], of[actions]


@pytest.mark.parametrize("hidden", [(), (8,), (10, 9, 8)])
def test_dueling_values_are_those_of_the_paper(hidden):
    network = action_values(
        Spec(observation=box(4), action=Discrete(3), num_envs=1), hidden=hidden, activation=nn.tanh, dueling=True
    )
    params = network.init(jax.random.key(0), jnp.zeros(4))
    params = shaken(params)
    below, value_head, advantage_head = heads(params, 3)
    inputs = np.random.default_rng(0).normal(size=(2, 6, 4))
    features = inputs
    assert len(below) == (len(hidden) > 1)
    for torso in below.values():
        assert torso.keys() == {"MLP_0"}
        assert len(torso["MLP_0"]) == len(hidden) - 1
        features = np.tanh(by_hand(torso["MLP_0"], inputs, np.tanh))
    value, advantage = (by_hand(head, features, np.tanh) for head in (value_head, advantage_head))
    assert len(value_head) == len(advantage_head) == min(len(hidden), 1) + 1
    assert np.ptp(value) > 0.1

    found = np.asarray(network.apply(params, jnp.asarray(inputs, jnp.float32)))
    expected = value + advantage - advantage.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(found.mean(axis=-1, keepdims=True), value, atol=2e-5)


def test_a_constant_in_the_advantages_changes_nothing_and_one_in_the_value_all():
    network = action_values(Spec(observation=box(4), action=Discrete(3), num_envs=1), hidden=(8, 8), dueling=True)
    params = network.init(jax.random.key(0), jnp.zeros(4))
    inputs = jax.random.normal(jax.random.key(1), (5, 4))
    before = network.apply(params, inputs)
    for outputs, change in ((3, 0.0), (1, 7.0)):
        raised = jax.tree.map(jnp.copy, params)
        last = heads(raised, 3)[1 if outputs == 1 else 2]["Dense_1"]
        assert last["bias"].shape == (outputs,)
        last["bias"] += 7.0
        np.testing.assert_allclose(network.apply(raised, inputs), before + change, atol=1e-5)


# --- convolutions ---------------------------------------------------------------------------------------------------


def xla(layers, image):
    """XLA's convolutions with these dense layers' parameters."""
    for number in range(len(layers)):
        kernel, bias = layers[f"Dense_{number}"]["kernel"], layers[f"Dense_{number}"]["bias"]
        kernel = kernel.reshape(3, 3, image.shape[-1], -1)
        image = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
        image = jnp.tanh(image + bias)
    return image


@pytest.mark.parametrize("filters", [(5,), (5, 4)])
def test_convolutions_are_those_of_xla(filters):
    network = from_linen(Convolutions(filters, nn.tanh))
    # Neither square nor as deep as wide, so that no two axes can be exchanged unseen.
    params = network.init(jax.random.key(0), jnp.zeros((7, 9, 2)))
    params = shaken(params)
    images = jax.random.normal(jax.random.key(1), (2, 3, 7, 9, 2))
    expected = xla(params["params"], images.reshape(6, 7, 9, 2))
    assert expected.shape == (6, 7 - 2 * len(filters), 9 - 2 * len(filters), filters[-1])
    for leading, given in (((2, 3), images), ((6,), images.reshape(6, 7, 9, 2)), ((), images[0, 0])):
        found = network.apply(params, given)
        assert found.shape == (*leading, *expected.shape[1:])
        np.testing.assert_allclose(found.reshape(-1), expected.reshape(-1)[: found.size], atol=1e-5)


def pictures_spec(*shape, dtype=np.float32):
    return Spec(observation=box(*shape, dtype=dtype), action=Discrete(3), num_envs=1)


@pytest.mark.parametrize("dueling", [False, True])
def test_action_values_of_pictures_are_layers_on_convolutions(dueling):
    network = action_values(pictures_spec(5, 6, 2), (8,), nn.tanh, filters=(4, 3), dueling=dueling)
    params = network.init(jax.random.key(0), jnp.zeros((5, 6, 2)))
    images = jax.random.normal(jax.random.key(1), (7, 5, 6, 2))
    torso = params["params"]["Torso_0"]
    features = np.asarray(xla(torso["Convolutions_0"], images)).reshape(7, -1)
    assert features.shape == (7, 1 * 2 * 3)
    if dueling:
        _, value, advantage = (head for head in heads(params, 3))
        advantages = by_hand(advantage, features, np.tanh)
        expected = by_hand(value, features, np.tanh) + advantages - advantages.mean(axis=-1, keepdims=True)
    else:
        features = np.tanh(by_hand(torso["MLP_0"], features, np.tanh))
        expected = by_hand(params["params"]["MLP_0"], features, np.tanh)
    found = network.apply(params, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(network.apply(params, images[0]), expected[0], atol=1e-5)
    np.testing.assert_allclose(network.apply(params, images[None])[0], expected, atol=1e-5)


@pytest.mark.parametrize("options", [{"filters": (4,)}, {"filters": (4,), "dueling": True}, {"dueling": True}, {}])
@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_pictures_of_any_dtype_are_read_as_numbers(options, dtype):
    picture = np.random.default_rng(0).integers(2, size=(3, 4, 4, 2))
    network = action_values(pictures_spec(4, 4, 2, dtype=dtype), (8,), **options)
    params = network.init(jax.random.key(0), jnp.zeros((4, 4, 2), dtype))
    as_given, as_numbers = (network.apply(params, jnp.asarray(picture, kind)) for kind in (dtype, np.float32))
    assert as_given.dtype == jnp.float32
    np.testing.assert_array_equal(as_given, as_numbers)


@pytest.mark.parametrize(
    ("space", "filters", "least"),
    [
        (box(400), (16,), 3),
        (box(10, 10), (16,), 3),
        (box(), (16,), 3),
        (Discrete(5), (16,), 3),
        ({"a": box(10, 10, 4)}, (16,), 3),
        (box(2, 9, 3), (16,), 3),
        (box(9, 2, 3), (16,), 3),
        (box(9, 4, 3), (16, 16), 5),
    ],
)
def test_observations_that_are_no_images_of_the_size_needed_are_refused_by_name(space, filters, least):
    words = f"convolutions take images [height, width, channels] of at least {least} x {least}"
    with pytest.raises(ValueError, match=re.escape(f"filters is {filters}, and observations are {space}; {words}")):
        action_values(Spec(observation=space, action=Discrete(3), num_envs=1), filters=filters)


def test_images_just_large_enough_are_taken():
    network = action_values(pictures_spec(5, 6, 1), (), filters=(2, 2))
    image = jnp.zeros((5, 6, 1))
    params = jax.eval_shape(network.init, jax.random.key(0), image)
    values = jax.eval_shape(network.apply, params, image)
    assert values.shape == (3,)
