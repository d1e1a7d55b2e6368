"""What agents share that learn the value V of a policy they are given: their numbers, the policy, and how V is moved.

V(s) is linear in binary features, a table being the simplest: the sum of the weights of the features that are 1 in s.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from purerl import exploration
from purerl.base import ActFn, Spec, pytree_dataclass, require_discrete, require_spec, zeros
from purerl.checks import require_function, require_kind
from purerl.features import Features
from purerl.mdps import require_policy


@pytree_dataclass
class Hypers:
    """The numbers of an agent that learns V."""

    learning_rate: float = 0.1  # alpha, (0, 1]: by how much of its error V(s) is moved, however many features share it
    discount: float = 1.0  # gamma, [0, 1]
    initial_value: float = 0.0  # what V starts from


@runtime_checkable
class Policy(Protocol):
    def __call__(self, key: Key[Array, ""], observation: Any) -> Any:
        """Return actions [N, ...] for observations [N, ...]."""
        ...


def uniform(spec: Spec) -> Policy:
    """Return the policy that takes all actions with the same probability; ValueError unless they are discrete."""
    require_spec(spec, agent="the uniform policy")
    actions = require_discrete(spec.action, what="action", agent="the uniform policy")

    def act(key: Key[Array, ""], observation: Any) -> Int[Array, " N"]:
        num_envs = jax.tree.leaves(observation)[0].shape[0]
        return jax.random.randint(key, (num_envs,), 0, actions, jnp.int32)

    return act


def of_table(policy: Float[Array, "S A"] | Float[np.ndarray, "S A"]) -> Policy:
    """Return the policy with these probabilities, as those of `planning` are, for discrete observations.

    Raises ValueError for what are no probabilities [S, A].
    """
    require_policy("policy", policy)
    return lambda key, observation: exploration.draw(key, jnp.asarray(policy)[observation])


def require_parts(spec: Spec, features: Features, policy: Policy, *, agent: str) -> None:
    """Raise a TypeError or ValueError unless `features` are those of a spec's observations, and `policy` acts on it."""
    require_spec(spec, agent=agent)
    require_kind("features", features, Features, wanted="Features, such as features.table(spec)")
    require_function("policy", policy, wanted="a function (key, observation) -> action, as prediction.uniform(spec)")
    observations = zeros(spec.observation, (spec.num_envs,))
    found = {}
    for name, function, arguments in (
        ("features", features.active, (observations,)),
        ("policy", policy, (jax.random.key(0), observations)),
    ):
        try:
            found[name] = jax.eval_shape(function, *arguments)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} cannot read {spec.observation}; it takes what was made for this spec") from error
    wanted = {"features": (spec.num_envs, features.count), "policy": (spec.num_envs, *spec.action.shape)}
    for name, output in found.items():
        if output.shape != wanted[name]:
            made = f"the shape {output.shape} for {spec.num_envs} environments"
            raise ValueError(f"{name} returns {made}; {agent} takes {wanted[name]}")


def acting(policy: Policy) -> ActFn:
    """Return the `act` of an agent that follows `policy` whatever it learns, asked to be greedy or not."""

    def act(key, state, memory, observation, hypers, *, greedy=False):
        del state, hypers, greedy
        return policy(key, observation), memory

    return act


def start(features: Features, hypers: Any) -> Float[Array, " D"]:
    """Return the weights with which V is `initial_value` everywhere."""
    return jnp.full(features.size, hypers.initial_value / features.count, jnp.float32)


def value(weights: Float[Array, " D"], active: Int[Array, "*batch K"]) -> Float[Array, "*batch"]:
    """Return V where these features are 1."""
    return jnp.sum(weights[active], axis=-1)


def move(
    weights: Float[Array, " D"],
    active: Int[Array, " K"],
    target: Float[Array, ""],
    rate: Float[Array, ""],
    *,
    where: Bool[Array, ""] | bool = True,
) -> tuple[Float[Array, " D"], Float[Array, ""]]:
    """Return (weights, error) after V <- V + rate [target - V] where these are 1; as it was, and 0, unless `where`."""
    here = weights[active]
    error = jnp.where(where, target - jnp.sum(here), 0.0)
    # Set and not added to: so written, runs are equal to the bit, batched or alone, in whatever chunks.
    return weights.at[active].set(here + rate / active.shape[-1] * error), error
