"""SARSA on a table, in any environment with discrete observations and actions."""

from __future__ import annotations

import dataclasses

from purerl import cli, results, runs
from purerl.agents import sarsa
from purerl.base import Spec
from purerl.checks import require_number
from purerl.driver import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Settings):
    """SARSA's flags."""

    env: str = "CliffWalking-purerl"
    total_steps: int = 500_000
    eval_max_steps: int = 200  # a greedy policy that goes in circles is seen long before
    hypers: sarsa.Hypers = sarsa.Hypers()


def phases(settings: Settings, spec: Spec) -> list[Phase]:
    """Return the one phase of a run."""
    require_number("hypers.exploration", settings.hypers.exploration, least=0.0, most=1.0)  # epsilon
    return [Phase(sarsa.sarsa(spec), settings.total_steps)]


def main(settings: Settings) -> results.Result:
    """Train and write a run directory."""
    return runs.run(settings, lambda spec: phases(settings, spec), agent="sarsa", hypers=settings.hypers)


if __name__ == "__main__":
    cli.start(main, Settings)
