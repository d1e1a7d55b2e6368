"""What the scripts of agents with a policy share beyond `cli`: their networks, and normalisation."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn

from purerl import cli, networks, normalize, precision
from purerl.base import Agent, Network, Spec
from purerl.layers import Blocks


class Networks(NamedTuple):
    """A policy, state values, and the torso that both read, if they share one."""

    actor: Network
    critic: Network
    torso: Network | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Settings):
    """The flags that all agents with a policy have."""

    env: str = "CartPole-v1"
    filters: tuple[int, ...] = ()  # 3 x 3 filters of each convolution before the hidden layers, for pictures
    hidden: tuple[int, ...] = (64, 64)  # widths of each network's hidden layers
    blocks: Blocks = "dense"  # what hidden layers are; residual and transformer blocks are of one width
    heads: int = 4  # of each transformer block's attention; other blocks have none
    activation: Literal["tanh", "relu"] = "tanh"
    shared_torso: bool = False  # policy and value share all layers but the last
    precision: precision.Preset = "float32"  # what networks compute in
    squash: bool = False  # bounded actions by a squashed Gaussian; otherwise the environment clips them
    normalize_observations: bool = False  # by their running moments
    scale_returns: bool = False  # rewards divided by the running deviation of discounted returns


def networks_of(settings: Settings, spec: Spec) -> Networks:
    """Return the networks that the settings ask for."""
    layers: dict[str, Any] = {name: getattr(settings, name) for name in ("hidden", "filters", "blocks", "heads")}
    layers["activation"] = getattr(nn, settings.activation)
    torso = networks.torso(spec, **layers) if settings.shared_torso else None
    if torso:
        spec, layers = torso.spec, {"hidden": ()}
    computing = functools.partial(precision.preset, name=settings.precision)
    return Networks(
        actor=computing(networks.policy(spec, **layers, squash=settings.squash)),
        critic=computing(networks.state_values(spec, **layers)),
        torso=computing(torso.network) if torso else None,
    )


def normalized(settings: Settings, agent_for: Callable[[Spec], Agent], spec: Spec) -> Agent:
    """Return the agent that `agent_for` makes for what it will observe, with the normalisation that is asked for."""
    agent = agent_for(normalize.normalized_spec(spec) if settings.normalize_observations else spec)
    if settings.scale_returns:
        agent = normalize.with_return_scaling(agent, spec)
    if settings.normalize_observations:
        agent = normalize.with_observation_norm(agent, spec)
    return agent
