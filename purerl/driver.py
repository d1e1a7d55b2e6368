"""The host's side of a run: compile once, advance chunk by chunk, watch, evaluate, stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from purerl import evaluate, loop
from purerl.base import Agent, cast_hypers
from purerl.metrics import Progress


class Phase(NamedTuple):
    """A stretch of a run: this agent, for this many environment steps. Successive agents share one state."""

    agent: Agent
    steps: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left: S seeds, R rows of metrics, E evaluations."""

    run: PyTree  # loop.Run with a leading axis [S]
    metrics: dict[str, np.ndarray]  # [S, R]: environment_steps, seconds, the episodes' and the agent's metrics
    evaluation_steps: np.ndarray  # int64 [E]: environment steps done before each evaluation
    evaluation_returns: np.ndarray  # float32 [S, E, episodes]
    compile_seconds: float
    run_seconds: float  # evaluations included


def seed_keys(seed: int, seeds: int) -> Key[Array, " S"]:
    """Return one key per run; that of run i depends on `seed` and i alone, not on how many runs there are."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(seeds))


def over_seeds(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` over the leading axis of its arguments, in the way that suits the device at hand.

    On a CPU one run after another is as fast as a batch, and small loops stay small; an accelerator wants a batch.
    """
    if jax.default_backend() == "cpu":
        return lambda *batch: jax.lax.map(lambda one: function(*one), batch)
    return jax.vmap(function)


def drive(
    keys: Key[Array, " S"],
    phases: Sequence[Phase],
    env: Any,
    hypers: PyTree,
    *,
    length: int = 1,
    log_every: int,
    eval_env: Any = None,
    eval_every: int = 0,
    eval_max_steps: int = 10_000,
    stop_at_return: float | None = None,
    env_params: PyTree = None,
    progress: Progress | None = None,
) -> Outcome:
    """Train one run per key, all as one program, in chunks of about `log_every` steps that give a row of metrics each.

    Every `eval_every` steps, and at the end, the greedy policy plays one episode in each environment of `eval_env`.
    `stop_at_return` ends all runs once the mean over them of the latest evaluation (without evaluations: of the latest
    chunk's episodes) has reached it. Counts are environment steps per seed, rounded up to whole chunks. What a chunk
    measured is read while the device works on the next one: reading costs nothing, and a stop comes one chunk late.
    """
    hypers = cast_hypers(hypers)
    params = env.params if env_params is None else env_params
    iterations = max(1, round(log_every / (length * env.spec.num_envs)))
    chunk_steps = iterations * length * env.spec.num_envs
    split = jax.vmap(jax.random.split)(keys)
    run_keys, eval_keys = split[:, 0], split[:, 1]

    began = time.perf_counter()
    run = _begin(run_keys, phases[0].agent, env, hypers, params)
    programs = [_compile_advance(run, phase.agent, env, hypers, params, iterations, length) for phase in phases]
    if eval_env is not None:
        judge = _compile_evaluate(eval_keys, run, phases[-1].agent, eval_env, hypers, params, eval_max_steps)
    compiled = time.perf_counter()

    def plan() -> Iterator[tuple[int, Any]]:
        steps = 0
        for phase, program in zip(phases, programs, strict=True):
            for _ in range(-(-phase.steps // chunk_steps)):
                steps += chunk_steps
                yield steps, program

    judged = eval_env is not None and eval_every > 0
    history = _History(seeds=len(keys), began=compiled, judged=judged, progress=progress)
    unread: list[tuple[int, Any, Any]] = []  # what was dispatched last and is not read yet: one chunk
    steps = evaluated = 0
    for steps, program in plan():
        run, metrics = program(run, hypers, params)
        verdict = None
        if judged and steps // eval_every > evaluated // eval_every:
            evaluated = steps
            verdict = judge(eval_keys, jnp.int32(steps // eval_every), run.agent, hypers, params)
        unread.append((steps, metrics, verdict))
        latest = history.read(*unread.pop(0)) if len(unread) > 1 else None
        if stop_at_return is not None and latest is not None and latest >= stop_at_return:
            break
    history.read(*unread.pop())
    if eval_env is not None and evaluated != steps:
        # The last one's number is one that no other has.
        history.read(steps, None, judge(eval_keys, jnp.int32(-1), run.agent, hypers, params))
    return Outcome(
        run=run,
        metrics={name: np.stack(column, axis=1) for name, column in history.rows.items()},
        evaluation_steps=np.asarray([steps for steps, _ in history.evaluations], np.int64),
        evaluation_returns=np.stack([returns for _, returns in history.evaluations], axis=1)
        if history.evaluations
        else np.zeros((len(keys), 0, 0), np.float32),
        compile_seconds=compiled - began,
        run_seconds=time.perf_counter() - compiled,
    )


def _begin(keys: Array, agent: Agent, env: Any, hypers: PyTree, params: PyTree) -> PyTree:
    """Begin the runs one after another: a batched initialiser may call LAPACK, and two such calls can wait for ever."""

    def begin(keys, hypers, params):
        return jax.lax.map(lambda key: loop.begin(key, agent, env, hypers, env_params=params), keys)

    return jax.block_until_ready(jax.jit(begin)(keys, hypers, params))


def _compile_advance(run, agent, env, hypers, params, iterations, length):
    def advance(run, hypers, params):
        return over_seeds(
            lambda run: loop.advance(run, agent, env, hypers, iterations=iterations, length=length, env_params=params)
        )(run)

    return jax.jit(advance, donate_argnums=0).lower(run, hypers, params).compile()


def _compile_evaluate(keys, run, agent, env, hypers, params, max_steps):
    def judge(keys, number, states, hypers, params) -> Float[Array, "S episodes"]:
        def one(key, state):
            key = jax.random.fold_in(key, number)
            return evaluate.evaluate(
                key, agent, state, env, hypers, max_steps=max_steps, env_params=params
            ).episode_return

        return over_seeds(one)(keys, states)

    return jax.jit(judge).lower(keys, jnp.int32(0), run.agent, hypers, params).compile()


class _History:
    """What was measured so far, on the host."""

    def __init__(self, seeds: int, began: float, judged: bool, progress: Progress | None):
        self.seeds, self.began, self.judged, self.progress = seeds, began, judged, progress
        self.rows: dict[str, list[np.ndarray]] = {}
        self.evaluations: list[tuple[int, np.ndarray]] = []

    def read(self, steps: int, metrics: dict[str, Array] | None, verdict: Array | None) -> float | None:
        """Fetch a chunk's metrics and evaluation, waiting for them; return the mean return that may stop the runs."""
        shown = evaluation = None
        if metrics is not None:
            row = {name: np.asarray(values)[:, 0] for name, values in metrics.items()}
            with np.errstate(invalid="ignore"):  # no episode ended: not a number
                for name in ("episode_return", "episode_length"):
                    row[name] = row[name] / row["episodes"]
            row["environment_steps"] = np.full(self.seeds, steps, np.int64)
            row["seconds"] = np.full(self.seeds, time.perf_counter() - self.began)
            for name, values in row.items():
                self.rows.setdefault(name, []).append(values)
            shown = float(np.mean(row["episode_return"]))
        if verdict is not None:
            self.evaluations.append((steps, np.asarray(verdict)))
            evaluation = float(np.mean(self.evaluations[-1][1]))
        if self.progress:
            self.progress.update(steps * self.seeds, episode_return=shown, evaluation=evaluation)
        return evaluation if self.judged else shown
