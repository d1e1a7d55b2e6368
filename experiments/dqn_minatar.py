"""DQN on MinAtar's games, which are seen as small pictures: experiments/dqn.py with settings that suit them."""

from __future__ import annotations

import dataclasses
from typing import Literal

import dqn  # the script beside this one

from purerl import cli
from purerl.agents.dqn import Hypers

main = dqn.main


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(dqn.Settings):
    """DQN's flags, with other defaults."""

    env: str = "Breakout-MinAtar"
    observation_dtype: Literal["bool", "uint8"] | None = "bool"
    num_envs: int = 16
    total_steps: int = 1_000_000
    filters: tuple[int, ...] = (16,)
    hidden: tuple[int, ...] = (128,)
    capacity: int = 100_000
    batch_size: int = 64
    hypers: Hypers = Hypers(
        learning_rate=5e-4,
        learning_rate_end=5e-5,
        learning_rate_horizon=62_500,
        exploration_end=0.02,
        exploration_horizon=6_000,
        target_period=250,
    )


if __name__ == "__main__":
    cli.start(main, Settings)
