"""Q-learning on a table, in any environment with discrete observations and actions."""

from __future__ import annotations

import dataclasses

from purerl import cli, results, runs
from purerl.agents import q_learning
from purerl.base import Spec
from purerl.checks import require_number
from purerl.driver import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Settings):
    """Q-learning's flags."""

    env: str = "CliffWalking-purerl"
    total_steps: int = 500_000
    eval_max_steps: int = 200  # a greedy policy that goes in circles is seen long before
    hypers: q_learning.Hypers = q_learning.Hypers()


def phases(settings: Settings, spec: Spec) -> list[Phase]:
    """Return the one phase of a run."""
    require_number("hypers.exploration", settings.hypers.exploration, least=0.0, most=1.0)  # epsilon
    return [Phase(q_learning.q_learning(spec), settings.total_steps)]


def main(settings: Settings) -> results.Result:
    """Train and write a run directory."""
    return runs.run(settings, lambda spec: phases(settings, spec), agent="q_learning", hypers=settings.hypers)


if __name__ == "__main__":
    cli.start(main, Settings)
