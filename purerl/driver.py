"""The host's side of a run: compile once, advance chunk by chunk, watch, evaluate, stop."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Key, PyTree

from purerl import evaluate, loop, rollout
from purerl import spread as spreading
from purerl.base import Agent, cast_hypers
from purerl.loop import Phase
from purerl.metrics import Progress
from purerl.spread import Spread


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What runs left; S seeds, R rows of metrics, E evaluations."""

    runs: loop.Run  # leading axis [S]
    metrics: dict[str, np.ndarray]  # [S, R]: environment_steps, seconds, the episodes' and the agent's metrics
    diverged: np.ndarray  # bool [S]: whether the agent's state holds a NaN
    interrupted: bool  # whether Ctrl-C ended the runs
    evaluation_steps: np.ndarray  # int64 [E]: environment steps done before each evaluation
    evaluation_returns: np.ndarray  # float32 [S, E, episodes]
    evaluation_finished: np.ndarray  # bool [S, E, episodes]: False where the step cap came before the episode's end
    compile_seconds: float
    run_seconds: float  # evaluations included

    def run(self, seed: int) -> loop.Run:
        """Return the run of one seed."""
        return jax.tree.map(lambda leaf: leaf[seed], self.runs)


def seed_keys(seed: int, seeds: int) -> Key[Array, " S"]:
    """Return one key per run; that of run i depends on `seed` and i alone, not on how many runs there are.

    Raises ValueError for a seed that is not a whole number of 32 bits: larger ones would repeat smaller ones.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it takes a whole number from 0 to 2**32 - 1")
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(seeds))


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
    spread: Spread | None = None,
    memory: int | None = None,
) -> Outcome:
    """Train one run per key with one compilation, in chunks of about `log_every` steps: a row of metrics for each.

    Runs are spread over the devices as `spread` says, by default as suits them (`spread.choose`).
    Every `eval_every` steps, and at the end, the greedy policy plays one episode in each environment of `eval_env`.
    `stop_at_return` ends all runs once the mean over them of the latest evaluation (without evaluations: of the latest
    chunk's episodes) has reached it; so does Ctrl-C. Counts are environment steps per seed, and a phase's are rounded
    up to whole iterations of `length` x `num_envs`. What a chunk measured is read while the device works on the next
    one: reading costs nothing, and a stop comes one chunk late. Raises ValueError for phases without steps, and
    MemoryError if what the runs keep, replay buffers included, is more than `memory` bytes (without it: than is free).
    """
    if not phases or any(phase.steps < 1 for phase in phases):
        raise ValueError(f"phases take {[phase.steps for phase in phases]} steps; each takes at least 1")
    hypers = cast_hypers(hypers)
    params = rollout.cast_params(env, env_params)
    per_iteration = length * env.spec.num_envs
    chunks = list(_chunks(phases, per_iteration, max(1, round(log_every / per_iteration))))

    began = time.perf_counter()
    spread = spreading.choose(len(keys)) if spread is None else spread
    hypers, params = spreading.replicate(spread, (hypers, params))
    pairs = spreading.place(spread, spreading.padded(spread, jax.vmap(jax.random.split)(keys)))
    eval_keys = pairs[:, 1]
    begin = _begin(phases[0].agent, env, spread)
    spreading.require_room(jax.eval_shape(begin, pairs[:, 0], hypers, params), spread, memory)
    runs = begin(pairs[:, 0], hypers, params)
    lowered: dict[Any, Any] = {
        chunk: _advance(phases[chunk[0]].agent, env, chunk[1], length, spread).lower(runs, hypers, params)
        for chunk in dict.fromkeys(chunks)
    }
    if eval_env is not None:
        judge = _judge(phases[-1].agent, eval_env, eval_max_steps, spread)
        lowered["judge"] = judge.lower((eval_keys, runs.agent), _number(spread, 0), hypers, params)
    with ThreadPoolExecutor() as pool:
        programs = dict(zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True))
    compiled = time.perf_counter()

    def evaluated(number: int) -> Any:
        return programs["judge"]((eval_keys, runs.agent), _number(spread, number), hypers, params)

    judged = eval_env is not None and eval_every > 0
    history = _History(seeds=len(keys), began=compiled, judged=judged, progress=progress)
    unread: list[tuple[int, Any, Any]] = []  # what was dispatched last and is not read yet: one chunk
    steps = last_evaluated = 0
    with _Interrupt() as interrupt:
        for chunk in chunks:
            # The runs are donated to their successors, so nothing is copied.
            runs, metrics = programs[chunk](runs, hypers, params)
            steps += chunk[1] * per_iteration
            verdict = None
            if judged and steps // eval_every > last_evaluated // eval_every:
                last_evaluated = steps
                verdict = evaluated(steps // eval_every)
            unread.append((steps, metrics, verdict))
            latest = history.read(*unread.pop(0)) if len(unread) > 1 else None
            if interrupt.asked or (stop_at_return is not None and latest is not None and latest >= stop_at_return):
                break
        history.read(*unread.pop())
        if eval_env is not None and last_evaluated != steps:
            history.read(steps, None, evaluated(-1))  # a number that no other evaluation has
    returns, finished = history.evaluated(eval_env.spec.num_envs if eval_env is not None else 0)
    if len(pairs) > len(keys):
        runs = jax.tree.map(lambda leaf: leaf[: len(keys)], runs)
    return Outcome(
        runs=runs,
        metrics={name: np.stack(column, axis=1) for name, column in history.rows.items()},
        diverged=np.asarray(jax.jit(has_nan)(runs.agent)),
        interrupted=interrupt.asked,
        evaluation_steps=np.asarray([steps for steps, _ in history.evaluations], np.int64),
        evaluation_returns=returns,
        evaluation_finished=finished,
        compile_seconds=compiled - began,
        run_seconds=time.perf_counter() - compiled,
    )


def _chunks(phases: Sequence[Phase], per_iteration: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (phase, iterations) of every chunk: whole ones of `size` iterations, and what is left of a phase."""
    for number, phase in enumerate(phases):
        whole, rest = divmod(-(-phase.steps // per_iteration), size)
        yield from [(number, size)] * whole + [(number, rest)] * (rest > 0)


def _begin(agent: Agent, env: Any, spread: Spread) -> Callable[..., PyTree]:
    """Begin the runs one after another: a batched initialiser may call LAPACK, and two such calls can wait for ever."""

    def begin(key, hypers, params):
        return loop.begin(key, agent, env, hypers, env_params=params)

    return jax.jit(spreading.over_runs(begin, spread._replace(together=1)))


def _advance(agent: Agent, env: Any, iterations: int, length: int, spread: Spread) -> Any:
    def advance(run, hypers, params):
        return loop.advance(run, agent, env, hypers, iterations=iterations, length=length, env_params=params)

    def every(runs, hypers, params):
        devices = len(spread.devices)
        counts = jnp.full(devices, len(runs.key) // devices)
        return spreading.in_place(advance, spread)(counts, runs, hypers, params)

    return jax.jit(every, donate_argnums=0)


def _judge(agent: Agent, env: Any, max_steps: int, spread: Spread) -> Any:
    def judge(key_and_state, number, hypers, params):
        key, state = key_and_state
        key = jax.random.fold_in(key, number)
        return evaluate.evaluate(key, agent, state, env, hypers, max_steps=max_steps, env_params=params)

    return jax.jit(spreading.over_runs(judge, spread))


def _number(spread: Spread, number: int) -> Array:
    return spreading.replicate(spread, jnp.int32(number))


def has_nan(state: PyTree) -> Bool[Array, " S"]:
    """Return whether the agents' states, batched with leading axis [S], hold a NaN: whether these runs diverged."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    found = [jnp.any(jnp.isnan(leaf.reshape(len(leaf), -1)), axis=1) for leaf in leaves]
    return jnp.any(jnp.stack(found), axis=0) if found else jnp.zeros(len(jax.tree.leaves(state)[0]), bool)


class _Interrupt:
    """Ctrl-C asks for a stop after the chunk under way; a second one ends the program at once."""

    def __enter__(self) -> _Interrupt:
        self.asked = False
        try:
            self.former = signal.signal(signal.SIGINT, self._ask)
        except ValueError:  # not the main thread, which alone hears signals
            self.former = None
        return self

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this chunk; Ctrl-C again ends at once", file=sys.stderr, flush=True)

    def __exit__(self, *_: Any) -> None:
        if self.former is not None:
            signal.signal(signal.SIGINT, self.former)


class _History:
    """What was measured so far, on the host."""

    def __init__(self, seeds: int, began: float, judged: bool, progress: Progress | None):
        self.seeds, self.began, self.judged, self.progress = seeds, began, judged, progress
        self.rows: dict[str, list[np.ndarray]] = {}
        self.evaluations: list[tuple[int, evaluate.Evaluation]] = []

    def read(self, steps: int, metrics: Any, verdict: Any) -> float | None:
        """Fetch a chunk's metrics and evaluation, waiting for them; return the mean return that may stop the runs."""
        shown = evaluation = None
        if metrics is not None:
            row = {name: np.asarray(column)[: self.seeds, 0] for name, column in metrics.items()}
            with np.errstate(invalid="ignore"):  # no episode ended: not a number
                for name in ("episode_return", "episode_length"):
                    row[name] = row[name] / row["episodes"]
            known = row["episode_return"][row["episodes"] > 0]
            shown = float(np.mean(known)) if known.size else None
            row["environment_steps"] = np.full(self.seeds, steps, np.int64)
            row["seconds"] = np.full(self.seeds, time.perf_counter() - self.began)
            for name, values in row.items():
                self.rows.setdefault(name, []).append(values)
        if verdict is not None:
            together = jax.tree.map(lambda leaf: np.asarray(leaf)[: self.seeds], verdict)
            self.evaluations.append((steps, together))
            evaluation = float(np.mean(together.episode_return))
        if self.progress:
            self.progress.update(steps * self.seeds, episode_return=shown, evaluation=evaluation)
        return evaluation if self.judged else shown

    def evaluated(self, episodes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the returns of all evaluations and whether each episode was finished: [S, E, episodes]."""
        if not self.evaluations:
            return np.zeros((self.seeds, 0, episodes), np.float32), np.zeros((self.seeds, 0, episodes), bool)
        verdicts = [verdict for _, verdict in self.evaluations]
        return (
            np.stack([verdict.episode_return for verdict in verdicts], axis=1),
            np.stack([verdict.finished for verdict in verdicts], axis=1),
        )
