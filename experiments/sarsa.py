"""SARSA on a table, in any environment with discrete observations and actions."""

from __future__ import annotations

import dataclasses

from purerl import cli
from purerl.agents import sarsa
from purerl.driver import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Settings):
    """SARSA's flags."""

    env: str = "CliffWalking-purerl"
    total_steps: int = 500_000
    eval_max_steps: int = 200  # a greedy policy that goes in circles is seen long before
    hypers: sarsa.Hypers = sarsa.Hypers()


def main(settings: Settings) -> None:
    """Train and write a run directory."""
    cli.run(
        settings,
        lambda spec: [Phase(sarsa.sarsa(spec), settings.total_steps)],
        agent="sarsa",
        hypers=settings.hypers,
    )


if __name__ == "__main__":
    cli.start(main, Settings)
