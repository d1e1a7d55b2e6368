"""What agents with a policy and a critic share: their networks on one torso or apart, acting, and one critic pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from purerl import batches, returns
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
        value, next_value = jnp.split(batches.by_rows(lambda rows: self.value(params, rows), both, groups), 2)
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
