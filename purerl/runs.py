"""What a script with one agent does: train, save on the way, go on, and leave a run directory."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purerl import checkpoint, cli, distributed, driver, envs, export, folders, plots, reports, results
from purerl.base import Spec
from purerl.folders import CHECKPOINTS
from purerl.interrupts import Interrupt, Stopped
from purerl.metrics import Progress
from purerl.spread import Spread


def run(
    settings: cli.Settings, phases: Callable[[Spec], Sequence[driver.Phase]], *, agent: str, hypers: Any
) -> results.Result:
    """Train `settings.seeds` runs of the agents that `phases` makes for the environment, and write the run directory.

    Prints what it does; returns what it wrote. Raises cli.BadInput for what cannot be run, before anything is trained;
    Stopped if it was asked to stop, once it is saved; cli.Failed if all seeds diverge, or nothing can be written.
    """
    with cli.bad_input():
        cli.require_sensible(hypers)
        spreading = cli.spread_of(settings, settings.seeds)
        _require_mesh(settings, spreading)
        env = cli.environments(settings)
        eval_env = envs.make(settings.env, settings.eval_episodes, observation_dtype=settings.observation_dtype)
        env_params = cli.env_params_of(env, settings.env_params)
        plan = phases(env.spec)
        cli.require_fitting(plan, env, hypers, settings.length, spreading.layout)
        settings = cli.effective(settings, env_params, sum(phase.steps for phase in plan))
        directory = Path(distributed.from_first(lambda: str(cli.directory_of(settings, agent, settings.env))))
        described = dataclasses.asdict(settings) | {"agent": agent, "numbers": hypers}
        del described["resume"]
        folder = _opened(directory, described, resume=settings.resume)
        if folder.lock is None:
            print(f"{directory} holds this run, and it is finished")
            return results.load_run(directory)
    seeds = f"{settings.seeds} seed{'s' * (settings.seeds > 1)}"
    where = f"; {spreading}" if settings.seeds > 1 or settings.mesh else ""
    print(f"{agent} on {settings.env}, {seeds} of {settings.total_steps:,} steps{where}", flush=True)
    before = checkpoint.steps(directory / CHECKPOINTS)
    if settings.resume:
        print(f"goes on after {before[-1]:,} steps" if before else "begins: nothing is saved to go on from", flush=True)
    with folder.lock:
        with _progress(settings, f"{agent} {settings.env}") as progress:
            judge = eval_env if settings.eval_every else None
            outcome = _drive(settings, plan, env, hypers, env_params, judge, progress, spreading, directory)
        _require_end(outcome, settings, directory)
        states = distributed.on_host(outcome.runs.agent)

        def write() -> None:
            _save_policy(directory, plan[-1].agent, states, env, hypers, env_params, agent)
            _write(outcome, settings, folder, agent, hypers)

        try:
            with Interrupt("the results are written"):
                distributed.from_first(write)
        except OSError as error:
            raise cli.Failed(f"the results could not be written: {error}") from error
    return results.load_run(directory)


def _require_mesh(settings: cli.Settings, spreading: Spread) -> None:
    if settings.mesh is None:
        cli.require_one_process("a run without --mesh would be done by each")
    elif settings.seeds % spreading.shares:
        by = spreading.shares
        raise ValueError(f"seeds is {settings.seeds} and mesh is {settings.mesh}; it takes a multiple of {by}")


def _opened(directory: Path, description: dict[str, Any], *, resume: str | None) -> folders.Folder:
    """Return the folder, which the first process opens, and holds for all; the others have nothing to lock."""
    own: list[folders.Folder] = []

    def is_finished() -> bool:
        own.append(folders.opened(directory, description, resume=resume))
        return own[0].lock is None

    finished = distributed.from_first(is_finished)
    return own[0] if own else folders.Folder(directory, description, None if finished else io.BytesIO())


def _progress(settings: cli.Settings, description: str) -> Any:
    if not distributed.is_first():
        return contextlib.nullcontext()
    return Progress(settings.total_steps * settings.seeds, description=description)


def _require_end(outcome: driver.Outcome, settings: cli.Settings, directory: Path) -> None:
    """Raise Stopped or cli.Failed for runs that did not come to their end."""
    steps = int(outcome.metrics["environment_steps"][0, -1])
    if outcome.interrupted:
        raise Stopped(f"stopped after {steps:,} of {settings.total_steps:,} steps", directory)
    if outcome.diverged.all():
        iterations = [at // (settings.num_envs * settings.length) for at in outcome.diverged_at]
        kept = checkpoint.steps(directory / CHECKPOINTS)
        last = f"the last good checkpoint is that of step {kept[-1]:,}, and" if kept else "there is no checkpoint;"
        where = f"--resume {directory}" if kept else "this command"
        which = "the seed" if settings.seeds == 1 else f"each of the {settings.seeds} seeds"
        how = f"{last} {where} with --debug-nans names the operation"
        if settings.debug_nans:
            how = "no operation made a NaN, so that something is infinite"
        raise cli.Failed(f"{which} diverged, no longer finite after iteration {', '.join(map(str, iterations))}; {how}")


def _save_policy(directory, agent, states, env, hypers, env_params, name) -> None:
    try:
        export.save_policy(
            directory / export.POLICY,
            agent,
            states,
            env,
            hypers,
            env_params=env_params,
            runs=len(jax.tree.leaves(states)[0]),
            name=name,
        )
    except Exception as error:  # whatever it is, what was learned and measured is not lost for it
        print(f"no policy is saved: {error}")


def _write(outcome, settings, folder, agent, hypers) -> None:
    directory = folder.path
    summary = reports.summarise(outcome, agent=agent, env=settings.env, hypers=hypers)
    metrics = outcome.metrics
    if settings.eval_every:
        steps = np.broadcast_to(outcome.evaluation_steps, outcome.evaluation_returns.shape[:2])
        metrics = metrics | {"evaluation_steps": steps, "evaluation_return": outcome.evaluation_returns}
    plots.learning_curve(
        directory / "learning_curve.png",
        metrics["environment_steps"][0],
        metrics["episode_return"],
        title=f"{agent} on {settings.env}",
        evaluation=(outcome.evaluation_steps, outcome.evaluation_returns.mean(axis=2)) if settings.eval_every else None,
    )
    results.write(directory, settings=folder.description, metrics=metrics, summary=summary)
    folder.finish()
    reports.show(summary, directory)


def _drive(settings, plan, env, hypers, env_params, eval_env, progress, spreading, directory) -> driver.Outcome:
    try:
        with checkpoint.Checkpoints(directory / CHECKPOINTS) as checkpoints:
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
                memory=cli.memory_of(settings),
                checkpoints=checkpoints,
                checkpoint_every=settings.checkpoint_every,
                debug_nans=settings.debug_nans,
            )
    except (MemoryError, checkpoint.Unfit) as error:
        rows = f"log_every is {settings.log_every}: so many rows of metrics do not fit into memory"
        raise cli.BadInput(str(error) or rows) from error  # Python itself says nothing
    except OSError as error:
        raise cli.Failed(str(error)) from error
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        raise cli.BadInput(
            f"this does not fit into memory: seeds {settings.seeds}, num_envs {settings.num_envs}, and what the agent "
            "keeps (a replay's capacity, a batch) take too much"
        ) from error
