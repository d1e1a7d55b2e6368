"""PPO in float32, bfloat16, float16, and float32 acting with int8 weights: what each earns, takes, and how fast it is.

Prints a table and saves one picture, and the policies with int8 weights as one file. Two differences of log-probability
are told: between the actions' probabilities as acting and as learning computes them, from batches of other sizes, and
between those and what a float32 network makes of the same parameters.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ppo  # the script beside this one: its settings, and how they make an agent
from jaxtyping import Array, Key

from purerl import cli, driver, envs, evaluate, export, folders, normalize, parts, plots, policy_cli, precision, rollout
from purerl.actor_critic import ActorCritic
from purerl.base import Agent, Discrete, Transition, cast_hypers, require_count
from purerl.checkpoint import Checkpoints
from purerl.interrupts import Stopped
from purerl.metrics import Progress
from purerl.scores import summary

KINDS = "float32", "bfloat16", "float16"
INT8 = "int8"
POLICY = "policy_int8.zip"
STEPS = 128  # that are looked at of each environment, to compare probabilities, greedy actions and speeds
REPEATS = 5  # of each timing, whose median is told


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Place):
    """The flags; networks and numbers are ppo.py's."""

    env: str = "CartPole-v1"  # name of an environment that gymnax knows
    total_steps: int = 200_000  # environment steps per seed
    seeds: int = 10  # independent runs of each precision
    seed: int = 0  # what all keys are made of
    eval_episodes: int = 20  # played greedily at the end by each run
    mesh: str | None = None  # devices over which each run is split, as data=4,model=2; each has one if not given
    # Of environments, within which batches are drawn: results depend on it, and not on the mesh; its data if not given.
    groups: int | None = None
    checkpoint_every: int | None = None  # environment steps between checkpoints; 10 minutes if not given, 0 for none

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"total_steps": 1, "seeds": 2, "seed": 0, "eval_episodes": 1}.items():
            require_count(name, getattr(self, name), least=least)
        if self.checkpoint_every is not None:
            require_count("checkpoint_every", self.checkpoint_every, least=0)

    def ppo(self, kind: precision.Preset) -> ppo.Settings:
        """Return those of ppo.py with networks of this kind."""
        own = {"env": self.env, "total_steps": self.total_steps, "seeds": self.seeds, "seed": self.seed}
        own |= {"eval_episodes": self.eval_episodes, "mesh": self.mesh, "groups": self.groups}
        return ppo.Settings(**own, precision=kind)


def learned(settings: Settings, folder: Path, kind: precision.Preset) -> dict[str, Any]:
    """Train all seeds with networks of one kind, and return what came of it; of float32 also what int8 makes of it.

    Raises Stopped if it was asked to stop in the midst of training, cli.Failed if no seed is left.
    """
    own = settings.ppo(kind)
    env, judge = cli.environments(own), envs.make(own.env, own.eval_episodes)
    (phase,) = ppo.phases(own, env.spec)
    hypers = cast_hypers(cli.annealed(own, own.hypers))
    with (
        Checkpoints(folder / folders.CHECKPOINTS / kind) as checkpoints,
        Progress(own.total_steps * own.seeds, description=kind) as progress,
    ):
        outcome = driver.drive(
            driver.seed_keys(own.seed, own.seeds),
            [phase],
            env,
            hypers,
            length=own.length,
            log_every=max(1, own.total_steps // 50),
            progress=progress,
            spread=cli.spread_of(own, own.seeds),
            checkpoints=checkpoints,
            checkpoint_every=settings.checkpoint_every,
        )
    if outcome.interrupted:
        steps = int(outcome.metrics["environment_steps"][0, -1])
        raise Stopped(f"{kind}: stopped after {steps:,} of {own.total_steps:,} steps", folder)
    if outcome.diverged.all():
        raise cli.Failed(f"{kind}: all seeds diverged")
    states = jax.device_put(outcome.runs.agent, jax.devices()[0]) if own.mesh else outcome.runs.agent
    first = jax.tree.map(lambda leaf: leaf[0], states)
    found = {
        "training_return": outcome.metrics["episode_return"],
        "environment_steps": outcome.metrics["environment_steps"][0],
        "greedy_return": np.where(outcome.diverged, np.nan, greedy_returns(phase.agent, states, judge, hypers)),
        "learning_speed": own.total_steps * own.seeds / outcome.run_seconds,
        "acting_speed": acting_speed(phase.agent, first, judge, hypers),
        "bytes": precision.size(read(first)[0].actor),
        "gaps": gaps(own, phase.agent, states, env, hypers),
    }
    if kind == "float32":
        small = jax.vmap(lambda state: precision.quantise_agent(phase.agent, state)[1])(states)
        acting, one = precision.quantise_agent(phase.agent, first)
        export.save_policy(folder / POLICY, acting, small, judge, hypers, runs=own.seeds, name="ppo")
        found["agreement of int8"] = agreement(phase.agent, states, acting, small, judge, hypers)
        found["greedy_return of int8"] = np.where(
            outcome.diverged, np.nan, greedy_returns(acting, small, judge, hypers)
        )
        found["acting_speed of int8"] = acting_speed(acting, one, judge, hypers)
        found["bytes of int8"] = precision.size(read(one)[0].actor)
    return {name: np.asarray(value) for name, value in found.items()}


def read(state: Any) -> tuple[Any, normalize.Moments]:
    """Return the parameters that a PPO within its wrappers has learned, and the moments by which it sees."""
    outer = state
    while hasattr(state, "learner"):
        state = state.learner
    return state.params, outer.acting[0]


def walked(
    key: Key[Array, ""], agent: Agent, state: Any, env: envs.Env, length: int, hypers: Any, greedy: bool
) -> Transition:
    """Return the steps [length, N] that an agent takes in new episodes."""
    start_key, step_key = jax.random.split(key)
    episodes = rollout.start(start_key, agent, env, env.params)
    keys = rollout.step_keys(step_key, length)
    return rollout.unroll(keys, agent, state, env, env.params, episodes, hypers, greedy=greedy)[1].steps


def gaps(own: ppo.Settings, agent: Agent, states: Any, env: envs.Env, hypers: Any) -> Array:
    """Return how far log-probabilities as learning computes them, of [T N] at once, are from others: [seeds, 2, 2].

    Those are what acting computes, of N at a time, and float32 networks; of each the mean and the largest difference.
    """
    usual, network = (
        ActorCritic(*policy_cli.networks_of(settings, normalize.normalized_spec(env.spec)))
        for settings in (dataclasses.replace(own, precision="float32"), own)
    )

    def one(state):
        steps = walked(jax.random.key(0), agent, state, env, own.length, hypers, greedy=False)
        params, moments = read(state)
        observation = normalize.normalized(moments, steps.observation)

        def log_prob(observation, action):
            return network.policy(params, observation).log_prob(action)

        learning = log_prob(observation, steps.action)
        acting = jax.lax.map(lambda step: log_prob(*step), (observation, steps.action))
        plain = dataclasses.replace(params, actor=getattr(params.actor, "network", params.actor))  # without a scale
        exact = usual.policy(plain, observation).log_prob(steps.action)
        apart = jnp.abs(jnp.stack([acting, exact]) - learning)
        return jnp.stack([apart.mean(axis=(1, 2)), apart.max(axis=(1, 2))], axis=1)

    return jax.jit(jax.vmap(one))(states)  # all seeds together, as they learn


def greedy_returns(agent: Agent, states: Any, judge: envs.Env, hypers: Any) -> Array:
    """Return the mean greedy return of each seed, from starts that do not depend on the precision: [seeds]."""

    def one(pair):
        key, state = pair
        return evaluate.evaluate(key, agent, state, judge, hypers, max_steps=10_000).episode_return.mean()

    seeds = len(jax.tree.leaves(states)[0])
    keys = jax.random.split(jax.random.key(1), seeds)
    return jax.jit(lambda pairs: jax.lax.map(one, pairs))((keys, states))


def agreement(usual: Agent, states: Any, acting: Agent, small: Any, judge: envs.Env, hypers: Any) -> Array:
    """Return of the states that greedy policies visit the share in which int8 takes the same action: [seeds]."""

    def one(pair):
        state, small = pair
        steps = walked(jax.random.key(2), usual, state, judge, STEPS, hypers, greedy=True)
        key = jax.random.key(3)  # of which greedy actions make no use
        chosen = jax.lax.map(
            lambda observation: acting.act(key, small, (), observation, hypers, greedy=True)[0], steps.observation
        )
        return (chosen == steps.action).mean()

    return jax.jit(lambda pairs: jax.lax.map(one, pairs))((states, small))


def acting_speed(agent: Agent, state: Any, judge: envs.Env, hypers: Any) -> float:
    """Return how many steps a second an agent takes greedily, environments included."""
    walk = jax.jit(functools.partial(walked, agent=agent, env=judge, length=STEPS, hypers=hypers, greedy=True))
    seconds = []
    for repeat in range(REPEATS + 1):  # the first compiles
        begun = time.perf_counter()
        jax.block_until_ready(walk(jax.random.key(repeat), state=state).reward)
        seconds.append(time.perf_counter() - begun)
    return STEPS * judge.spec.num_envs / float(np.median(seconds[1:]))


def main(settings: Settings) -> None:
    """Train with each precision, and tell what came of it."""
    with cli.bad_input():
        driver.seed_keys(settings.seed, settings.seeds)  # of 32 bits
        own = settings.ppo("float32")
        env, spread = cli.environments(own), cli.spread_of(own, own.seeds)
        if not isinstance(env.spec.action, Discrete):
            raise ValueError(f"env is {settings.env}; it takes one with discrete actions, to tell which are the same")
        cli.require_fitting(ppo.phases(own, env.spec), env, own.hypers, own.length, spread.layout)
        settings = dataclasses.replace(settings, groups=cli.groups_of(own))
    folder = parts.opened(settings, "precision", settings.env)
    if folder.finished:
        return
    with folder:
        tell(
            {kind: folder.part(kind, functools.partial(learned, settings, folder.directory, kind)) for kind in KINDS},
            settings,
            folder,
        )


def tell(found: dict[str, dict[str, Any]], settings: Settings, folder: parts.Parts) -> None:
    """Print a table, save the picture, write the results."""
    device = jax.devices()[0]
    print(f"PPO on {settings.env}, {settings.seeds} seeds of {settings.total_steps:,} steps, on {device.device_kind}")
    titles = f"{'greedy return, IQM [95 %]':>28s} {'bytes of weights':>17s} {'learns':>15s} {'acts':>15s}"
    print(f"{'':9s}{titles}   log-probabilities, acting and learning; those of float32")
    told = {kind: describe(one) for kind, one in found.items()}
    told[INT8] = describe(
        {name.removesuffix(f" of {INT8}"): value for name, value in found["float32"].items() if INT8 in name}
    )
    for kind, line in told.items():
        low, high = line["ci95"]
        score = "none" if line["iqm"] is None else f"{line['iqm']:.1f}"
        interval = "" if low is None else f" [{low:.1f}, {high:.1f}]"
        learns = f"{line['learning_speed']:,.0f} steps/s" if "learning_speed" in line else ""
        acts = f"{line['acting_speed']:,.0f} steps/s"
        print(f"{kind:9s}{score + interval:>28s} {line['bytes']:>17,} {learns:>15s} {acts:>15s}", end="")
        if "gaps" in line:
            print("   " + "; ".join(f"mean {mean:.1e}, most {most:.1e}" for mean, most in line["gaps"]))
        else:
            states = STEPS * settings.eval_episodes
            print(f"   the greedy action of float32 in {100 * line['agreement']:.2f} % of {states:,} states a seed")
    if device.platform == "cpu":
        print("On a CPU nothing but float32 is computed directly: smaller numbers save memory there, and cost time.")
    picture(found, folder.directory / "precision.png", title=f"PPO on {settings.env}, {settings.seeds} seeds")
    folder.finish(
        {f"{name} in {kind}": value for kind, one in found.items() for name, value in one.items()},
        {"agent": "ppo", "env": settings.env, "seeds": settings.seeds, "precisions": told},
        ["precision.png", POLICY],
    )


def describe(one: dict[str, Any]) -> dict[str, Any]:
    """Return of a precision what is told of it, JSON-ready."""
    line = summary(one["greedy_return"]) | {"bytes": int(one["bytes"])}
    line |= {name: float(one[name]) for name in ("learning_speed", "acting_speed") if name in one}
    if "gaps" in one:
        line["gaps"] = np.stack([one["gaps"][..., 0].mean(axis=0), one["gaps"][..., 1].max(axis=0)], axis=1).tolist()
    if "agreement" in one:
        line["agreement"] = float(one["agreement"].mean())
    return line


def picture(found: dict[str, dict[str, Any]], path: Path, *, title: str) -> None:
    """Save the learning curves of all precisions in one frame."""
    figure = plots.new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    steps = found["float32"]["environment_steps"]
    curves = {kind: one["training_return"] for kind, one in found.items()}
    plots.comparison(axes, steps, curves, xlabel="environment steps", ylabel="episode return in training")
    axes.set_title(f"{title}, means and 95 % intervals", loc="left", fontsize=12, fontweight="bold")
    plots.save(figure, path)


if __name__ == "__main__":
    cli.start(main, Settings)
