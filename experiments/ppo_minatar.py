"""PPO on MinAtar's games, which are seen as small pictures: experiments/ppo.py with settings that suit them."""

from __future__ import annotations

import dataclasses
from typing import Literal

import ppo  # the script beside this one

from purerl import cli
from purerl.agents.ppo import Hypers

main = ppo.main


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ppo.Settings):
    """PPO's flags, with other defaults."""

    env: str = "Breakout-MinAtar"  # name of an environment that gymnax knows
    observation_dtype: Literal["bool", "uint8"] | None = "bool"  # what observations are kept in
    num_envs: int = 64  # environments stepped together
    total_steps: int = 10_000_000  # environment steps per seed
    filters: tuple[int, ...] = (16,)  # 3 x 3 filters of each convolution before the hidden layers
    hidden: tuple[int, ...] = (128,)  # widths of each network's hidden layers
    activation: Literal["tanh", "relu"] = "relu"
    shared_torso: bool = True  # policy and value share all layers but the last
    normalize_observations: bool = False  # by their running moments: pictures of zeros and ones need none
    minibatches: int = 8  # parts that a pass over a rollout cuts it into
    hypers: Hypers = Hypers(learning_rate=5e-4, learning_rate_end=0.0, learning_rate_horizon=0.0)


if __name__ == "__main__":
    cli.start(main, Settings)
