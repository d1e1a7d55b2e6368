"""What agents with a policy and a critic share: their networks on one torso or apart, acting, and one critic pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from purerl import returns
from purerl.base import (
    ActFn,
    Box,
    Discrete,
    Network,
    Spec,
    Transition,
    output_of,
    pytree_dataclass,
    require_spec,
    require_values,
    zeros,
)
from purerl.checks import require_kind
from purerl.distributions import Categorical, Distribution


@pytree_dataclass
class Params:
    """The parameters of a policy and a critic."""

    torso: Any  # () if each reads the observation itself
    actor: Any
    critic: Any


class ActorCritic(NamedTuple):
    """A policy and a critic: networks, and the torso whose features both read, if there is one."""

    actor: Network  # -> a distribution over actions
    critic: Any  # Network -> V(s), or Q(s, .); None if there is no critic
    torso: Network | None = None

    def init(self, key: Key[Array, ""], spec: Spec) -> Params:
        """Return new parameters."""
        torso_key, actor_key, critic_key = jax.random.split(key, 3)
        observation = zeros(spec.observation)
        torso = self.torso.init(torso_key, observation) if self.torso else ()
        features = self.features(torso, observation)
        return Params(
            torso=torso,
            actor=self.actor.init(actor_key, features),
            critic=self.critic.init(critic_key, features) if self.critic else (),
        )

    def features(self, torso: PyTree, observation: PyTree) -> PyTree:
        """Return what both networks read: the torso's features, or the observation itself."""
        return self.torso.apply(torso, observation) if self.torso else observation

    def policy(self, params: Params, observation: PyTree) -> Distribution:
        """Return pi(.|s)."""
        return self.actor.apply(params.actor, self.features(params.torso, observation))

    def value(self, params: Params, observation: PyTree) -> Float[Array, "*batch"]:
        """Return V(s), or Q(s, .)."""
        return self.critic.apply(params.critic, self.features(params.torso, observation))

    def both(self, params: Params, observation: PyTree) -> tuple[Distribution, Float[Array, "*batch"]]:
        """Return pi(.|s) and V(s)."""
        features = self.features(params.torso, observation)
        return self.actor.apply(params.actor, features), self.critic.apply(params.critic, features)

    def advantages(
        self,
        params: Params,
        steps: Transition,
        discount: Float[Array, ""],
        trace_decay: Float[Array, ""],
        groups: int = 1,
    ) -> tuple[Float[Array, "T N"], Float[Array, "T N"]]:
        """Return generalised advantage estimates of a rollout [T, N], and V(observation)."""
        # One pass of the critic over both: where a clock ended the episode only next_observation tells what followed.
        both = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), steps.observation, steps.next_observation)
        value, next_value = jnp.split(by_rows(lambda rows: self.value(params, rows), both, groups), 2)
        advantage = returns.gae(
            steps.reward, steps.terminated, steps.truncated, value, next_value, discount, trace_decay
        )
        return advantage, value

    def act(self) -> ActFn:
        """Return the `act` of an agent whose state has these `params`: draw from the policy, or take its mode."""

        def act(key, state, memory, observation, hypers, *, greedy=False):
            policy = self.policy(state.params, observation)
            return policy.mode() if greedy else policy.sample(key), memory

        return act


def checked(network: ActorCritic, spec: Spec, *, agent: str, critic: tuple[int, ...] | None = ()) -> ActorCritic:
    """Return the networks that the factory of `agent` was given, if they are of one another's sizes and the spec's.

    `critic` is the shape of what the critic returns for one observation; None if there need be no critic. Raises
    TypeError for what is no spec, no network or no distribution, and ValueError for networks of other sizes.
    """
    require_spec(spec, agent=agent)
    features = zeros(spec.observation)
    if network.torso is not None:
        features = output_of("torso", network.torso, features)
    policy = output_of("actor", network.actor, features)
    wanted = "a network that returns a distribution over actions, as networks.policy(spec) makes"
    require_kind("what actor returns", policy, Distribution, wanted=wanted)
    _require_actions(policy, spec.action)
    if network.critic is not None or critic is not None:
        require_values("critic", network.critic, features, critic or (), agent=agent)
    return network


def _require_actions(policy: Any, space: PyTree) -> None:
    """Raise a ValueError unless the actions of a policy are those of the space; of one with parts nothing is known."""
    mode = jax.eval_shape(lambda policy: policy.mode(), policy)
    actions = policy.logits.shape[-1] if isinstance(policy, Categorical) else None
    if isinstance(space, Discrete):
        fits = mode.shape == () and jnp.issubdtype(mode.dtype, jnp.integer) and actions in (None, space.n)
    elif isinstance(space, Box):
        fits = mode.shape == space.shape and actions is None
    else:
        return
    if not fits:
        kind = f"{type(policy).__name__} of {mode.shape if actions is None else actions}"
        raise ValueError(f"actor returns a {kind}; it takes a network whose actions are this environment's, {space}")


def shuffled(key: Key[Array, ""], batch: PyTree, minibatches: int, groups: int = 1) -> PyTree:
    """Return a batch [size, ...] in random order, cut into [minibatches, size / minibatches, ...].

    Each minibatch has as many of every group as of any other, which are shuffled by themselves: so those that lie on
    other devices stay there.
    """
    size = len(jax.tree.leaves(batch)[0])
    if groups == 1:
        order = permutation(key, size).reshape(minibatches, -1)
        return jax.tree.map(lambda leaf: leaf[order], batch)
    keys = jax.random.split(key, groups)
    order = jax.vmap(lambda key: permutation(key, size // groups).reshape(minibatches, -1))(keys)

    def cut(leaf: Array) -> Array:
        chosen = jax.vmap(lambda own, order: own[order], out_axes=1)(leaf.reshape(groups, -1, *leaf.shape[1:]), order)
        return chosen.reshape(minibatches, -1, *leaf.shape[1:])

    return jax.tree.map(cut, batch)


def permutation(key: Key[Array, ""], size: int) -> Int[Array, " size"]:
    """Return 0 .. size - 1 in random order, on a CPU ten times as fast as `jax.random.permutation`.

    Random numbers are sorted with the places in their low bits: one array, no comparison of pairs. Two equal numbers
    (of 32 bits less those of the places) leave their places in order, so sizes go up to 2^16 here and then to jax.
    """
    bits = max(size - 1, 1).bit_length()
    if bits > 16:
        return jax.random.permutation(key, size)
    places = jnp.arange(size, dtype=jnp.uint32)
    drawn = jax.random.bits(key, (size,), jnp.uint32) >> bits << bits
    return jnp.asarray(jnp.sort(drawn | places) & (2**bits - 1), jnp.int32)


def by_rows(apply: Callable[[PyTree], PyTree], rollout: PyTree, groups: int) -> PyTree:
    """Return what a network makes of leaves [T, N, ...], as [T, N, ...].

    Of groups it reads them one after another, for which none needs to leave its device; networks merge T and N.
    """
    if groups == 1:
        return apply(rollout)
    length, num_envs = jax.tree.leaves(rollout)[0].shape[:2]

    def apart(leaf: Array) -> Array:
        leaf = leaf.reshape(groups, length, num_envs // groups, *leaf.shape[1:])
        return jnp.moveaxis(leaf, 0, 1).reshape(length, num_envs, *leaf.shape[3:])

    return jax.tree.map(apart, apply(flat(rollout, groups)))


def flat(rollout: PyTree, groups: int = 1) -> PyTree:
    """Return leaves [T, N, ...] as [T N, ...], group by group."""

    def merged(leaf: Array) -> Array:
        if groups > 1:
            leaf = jnp.moveaxis(leaf.reshape(len(leaf), groups, -1, *leaf.shape[2:]), 1, 0)
        return leaf.reshape(-1, *leaf.shape[2 + (groups > 1) :])

    return jax.tree.map(merged, rollout)
