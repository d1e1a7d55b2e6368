"""Networks for agents: action values, policies and state values, apart or on one torso of dense layers or of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, get_args

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from purerl.base import Box, Discrete, Network, Spec, from_linen, require_discrete, require_spec
from purerl.checks import is_count, require_count, require_flag, require_function, require_kind, shown
from purerl.distributions import Categorical, Gaussian, SquashedGaussian
from purerl.layers import MLP, Blocks, Torso, orthogonal

_HIDDEN, _SMALL = orthogonal(math.sqrt(2.0)), orthogonal(0.01)


class ActionValues(nn.Module):
    """Q(s, .) of every discrete action, from observations of `space`: [*batch, ...] -> [*batch, actions].

    With `filters`, convolutions come before the hidden layers. If `dueling`, the last hidden layer is there twice, for
    V(s) and for the advantages A(s, .), and Q(s, a) = V(s) + A(s, a) - mean A(s, .) (Wang et al. 2016, equation 9).
    Blocks that are not dense are all shared, and V and A are linear in their features.
    """

    space: Any
    actions: int
    hidden: Sequence[int]
    activation: Callable[[Array], Array] = nn.relu
    filters: Sequence[int] = ()
    dueling: bool = False
    blocks: Blocks = "dense"
    heads: int = 4

    @nn.compact
    def __call__(self, observation: PyTree) -> Float[Array, "*batch actions"]:
        """Return the action values."""
        shared = self.hidden[:-1] if self.dueling and self.blocks == "dense" else self.hidden
        torso = Torso(self.space, shared, self.activation, self.filters, blocks=self.blocks, heads=self.heads)
        features = torso(observation)
        if not self.dueling:
            return MLP((self.actions,))(features)
        twice = self.hidden[len(shared) :]
        value = MLP((*twice, 1), self.activation)(features)
        advantage = MLP((*twice, self.actions), self.activation)(features)
        return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)


def action_values(
    spec: Spec,
    hidden: Sequence[int] = (120, 84),
    activation: Callable[[Array], Array] = nn.relu,
    *,
    filters: Sequence[int] = (),
    blocks: Blocks = "dense",
    heads: int = 4,
    dueling: bool = False,
) -> Network:
    """Return a network (observation) -> Q(s, .) with these hidden layers.

    `filters` puts layers of so many 3 x 3 convolutions before them, for images [height, width, channels]; `dueling`
    ends in V(s) and advantages. With `blocks` each of `hidden` is a residual block of two dense layers, or a
    transformer's block that attends with so many `heads` (`layers.Torso`); their widths are equal.

    Raises ValueError unless actions are discrete, widths at least 1, and images large enough; and for blocks of
    several widths or none, and heads that do not divide the width.
    """
    require_spec(spec, agent="an action-value network")
    actions = require_discrete(spec.action, what="action", agent="an action-value network")
    _require_layers(spec, hidden, activation, filters, blocks, heads)
    require_flag("dueling", dueling)
    return from_linen(
        ActionValues(spec.observation, actions, tuple(hidden), activation, tuple(filters), dueling, blocks, heads)
    )


# --- policies and state values --------------------------------------------------------------------------------------


class CategoricalHead(nn.Module):
    """A policy over discrete actions, from features: one linear layer gives the logits."""

    actions: int

    @nn.compact
    def __call__(self, features: Float[Array, "*batch features"]) -> Categorical:
        """Return the distributions over actions."""
        return Categorical(logits=MLP((self.actions,), kernel_init=_SMALL)(features))


class GaussianHead(nn.Module):
    """A policy over arrays [D], from features: one linear layer gives the mean, and deviations are the same everywhere.

    With `squash`, actions are brought into the bounds of `space`.
    """

    space: Box
    squash: bool

    @nn.compact
    def __call__(self, features: Float[Array, "*batch features"]) -> Gaussian | SquashedGaussian:
        """Return the distributions over actions."""
        mean = MLP(self.space.shape, kernel_init=_SMALL)(features)
        log_deviation = self.param("log_deviation", nn.initializers.zeros, self.space.shape)
        gaussian = Gaussian(mean=mean, log_deviation=jnp.broadcast_to(log_deviation, mean.shape))
        if not self.squash:
            return gaussian
        low, high = (
            jnp.broadcast_to(jnp.asarray(x, jnp.float32), mean.shape) for x in (self.space.low, self.space.high)
        )
        return SquashedGaussian(base=gaussian, low=low, high=high)


class StateValue(nn.Module):
    """V(s), from features [*batch, features] -> [*batch]: one linear layer."""

    @nn.compact
    def __call__(self, features: Float[Array, "*batch features"]) -> Float[Array, " *batch"]:
        """Return the values."""
        return MLP((1,), kernel_init=orthogonal(1.0))(features)[..., 0]


def policy(
    spec: Spec,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[Array], Array] = nn.tanh,
    *,
    filters: Sequence[int] = (),
    blocks: Blocks = "dense",
    heads: int = 4,
    squash: bool = False,
) -> Network:
    """Return a network (observation) -> distribution over actions, with these hidden layers, all as above.

    Discrete actions: `Categorical`. Arrays [D]: `Gaussian`, whose actions the environment clips to its bounds; or with
    `squash` `SquashedGaussian`, which keeps to them. The last layer starts small: all actions are about as likely.
    Raises ValueError for other action spaces, and for `squash` without finite bounds.
    """
    require_spec(spec, agent="a policy network")
    require_flag("squash", squash)
    space = spec.action
    if squash and not (isinstance(space, Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(f"squash takes an action space with finite bounds, and this environment's is {space}")
    if isinstance(space, Discrete):
        head: nn.Module = CategoricalHead(space.n)
    elif isinstance(space, Box) and len(space.shape) == 1:
        head = GaussianHead(space, squash)
    else:
        raise ValueError(f"a policy network takes discrete actions or arrays [D], and this environment's are {space}")
    return _before(head, spec, hidden, activation, filters, blocks, heads)


def state_values(
    spec: Spec,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[Array], Array] = nn.tanh,
    *,
    filters: Sequence[int] = (),
    blocks: Blocks = "dense",
    heads: int = 4,
) -> Network:
    """Return a network (observation) -> V(s), with these hidden layers, all as above."""
    return _before(StateValue(), spec, hidden, activation, filters, blocks, heads)


class SharedTorso(NamedTuple):
    """A torso and the spec with which to make the heads that read its features."""

    network: Network  # (observation) -> features
    spec: Spec  # features in the place of observations


def torso(
    spec: Spec,
    hidden: Sequence[int] = (64, 64),
    activation: Callable[[Array], Array] = nn.tanh,
    *,
    filters: Sequence[int] = (),
    blocks: Blocks = "dense",
    heads: int = 4,
) -> SharedTorso:
    """Return a network (observation) -> features that a policy and a value can share.

    shared = torso(spec); actor, critic = policy(shared.spec, ()), state_values(shared.spec, ())

    Raises ValueError without hidden layers.
    """
    _require_layers(spec, hidden, activation, filters, blocks, heads)
    if not hidden:
        raise ValueError("hidden is (); a shared torso takes at least one layer")
    features = Box((hidden[-1],), np.dtype(np.float32), -np.inf, np.inf)
    network = from_linen(Torso(spec.observation, tuple(hidden), activation, tuple(filters), _HIDDEN, blocks, heads))
    return SharedTorso(network=network, spec=spec._replace(observation=features))


def _before(
    head: nn.Module,
    spec: Spec,
    hidden: Sequence[int],
    activation: Callable[[Array], Array],
    filters: Sequence[int],
    blocks: Blocks,
    heads: int,
) -> Network:
    """Return the network of a torso and a head."""
    _require_layers(spec, hidden, activation, filters, blocks, heads)
    below = Torso(spec.observation, tuple(hidden), activation, tuple(filters), _HIDDEN, blocks, heads)
    return from_linen(nn.Sequential([below, head]))


def _require_layers(
    spec: Spec, hidden: Sequence[int], activation: Any, filters: Sequence[int], blocks: Any, heads: Any
) -> None:
    """Raise a TypeError or ValueError unless layers can be made so, and images are large enough for the filters."""
    require_spec(spec, agent="a network")
    require_function("activation", activation, wanted="a function such as nn.relu")
    for name, widths in {"hidden": hidden, "filters": filters}.items():
        require_kind(name, widths, tuple | list, wanted="the widths of its layers, such as (64, 64), or () for none")
        if not all(map(is_count, widths)):
            raise ValueError(f"{name} is {tuple(widths)}; each layer takes at least 1, a whole number")
    if filters:
        shape = getattr(spec.observation, "shape", None)
        least = 2 * len(filters) + 1
        if shape is None or len(shape) != 3 or min(shape[:2]) < least:
            raise ValueError(
                f"filters is {tuple(filters)}, and observations are {spec.observation}; convolutions take images "
                f"[height, width, channels] of at least {least} x {least}"
            )
    _require_blocks(hidden, blocks, heads)


def _require_blocks(hidden: Sequence[int], blocks: Any, heads: Any) -> None:
    """Raise a ValueError unless there are such blocks, of the widths of `hidden` and with so many heads."""
    if blocks not in get_args(Blocks):
        raise ValueError(f"blocks is {shown(blocks)}; it takes {', '.join(get_args(Blocks))}")
    require_count("heads", heads)
    if blocks == "dense":
        return
    if len(set(hidden)) != 1:
        raise ValueError(f"hidden is {tuple(hidden)}; {blocks} blocks take one width or more, all equal: (64, 64)")
    if blocks == "transformer" and hidden[0] % heads:
        raise ValueError(f"heads is {heads}; it takes a divisor of the blocks' width, which is {hidden[0]}")
