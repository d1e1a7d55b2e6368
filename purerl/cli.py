"""What every experiment script shares: the flags, the run, and the run directory it leaves."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jax
import numpy as np
import tyro

from purerl import spread

with contextlib.suppress(RuntimeError):  # whoever imports this in the midst of something has decided already
    spread.use_all_cores()  # before gymnax is imported, and starts jax

from purerl import driver, envs, loop, optimizers, plots, reports, results
from purerl.base import Spec, cast_hypers
from purerl.metrics import Progress

AnySettings = TypeVar("AnySettings")
HypersT = TypeVar("HypersT", bound=optimizers.Hypers)
SettingsT = TypeVar("SettingsT", bound="Settings")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The flags that all experiments have."""

    env: str  # name of an environment that gymnax knows
    num_envs: int = 1  # environments stepped together
    length: int = 1  # steps that each of them takes between updates
    observation_dtype: Literal["bool", "uint8"] | None = None  # what observations are kept in; bool for MinAtar's
    total_steps: int = 100_000  # environment steps per seed
    seeds: int = 1  # independent runs, compiled once
    seed: int = 0  # what all keys are made of
    eval_every: int | None = None  # environment steps between evaluations; a tenth of all if not given, 0 for none
    eval_episodes: int = 20  # episodes per evaluation, played greedily
    eval_max_steps: int = 2_500  # steps at which such an episode is cut off, should the environment not end it before
    log_every: int | None = None  # environment steps per row of metrics; a hundredth of all if not given
    stop_at_return: float | None = None  # end early once the mean over seeds of the latest evaluation reaches this
    out: Path | None = None  # run directory; runs/<agent>/<env>/<time> if not given
    devices: int | None = None  # over which runs are spread; all there are if not given
    together: int | None = None  # runs that go together on a device; 1 on a CPU if not given, as many as fit elsewhere
    memory: float | None = None  # GiB that runs may take; what is free if not given
    # What of the environment's parameters to change, by name: --env-params.<name>, or from Python a dict.
    env_params: tyro.conf.Suppress[dict[str, Any] | None] = None

    def __post_init__(self) -> None:
        least = {
            "num_envs": 1,
            "length": 1,
            "total_steps": 1,
            "seeds": 1,
            "seed": 0,
            "eval_episodes": 1,
            "eval_max_steps": 1,
        }
        for name, at_least in (least | {"log_every": 1, "eval_every": 0}).items():
            value = getattr(self, name)
            if value is None and name in ("log_every", "eval_every"):
                continue
            if not isinstance(value, int) or not at_least <= value < 2**32:
                raise ValueError(f"{name} is {value!r}; it takes a whole number from {at_least} to 2**32 - 1")
        if self.memory is not None and not 0 < self.memory < np.inf:
            raise ValueError(f"memory is {self.memory}; it takes a positive number of GiB")
        if self.stop_at_return is not None and np.isnan(self.stop_at_return):
            raise ValueError("stop_at_return is not a number; it takes the return at which to stop")


class BadInput(ValueError):
    """What was asked for cannot be run; the message says which argument, what it got and what it takes."""


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Turn what the library raises of an input within into BadInput."""
    try:
        yield
    except (ValueError, TypeError, OSError, OverflowError, MemoryError) as error:
        raise BadInput(str(error)) from error


def start(main: Callable[[AnySettings], Any], settings: type[AnySettings]) -> None:
    """Run `main` with the settings of the command line; bad input ends in one sentence and exit status 2.

    Programs are kept compiled in ~/.cache/purerl (or where JAX_COMPILATION_CACHE_DIR says), for the next time.
    """
    _keep_programs()
    try:
        main(parse(settings))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(130) from None


def _keep_programs() -> None:
    """Let jax keep what takes long to compile, unless the user's environment says something of it."""
    if not any(name in os.environ for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")):
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        jax.config.update("jax_compilation_cache_dir", str(cache / "purerl"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def parse(settings: type[AnySettings], arguments: Sequence[str] | None = None) -> AnySettings:
    """Return `settings` as the command line asks; --env-params.<name> are those of the environment that --env names.

    Dataclasses other than `Settings` have flags for their own fields alone. Raises BadInput for an unknown environment
    or a value out of range; an unknown flag ends the program (status 2).
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    fields: list[Any] = [("settings", Annotated[settings, tyro.conf.arg(name="")])]
    defaults: dict[str, Any] = {}
    try:
        if issubclass(settings, Settings):
            first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
            first.add_argument("--env", default=_default(settings, "env"))
            env = envs.make(first.parse_known_args(arguments)[0].env, 1)
            defaults = _scalars(env.params)
            # A dataclass made for this command line: every number of the environment a field, every field a flag.
            params = dataclasses.make_dataclass(
                "EnvParams",
                [(name, type(value), dataclasses.field(default=value)) for name, value in defaults.items()],
            )
            params.__doc__ = f"The numbers of {env.name}."
            fields.append(("env_params", params, dataclasses.field(default_factory=params)))
        command = dataclasses.make_dataclass("Command", fields)
        parsed = tyro.cli(command, args=arguments, description=sys.modules[settings.__module__].__doc__)
        if not defaults:
            return parsed.settings
        given = dataclasses.asdict(parsed.env_params)
        changed = {name: value for name, value in given.items() if value != defaults[name]}
        return dataclasses.replace(parsed.settings, env_params=changed or None)
    except (ValueError, OSError, OverflowError) as error:
        raise BadInput(str(error)) from error


def annealed(settings: Settings, hypers: HypersT) -> HypersT:
    """Return `hypers` with a `learning_rate_horizon` of 0 replaced by the number of updates of the whole run."""
    if hypers.learning_rate_horizon != 0:
        return hypers
    updates = settings.total_steps / (settings.num_envs * settings.length)
    return dataclasses.replace(hypers, learning_rate_horizon=updates)


def require_finite(hypers: Any) -> None:
    """Raise a ValueError that names the first of `hypers` that is not finite."""
    for name, leaf in vars(cast_hypers(hypers)).items():
        if not np.isfinite(leaf):
            raise ValueError(f"hypers.{name} is {leaf}; it takes a finite number")


def run(
    settings: Settings, phases: Callable[[Spec], Sequence[driver.Phase]], *, agent: str, hypers: Any
) -> results.Result:
    """Train `settings.seeds` runs of the agents that `phases` makes for the environment, and write the run directory.

    Prints what it does; returns what it wrote. Raises BadInput for what cannot be run, before anything is trained.
    """
    with bad_input():
        env = envs.make(settings.env, settings.num_envs, observation_dtype=settings.observation_dtype)
        eval_env = envs.make(settings.env, settings.eval_episodes, observation_dtype=settings.observation_dtype)
        env_params = env_params_of(env, settings.env_params)
        plan = phases(env.spec)
        require_finite(hypers)
        require_fitting(plan, env, hypers, settings.length)
        settings = effective(settings, env_params, sum(phase.steps for phase in plan))
        spreading = spread_of(settings, settings.seeds)
        directory = results.create(settings.out or results.default_directory(agent, settings.env))
        settings = dataclasses.replace(settings, out=directory)
    seeds = f"{settings.seeds} seed{'s' * (settings.seeds > 1)}"
    where = f"; {spreading}" if settings.seeds > 1 else ""
    print(f"{agent} on {settings.env}, {seeds} of {settings.total_steps:,} steps{where}", flush=True)
    with Progress(settings.total_steps * settings.seeds, description=f"{agent} {settings.env}") as progress:
        judge = eval_env if settings.eval_every else None
        outcome = _drive(settings, plan, env, hypers, env_params, judge, progress, spreading)
    summary = reports.summarise(outcome, agent=agent, env=settings.env, hypers=hypers)
    metrics = outcome.metrics
    if settings.eval_every:
        steps = np.broadcast_to(outcome.evaluation_steps, outcome.evaluation_returns.shape[:2])
        metrics = metrics | {"evaluation_steps": steps, "evaluation_return": outcome.evaluation_returns}
    results.write(
        directory,
        settings=dataclasses.asdict(settings) | {"agent": agent, "versions": results.versions()},
        metrics=metrics,
        summary=summary,
    )
    plots.learning_curve(
        directory / "learning_curve.png",
        metrics["environment_steps"][0],
        metrics["episode_return"],
        title=f"{agent} on {settings.env}",
        evaluation=(outcome.evaluation_steps, outcome.evaluation_returns.mean(axis=2)) if settings.eval_every else None,
    )
    if outcome.interrupted:
        print(f"stopped by Ctrl-C after {summary['total_steps']:,} of {settings.total_steps:,} steps")
    reports.show(summary, directory)
    return results.load_run(directory)


def spread_of(settings: Settings, runs: int) -> spread.Spread:
    """Return how to spread so many runs: as the settings say, and otherwise as suits the devices."""
    return spread.choose(runs, devices=settings.devices, together=settings.together)


def memory_of(settings: Settings) -> int | None:
    """Return how many bytes runs may take: as the settings say, or None, which is what is free."""
    return None if settings.memory is None else int(settings.memory * 2**30)


def require_fitting(plan: Sequence[driver.Phase], env: envs.Env, hypers: Any, length: int) -> None:
    """Let every agent see, in shapes alone, what it will be handed: a ValueError for what does not suit it."""
    for phase in plan:
        jax.eval_shape(
            lambda key, agent=phase.agent: loop.train(key, agent, env, hypers, iterations=1, length=length),
            jax.random.key(0),
        )


def effective(settings: SettingsT, env_params: Any, total: int) -> SettingsT:
    """Return the settings with what was left open filled in, and with all of the environment's numbers."""
    eval_every = max(1, total // 10) if settings.eval_every is None else settings.eval_every
    log_every = settings.log_every or max(1, total // 100)
    limit = int(getattr(env_params, "max_steps_in_episode", settings.eval_max_steps))
    if limit < 1:
        raise ValueError(f"env_params.max_steps_in_episode is {limit}; an episode takes at least 1 step")
    return dataclasses.replace(
        settings,
        eval_every=eval_every,
        log_every=min(log_every, eval_every or log_every),
        eval_max_steps=min(settings.eval_max_steps, limit),
        env_params=_scalars(env_params),
    )


def _drive(settings, plan, env, hypers, env_params, eval_env, progress, spreading) -> driver.Outcome:
    try:
        return driver.drive(
            driver.seed_keys(settings.seed, settings.seeds),
            plan,
            env,
            hypers,
            length=settings.length,
            log_every=settings.log_every,
            eval_env=eval_env,
            eval_every=settings.eval_every,
            eval_max_steps=settings.eval_max_steps,
            stop_at_return=settings.stop_at_return,
            env_params=env_params,
            progress=progress,
            spread=spreading,
            memory=memory_of(settings),
        )
    except MemoryError as error:
        raise BadInput(str(error)) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise BadInput(
            f"this does not fit into memory: seeds {settings.seeds}, num_envs {settings.num_envs}, and what the agent "
            "keeps (a replay's capacity, a batch) take too much"
        ) from error


def _default(settings: type[Settings], name: str) -> Any:
    default = next(field.default for field in dataclasses.fields(settings) if field.name == name)
    return None if default is dataclasses.MISSING else default


def _scalars(params: Any) -> dict[str, Any]:
    """Return the environment's single numbers by name, in the shortest decimals that give the same float32."""
    leaves = {name: np.asarray(leaf) for name, leaf in vars(params).items()}
    return {
        name: float(str(leaf)) if leaf.dtype == np.float32 else leaf.item()
        for name, leaf in leaves.items()
        if leaf.ndim == 0
    }


def env_params_of(env: envs.Env, changes: dict[str, Any] | None) -> Any:
    """Return the environment's parameters with `changes`, of the same dtypes: a new value is no new program."""
    arrays = {}
    for name, value in (changes or {}).items():
        if name not in vars(env.params):
            raise ValueError(f"env_params has {name}; {env.name} takes {', '.join(sorted(vars(env.params)))}")
        own = getattr(env.params, name)
        arrays[name] = np.asarray(value).astype(own.dtype)
        if arrays[name].shape != own.shape or not np.isclose(arrays[name], value).all():
            kind = "a whole number" if own.dtype.kind == "i" else f"{own.dtype} of shape {own.shape}"
            raise ValueError(f"env_params.{name} is {value!r}; {env.name} takes {kind}")
    return dataclasses.replace(env.params, **arrays)
