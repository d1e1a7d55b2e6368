"""PPO, in any environment with discrete actions or arrays of them."""

from __future__ import annotations

import dataclasses

from purerl import cli, policy_cli, results, runs
from purerl.agents import ppo
from purerl.base import Agent, Spec
from purerl.driver import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(policy_cli.Settings):
    """PPO's flags."""

    num_envs: int = 4
    length: int = 128
    total_steps: int = 500_000
    normalize_observations: bool = True  # by their running moments
    scale_returns: bool = True  # rewards divided by the running deviation of discounted returns
    epochs: int = 4  # passes over each rollout
    minibatches: int = 4  # parts that a pass cuts it into
    normalize_advantages: bool = True  # in each minibatch
    # A learning_rate_horizon of 0 is the whole run.
    hypers: ppo.Hypers = ppo.Hypers(learning_rate_end_fraction=0.0, learning_rate_horizon=0.0)


def phases(settings: Settings, spec: Spec) -> list[Phase]:
    """Return the one phase of a run."""

    def agent_for(spec: Spec) -> Agent:
        actor, critic, torso = policy_cli.networks_of(settings, spec)
        return ppo.ppo(
            spec,
            actor,
            critic,
            torso=torso,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            normalize_advantages=settings.normalize_advantages,
        )

    return [Phase(policy_cli.normalized(settings, agent_for, spec), settings.total_steps)]


def main(settings: Settings) -> results.Result:
    """Train and write a run directory."""
    hypers = cli.annealed(settings, settings.hypers)
    return runs.run(settings, lambda spec: phases(settings, spec), agent="ppo", hypers=hypers)


if __name__ == "__main__":
    cli.start(main, Settings)
