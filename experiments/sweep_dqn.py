"""DQN over a grid of its numbers, every point with several seeds: one program, all cores, a folder to go on with.

python experiments/sweep_dqn.py --sweep.learning-rate 1e-4 3e-4 1e-3 --sweep.target-period 50 500
"""

from __future__ import annotations

import dataclasses

import dqn  # the script beside this one: its settings, and how they make an agent

from purerl import cli, results, sweep_cli
from purerl.agents import dqn as agent

Axes = sweep_cli.axes(agent.Hypers)
Static = sweep_cli.choices(dqn.Settings)
USUAL = {"learning_rate": (1e-4, 3e-4, 1e-3), "target_period": (50.0, 500.0)}  # where none is asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(dqn.Settings):
    """The flags: those of dqn.py, and the axes."""

    total_steps: int = 100_000
    seeds: int = 4
    sweep: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]
    static: Static = Static()  # pyright: ignore[reportInvalidTypeForm]


def main(settings: Settings) -> list[results.Result]:
    """Train all points and write the folder."""
    return sweep_cli.run(settings, dqn.phases, agent="dqn", hypers=lambda settings: settings.hypers, usual=USUAL)


if __name__ == "__main__":
    cli.start(main, Settings)
