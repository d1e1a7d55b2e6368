"""In what numbers a network computes: bfloat16 or float16 inside, float32 outside; and int8 weights, to act with.

Losses, returns, log-probabilities, advantages, divergences, optimizers and target networks never see anything but
float32: they are outside of networks, and networks return float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from purerl import loss_scale
from purerl.base import Agent, Network, pytree_dataclass, require_agent
from purerl.checks import require_flag, require_kind, shown


class Precision(NamedTuple):
    """The dtypes of a network's parameters, of its products and activations, and of what it returns."""

    param: Any
    compute: Any
    output: Any


float32 = Precision(param=jnp.float32, compute=jnp.float32, output=jnp.float32)
bfloat16 = Precision(param=jnp.float32, compute=jnp.bfloat16, output=jnp.float32)
float16 = Precision(param=jnp.float32, compute=jnp.float16, output=jnp.float32)
Preset = Literal["float32", "bfloat16", "float16"]
SCOPE = "network"  # what operations in a network's own precision are called in a program, and in its profile


@pytree_dataclass
class Scaled:
    """The parameters of a network that computes in float16."""

    network: Any
    loss_scale: loss_scale.LossScale


def with_precision(network: Network, precision: Precision, *, loss_scaling: bool | None = None) -> Network:
    """Return a network of flax modules that computes in `precision.compute`.

    Parameters are `precision.param`, float32 to be learned with: what an update adds is lost on smaller ones. Every
    layer that has not been given a dtype (`nn.Dense`, `nn.Conv`, ...) casts what it reads, its parameters included, and
    so activations are of that dtype; purerl's last layers (`layers.outputs`) sum and return float32. What comes out is
    cast to `precision.output`.

    float16 comes with `loss_scaling` unless that is False, as derivatives below 6e-8 are zero in it; `optimizers`
    knows of it. (It is of no use where derivatives go forwards, as in TRPO's products: there it makes them small.)
    Raises TypeError for what is no network or precision, and when it is applied if no module was met.
    """
    require_kind("network", network, Network, wanted="a Network, such as those that purerl.networks makes")
    require_kind("precision", precision, Precision, wanted="a Precision, such as precision.bfloat16")
    if loss_scaling is None:
        loss_scaling = jnp.dtype(precision.compute) == jnp.float16
    require_flag("loss_scaling", loss_scaling)
    if precision == float32 and not loss_scaling:
        return network

    def init(key: Any, *inputs: PyTree) -> PyTree:
        params = _cast(network.init(key, *inputs), precision.param)
        return Scaled(network=params, loss_scale=loss_scale.start()) if loss_scaling else params

    @jax.named_scope(SCOPE)
    def computed(params: PyTree, inputs: tuple[PyTree, ...]) -> PyTree:
        return _cast(_computed(network, precision.compute, params, inputs), precision.output)

    def apply(params: PyTree, *inputs: PyTree) -> PyTree:
        if not loss_scaling:
            return computed(params, inputs)
        scale = params.loss_scale.scale
        read = loss_scale.entering((params.network, inputs), scale)
        return loss_scale.leaving(computed(*read), scale)

    return Network(init=init, apply=apply)


def preset(network: Network, name: Preset, *, loss_scaling: bool | None = None) -> Network:
    """Return a network with the precision of this name. Raises ValueError for another name, and as `with_precision`."""
    presets = {"float32": float32, "bfloat16": bfloat16, "float16": float16}
    if name not in presets:
        raise ValueError(f"name is {name!r}; it takes {', '.join(presets)}")
    return with_precision(network, presets[name], loss_scaling=loss_scaling)


def _computed(network: Network, dtype: Any, params: PyTree, inputs: tuple[PyTree, ...]) -> PyTree:
    """Apply a network with every layer that has no dtype of its own computing in this one."""
    met = []

    def computing(method: Callable[..., Any], arguments: Any, named: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        met.append(module)
        if getattr(module, "dtype", dtype) is not None:
            return method(*arguments, **named)
        object.__setattr__(module, "dtype", dtype)  # modules are frozen, and this one is bound for this call alone
        try:
            return method(*arguments, **named)
        finally:
            object.__setattr__(module, "dtype", None)

    with nn.intercept_methods(computing):
        outputs = network.apply(params, *inputs)
    if not met:
        raise TypeError("network is made of no flax module; give it the precision in which it computes itself")
    return outputs


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Return a tree with its floats of this dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


# --- int8, to act with ----------------------------------------------------------------------------------------------


@pytree_dataclass
class Quantised:
    """A matrix of weights in int8: values times the scale of their column, [..., columns]."""

    values: Any  # int8
    scale: Any  # float32 [columns]


def quantise(network: Network, params: PyTree) -> tuple[Network, PyTree]:
    """Return a network whose weights are int8, and `params` as it takes them: a quarter of the bytes.

        w = s_c round(w / s_c),   s_c = max |w_c| / 127 of each column c

    Vectors (biases, deviations) stay float32. It is to act with: it cannot learn. Raises TypeError for what is no
    network, and what are no parameters.
    """
    require_kind("network", network, Network, wanted="a Network, such as those that purerl.networks makes")
    if not (leaves := jax.tree.leaves(params)) or not all(hasattr(leaf, "ndim") for leaf in leaves):
        raise TypeError(f"params is {shown(params)}; it takes what the network's init returned")

    def init(key: Any, *inputs: PyTree) -> PyTree:
        return jax.tree.map(_quantised, network.init(key, *inputs))

    def apply(params: PyTree, *inputs: PyTree) -> PyTree:
        return network.apply(jax.tree.map(_restored, params, is_leaf=_is_quantised), *inputs)

    return Network(init=init, apply=apply), jax.tree.map(_quantised, params)


def quantise_agent(agent: Agent, state: PyTree) -> tuple[Agent, PyTree]:
    """Return an agent that acts as `agent` with weights of int8, and its state: all that is called `params` in `state`.

    Whatever the agent is wrapped in, it is saved, loaded and evaluated like any other. It does not learn. Raises
    ValueError for a state without parameters of networks, such as a table's.
    """
    require_agent(agent)

    def quantised(path: Any, leaf: Any) -> Any:
        return _quantised(leaf) if any(getattr(key, "name", None) == "params" for key in path) else leaf

    small = jax.tree_util.tree_map_with_path(quantised, state)
    if not any(map(_is_quantised, jax.tree.leaves(small, is_leaf=_is_quantised))):
        raise ValueError(f"state is {shown(state)}, in which no params are matrices; it takes that of a deep agent")

    def act(key, state, memory, observation, hypers, *, greedy=False):
        state = jax.tree.map(_restored, state, is_leaf=_is_quantised)
        return agent.act(key, state, memory, observation, hypers, greedy=greedy)

    acting = Agent(
        init=lambda key, hypers: jax.tree_util.tree_map_with_path(quantised, agent.init(key, hypers)),
        start=agent.start,
        act=act,
        update=lambda key, state, rollout, hypers: (state, {}),
    )
    return acting, small


def _quantised(leaf: Array) -> Any:
    if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    most = jnp.max(jnp.abs(leaf), axis=tuple(range(leaf.ndim - 1)))
    scale = jnp.where(most > 0.0, most / 127.0, 1.0).astype(jnp.float32)
    return Quantised(values=jnp.round(leaf / scale).astype(jnp.int8), scale=scale)


def _restored(node: Any) -> Array:
    return node.values * node.scale if _is_quantised(node) else node


def _is_quantised(node: Any) -> bool:
    return isinstance(node, Quantised)


def size(params: PyTree) -> int:
    """Return the bytes of parameters."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
