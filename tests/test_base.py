"""The contract's data: dataclasses as pytrees, selection of environments, hypers at the door, the network seam."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from purerl import base
from purerl.agents import dqn, q_learning
from purerl.base import Box, Discrete, Network, Rollout, Spec, Transition


@base.pytree_dataclass
class Point:
    x: Any
    y: float = 2.0


@base.pytree_dataclass
class Nested:
    point: Point
    rate: float = 0.5


def box(*shape, dtype=np.float32):
    return Box(shape=shape, dtype=dtype, low=-1, high=1)


def test_a_pytree_dataclass_is_frozen():
    point = Point(x=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        point.x = 2


def test_a_pytree_dataclass_takes_keywords_only():
    with pytest.raises(TypeError, match="positional"):
        Point(1)


def test_a_pytree_dataclass_round_trips_through_tree_functions():
    nested = Nested(point=Point(x={"a": 1, "b": (2, 3)}, y=4), rate=5)
    leaves, structure = jax.tree.flatten(nested)
    assert leaves == [1, 2, 3, 4, 5]
    assert jax.tree.unflatten(structure, leaves) == nested
    assert jax.tree.map(lambda leaf: 10 * leaf, nested) == Nested(
        point=Point(x={"a": 10, "b": (20, 30)}, y=40), rate=50
    )
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(nested)]
    assert paths == [".point.x['a']", ".point.x['b'][0]", ".point.x['b'][1]", ".point.y", ".rate"]


def test_a_pytree_dataclass_goes_through_jit_vmap_and_scan():
    point = Point(x=jnp.arange(3.0), y=jnp.ones(3))
    moved = jax.jit(jax.vmap(lambda p: dataclasses.replace(p, y=p.x + p.y)))(point)
    assert type(moved) is Point
    np.testing.assert_array_equal(moved.y, [1, 2, 3])
    last, history = jax.lax.scan(lambda p, _: (Point(x=p.x + 1, y=p.y), p), Point(x=0, y=0), length=4)
    assert (int(last.x), history.x.tolist()) == (4, [0, 1, 2, 3])


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (1, 3, 1, 2)])
def test_where_selects_whole_environments(shape):
    condition = np.array([True, False, True, False])
    yes = np.arange(4 * np.prod(shape, dtype=int)).reshape(4, *shape)
    selected = base.where(jnp.asarray(condition), {"a": jnp.asarray(yes)}, {"a": jnp.asarray(-yes - 1)})["a"]
    assert selected.dtype == jnp.asarray(yes).dtype
    for environment in range(4):
        expected = yes[environment] if condition[environment] else -yes[environment] - 1
        np.testing.assert_array_equal(selected[environment], expected)


def test_where_is_not_fooled_by_axes_of_the_same_size():
    condition = jnp.array([True, False])
    selected = base.where(condition, jnp.ones((2, 2)), jnp.zeros((2, 2)))
    np.testing.assert_array_equal(selected, [[1, 1], [0, 0]])


def test_where_spreads_the_memory_of_a_start_and_leaves_no_memory_alone():
    condition = jnp.array([True, False, False])
    selected = base.where(condition, (jnp.zeros(5), jnp.float32(7)), (jnp.ones((3, 5)), jnp.ones(3)))
    np.testing.assert_array_equal(selected[0][:, 0], [0, 1, 1])
    np.testing.assert_array_equal(selected[1], [7, 1, 1])
    assert base.where(condition, (), ()) == ()


def test_zeros_have_the_shape_and_dtype_of_every_part_of_a_space():
    space = {"a": Discrete(3), "b": (box(2, 3, dtype=np.uint8), box(dtype=bool))}
    zeros = base.zeros(space, (4, 5))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), zeros) == {
        "a": ((4, 5), "int32"),
        "b": (((4, 5, 2, 3), "uint8"), ((4, 5), "bool")),
    }
    assert not any(leaf.any() for leaf in jax.tree.leaves(zeros))
    assert base.zeros(box(2)).shape == (2,)


def test_a_box_prints_without_its_bounds():
    assert repr(Box(shape=(2,), dtype=np.float32, low=np.zeros(2), high=np.ones(2))) == (
        "Box(shape=(2,), dtype=<class 'numpy.float32'>)"
    )


@pytest.mark.parametrize("number", [1, 0.1, True, np.float64(0.1), np.int32(3), np.array(2.0), jnp.int32(4)])
def test_hypers_are_cast_to_float32_scalars(number):
    hypers = base.cast_hypers(Nested(point=Point(x=number)))
    assert type(hypers) is Nested
    for leaf in jax.tree.leaves(hypers):
        assert isinstance(leaf, jax.Array)
        assert (leaf.shape, leaf.dtype, leaf.weak_type) == ((), jnp.float32, False)
    assert hypers.point.x == np.float32(number)


def test_numbers_and_arrays_in_hypers_are_one_program():
    traces = []

    @jax.jit
    def program(hypers):
        traces.append(hypers)
        return hypers.point.x

    for number in (1, 0.5, np.float64(2), jnp.float32(3), jnp.int32(4)):
        program(base.cast_hypers(Nested(point=Point(x=number))))
    assert len(traces) == 1


def test_hypers_are_cast_inside_a_trace():
    cast = jax.vmap(lambda rate: base.cast_hypers(Point(x=rate)).x)(jnp.arange(3))
    assert (cast.shape, cast.dtype) == ((3,), jnp.float32)


def test_a_hyper_of_the_wrong_shape_is_named():
    for wrong in (np.zeros(3), jnp.zeros((3,))):
        with pytest.raises(ValueError, match=r"Nested\.point\.x has shape \(3,\).*it takes a number.*vmap"):
            base.cast_hypers(Nested(point=Point(x=wrong)))


@pytest.mark.parametrize("wrong", ["fast", object()])
def test_a_hyper_that_is_no_number_is_named(wrong):
    with pytest.raises(TypeError, match=r"Nested\.point\.x is .*takes a number") as raised:
        base.cast_hypers(Nested(point=Point(x=wrong)))
    assert repr(wrong) in str(raised.value)


def test_a_discrete_space_has_its_size_required():
    assert base.require_discrete(Discrete(7), what="action", agent="dqn") == 7


@pytest.mark.parametrize("space", [box(2), {"a": Discrete(2)}])
def test_any_other_space_is_refused_by_name(space):
    with pytest.raises(
        ValueError, match="reinforce needs a discrete action space, and this environment's is"
    ) as raised:
        base.require_discrete(space, what="action", agent="reinforce")
    assert str(space) in str(raised.value)


def test_no_memory_is_the_empty_tuple():
    assert base.no_memory(3) == ()


def test_agents_are_what_the_protocols_describe():
    agent = q_learning.q_learning(Spec(observation=Discrete(3), action=Discrete(2), num_envs=1))
    protocols = {
        "init": base.InitFn,
        "start": base.StartFn,
        "act": base.ActFn,
        "update": base.UpdateFn,
        "observe": base.ObserveFn,
    }
    assert tuple(protocols) == base.Agent._fields
    for name, protocol in protocols.items():
        assert isinstance(getattr(agent, name), protocol)


def test_an_agent_that_keeps_nothing_beside_what_it_learns_observes_nothing():
    agent = base.Agent(init=lambda key, hypers: 3, start=base.no_memory, act=None, update=None)
    assert agent.observe(3, base.Rollout(steps=None, memory=()), None) == 3


# --- the network seam -----------------------------------------------------------------------------------------------


def test_a_linen_module_becomes_a_network():
    network = base.from_linen(nn.Dense(3))
    params = network.init(jax.random.key(0), jnp.zeros(4))
    inputs = jax.random.normal(jax.random.key(1), (2, 5, 4))
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    np.testing.assert_allclose(network.apply(params, inputs), inputs @ kernel + bias, rtol=1e-5, atol=1e-6)


def from_nnx(make):
    """Make a `Network` of `make(rngs) -> nnx.Module`: what it is stays outside, what it learns is the parameters."""
    structure, _ = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))

    def init(key, *inputs):
        del inputs
        return nnx.split(make(nnx.Rngs(key)))[1]

    def apply(params, *inputs):
        return nnx.merge(structure, params)(*inputs)

    return Network(init=init, apply=apply)


class Values(nnx.Module):
    def __init__(self, rngs):
        self.hidden = nnx.Linear(4, 16, rngs=rngs)
        self.values = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, observation):
        return self.values(nnx.relu(self.hidden(observation)))


@pytest.mark.thorough
def test_a_network_of_the_other_flax_learns_under_vmap():
    spec = Spec(observation=box(4), action=Discrete(2), num_envs=2)
    agent = dqn.dqn(spec, from_nnx(Values))
    hypers = base.cast_hypers(dqn.Hypers(learning_rate=1e-2, target_period=1000))
    observation = jax.random.normal(jax.random.key(1), (8, 2, 4))
    action = jnp.int32(observation[..., 0] > 0)
    steps = Transition(
        observation=observation,
        action=action,
        reward=observation[..., 1],
        terminated=jnp.ones((8, 2), bool),
        truncated=jnp.zeros((8, 2), bool),
        next_observation=observation,
    )

    def learn(key):
        state = agent.init(key, hypers)

        def step(state, _):
            state, metrics = agent.update(key, state, Rollout(steps=steps, memory=()), hypers)
            return state, metrics["loss"]

        return state, *jax.lax.scan(step, state, length=100)

    begun, learned, losses = jax.jit(jax.vmap(learn))(jax.random.split(jax.random.key(0), 3))
    assert jax.tree.structure(begun) == jax.tree.structure(learned)
    kernel = np.asarray(begun.params["hidden"]["kernel"][...])
    assert kernel.shape == (3, 4, 16)
    assert not np.any(kernel[0] == kernel[1])
    assert np.all(losses[:, -1] < 0.3 * losses[:, 0])
    np.testing.assert_array_equal(learned.updates, [100] * 3)
    # The same seed alone is the same run.
    _, alone, _ = jax.jit(learn)(jax.random.split(jax.random.key(0), 3)[1])
    for one, many in zip(jax.tree.leaves(alone.params), jax.tree.leaves(learned.params), strict=True):
        np.testing.assert_allclose(one, many[1], atol=1e-4)
    action, memory = agent.act(jax.random.key(2), alone, (), observation[0], hypers, greedy=True)
    assert (action.shape, action.dtype, memory) == ((2,), jnp.int32, ())
