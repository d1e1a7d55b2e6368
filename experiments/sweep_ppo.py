"""PPO over a grid of its numbers, every point with several seeds: one program, all cores, a folder to go on with.

python experiments/sweep_ppo.py --sweep.learning-rate 1e-4 3e-4 1e-3 --sweep.entropy-weight 0 0.01

What is compiled in can be tried as well, each combination a program of its own:

python experiments/sweep_ppo.py --static.hidden 64,64 256,256 --static.num-envs 4 16
"""

from __future__ import annotations

import dataclasses

import ppo  # the script beside this one: its settings, and how they make an agent

from purerl import cli, results, sweep_cli
from purerl.agents import ppo as agent

Axes = sweep_cli.axes(agent.Hypers)
Static = sweep_cli.choices(ppo.Settings)
USUAL = {"learning_rate": (1e-4, 3e-4, 1e-3, 3e-3), "entropy_weight": (0.0, 0.01)}  # where none is asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ppo.Settings):
    """The flags: those of ppo.py, and the axes."""

    total_steps: int = 100_000
    seeds: int = 5
    sweep: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]
    static: Static = Static()  # pyright: ignore[reportInvalidTypeForm]


def main(settings: Settings) -> list[results.Result]:
    """Train all points and write the folder."""
    return sweep_cli.run(
        settings, ppo.phases, agent="ppo", hypers=lambda settings: cli.annealed(settings, settings.hypers), usual=USUAL
    )


if __name__ == "__main__":
    cli.start(main, Settings)
