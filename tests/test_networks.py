"""What a network reads, how it starts, and that starting many at once cannot hang."""

import math
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl.base import Box, Discrete, Spec, from_linen
from purerl.networks import MLP, action_values, encode, orthogonal

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
from purerl.networks import MLP, orthogonal

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
    shapes = lambda network: [  # noqa: E731
        leaf.shape for leaf in jax.tree.leaves(network.init(jax.random.key(0), jnp.zeros(4))) if leaf.ndim == 2
    ]
    assert shapes(action_values(spec)) == [(4, 120), (120, 84), (84, 3)]
    assert shapes(action_values(spec, hidden=[7])) == [(4, 7), (7, 3)]
    assert shapes(action_values(spec, hidden=())) == [(4, 3)]


def test_action_values_refuse_continuous_actions_by_name():
    space = box(2)
    with pytest.raises(ValueError, match="action-value network needs a discrete action space") as raised:
        action_values(Spec(observation=box(4), action=space, num_envs=1))
    assert str(space) in str(raised.value)
