"""TRPO, in any environment with discrete actions or arrays of them."""

from __future__ import annotations

import dataclasses

from purerl import cli, policy_cli, results, runs
from purerl.agents import trpo
from purerl.base import Agent, Spec
from purerl.driver import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(policy_cli.Settings):
    """TRPO's flags."""

    num_envs: int = 4
    length: int = 512
    total_steps: int = 100_000
    cg_iterations: int = 15  # steps of conjugate gradient
    max_backtracks: int = 10  # lengths that the line search tries
    critic_epochs: int = 20  # passes of the critic over each rollout
    critic_minibatches: int = 16  # parts that such a pass cuts it into
    # A learning_rate_horizon of 0 is the whole run.
    hypers: trpo.Hypers = trpo.Hypers(learning_rate_horizon=0.0)


def phases(settings: Settings, spec: Spec) -> list[Phase]:
    """Return the one phase of a run."""

    def agent_for(spec: Spec) -> Agent:
        actor, critic, torso = policy_cli.networks_of(settings, spec)
        return trpo.trpo(
            spec,
            actor,
            critic,
            torso=torso,
            cg_iterations=settings.cg_iterations,
            max_backtracks=settings.max_backtracks,
            critic_epochs=settings.critic_epochs,
            critic_minibatches=settings.critic_minibatches,
        )

    return [Phase(policy_cli.normalized(settings, agent_for, spec), settings.total_steps)]


def main(settings: Settings) -> results.Result:
    """Train and write a run directory."""
    hypers = cli.annealed(settings, settings.hypers)
    return runs.run(settings, lambda spec: phases(settings, spec), agent="trpo", hypers=hypers)


if __name__ == "__main__":
    cli.start(main, Settings)
