"""A2C, in any environment with discrete actions or arrays of them."""

from __future__ import annotations

import dataclasses

from purerl import cli, policy_cli, results, runs
from purerl.agents import a2c
from purerl.base import Agent, Spec
from purerl.driver import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(policy_cli.Settings):
    """A2C's flags."""

    num_envs: int = 8
    length: int = 16
    total_steps: int = 200_000
    normalize_observations: bool = True  # by their running moments
    scale_returns: bool = True  # rewards divided by the running deviation of discounted returns
    # A learning_rate_horizon of 0 is the whole run.
    hypers: a2c.Hypers = a2c.Hypers(learning_rate_end_fraction=0.0, learning_rate_horizon=0.0)


def phases(settings: Settings, spec: Spec) -> list[Phase]:
    """Return the one phase of a run."""

    def agent_for(spec: Spec) -> Agent:
        actor, critic, torso = policy_cli.networks_of(settings, spec)
        return a2c.a2c(spec, actor, critic, torso=torso)

    return [Phase(policy_cli.normalized(settings, agent_for, spec), settings.total_steps)]


def main(settings: Settings) -> results.Result:
    """Train and write a run directory."""
    hypers = cli.annealed(settings, settings.hypers)
    return runs.run(settings, lambda spec: phases(settings, spec), agent="a2c", hypers=hypers)


if __name__ == "__main__":
    cli.start(main, Settings)
