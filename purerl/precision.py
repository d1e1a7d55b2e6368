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
from purerl.checks import require_kind, shown


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


def with_precision(network: Network, precision: Precision) -> Network:
    """Return a network of flax modules that computes in `precision.compute`.

    Parameters are `precision.param`, float32 to be learned with: what an update adds is lost on smaller ones. Every
    layer with a `dtype` that was not given one (`nn.Dense`, `nn.Conv`, ...) casts what it reads, its parameters
    included, and so activations are of that dtype; purerl's last layers (`layers.outputs`) sum and return float32, and
    so do their derivatives. What a module computes by itself of its `self.param` stays as it is. What comes out is cast
    to `precision.output`.

    float16 comes with a loss scale among the parameters, as derivatives below 6e-8 are zero in it. `optimizers.descend`
    knows of it; who descends otherwise hands `loss_scale.without(gradient)` to an optimizer, and what it made to
    `loss_scale.adapted`.

    Raises TypeError for what is no network or no precision, and when it is applied if no layer takes a dtype. A network
    whose `apply` is jitted already may have been traced in another precision: jit what calls it instead.
    """
    require_kind("network", network, Network, wanted="a Network, such as those that purerl.networks makes")
    require_kind("precision", precision, Precision, wanted="a Precision, such as precision.bfloat16")
    for name, dtype in precision._asdict().items():
        _require_floats(name, dtype)
    if precision == float32:
        return network
    scaled = jnp.dtype(precision.compute) == jnp.float16

    def init(key: Any, *inputs: PyTree) -> PyTree:
        params = _cast(network.init(key, *inputs), precision.param)
        return Scaled(network=params, loss_scale=loss_scale.start()) if scaled else params

    @jax.named_scope(SCOPE)
    def computed(params: PyTree, inputs: tuple[PyTree, ...]) -> PyTree:
        return _cast(_computed(network, precision.compute, params, inputs), precision.output)

    def apply(params: PyTree, *inputs: PyTree) -> PyTree:
        if not scaled:
            return computed(params, inputs)
        require_kind("params", params, Scaled, wanted="what the init of a network in float16 returned")
        scale = params.loss_scale.scale
        read = loss_scale.entering((params.network, inputs), scale)
        return loss_scale.leaving(computed(*read), scale)

    return Network(init=init, apply=apply)


def preset(network: Network, name: Preset) -> Network:
    """Return a network with the precision of this name. Raises ValueError for another name, and as `with_precision`."""
    presets = {"float32": float32, "bfloat16": bfloat16, "float16": float16}
    if name not in presets:
        raise ValueError(f"name is {name!r}; it takes {', '.join(presets)}")
    return with_precision(network, presets[name])


def _computed(network: Network, dtype: Any, params: PyTree, inputs: tuple[PyTree, ...]) -> PyTree:
    """Apply a network with every layer that has no dtype of its own computing in this one."""
    taken = []

    def computing(method: Callable[..., Any], arguments: Any, named: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if "dtype" not in module.__dataclass_fields__ or module.dtype is not None:
            return method(*arguments, **named)
        taken.append(module)
        object.__setattr__(module, "dtype", dtype)  # modules are frozen, and this one is bound for this call alone
        try:
            return method(*arguments, **named)
        finally:
            object.__setattr__(module, "dtype", None)

    with nn.intercept_methods(computing):
        outputs = network.apply(params, *inputs)
    if not taken:
        raise TypeError(
            "network has no flax layer that takes a dtype; make it compute in one itself, and jit what calls it, not it"
        )
    return outputs


def _require_floats(name: str, dtype: Any) -> None:
    """Raise TypeError unless a dtype is one of floats."""
    try:
        floats = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floats = False
    if not floats:
        raise TypeError(f"precision has {shown(dtype)} for {name}; it takes a dtype of floats, such as jnp.bfloat16")


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Return a tree with its floats of this dtype."""

    def cast(leaf: Any) -> Any:
        return jnp.asarray(leaf, dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(cast, tree)


# --- int8, to act with ----------------------------------------------------------------------------------------------

_VECTORS = ("bias", "scale")  # what flax calls them, of whatever rank: layers that are stacked have one more


@pytree_dataclass
class Quantised:
    """A matrix of weights in int8: values times the scale of their column."""

    values: Any  # int8 [..., rows, columns]
    scale: Any  # float32 [..., 1, columns]


def quantise(network: Network, params: PyTree) -> tuple[Network, PyTree]:
    """Return a network whose weights are int8, and `params` as it takes them: a quarter of the bytes.

        w = s_c round(w / s_c),   s_c = max |w_c| / 127 of each column c, an output channel

    Vectors (biases, deviations) stay float32. It is to act with: it cannot learn. Raises TypeError for what is no
    network, and what are no parameters.
    """
    require_kind("network", network, Network, wanted="a Network, such as those that purerl.networks makes")
    if not (leaves := jax.tree.leaves(params)) or not all(hasattr(leaf, "ndim") for leaf in leaves):
        raise TypeError(f"params is {shown(params)}; it takes what the network's init returned")

    def init(key: Any, *inputs: PyTree) -> PyTree:
        return _quantised(network.init(key, *inputs))

    def apply(params: PyTree, *inputs: PyTree) -> PyTree:
        return network.apply(_restored(params), *inputs)

    return Network(init=init, apply=apply), _quantised(params)


def quantise_agent(agent: Agent, state: PyTree) -> tuple[Agent, PyTree]:
    """Return an agent that acts as `agent` with weights of int8, and its state: all in its attributes called `params`.

    Whatever the agent is wrapped in, it is saved, loaded and evaluated like any other. It does not learn. `state` is
    that of one run; `jax.vmap` this over those of several. Raises ValueError for a state without parameters of
    networks, such as a table's.
    """
    require_agent(agent)
    small = _quantised(state, within="params")
    if not any(map(_is_quantised, jax.tree.leaves(small, is_leaf=_is_quantised))):
        raise ValueError(f"state is {shown(state)}, in which no params are matrices; it takes that of a deep agent")

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return agent.act(key, _restored(state), memory, observation, hypers, greedy=greedy)

    acting = Agent(
        init=lambda key, hypers: _quantised(agent.init(key, hypers), within="params"),
        start=agent.start,
        act=act,
        update=lambda key, state, rollout, hypers: (state, {}),
    )
    return acting, small


def _quantised(tree: PyTree, within: str | None = None) -> PyTree:
    """Return a tree with its matrices in int8; only those in attributes of this name, if there is one."""

    def quantised(path: Any, leaf: Array) -> Any:
        named = getattr(path[-1], "key", None) if path else None
        if leaf.ndim < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating) or named in _VECTORS:
            return leaf
        if within is not None and not any(getattr(key, "name", None) == within for key in path):
            return leaf
        most = jnp.max(jnp.abs(leaf), axis=-2, keepdims=True)
        scale = jnp.where(most > 0.0, most / 127.0, 1.0).astype(jnp.float32)
        return Quantised(values=jnp.round(leaf / scale).astype(jnp.int8), scale=scale)

    return jax.tree_util.tree_map_with_path(quantised, tree)


def _restored(tree: PyTree) -> PyTree:
    """Return a tree with its matrices in float32."""
    return jax.tree.map(
        lambda node: node.values * node.scale if _is_quantised(node) else node, tree, is_leaf=_is_quantised
    )


def _is_quantised(node: Any) -> bool:
    return isinstance(node, Quantised)


def size(params: PyTree) -> int:
    """Return the bytes of parameters."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
