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
    observation_dtype: cli.ObservationDtype = "bool"  # what observations are kept in
    num_envs: int = 64  # environments stepped together
    total_steps: int = 10_000_000  # environment steps per seed
    activation: Literal["tanh", "relu"] = "relu"
    normalize_observations: bool = False  # by their running moments: pictures of zeros and ones need none
    scale_returns: bool = False  # rewards divided by the running deviation of discounted returns
    minibatches: int = 8  # parts that a pass over a rollout cuts it into
    # A learning_rate_horizon of 0 is the whole run.
    hypers: Hypers = Hypers(learning_rate=5e-3, learning_rate_end_fraction=0.0, learning_rate_horizon=0.0)


if __name__ == "__main__":
    cli.start(main, Settings)
