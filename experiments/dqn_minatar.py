"""DQN on MinAtar's games, which are seen as small pictures: experiments/dqn.py with settings that suit them."""

from __future__ import annotations

import dataclasses

import dqn  # the script beside this one

from purerl import cli
from purerl.agents.dqn import Hypers

main = dqn.main


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(dqn.Settings):
    """DQN's flags, with other defaults."""

    env: str = "Breakout-MinAtar"  # name of an environment that gymnax knows
    observation_dtype: cli.ObservationDtype = "bool"  # what observations are kept in; replay packs bool
    num_envs: int = 16  # environments stepped together
    total_steps: int = 1_000_000  # environment steps per seed
    filters: tuple[int, ...] = (16,)  # 3 x 3 filters of each convolution before the hidden layers
    hidden: tuple[int, ...] = (128,)  # widths of the network's hidden layers
    capacity: int = 100_000  # observations in replay
    batch_size: int = 64  # transitions in an update
    hypers: Hypers = Hypers(
        learning_rate=5e-4,
        learning_rate_end_fraction=0.1,
        learning_rate_horizon=62_500,
        exploration_end=0.02,
        exploration_horizon=6_000,
        target_period=250,
    )


if __name__ == "__main__":
    cli.start(main, Settings)
