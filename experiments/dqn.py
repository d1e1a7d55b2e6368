"""DQN with uniform replay, in any environment with discrete actions."""

from __future__ import annotations

import dataclasses

from purerl import cli, networks, replay
from purerl.agents import dqn
from purerl.base import Spec
from purerl.driver import Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Settings):
    """DQN's flags."""

    env: str = "CartPole-v1"
    num_envs: int = 10
    total_steps: int = 500_000
    hidden: tuple[int, ...] = (120, 84)  # widths of the network's hidden layers
    double: bool = True  # the online network chooses the action, the target network judges it
    capacity: int = 50_000  # observations in replay
    batch_size: int = 128
    updates: int = 1  # learning steps each time that all environments have stepped once
    learning_starts: int = 10_000  # environment steps before the first update
    hypers: dqn.Hypers = dqn.Hypers()


def phases(settings: Settings, spec: Spec) -> list[Phase]:
    """Return the two phases of a run: fill the buffer, then learn."""
    if not 0 < settings.learning_starts < settings.total_steps:
        raise ValueError(
            f"learning_starts is {settings.learning_starts}; it takes 1 to total_steps - 1 = {settings.total_steps - 1}"
        )
    learner = dqn.dqn(spec, networks.action_values(spec, settings.hidden), double=settings.double)
    buffer = replay.uniform(spec, settings.capacity)

    def agent(updates: int):
        return replay.with_replay(learner, buffer, batch_size=settings.batch_size, updates=updates)

    return [
        Phase(agent(updates=0), settings.learning_starts),
        Phase(agent(settings.updates), settings.total_steps - settings.learning_starts),
    ]


def main(settings: Settings) -> None:
    """Train and write a run directory."""
    cli.run(settings, lambda spec: phases(settings, spec), agent="dqn", hypers=settings.hypers)


if __name__ == "__main__":
    cli.start(main, Settings)
