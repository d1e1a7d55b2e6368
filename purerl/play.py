"""Play what was learned: whole episodes of a saved policy, acted greedily, their returns, and a GIF of one.

    python -m purerl.play RUN_DIR [--episodes 100] [--seed 0] [--run I] [--max-steps N] [--gif PATH|none]

RUN_DIR is a run directory that holds policy.zip, or such a file.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Key, PyTree

# cli comes first: it sees to it that jax uses all cores.
from purerl import cli, driver, envs, evaluate, export, results, rollout, scores
from purerl.checks import make_folder, require_count
from purerl.policies import Policy, place_of, spaces

FRAMES = 500  # steps that a GIF shows
STEPS = 10_000  # at which an episode is cut off, unless a flag or the environment's own clock says otherwise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags of the program."""

    run_dir: tyro.conf.Positional[Path]  # a run directory, or a policy's file
    episodes: int = 100  # played by each run
    seed: int = 0  # what all keys are made of
    run: int | None = None  # play this run (seed) alone, from 0 on; all if not given
    max_steps: int | None = (
        None  # steps at which an episode is cut off; 10,000, or where the environment's clock ends it
    )
    gif: str | None = (
        None  # where to draw the episode; episode.gif in the run directory if not given, and none for none
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Played:
    """What was played: R runs, E episodes each."""

    runs: list[int]  # which of the file's
    episode_return: np.ndarray  # float32 [R, E]
    episode_length: np.ndarray  # int32 [R, E]
    finished: np.ndarray  # bool [R, E]: False where the step cap came first
    diverged: np.ndarray  # bool [R]: whether the policy holds a NaN
    gif: Path | None  # what was drawn, if anything was


def main(settings: Settings) -> Played:
    """Play, print the returns, draw an episode. Raises cli.BadInput for what cannot be read, made or played."""
    with cli.bad_input():
        require_count("episodes", settings.episodes)
        require_count("seed", settings.seed, least=0)
        driver.seed_keys(settings.seed, 1)  # which takes no more than 32 bits
        file = settings.run_dir / export.POLICY if settings.run_dir.is_dir() else settings.run_dir
        one = settings.run
        policies = export.load_policies(file) if one is None else (export.load_policy(file, one),)
        env, params = _environment(policies[0], settings.episodes)
        if settings.max_steps is not None:
            require_count("max_steps", settings.max_steps)
        target = None if settings.gif == "none" else _target(settings.gif, file)
        key = jax.random.key(settings.seed, impl=policies[0].key_type)
    saved = ", ".join(f"{name} {policies[0].versions[name]}" for name in ("purerl", "jax"))
    print(f"{policies[0].name} on {env.name}, saved by {saved}: {settings.episodes} greedy episodes a run", flush=True)
    steps = settings.max_steps or min(STEPS, int(getattr(params, "max_steps_in_episode", STEPS)))
    played = _played(key, policies, env, params, steps)
    _show(played, steps)
    if target is None:
        return played
    return dataclasses.replace(played, gif=_drawn(key, policies[0], params, min(steps, FRAMES), target))


def _target(gif: str | None, file: Path) -> Path:
    """Return the file to draw into, and make its folder: an OSError is told before anything is played."""
    target = file.parent / "episode.gif" if gif is None else Path(gif)
    if target.is_dir():
        raise IsADirectoryError(f"gif is {target}, which is a folder; it takes a file to draw into, or none")
    make_folder(target.parent, name="gif")
    return target


def _environment(policy: Policy, num_envs: int, *, restart: bool = True) -> tuple[envs.Env, Any]:
    """Return the environment that a policy was learned in, and its numbers there; ValueError if it is another now."""
    dtype = None
    env = envs.make(policy.env, num_envs, restart=restart)
    seen = spaces(env.spec.observation)
    if len(seen) == len(policy.observation) == 1 and seen[0].dtype != policy.observation[0].dtype:
        dtype = policy.observation[0].dtype
        env = envs.make(policy.env, num_envs, observation_dtype=dtype, restart=restart)
    for what, takes, space in (
        ("observations", policy.observation, env.spec.observation),
        ("actions", policy.action, env.spec.action),
    ):
        if spaces(space) != takes:
            raise ValueError(f"{policy.env} has {what} {space}; the policy was saved for {_plain(takes)}")
    named, tree = jax.tree_util.tree_flatten_with_path(env.params)
    own = {place_of("", place): leaf for place, leaf in named}
    if list(own) != list(policy.env_params):
        raise ValueError(f"{policy.env} has numbers {list(own)}; the policy was saved with {list(policy.env_params)}")
    return env, rollout.cast_params(env, jax.tree.unflatten(tree, policy.env_params.values()))


def _plain(parts: Any) -> str:
    return ", ".join(
        f"{part.dtype} of shape {part.shape}" + f" below {part.values}" * bool(part.values) for part in parts
    )


def _played(key: Key[Array, ""], policies: tuple[Policy, ...], env: envs.Env, params: PyTree, steps: int) -> Played:
    """Play each run's episodes, with the same keys and one program."""
    agent = policies[0].agent()  # its programs are those of all runs, the state makes the difference

    @jax.jit
    def play(key, arrays, params):
        return evaluate.evaluate(key, agent, arrays, env, (), max_steps=steps, env_params=params)

    found = [jax.tree.map(np.asarray, play(key, policy.arrays, params)) for policy in policies]
    return Played(
        runs=[policy.run for policy in policies],
        episode_return=np.stack([each.episode_return for each in found]),
        episode_length=np.stack([each.episode_length for each in found]),
        finished=np.stack([each.finished for each in found]),
        diverged=np.array([_has_nan(policy) for policy in policies]),
        gif=None,
    )


def _has_nan(policy: Policy) -> bool:
    inexact = [leaf for leaf in policy.arrays.values() if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return any(bool(jnp.isnan(leaf).any()) for leaf in inexact)


def _show(played: Played, steps: int) -> None:
    """Print the mean return of each run and of all, with intervals over episodes and over runs."""
    for run, returns, diverged in zip(played.runs, played.episode_return, played.diverged, strict=True):
        print(f"run {run}: {_mean(returns, 'episodes')}{'; DIVERGED: it holds NaN' * bool(diverged)}")
    sound = played.episode_return[~played.diverged].mean(axis=1)
    if len(played.runs) > 1 and len(sound):
        print(f"{len(sound)} run{'s' * (len(sound) > 1)}: {_mean(sound, 'runs')}")
    cut = int((~played.finished).sum())
    if cut:
        print(
            f"{cut} of {played.finished.size} episodes were cut off after {steps:,} steps, and count with what they had"
        )


def _mean(values: np.ndarray, of: str) -> str:
    if len(values) < 2 or not np.isfinite(values).all():
        return f"mean return {values.mean():.2f}"
    low, high = scores.bootstrap_interval(values, np.mean)
    return f"mean return {values.mean():.2f}, 95 % interval over {of} {low:.2f} to {high:.2f}"


# --- the GIF --------------------------------------------------------------------------------------------------------


def _drawn(key: Key[Array, ""], policy: Policy, params: PyTree, steps: int, target: Path) -> Path | None:
    """Draw an episode, or its first steps, into a file; say where, or why not."""
    environment = envs.create(policy.env)
    if not envs.can_be_drawn(environment):
        print(f"no GIF: {policy.env} cannot be drawn")
        return None
    states, returns, ended = _episode(key, policy, params, steps)
    with cli.bad_input():
        results.replace_file(target, envs.animate(environment, params, states, returns))
    done = f"return {returns[-1]:,.2f} in {len(returns) - 1:,} step{'s' * (len(returns) != 2)}"
    print(f"{target}: an episode of run {policy.run}{'' if ended else ' (its beginning)'}, {done}")
    return target


def _episode(key: Key[Array, ""], policy: Policy, params: PyTree, steps: int) -> tuple[PyTree, np.ndarray, bool]:
    """Return the states of an episode's first `steps` steps [T + 1, ...], the returns up to each, whether it ended."""
    env, _ = _environment(policy, 1, restart=False)
    agent = policy.agent()

    def step(carry, key):
        observation, state, ended = carry
        act_key, step_key = jax.random.split(key)
        action, _ = agent.act(act_key, policy.arrays, (), observation, (), greedy=True)
        following, successor, reward, terminated, truncated, _ = env.step(step_key, state, action, params)
        # What comes after the end is computed, and left out below.
        return (following, successor, ended | terminated | truncated), (successor, reward, ended)

    @jax.jit
    def play(key):
        start_key, step_key = jax.random.split(key)
        observation, state = env.reset(start_key, params)
        carry = observation, state, jnp.zeros(1, bool)
        (_, _, ended), (states, rewards, before) = jax.lax.scan(step, carry, jax.random.split(step_key, steps))
        states = jax.tree.map(lambda first, others: jnp.concatenate([first[None], others])[:, 0], state, states)
        return states, rewards[:, 0], ~before[:, 0], ended[0]

    states, rewards, counted, ended = jax.tree.map(np.asarray, play(key))
    length = int(counted.sum())
    returns = np.concatenate([[0.0], np.cumsum(rewards[:length], dtype=np.float64)])
    return jax.tree.map(lambda leaf: leaf[: length + 1], states), returns, bool(ended)


if __name__ == "__main__":
    import matplotlib

    matplotlib.use("Agg")  # gymnax draws by way of pyplot, which might open a window
    cli.start(main, Settings)
