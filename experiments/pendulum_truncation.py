"""What a clock does to a critic: Pendulum never terminates, its episodes are cut after 200 steps.

TRPO learns twice: once as purerl does, with the value of the state in which the clock stopped, and once as if the
episode had terminated there. Then the clock is taken away and each policy goes on as it learned: the discounted rewards
that it collects are what its critic should have predicted. Prints how far off the critics are, and saves one picture.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl import cli, driver, envs, folders, networks, parts, plots, precision, returns, rollout, scores, spread
from purerl.actor_critic import ActorCritic
from purerl.agents import trpo
from purerl.base import Agent, Rollout, cast_hypers, require_count
from purerl.checkpoint import Checkpoints
from purerl.interrupts import Stopped
from purerl.metrics import Progress

EPISODE = 200  # steps after which Pendulum's clock stops
NEGLIGIBLE = 4e-5  # what the discount comes to after all the steps over which rewards are collected
WALKS = 32  # pendulums per seed
TREATMENTS = "bootstraps where the clock ended", "takes the clock's end for termination"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Place):
    """The flags."""

    seeds: int = 10  # independent runs of each treatment
    total_steps: int = 100_000  # environment steps per seed
    num_envs: int = 4  # environments stepped together
    length: int = 512  # steps that each of them takes between updates
    seed: int = 0  # what all keys are made of
    precision: precision.Preset = "float32"  # what networks compute in
    mesh: str | None = None  # devices over which each run is split, as data=4,model=2; each has one if not given
    # Of environments, within which batches are drawn: results depend on it, and not on the mesh; its data if not given.
    groups: int | None = None
    checkpoint_every: int | None = None  # environment steps between checkpoints; 10 minutes if not given, 0 for none
    hypers: trpo.Hypers = trpo.Hypers()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"seeds": 2, "total_steps": 1, "num_envs": 1, "length": 1, "seed": 0}.items():
            require_count(name, getattr(self, name), least=least)
        if self.checkpoint_every is not None:
            require_count("checkpoint_every", self.checkpoint_every, least=0)
        cli.require_mesh(self)
        least = 10 * self.num_envs * EPISODE
        if self.total_steps < least:
            raise ValueError(f"total_steps is {self.total_steps}; it takes ten episodes in each environment, {least}")
        if not 0.0 < self.hypers.discount < 1.0:
            raise ValueError(f"hypers.discount is {self.hypers.discount}; without an end it takes one below 1, above 0")


class Judged(NamedTuple):
    """A critic and what really came, by steps since the episode's start, mean of the walks [seeds, EPISODE]."""

    value: np.ndarray  # what the critic predicted
    collected: np.ndarray  # what was then collected
    training_return: np.ndarray  # [seeds] mean return of the episodes in the last tenth of training


def blind(agent: Agent) -> Agent:
    """Return `agent` taking every end of an episode for a termination, as many programs do."""

    def update(key, state, rollout, hypers):
        steps = rollout.steps
        steps = dataclasses.replace(steps, terminated=steps.terminated | steps.truncated)
        return agent.update(key, state, Rollout(steps=steps, memory=rollout.memory), hypers)

    return agent._replace(update=update)


def made(settings: Settings) -> tuple[envs.Env, ActorCritic, Agent]:
    """Return environment, networks and agent. Raises ValueError where they do not fit together."""
    env = envs.make("Pendulum-v1", settings.num_envs, groups=cli.groups_of(settings))
    both = networks.policy(env.spec), networks.state_values(env.spec)
    network = ActorCritic(*(precision.preset(one, settings.precision) for one in both))
    agent = trpo.trpo(env.spec, network.actor, network.critic)
    phases = [driver.Phase(agent, settings.total_steps)]
    cli.require_fitting(phases, env, settings.hypers, settings.length, cli.layout_of(settings))
    return env, network, agent


def judge(
    settings: Settings, treatment: str, progress: Progress | None = None, checkpoints: Checkpoints | None = None
) -> Judged:
    """Train all seeds with a treatment, and hold their critics against what their policies go on to collect.

    With `checkpoints` raises Stopped if it was asked to stop in the midst of training; cli.Failed if no seed is left.
    """
    env, network, agent = made(settings)
    endless = envs.make("Pendulum-v1", WALKS)
    hypers = cast_hypers(settings.hypers)
    beyond = int(np.ceil(np.log(NEGLIGIBLE) / np.log(settings.hypers.discount)))
    training_keys, walk_keys = jax.vmap(jax.random.split, out_axes=1)(driver.seed_keys(settings.seed, settings.seeds))
    outcome = driver.drive(
        training_keys,
        [driver.Phase(agent if treatment == TREATMENTS[0] else blind(agent), settings.total_steps)],
        env,
        hypers,
        length=settings.length,
        log_every=max(1, settings.total_steps // 10),
        progress=progress,
        spread=spread.choose(settings.seeds, layout=cli.layout_of(settings)),
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
    )
    if checkpoints and outcome.interrupted:
        steps = int(outcome.metrics["environment_steps"][0, -1])
        raise Stopped(f"stopped after {steps:,} of {settings.total_steps:,} steps", checkpoints.directory)
    params = dataclasses.replace(endless.params, max_steps_in_episode=jnp.int32(2 * (EPISODE + beyond)))

    @jax.jit
    def walk(key, state):
        start_key, step_key = jax.random.split(key)
        episodes = rollout.start(start_key, agent, endless, params)
        keys = rollout.step_keys(step_key, EPISODE + beyond)
        _, experience, _ = rollout.unroll(keys, agent, state, endless, params, episodes, hypers)
        collected = returns.discounted(experience.steps.reward, jnp.asarray(hypers.discount), jnp.zeros(WALKS))
        value = network.value(state.params, experience.steps.observation[:EPISODE])
        return jnp.mean(value, axis=1), jnp.mean(collected[:EPISODE], axis=1)

    kept = [seed for seed in range(settings.seeds) if not outcome.diverged[seed]]
    if len(kept) < settings.seeds:
        print(f"{treatment}: {settings.seeds - len(kept)} seeds diverged and are left out")
    if not kept:
        raise cli.Failed(f"{treatment}: all seeds diverged")
    states = jax.device_put(outcome.runs.agent, jax.devices()[0]) if settings.mesh else outcome.runs.agent
    walks = [walk(walk_keys[seed], jax.tree.map(lambda leaf, seed=seed: leaf[seed], states)) for seed in kept]
    value, collected = (np.stack(rows) for rows in zip(*walks, strict=True))
    return Judged(value, collected, outcome.metrics["episode_return"][kept, -1])


def describe(judged: Judged) -> dict[str, Any]:
    """Return the critic's error, value less what was collected: its mean over an episode by seed, with an interval."""
    error = (judged.value - judged.collected).mean(axis=1)
    return {
        "error": error,
        "mean_error": error.mean(),
        "mean_error_ci95": scores.bootstrap_interval(error, np.mean),
        "mean_collected": judged.collected.mean(),
        "mean_training_return": judged.training_return.mean(),
        "mean_training_return_ci95": scores.bootstrap_interval(judged.training_return, np.mean),
    }


def picture(judged: dict[str, Judged], path: Path) -> None:
    """Save, for each treatment, what the critic predicts and what comes, over the steps of an episode."""
    figure = plots.new_figure(9.0, 4.0)
    frames = figure.subplots(1, len(judged), sharey=True)
    for axes, (treatment, one) in zip(frames, judged.items(), strict=True):
        curves = {"collected, without a clock": one.collected, "predicted by the critic": one.value}
        plots.comparison(axes, np.arange(EPISODE), curves, xlabel="steps since the start", ylabel="discounted rewards")
        axes.set_title(treatment, loc="left", fontsize=11)
    plots.save(figure, path)


def main(settings: Settings) -> None:
    """Train with both treatments, and tell what came of it."""
    with cli.bad_input():
        cli.require_sensible(settings.hypers)
        driver.seed_keys(settings.seed, settings.seeds)  # of 32 bits
        made(settings)
        settings = dataclasses.replace(settings, groups=cli.groups_of(settings))
    folder = parts.opened(settings, "pendulum_truncation", "Pendulum-v1")
    if folder.finished:
        return

    def learned(treatment: str) -> dict[str, np.ndarray]:
        try:
            with (
                Checkpoints(folder.directory / folders.CHECKPOINTS / str(TREATMENTS.index(treatment))) as checkpoints,
                Progress(settings.seeds * settings.total_steps, description=treatment) as progress,
            ):
                return judge(settings, treatment, progress, checkpoints)._asdict()
        except Stopped as stop:
            raise Stopped(f"{treatment}: {stop}", folder.directory) from None

    with folder:
        tell({one: Judged(**folder.part(one, functools.partial(learned, one))) for one in TREATMENTS}, settings, folder)


def tell(judged: dict[str, Judged], settings: Settings, folder: parts.Parts) -> None:
    """Print a table, save the picture, write the results."""
    summary = {treatment: describe(one) for treatment, one in judged.items()}
    print(f"mean of {settings.seeds} seeds [95 % interval]")
    for treatment, line in summary.items():
        low, high = line["mean_error_ci95"]
        print(
            f"{treatment:38s} critic's error {line['mean_error']:6.2f} [{low:6.2f}, {high:6.2f}] "
            f"of {line['mean_collected']:7.2f};  return in training {line['mean_training_return']:7.1f}"
        )
    picture(judged, folder.directory / "pendulum_truncation.png")
    folder.finish(
        {f"{name} where it {key}": getattr(one, name) for key, one in judged.items() for name in one._fields},
        {"agent": "trpo", "env": "Pendulum-v1", "seeds": settings.seeds, "treatments": summary},
        ["pendulum_truncation.png"],
    )


if __name__ == "__main__":
    cli.start(main, Settings)
