"""REINFORCE with a baseline or without, in any environment with discrete actions or arrays of them."""

from __future__ import annotations

import dataclasses

from purerl import cli, policy_cli, results, runs
from purerl.agents import reinforce
from purerl.base import Agent, Spec
from purerl.driver import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(policy_cli.Settings):
    """REINFORCE's flags."""

    num_envs: int = 8
    length: int = 128
    total_steps: int = 200_000
    baseline: bool = True  # a state-value network to compare returns with
    discount_states: bool = True  # weigh step t by gamma^t, as the policy-gradient theorem asks
    window: int = 1000  # steps of an episode that can wait for its end
    # A learning_rate_horizon of 0 is the whole run.
    hypers: reinforce.Hypers = reinforce.Hypers(learning_rate_horizon=0.0)


def phases(settings: Settings, spec: Spec) -> list[Phase]:
    """Return the one phase of a run. Raises ValueError for a shared torso, which REINFORCE has no use for."""
    if settings.shared_torso:
        raise ValueError("shared_torso is True; reinforce takes networks that are apart")

    def agent_for(spec: Spec) -> Agent:
        actor, critic, _ = policy_cli.networks_of(settings, spec)
        return reinforce.reinforce(
            spec,
            actor,
            critic if settings.baseline else None,
            window=settings.window,
            discount_states=settings.discount_states,
        )

    return [Phase(policy_cli.normalized(settings, agent_for, spec), settings.total_steps)]


def main(settings: Settings) -> results.Result:
    """Train and write a run directory."""
    hypers = cli.annealed(settings, settings.hypers)
    return runs.run(settings, lambda spec: phases(settings, spec), agent="reinforce", hypers=hypers)


if __name__ == "__main__":
    cli.start(main, Settings)
