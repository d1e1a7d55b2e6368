"""What every experiment script shares: the flags, the run, and the run directory it leaves."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar

import jax
import numpy as np
import tyro

from purerl import distributed, sharding, spread

with contextlib.suppress(RuntimeError):  # whoever imports this in the midst of something has decided already
    spread.use_all_cores()  # before gymnax is imported, and starts jax
try:
    if distributed.start() and not distributed.is_first():
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")  # of several processes one speaks
except ValueError as error:  # of the environment's variables
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2) from None

from purerl import checks, driver, envs, folders, loop, optimizers, results
from purerl.base import cast_hypers
from purerl.interrupts import Stopped

AnySettings = TypeVar("AnySettings")
HypersT = TypeVar("HypersT", bound=optimizers.Hypers)
SettingsT = TypeVar("SettingsT", bound="Settings")
ObservationDtype = Literal["bool", "uint8", "bfloat16"] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """The flags that all scripts have."""

    out: Path | None = None  # run directory; runs/<script>/<env>/<time> if not given
    resume: str | None = None  # run directory to go on in, or auto: in that of --out if something is there, else begin

    def __post_init__(self) -> None:
        if self.resume == "auto" and self.out is None:
            raise ValueError("resume is auto and out is not given; auto goes on in the folder that out names")
        if self.resume not in (None, "auto") and self.out not in (None, Path(self.resume)):
            raise ValueError(f"resume is {self.resume} and out is {self.out}; a run goes on where it is")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Place):
    """The flags that all scripts that train one agent have."""

    env: str  # name of an environment that gymnax knows
    num_envs: int = 1  # environments stepped together
    length: int = 1  # steps that each of them takes between updates
    # What observations are kept in: bool for MinAtar's pictures; bfloat16 rounds floats to eight bits.
    observation_dtype: ObservationDtype = None
    total_steps: int = 100_000  # environment steps per seed
    seeds: int = 1  # independent runs, compiled once
    seed: int = 0  # what all keys are made of
    eval_every: int | None = None  # environment steps between evaluations; a tenth of all if not given, 0 for none
    eval_episodes: int = 20  # episodes per evaluation, played greedily
    eval_max_steps: int = 2_500  # steps at which such an episode is cut off, should the environment not end it before
    log_every: int | None = None  # environment steps per row of metrics; a hundredth of all if not given
    stop_at_return: float | None = None  # end early once the mean over seeds of the latest evaluation reaches this
    devices: int | None = None  # over which runs are spread; all there are if not given
    together: int | None = None  # runs that go together on a device; 1 on a CPU if not given, as many as fit elsewhere
    mesh: str | None = None  # devices over which each run is split, as data=4,model=2; each has one if not given
    # Of environments, within which batches are drawn: results depend on it, and not on the mesh; its data if not given.
    groups: int | None = None
    memory: float | None = None  # GiB that runs may take; what is free if not given
    checkpoint_every: int | None = None  # environment steps between checkpoints; 10 minutes if not given, 0 for none
    debug_nans: bool = False  # end at the operation that makes the first NaN, and name it; slow
    # What of the environment's parameters to change, by name: --env-params.<name>, or from Python a dict.
    env_params: tyro.conf.Suppress[dict[str, Any] | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        least = {
            "num_envs": 1,
            "length": 1,
            "total_steps": 1,
            "seeds": 1,
            "seed": 0,
            "eval_episodes": 1,
            "eval_max_steps": 1,
        }
        for name, at_least in (least | {"log_every": 1, "eval_every": 0, "checkpoint_every": 0}).items():
            value = getattr(self, name)
            if value is None and name in ("log_every", "eval_every", "checkpoint_every"):
                continue
            # Axes of arrays and lengths of loops are counted in 32 bits, one of them for the sign.
            bits = 31 if name in ("num_envs", "length", "eval_episodes", "eval_max_steps") else 32
            if not isinstance(value, int) or not at_least <= value < 2**bits:
                raise ValueError(f"{name} is {value!r}; it takes a whole number from {at_least} to 2**{bits} - 1")
        require_mesh(self)
        if self.memory is not None and not 0 < self.memory < np.inf:
            raise ValueError(f"memory is {self.memory}; it takes a positive number of GiB")
        if self.stop_at_return is not None and not np.isfinite(self.stop_at_return):
            raise ValueError(f"stop_at_return is {self.stop_at_return}; it takes the return at which to stop")


def require_mesh(settings: Any) -> None:
    """Raise a ValueError for settings whose `mesh`, `groups` and `num_envs` do not go together."""
    sizes = {} if settings.mesh is None else sharding.sizes_of(settings.mesh)
    if settings.groups is not None:
        checks.require_count("groups", settings.groups)
    groups, data = groups_of(settings), sizes.get(sharding.DATA, 1)
    if groups % data:
        raise ValueError(f"groups is {groups} and mesh is {settings.mesh}; it takes a multiple of {data}")
    if settings.num_envs % groups:
        given = f"groups is {groups}" if settings.groups else f"mesh is {settings.mesh}"
        raise ValueError(f"num_envs is {settings.num_envs} and {given}; it takes a multiple of {groups}")


class BadInput(ValueError):
    """What was asked for cannot be run; the message says which argument, what it got and what it takes."""


class Failed(RuntimeError):
    """What was asked for began, and could not be done; the message says why, and what is left."""


@contextlib.contextmanager
def bad_input() -> Iterator[None]:
    """Turn what the library raises of an input within into BadInput."""
    try:
        yield
    except (ValueError, TypeError, OSError, OverflowError, MemoryError) as error:
        raise BadInput(str(error)) from error


def start(main: Callable[[AnySettings], Any], settings: type[AnySettings]) -> None:
    """Run `main` with the settings of the command line; bad input ends in one sentence and exit status 2.

    A failure on the way is one sentence and status 1, and a run that was asked to stop says how to go on, status 0.

    Programs are kept compiled in ~/.cache/purerl (or where JAX_COMPILATION_CACHE_DIR says), for the next time.
    """
    _keep_programs()
    try:
        main(parse(settings))
    except (BadInput, results.Damaged, MemoryError) as error:
        _end(2, f"error: {str(error) or 'there is not enough memory'}")
    except (Failed, FloatingPointError, OSError, sqlite3.Error) as error:  # of files: full disks, missing rights
        _end(1, f"error: {error}")
    except Stopped as stop:
        how = "go on with" if distributed.alone() else "go on, in as many processes or others, with"
        print(f"{stop}; {how}\n  {_again(stop.directory)}")
    except KeyboardInterrupt:
        _end(130, "stopped by Ctrl-C")


def _end(status: int, message: str) -> NoReturn:
    """End with a message; of several processes also the others, which may not know why."""
    if distributed.alone():
        print(message, file=sys.stderr)
        raise SystemExit(status)
    own = "" if distributed.is_first() else f"process {jax.process_index()}: "
    print(f"{own}{message}", file=sys.stderr)
    distributed.leave(status)


def _again(directory: Path) -> str:
    """Return the command line that goes on in a directory, made of the one that this process was started with."""
    given, kept = iter(sys.argv[1:]), []
    for argument in given:
        if argument in ("--out", "--resume"):
            next(given, None)
        elif not argument.startswith(("--out=", "--resume=")):
            kept.append(argument)
    return shlex.join(["python", sys.argv[0], *kept, "--resume", str(directory)])


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


def directory_of(settings: Place, script: str, env: str, *, held: str = results.SETTINGS) -> Path:
    """Return the folder that the settings ask for, or one of its own.

    Raises FileNotFoundError for one to go on in that holds nothing of the pattern `held`.
    """
    return folders.to_go_on_in(settings.resume, held=held) or settings.out or results.default_directory(script, env)


def annealed(settings: Settings, hypers: HypersT) -> HypersT:
    """Return `hypers` with a `learning_rate_horizon` of 0 replaced by the number of updates of the whole run."""
    if hypers.learning_rate_horizon != 0:
        return hypers
    updates = settings.total_steps / (settings.num_envs * settings.length)
    return dataclasses.replace(hypers, learning_rate_horizon=updates)


def require_sensible(hypers: Any) -> None:
    """Raise a ValueError that names the first of `hypers` that is not finite, or can only be a mistake."""
    for name, leaf in vars(cast_hypers(hypers)).items():
        checks.require_in_range("hypers", name, float(str(np.float32(leaf))))  # in the shortest decimals


def spread_of(settings: Settings, runs: int) -> spread.Spread:
    """Return how to spread so many runs: as the settings say, and otherwise as suits the devices."""
    if settings.mesh is None:
        return spread.choose(runs, devices=1 if settings.debug_nans else settings.devices, together=settings.together)
    if settings.debug_nans:
        raise ValueError(f"debug_nans is True and mesh is {settings.mesh}; it looks for them on one device")
    return spread.choose(runs, devices=settings.devices, together=settings.together, layout=layout_of(settings))


def layout_of(settings: Any) -> sharding.Layout | None:
    """Return how each run is split over devices, as the settings say: None if it has one."""
    if settings.mesh is None:
        return None
    return sharding.layout(sharding.mesh(**sharding.sizes_of(settings.mesh)))


def groups_of(settings: Any) -> int:
    """Return how many groups of environments there are: as the settings say, or as many as lie apart."""
    if settings.groups is not None or settings.mesh is None:
        return settings.groups or 1
    return sharding.sizes_of(settings.mesh).get(sharding.DATA, 1)


def environments(settings: Settings) -> envs.Env:
    """Return the environments to learn in that the settings ask for."""
    dtype = settings.observation_dtype
    return envs.make(settings.env, settings.num_envs, observation_dtype=dtype, groups=groups_of(settings))


def require_one_process(why: str) -> None:
    """Raise a ValueError if there are several, and say why what is asked for takes one."""
    if not distributed.alone():
        raise ValueError(f"there are {jax.process_count()} processes; {why}")


def memory_of(settings: Settings) -> int | None:
    """Return how many bytes runs may take: as the settings say, or None, which is what is free."""
    return None if settings.memory is None else int(settings.memory * 2**30)


def require_fitting(
    plan: Sequence[driver.Phase],
    env: envs.Env,
    hypers: Any,
    length: int,
    layout: sharding.Layout | None = None,
) -> None:
    """Let every agent see, in shapes alone, what it will be handed: a ValueError for what does not suit it."""
    for phase in plan:
        jax.eval_shape(
            lambda key, agent=phase.agent: loop.train(
                key, agent, env, hypers, iterations=1, length=length, layout=layout
            ),
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
        groups=groups_of(settings),
        eval_every=eval_every,
        log_every=min(log_every, eval_every or log_every),
        eval_max_steps=min(settings.eval_max_steps, limit),
        env_params=_scalars(env_params),
    )


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
        if not np.isfinite(value).all():
            raise ValueError(f"env_params.{name} is {value!r}; {env.name} takes finite numbers")
        arrays[name] = np.asarray(value).astype(own.dtype)
        if arrays[name].shape != own.shape or not np.isclose(arrays[name], value).all():
            kind = "a whole number" if own.dtype.kind == "i" else f"{own.dtype} of shape {own.shape}"
            raise ValueError(f"env_params.{name} is {value!r}; {env.name} takes {kind}")
    return dataclasses.replace(env.params, **arrays)
