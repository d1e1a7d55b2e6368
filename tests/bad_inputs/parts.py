"""What agents are made of, and what goes around them: networks, features, policies, exploration, replay, norms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bad_inputs.rows import CART, FLOAT, PENDULUM, PICTURE, TABLE, Row, env, key, row, values
from purerl import base, exploration, features, layers, networks, normalize, precision, prediction, replay, tables
from purerl.agents import dqn, gradient_bandit, ppo, q_learning, thompson_sampling
from purerl.base import Box, Discrete, Spec


def spec_of(name: str, make: Callable[[Any], Any]) -> tuple[Row, ...]:
    """Return the rows of what is given as `spec`."""
    return (
        row("an environment for its spec", lambda: make(env()), TypeError, "spec is", "env.spec", name),
        row("a name for the spec", lambda: make("CartPole-v1"), TypeError, "spec is 'CartPole-v1'", name),
        row("no spec", lambda: make(None), TypeError, "spec is None", name),
        row("no environments", lambda: make(CART._replace(num_envs=0)), ValueError, "spec.num_envs is 0"),
    )


def network_of(name: str, make: Callable[..., Any]) -> tuple[Row, ...]:
    """Return the rows of a network's layers."""
    return (
        *spec_of(name, make),
        row("a layer of no units", lambda: make(CART, (64, 0)), ValueError, "hidden is (64, 0)", "at least 1"),
        row("a layer of less than none", lambda: make(CART, (-1,)), ValueError, "hidden is (-1,)"),
        row("a fraction of a unit", lambda: make(CART, (64.0, 64)), ValueError, "hidden is (64.0, 64)", "whole"),
        row("one width and no list", lambda: make(CART, 64), TypeError, "hidden is 64", "(64, 64)"),
        row("text for widths", lambda: make(CART, "64,64"), TypeError, "hidden is '64,64'"),
        row("the name of an activation", lambda: make(CART, (64,), "relu"), TypeError, "activation is 'relu'"),
        row("filters for vectors", lambda: make(CART, filters=(16,)), ValueError, "filters is (16,)", "images"),
        row("more filters than pixels", lambda: make(PICTURE, filters=(8,) * 5), ValueError, "filters is", "11 x 11"),
        row("no filter in a layer", lambda: make(PICTURE, filters=(0,)), ValueError, "filters is (0,)"),
        row("blocks of no kind", lambda: make(CART, blocks="conv"), ValueError, "blocks is 'conv'", "dense, residual"),
        row("a flag for blocks", lambda: make(CART, blocks=True), ValueError, "blocks is True", "transformer"),
        row("blocks of two widths", lambda: make(CART, (64, 32), blocks="residual"), ValueError, "hidden is (64, 32)"),
        row("not one block", lambda: make(CART, (), blocks="transformer"), ValueError, "hidden is ()", "all equal"),
        row("no head", lambda: make(CART, heads=0), ValueError, "heads is 0", "at least 1"),
        row("a fraction of a head", lambda: make(CART, heads=2.5), ValueError, "heads is 2.5", "a whole number"),
        row("heads of no size", lambda: make(CART, (6,), blocks="transformer"), ValueError, "heads is 4", "divisor"),
    )


class Counting(nn.Module):
    """A module with variables that are no parameters."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.BatchNorm(use_running_average=True)(x)


def precise(network: Any = None, kind: Any = precision.bfloat16, **given: Any) -> Any:
    return precision.with_precision(values() if network is None else network, kind, **given)


def network_for(name: str, make: Callable[[Any], Any]) -> tuple[Row, ...]:
    """Return the rows of what is given as `network` to what wraps networks."""
    return (
        row(f"a module for {name}", lambda: make(nn.Dense(2)), TypeError, "network is ", "it takes a Network"),
        row(f"nothing for {name}", lambda: make(None), TypeError, "network is None", "it takes a Network"),
        row(f"the maker of networks for {name}", lambda: make(networks.policy), TypeError, "network is the function"),
    )


def tiled(spec: Any = CART, **given: Any) -> Any:
    return features.tile_coding(spec, **{"tiles": 4, "tilings": 8, "low": -1.0, "high": 1.0} | given)


def deep() -> Any:
    return dqn.dqn(CART, values())


def replayed(**given: Any) -> Any:
    agent, buffer = deep(), replay.uniform(CART, 100)
    return replay.with_replay(**{"agent": agent, "replay": buffer, "batch_size": 4} | given)


def wrapped(name: str, wrap: Callable[[Any, Any], Any]) -> tuple[Row, ...]:
    """Return the rows of a wrapper of an agent and a spec."""
    return (
        *spec_of(name, lambda spec: wrap(deep(), spec)),
        row("a factory for an agent", lambda: wrap(dqn.dqn, CART), TypeError, "agent is", "an Agent"),
        row("the spec first", lambda: wrap(CART, deep()), TypeError, "agent is", "an Agent"),
        row("a state for an agent", lambda: wrap(dqn.Hypers(), CART), TypeError, "agent is"),
    )


ROWS: dict[str, tuple[Row, ...]] = {
    "base.from_linen": (
        row("a class", lambda: base.from_linen(nn.Dense), TypeError, "module is", "made of its class"),
        row("a function", lambda: base.from_linen(nn.relu), TypeError, "module is", "a flax linen module"),
        row("nothing", lambda: base.from_linen(None), TypeError, "module is None"),
        row("widths", lambda: base.from_linen((64, 64)), TypeError, "module is (64, 64)"),
        row(
            "a module of flax nnx",
            lambda: base.from_linen(nnx.Linear(2, 2, rngs=nnx.Rngs(0))),
            TypeError,
            "module is",
            "a flax linen module",
        ),
        row("a network made already", lambda: base.from_linen(values()), TypeError, "module is"),
        row(
            "a module that counts",
            lambda: base.from_linen(Counting()).init(key(), jnp.zeros((1, 3))),
            ValueError,
            "module has variables batch_stats",
        ),
    ),
    "base.cast_hypers": (
        row("their class", lambda: base.cast_hypers(tables.Hypers), TypeError, "hypers is the class Hypers"),
        row("text", lambda: base.cast_hypers(tables.Hypers(discount="0.9")), TypeError, "Hypers.discount is '0.9'"),
        row("a list", lambda: base.cast_hypers(tables.Hypers(discount=[0.9, 1])), ValueError, ".discount has shape"),
        row("no number", lambda: base.cast_hypers(tables.Hypers(discount=None)), TypeError, ".discount is None"),
        row(
            "a ragged list", lambda: base.cast_hypers(tables.Hypers(discount=[[1], [1, 2]])), TypeError, ".discount is"
        ),
        row(
            "an array", lambda: base.cast_hypers(tables.Hypers(discount=jnp.ones(3))), ValueError, "shape (3,)", "vmap"
        ),
        row("a complex number", lambda: base.cast_hypers(tables.Hypers(discount=1j)), TypeError, "Hypers.discount is"),
        row("NaN", lambda: base.cast_hypers(tables.Hypers(discount=float("nan"))), ValueError, ".discount is nan"),
        row(
            "NaN of jax", lambda: base.cast_hypers(tables.Hypers(discount=jnp.nan * 1)), ValueError, ".discount is nan"
        ),
    ),
    "exploration.epsilon_greedy": (
        *spec_of("epsilon_greedy", exploration.epsilon_greedy),
        row("its number", lambda: exploration.epsilon_greedy(0.1), TypeError, "spec is 0.1"),
        row("actions that are arrays", lambda: exploration.epsilon_greedy(PENDULUM), ValueError, "a discrete action"),
    ),
    "exploration.boltzmann": (
        *spec_of("boltzmann", exploration.boltzmann),
        row("its number", lambda: exploration.boltzmann(1.0), TypeError, "spec is 1.0"),
        row("actions that are arrays", lambda: exploration.boltzmann(PENDULUM), ValueError, "a discrete action"),
    ),
    "exploration.ucb": (
        *spec_of("ucb", exploration.ucb),
        row("its number", lambda: exploration.ucb(2.0), TypeError, "spec is 2.0"),
        row("observations that are arrays", lambda: exploration.ucb(CART), ValueError, "a discrete observation"),
        row(
            "actions that are arrays",
            lambda: exploration.ucb(Spec(Discrete(3), PENDULUM.action, 1)),
            ValueError,
            "ucb needs a discrete action",
        ),
    ),
    "features.table": (
        *spec_of("a table", features.table),
        row("observations that are arrays", lambda: features.table(CART), ValueError, "a discrete", "tile_coding"),
    ),
    "features.tile_coding": (
        *spec_of("tile coding", tiled),
        row("states", lambda: tiled(TABLE), ValueError, "tile coding needs a box", "Discrete(6)"),
        row("images", lambda: tiled(PICTURE), ValueError, "tile coding needs a box of one axis"),
        row("no tiles", lambda: tiled(tiles=0), ValueError, "tiles is 0"),
        row("a fraction of tiles", lambda: tiled(tiles=4.5), ValueError, "tiles is 4.5"),
        row("tiles of too few dimensions", lambda: tiled(tiles=(4, 4)), ValueError, "tiles is (4, 4)", "4 dimensions"),
        row("no tilings", lambda: tiled(tilings=0), ValueError, "tilings is 0"),
        row("tilings that lie on one another", lambda: tiled(tilings=6), ValueError, "tilings is 6", "power of two"),
        row("a bool for tilings", lambda: tiled(tilings=True), ValueError, "tilings is True"),
        row("no bounds", lambda: tiled(low=None), ValueError, "from -inf to 1", "low="),
        row("bounds the wrong way", lambda: tiled(low=1.0, high=-1.0), ValueError, "from 1 to -1"),
        row("NaN bounds", lambda: tiled(low=np.nan), ValueError, "from nan to 1"),
        row("bounds of other dimensions", lambda: tiled(high=(1.0, 1.0)), ValueError, "high is (1.0, 1.0)", "4"),
        row("text for bounds", lambda: tiled(low="none"), ValueError, "low is 'none'"),
    ),
    "layers.orthogonal": (
        row("NaN", lambda: layers.orthogonal(float("nan")), ValueError, "scale is nan"),
        row("infinity", lambda: layers.orthogonal(float("inf")), ValueError, "scale is inf"),
        row("text", lambda: layers.orthogonal("sqrt(2)"), ValueError, "scale is 'sqrt(2)'"),
        row("a shape", lambda: layers.orthogonal((64, 64)), ValueError, "scale is (64, 64)"),
        row("no steps", lambda: layers.orthogonal(steps=0), ValueError, "steps is 0"),
        row("a fraction of steps", lambda: layers.orthogonal(steps=2.5), ValueError, "steps is 2.5"),
    ),
    "networks.action_values": (
        *network_of("an action-value network", networks.action_values),
        row("actions that are arrays", lambda: networks.action_values(PENDULUM), ValueError, "a discrete action"),
        row("text for a flag", lambda: networks.action_values(CART, dueling="no"), TypeError, "dueling is 'no'"),
    ),
    "networks.policy": (
        *network_of("a policy network", networks.policy),
        row("text for a flag", lambda: networks.policy(PENDULUM, squash="tanh"), TypeError, "squash is 'tanh'"),
        row("discrete actions to squash", lambda: networks.policy(CART, squash=True), ValueError, "squash takes"),
        row(
            "no bounds to squash into",
            lambda: networks.policy(Spec(CART.observation, CART.observation, 1), squash=True),
            ValueError,
            "squash takes an action space with finite bounds",
        ),
        row(
            "actions of two axes",
            lambda: networks.policy(Spec(CART.observation, Box((2, 2), FLOAT, -1, 1), 1)),
            ValueError,
            "a policy network takes discrete actions or arrays [D]",
        ),
    ),
    "networks.state_values": network_of("a network", networks.state_values),
    "networks.torso": (
        *network_of("a network", networks.torso),
        row("no layer to share", lambda: networks.torso(CART, ()), ValueError, "hidden is ()"),
    ),
    "precision.with_precision": (
        *network_for("with_precision", lambda network: precision.with_precision(network, precision.bfloat16)),
        row("the name of a precision", lambda: precise(kind="bfloat16"), TypeError, "precision is 'bfloat16'"),
        row("a dtype for a precision", lambda: precise(kind=jnp.bfloat16), TypeError, "precision is", "a Precision"),
        row(
            "products of integers",
            lambda: precise(kind=precision.bfloat16._replace(compute=jnp.int8)),
            TypeError,
            "precision has ",
            "for compute; it takes a dtype of floats",
        ),
        row(
            "a dtype misspelt",
            lambda: precise(kind=precision.bfloat16._replace(param="bfloat61")),
            TypeError,
            "precision has 'bfloat61' for param",
        ),
    ),
    "precision.preset": (
        *network_for("preset", lambda network: precision.preset(network, "bfloat16")),
        row("a name of none", lambda: precision.preset(values(), "half"), ValueError, "name is 'half'", "bfloat16"),
        row("a dtype for a name", lambda: precision.preset(values(), jnp.float16), ValueError, "name is", "float16"),
    ),
    "precision.quantise": (
        *network_for("quantise", lambda network: precision.quantise(network, {})),
        row("no parameters", lambda: precision.quantise(values(), None), TypeError, "params is None"),
        row("text for parameters", lambda: precision.quantise(values(), "params"), TypeError, "params is 'params'"),
    ),
    "precision.quantise_agent": (
        row("no agent", lambda: precision.quantise_agent(None, {}), TypeError, "agent is None", "an Agent"),
        row("a factory", lambda: precision.quantise_agent(dqn.dqn, {}), TypeError, "agent is the function dqn"),
        row("no state", lambda: precision.quantise_agent(deep(), None), ValueError, "state is None", "deep agent"),
        row("parameters alone", lambda: precision.quantise_agent(deep(), jnp.ones((2, 2))), ValueError, "state is"),
        row("a state without networks", lambda: precision.quantise_agent(deep(), {}), ValueError, "state is {}"),
    ),
    "normalize.normalized_spec": spec_of("an agent within with_observation_norm", normalize.normalized_spec),
    "normalize.with_observation_norm": (
        *wrapped("with_observation_norm", normalize.with_observation_norm),
        row(
            "states",
            lambda: normalize.with_observation_norm(q_learning.q_learning(TABLE), TABLE),
            ValueError,
            "observations are Discrete(6)",
            "with_observation_norm",
        ),
    ),
    "normalize.with_return_scaling": (
        *wrapped("with_return_scaling", normalize.with_return_scaling),
        row(
            "an agent without a discount",
            lambda: normalize.with_return_scaling(gradient_bandit.gradient_bandit(TABLE), TABLE).init(
                key(), gradient_bandit.Hypers()
            ),
            TypeError,
            "hypers is",
            "without discount",
        ),
    ),
    "prediction.uniform": (
        *spec_of("the uniform policy", prediction.uniform),
        row("actions that are arrays", lambda: prediction.uniform(PENDULUM), ValueError, "a discrete action"),
    ),
    "prediction.of_table": (
        row(
            "rows that sum to 3", lambda: prediction.of_table(np.ones((4, 3))), ValueError, "policy takes rows", "to 3"
        ),
        row("rows of one", lambda: prediction.of_table(np.full(3, 1 / 3)), ValueError, "policy has the shape (3,)"),
        row(
            "less than nothing",
            lambda: prediction.of_table(np.array([[-1.0, 2.0]])),
            ValueError,
            "policy takes probabilities, and one is -1",
        ),
        row("NaN", lambda: prediction.of_table(np.full((4, 3), np.nan)), ValueError, "policy takes rows", "nan"),
        row("text", lambda: prediction.of_table("uniform"), ValueError, "policy has the shape ()", "[S, A]"),
        row("a spec", lambda: prediction.of_table(None), ValueError, "policy has the shape ()"),
    ),
    "replay.uniform": (
        *spec_of("a replay buffer", lambda spec: replay.uniform(spec, 100)),
        row("no capacity", lambda: replay.uniform(CART, 0), ValueError, "capacity is 0"),
        row("a float for a capacity", lambda: replay.uniform(CART, 1e6), ValueError, "capacity is 1000000.0", "whole"),
        row("a capacity that does not divide", lambda: replay.uniform(CART, 101), ValueError, "capacity is 101", "2"),
        row("too little for a sequence", lambda: replay.uniform(CART, 8, length=2), ValueError, "capacity is 8", "5"),
        row("no length", lambda: replay.uniform(CART, 100, length=0), ValueError, "length is 0"),
        row("a bool for a length", lambda: replay.uniform(CART, 100, length=True), ValueError, "length is True"),
    ),
    "replay.with_replay": (
        row("a factory for an agent", lambda: replayed(agent=dqn.dqn), TypeError, "agent is", "an Agent"),
        row("a function for a buffer", lambda: replayed(replay=replay.uniform), TypeError, "replay is", "a Replay"),
        row("a capacity for a buffer", lambda: replayed(replay=1000), TypeError, "replay is 1000"),
        row("no batch", lambda: replayed(batch_size=0), ValueError, "batch_size is 0"),
        row("a float for a batch", lambda: replayed(batch_size=32.0), ValueError, "batch_size is 32.0"),
        row("fewer updates than none", lambda: replayed(updates=-1), ValueError, "updates is -1"),
        row("a bool for updates", lambda: replayed(updates=False), ValueError, "updates is False"),
        row(
            "hypers of another agent",
            lambda: replayed().init(key(), ppo.Hypers()),
            TypeError,
            "hypers is",
            "exploration_start",
        ),
        row(
            "hypers of a bandit",
            lambda: replayed().init(key(), thompson_sampling.Hypers()),
            TypeError,
            "hypers is",
            "dqn.Hypers",
        ),
    ),
}
FEW: dict[str, str] = {
    "normalize.normalized_spec": "a spec is all it takes, and every one has an answer",
}
