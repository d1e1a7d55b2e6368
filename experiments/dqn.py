"""DQN with uniform replay, in any environment with discrete actions."""

from __future__ import annotations

import dataclasses
from typing import Literal

from purerl import cli, exploration, networks, precision, replay, results, runs
from purerl.agents import dqn
from purerl.base import Spec
from purerl.checks import require_count, require_number
from purerl.driver import Phase
from purerl.layers import Blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Settings):
    """DQN's flags."""

    env: str = "CartPole-v1"
    num_envs: int = 10
    total_steps: int = 500_000
    filters: tuple[int, ...] = ()  # 3 x 3 filters of each convolution before the hidden layers, for pictures
    hidden: tuple[int, ...] = (120, 84)  # widths of the network's hidden layers
    blocks: Blocks = "dense"  # what hidden layers are; residual and transformer blocks are of one width
    heads: int = 4  # of each transformer block's attention; other blocks have none
    dueling: bool = False  # the network ends in state values and advantages
    precision: precision.Preset = "float32"  # what the network computes in
    double: bool = True  # the online network chooses the action, the target network judges it
    n_step: int = 1  # rewards in a target
    explore: Literal["epsilon_greedy", "boltzmann", "ucb"] = "epsilon_greedy"  # ucb only where states are numbered
    schedule: Literal["linear", "exponential"] = "linear"  # how exploration goes from its start to its end
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
    require_count("updates", settings.updates)  # the first phase alone makes none
    if settings.explore == "epsilon_greedy":
        for name in ("exploration_start", "exploration_end"):
            require_number(f"hypers.{name}", getattr(settings.hypers, name), least=0.0, most=1.0)
    layers = {name: getattr(settings, name) for name in ("filters", "blocks", "heads", "dueling")}
    network = networks.action_values(spec, settings.hidden, **layers)
    learner = dqn.dqn(
        spec,
        precision.preset(network, settings.precision),
        double=settings.double,
        n_step=settings.n_step,
        explore=getattr(exploration, settings.explore),
        schedule=getattr(exploration, f"{settings.schedule}_schedule"),
    )
    buffer = replay.uniform(spec, settings.capacity, length=settings.n_step)

    def agent(updates: int):
        return replay.with_replay(learner, buffer, batch_size=settings.batch_size, updates=updates)

    return [
        Phase(agent(updates=0), settings.learning_starts),
        Phase(agent(settings.updates), settings.total_steps - settings.learning_starts),
    ]


def main(settings: Settings) -> results.Result:
    """Train and write a run directory."""
    return runs.run(settings, lambda spec: phases(settings, spec), agent="dqn", hypers=settings.hypers)


if __name__ == "__main__":
    cli.start(main, Settings)
