"""Distributions over actions: pytrees of parameters [*batch, ...] with what policies ask of them, stable in float32.

Each has `sample(key)`, `mode()`, `log_prob(action)`, `entropy()` and `kl(other)`, which is KL(self‖other). The last
axis (the actions of a categorical one, the dimensions of a continuous one) is summed over; [*batch] is kept.

Two ways to keep continuous actions within an environment's bounds: a `Gaussian` does not know them, and environments
clip what they are given (`envs.make`), so that an action and its probability stay those of the policy; a
`SquashedGaussian` never leaves them.
"""

from __future__ import annotations

import math
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from purerl.base import pytree_dataclass, select

Self = TypeVar("Self")

# Nodes and weights of Gauss and Hermite: the sum of w f(z) is the mean of f over a standard normal.
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)
_WEIGHTS = _WEIGHTS / np.sqrt(2 * np.pi)
_LARGEST_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


@runtime_checkable
class Distribution(Protocol):
    """What a policy's network returns."""

    def sample(self, key: Key[Array, ""]) -> Array:
        """Return one action each [*batch, ...]."""
        ...

    def mode(self) -> Array:
        """Return the greedy actions [*batch, ...]."""
        ...

    def log_prob(self, action: Any) -> Array:
        """Return log-probabilities, or log-densities, of actions [*batch, ...]: float32 [*batch]."""
        ...

    def entropy(self) -> Array:
        """Return entropies in nats: float32 [*batch]."""
        ...

    def kl(self: Self, other: Self) -> Array:
        """Return KL(self‖other) in nats: float32 [*batch]."""
        ...


@pytree_dataclass
class Categorical:
    """One of A actions, by logits: log-probabilities but for a constant."""

    logits: Any  # float32 [*batch, A]; -inf where an action is impossible

    def sample(self, key: Key[Array, ""]) -> Int[Array, "*batch"]:
        """Draw by the maximum of logits with Gumbel noise: what is impossible is never drawn."""
        return jax.random.categorical(key, self.logits).astype(jnp.int32)

    def mode(self) -> Int[Array, "*batch"]:
        """Return the likeliest action; among equals the first."""
        return jnp.argmax(self.logits, axis=-1).astype(jnp.int32)

    def log_prob(self, action: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
        """Return log p(action)."""
        return select(jax.nn.log_softmax(self.logits), action)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return -sum p log p."""
        log_p = jax.nn.log_softmax(self.logits)
        return -_mean(log_p, log_p)

    def kl(self, other: Categorical) -> Float[Array, "*batch"]:
        """Return sum p (log p - log q), q of `other`; infinite where it excludes what this one allows."""
        log_p, log_q = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(other.logits)
        possible, excluded = log_p > -jnp.inf, log_q == -jnp.inf
        both = possible & ~excluded
        ratio = jnp.where(both, jnp.where(both, log_q, 0.0) - jnp.where(both, log_p, 0.0), 0.0)
        # sum q - p is zero, and added to each term leaves p (r - 1 - log r), r = q / p: near 1 nothing cancels.
        near = jnp.where(jnp.abs(ratio) < 1.0, ratio, 0.0)
        p, q = jnp.exp(log_p), jnp.exp(log_q)
        terms = jnp.where(jnp.abs(ratio) < 1.0, p * (jnp.expm1(near) - near), q - p - p * ratio)
        terms = jnp.where(both, terms, jnp.where(possible, jnp.inf, q))
        return jnp.sum(terms, axis=-1)


@pytree_dataclass
class Gaussian:
    """Independent normal dimensions."""

    mean: Any  # float32 [*batch, D]
    log_deviation: Any  # float32 [*batch, D]: log of the standard deviation

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*batch D"]:
        """Draw mean + deviation times noise: differentiable in both."""
        return self.mean + jnp.exp(self.log_deviation) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> Float[Array, "*batch D"]:
        """Return the mean."""
        return self.mean

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Return the log-density at `action`."""
        distance = (action - self.mean) * jnp.exp(-self.log_deviation)
        return jnp.sum(-0.5 * distance**2 - self.log_deviation - 0.5 * math.log(2 * math.pi), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the differential entropy, sum log(deviation sqrt(2 pi e))."""
        return jnp.sum(self.log_deviation + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def kl(self, other: Gaussian) -> Float[Array, "*batch"]:
        """Return sum log(s'/s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2, m' and s' of `other`."""
        distance = (self.mean - other.mean) * jnp.exp(-other.log_deviation)
        log_ratio = self.log_deviation - other.log_deviation
        # expm1: of two that are nearly the same, what sets them apart is all that is left.
        return jnp.sum(0.5 * (jnp.expm1(2.0 * log_ratio) + distance**2) - log_ratio, axis=-1)


@pytree_dataclass
class SquashedGaussian:
    """Normal dimensions u brought into bounds: action = low + (high - low) (tanh u + 1) / 2 (Haarnoja et al. 2018).

    Probabilities are those of the action as a float32: where tanh saturates (|u| beyond 5 or so) u is known no better.
    """

    base: Gaussian  # of u
    low: Any  # float32 [*batch, D], finite
    high: Any  # float32 [*batch, D], finite

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*batch D"]:
        """Draw u and squash it: differentiable in the parameters."""
        return self._squash(self.base.sample(key))

    def mode(self) -> Float[Array, "*batch D"]:
        """Return what the mean of u becomes: the median of the actions, which is what acts greedily here."""
        return self._squash(self.base.mean)

    def log_prob(self, action: Float[Array, "*batch D"]) -> Float[Array, "*batch"]:
        """Return the log-density at `action`; on the bounds, where it has no value, that of the float32 beside."""
        within = jnp.clip((action - self._middle()) / self._half(), -_LARGEST_BELOW_ONE, _LARGEST_BELOW_ONE)
        u = jnp.arctanh(within)
        return self.base.log_prob(u) - jnp.sum(self._log_slope(u), axis=-1)

    def entropy(self) -> Float[Array, "*batch"]:
        """Return the entropy of u plus E log|d action / d u|, which has no closed form: by quadrature, 32 nodes."""
        nodes = jnp.asarray(_NODES, jnp.float32)
        u = self.base.mean[..., None] + jnp.exp(self.base.log_deviation)[..., None] * nodes
        log_slope = jnp.log(self._half()) + jnp.sum(_log_tanh_slope(u) * jnp.asarray(_WEIGHTS, jnp.float32), axis=-1)
        return self.base.entropy() + jnp.sum(log_slope, axis=-1)

    def kl(self, other: SquashedGaussian) -> Float[Array, "*batch"]:
        """Return KL(self‖other), bounds being the same: that of u, since the same function is applied to both."""
        return self.base.kl(other.base)

    def _squash(self, u: Array) -> Array:
        # By the middle: so no rounding leads over a bound.
        return jnp.clip(self._middle() + self._half() * jnp.tanh(u), self.low, self.high)

    def _middle(self) -> Array:
        return 0.5 * (self.low + self.high)

    def _half(self) -> Array:
        return 0.5 * (self.high - self.low)

    def _log_slope(self, u: Array) -> Array:
        return jnp.log(self._half()) + _log_tanh_slope(u)


def _log_tanh_slope(u: Array) -> Array:
    """Return log(1 - tanh(u)^2) without taking 1 - 1."""
    return 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u))


def _mean(log_p: Array, values: Array) -> Array:
    """Return sum p v over the last axis, leaving out what has no probability, infinite as v may be there."""
    possible = log_p > -jnp.inf
    return jnp.sum(jnp.where(possible, jnp.exp(log_p) * jnp.where(possible, values, 0.0), 0.0), axis=-1)
