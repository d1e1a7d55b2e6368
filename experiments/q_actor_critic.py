"""QAC, an actor whose critic is SARSA, in any environment with discrete actions."""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn

from purerl import cli, networks, precision, results, runs
from purerl.agents import q_actor_critic
from purerl.base import Spec
from purerl.driver import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Settings):
    """QAC's flags."""

    env: str = "CartPole-v1"
    num_envs: int = 8
    length: int = 16
    total_steps: int = 200_000
    hidden: tuple[int, ...] = (64, 64)  # widths of each network's hidden layers
    activation: Literal["tanh", "relu"] = "tanh"
    precision: precision.Preset = "float32"  # what networks compute in
    # A learning_rate_horizon of 0 is the whole run.
    hypers: q_actor_critic.Hypers = q_actor_critic.Hypers(learning_rate_end_fraction=0.0, learning_rate_horizon=0.0)


def phases(settings: Settings, spec: Spec) -> list[Phase]:
    """Return the one phase of a run."""
    activation = getattr(nn, settings.activation)
    made = networks.policy, networks.action_values
    actor, critic = (precision.preset(make(spec, settings.hidden, activation), settings.precision) for make in made)
    return [Phase(q_actor_critic.q_actor_critic(spec, actor, critic), settings.total_steps)]


def main(settings: Settings) -> results.Result:
    """Train and write a run directory."""
    hypers = cli.annealed(settings, settings.hypers)
    return runs.run(settings, lambda spec: phases(settings, spec), agent="q_actor_critic", hypers=hypers)


if __name__ == "__main__":
    cli.start(main, Settings)
