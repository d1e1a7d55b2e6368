"""PPO in float32, bfloat16, float16, and float32 acting with int8 weights: what each earns, takes, and how fast it is.

Prints a table and saves one picture. How far the probabilities with which actions were drawn are from those that
learning computes for them is measured, too: the same network on batches of other sizes rounds otherwise.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ppo  # the script beside this one: its settings, and how they make an agent
from jaxtyping import Array, Key

from purerl import cli, driver, envs, evaluate, normalize, parts, plots, policy_cli, precision, rollout, scores
from purerl.actor_critic import ActorCritic
from purerl.base import Agent, cast_hypers, require_count
from purerl.metrics import Progress

KINDS = "float32", "bfloat16", "float16"
INT8 = "int8 acting"
STEPS = 128  # that are looked at of each environment, to compare probabilities and greedy actions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Place):
    """The flags; networks and numbers are ppo.py's."""

    env: str = "CartPole-v1"  # name of an environment that gymnax knows
    total_steps: int = 200_000  # environment steps per seed
    seeds: int = 10  # independent runs of each precision
    seed: int = 0  # what all keys are made of
    eval_episodes: int = 20  # played greedily at the end by each run

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"total_steps": 1, "seeds": 2, "seed": 0, "eval_episodes": 1}.items():
            require_count(name, getattr(self, name), least=least)

    def ppo(self, kind: precision.Preset) -> ppo.Settings:
        """Return those of ppo.py with networks of this kind."""
        own = {"env": self.env, "total_steps": self.total_steps, "seeds": self.seeds, "seed": self.seed}
        return ppo.Settings(**own, eval_episodes=self.eval_episodes, precision=kind)


def learned(settings: Settings, kind: precision.Preset) -> dict[str, np.ndarray]:
    """Train all seeds with networks of one kind, and return what came of it; of float32 also what int8 makes of it."""
    own = settings.ppo(kind)
    env, judge = envs.make(own.env, own.num_envs), envs.make(own.env, own.eval_episodes)
    (phase,) = ppo.phases(own, env.spec)
    hypers = cast_hypers(cli.annealed(own, own.hypers))
    with Progress(own.total_steps * own.seeds, description=kind) as progress:
        outcome = driver.drive(
            driver.seed_keys(own.seed, own.seeds),
            [phase],
            env,
            hypers,
            length=own.length,
            log_every=max(1, own.total_steps // 50),
            eval_env=judge,
            eval_every=own.total_steps,
            progress=progress,
        )
    first = jax.tree.map(lambda leaf: leaf[0], outcome.runs.agent)
    found = {
        "training_return": outcome.metrics["episode_return"],
        "environment_steps": outcome.metrics["environment_steps"][0],
        "greedy_return": outcome.evaluation_returns[:, -1].mean(axis=1),
        "seconds": np.array(outcome.run_seconds),
        "bytes": np.array(precision.size(_read(first)[0].actor) // (1 if kind == "float32" else 2)),
        "gap": np.stack([_gap(own, phase.agent, outcome.run(seed).agent, env, hypers) for seed in range(own.seeds)]),
    }
    if kind != "float32":
        return found
    rows = [_in_int8(phase.agent, outcome.run(seed).agent, judge, hypers) for seed in range(own.seeds)]
    small = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return found | {f"int8 {name}": values for name, values in small.items()}


def _read(state: Any) -> tuple[Any, Any]:
    """Return what a PPO within wrappers has learned, and the moments by which it sees."""
    moments = None
    while hasattr(state, "learner"):
        moments = state.acting[0] if hasattr(state, "acting") else moments
        state = state.learner
    return getattr(state.params, "network", state.params), moments


def _gap(own: ppo.Settings, acting: Agent, state: Any, env: envs.Env, hypers: Any) -> np.ndarray:
    """Return the mean and the largest difference between log-probabilities as acting and as learning computes them."""
    spec = normalize.normalized_spec(env.spec)
    network = ActorCritic(*policy_cli.networks_of(own, spec))

    @jax.jit
    def gap(key, state):
        _, steps = _walked(key, acting, state, env, own.length, hypers, greedy=False)
        params, moments = _read(state)
        observation = normalize.normalized(moments, steps.observation)

        def log_prob(observation, action):
            return network.policy(params, observation).log_prob(action)

        one_by_one = jax.lax.map(lambda pair: log_prob(*pair), (observation, steps.action))
        difference = jnp.abs(one_by_one - log_prob(observation, steps.action))
        return jnp.stack([jnp.mean(difference), jnp.max(difference)])

    return np.asarray(gap(jax.random.key(0), state))


def _walked(key: Key[Array, ""], acting: Agent, state: Any, env: envs.Env, steps: int, hypers: Any, *, greedy: bool):
    """Return a key of its own, and steps [T, N] that an agent takes."""
    key, start_key, step_key = jax.random.split(key, 3)
    episodes = rollout.start(start_key, acting, env, env.params)
    keys = rollout.step_keys(step_key, steps)
    _, experience, _ = rollout.unroll(keys, acting, state, env, env.params, episodes, hypers, greedy=greedy)
    return key, experience.steps


def _in_int8(usual: Agent, state: Any, judge: envs.Env, hypers: Any) -> dict[str, np.ndarray]:
    """Return what a greedy policy does with weights of int8, on the states that it visits with its own."""
    acting, small = precision.quantise_agent(usual, state)

    @jax.jit
    def look(key, state, small):
        key, steps = _walked(key, usual, state, judge, STEPS, hypers, greedy=True)
        chosen = jax.lax.map(
            lambda observation: acting.act(key, small, (), observation, hypers, greedy=True)[0], steps.observation
        )
        played = evaluate.evaluate(key, acting, small, judge, hypers, max_steps=2_500)
        return {"agreement": jnp.mean(chosen == steps.action), "greedy_return": jnp.mean(played.episode_return)}

    found = look(jax.random.key(1), state, small)
    return jax.tree.map(np.asarray, found) | {"bytes": np.array(precision.size(_read(small)[0].actor))}


def main(settings: Settings) -> None:
    """Train with each precision, and tell what came of it."""
    with cli.bad_input():
        driver.seed_keys(settings.seed, settings.seeds)  # of 32 bits
        own = settings.ppo("float32")
        env = envs.make(own.env, own.num_envs)
        cli.require_fitting(ppo.phases(own, env.spec), env, own.hypers, own.length)
    folder = parts.opened(settings, "precision", settings.env)
    if folder.finished:
        return
    with folder:
        tell({kind: folder.part(kind, functools.partial(learned, settings, kind)) for kind in KINDS}, settings, folder)


def tell(found: dict[str, dict[str, Any]], settings: Settings, folder: parts.Parts) -> None:
    """Print a table, save the picture, write the results."""
    columns = {kind: one["greedy_return"] for kind, one in found.items()}
    columns[INT8] = found["float32"]["int8 greedy_return"]
    sizes = {kind: int(one["bytes"]) for kind, one in found.items()} | {INT8: int(found["float32"]["int8 bytes"][0])}
    total = settings.total_steps * settings.seeds
    summary = {kind: scores.summary(values) | {"bytes": sizes[kind]} for kind, values in columns.items()}
    device = jax.devices()[0]
    print(f"PPO on {settings.env}, {settings.seeds} seeds of {settings.total_steps:,} steps, on {device.device_kind}")
    print(
        f"{'':12s} {'greedy return, IQM [95 %]':>28s} {'bytes of its policy':>20s} {'steps/s':>9s}  log-probability gap"
    )
    for kind, line in summary.items():
        low, high = line["ci95"]
        interval = f"{line['iqm']:.1f} [{low:.1f}, {high:.1f}]" if line["iqm"] is not None else "none"
        print(f"{kind:12s} {interval:>28s} {line['bytes']:>20,}", end="")
        if kind in found:
            line["steps_per_second"] = total / float(found[kind]["seconds"])
            line["gap"] = {"mean": found[kind]["gap"][:, 0].mean(), "largest": found[kind]["gap"][:, 1].max()}
            gap = f"mean {line['gap']['mean']:.1e}, largest {line['gap']['largest']:.1e}"
            print(f" {line['steps_per_second']:9,.0f}  {gap}")
        else:
            line["agreement"] = found["float32"]["int8 agreement"].mean()
            states = STEPS * settings.eval_episodes
            print(f"  the same greedy action in {100 * line['agreement']:.2f} % of {states} states a seed")
    if device.platform == "cpu":
        print("On a CPU nothing but float32 is computed directly: smaller numbers save memory there, and cost time.")
    picture(found, folder.directory / "precision.png", title=f"PPO on {settings.env}, {settings.seeds} seeds")
    folder.finish(
        {f"{name} of {kind}": value for kind, one in found.items() for name, value in one.items()},
        {"agent": "ppo", "env": settings.env, "seeds": settings.seeds, "precisions": summary},
        ["precision.png"],
    )


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
