"""The host's side of a run: compile once, advance chunk by chunk, watch, evaluate, stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from purerl import distributed, evaluate, guards, loop, rollout
from purerl import spread as spreading
from purerl.base import Agent, cast_hypers, require_agent, require_env, require_keys
from purerl.checkpoint import Checkpoints
from purerl.checks import is_count, require_count, require_kind, require_number
from purerl.history import History
from purerl.interrupts import Interrupt
from purerl.loop import Phase
from purerl.metrics import Progress
from purerl.spread import Spread
from purerl.store import Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """What runs left; S seeds, R rows of metrics, E evaluations."""

    runs: loop.Run  # leading axis [S]; of NumPy arrays if the devices had unequal shares
    metrics: dict[str, np.ndarray]  # [S, R]: environment_steps, seconds, the episodes' and the agent's metrics
    diverged_at: np.ndarray  # int64 [S]: environment steps after the chunk in which a seed was lost, or -1
    interrupted: bool  # whether Ctrl-C or SIGTERM ended the runs before their time
    evaluation_steps: np.ndarray  # int64 [E]: environment steps done before each evaluation
    evaluation_returns: np.ndarray  # float32 [S, E, episodes]
    evaluation_finished: np.ndarray  # bool [S, E, episodes]: False where the step cap came before the episode's end
    compile_seconds: float
    run_seconds: float  # evaluations included

    @property
    def diverged(self) -> np.ndarray:
        """Whether a metric of the agent's was not finite, or its state held a NaN: bool [S]."""
        return self.diverged_at >= 0

    def run(self, seed: int) -> loop.Run:
        """Return the run of one seed."""
        return jax.tree.map(lambda leaf: leaf[seed], self.runs)


def seed_keys(seed: int, seeds: int) -> Key[Array, " S"]:
    """Return one key per run; that of run i depends on `seed` and i alone, not on how many runs there are.

    Raises ValueError for a seed that is not a whole number of 32 bits: larger ones would repeat smaller ones.
    """
    require_count("seeds", seeds)
    if not (is_count(seed, least=0) and seed < 2**32):
        raise ValueError(f"seed is {seed!r}; it takes a whole number from 0 to 2**32 - 1")
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
    checkpoints: Checkpoints | None = None,
    checkpoint_every: int | None = None,
    debug_nans: bool = False,
) -> Outcome:
    """Train one run per key with one compilation, in chunks of about `log_every` steps: a row of metrics for each.

    Runs are spread over the devices as `spread` says, by default as suits them (`spread.choose`); with a layout in it
    each run is split over a mesh, which may be of several processes: those then call this together, with the same.
    Every `eval_every` steps, and at the end, the greedy policy plays one episode in each environment of `eval_env`.
    `stop_at_return` ends all runs once the mean over them of the latest evaluation (without evaluations: of the latest
    chunk's episodes) has reached it; so do Ctrl-C and SIGTERM, and so does the loss of all: a metric of the agent's
    that is not finite, or a NaN in its state. Counts are environment steps per seed, and a phase's are rounded up to
    whole iterations of `length` x `num_envs`. What a chunk measured is read while the device works on the next one:
    reading costs nothing, and a stop comes one chunk late.

    With `checkpoints` the runs go on from the latest one there, if there is any, to the bit as if they had never ended;
    at the end of a chunk they are saved every `checkpoint_every` steps (every ten minutes if not given, 0 for never),
    on Ctrl-C, and at the end. A save that fails is told, and tried again when the next one is due. What differs in
    numbers, settings, environment or agent is told; what is static within an agent of the same shapes is not seen.

    `debug_nans` ends the run at the first operation that makes a NaN, with a FloatingPointError that names it; on one
    device, and slow.

    Raises ValueError for phases without steps, and for checkpoints of other runs; MemoryError if what the runs keep,
    replay buffers included, is more than `memory` bytes (without it: than is free); OSError if the runs were asked to
    stop and could not be saved.
    """
    _require_phases(keys, phases)
    _require_counts(length=length, log_every=log_every, eval_every=eval_every, checkpoint_every=checkpoint_every)
    _require_kinds(eval_env, stop_at_return, memory, spread, checkpoints)
    _require_spread(spread, len(keys), debug_nans=debug_nans)
    hypers, params = cast_hypers(hypers), rollout.cast_params(env, env_params)
    per_iteration = length * env.spec.num_envs
    chunks = list(_chunks(phases, per_iteration, max(1, round(log_every / per_iteration))))
    judged = eval_env is not None and eval_every > 0
    episodes = eval_env.spec.num_envs if eval_env is not None else 0

    began = time.perf_counter()
    if spread is None or debug_nans:
        spread = spreading.choose(len(keys), devices=1 if debug_nans else None)
    store = None
    if checkpoints is not None:
        about = {"phases": [phase.steps for phase in phases], "length": length, "log_every": log_every}
        about |= {"eval_every": eval_every, "eval_max_steps": eval_max_steps, "stop_at_return": stop_at_return}
        about |= {"env": env.name, "agents": [getattr(phase.agent.act, "__qualname__", "") for phase in phases]}
        about |= {"eval_episodes": episodes}
        about |= {"groups": env.spec.groups} if env.spec.groups > 1 else {}
        given = spreading.replicate(spread, {"keys": keys, "hypers": hypers, "env_params": params})
        store = Store(checkpoints, given, about, every=checkpoint_every)
    shared = spreading.replicate(spread, (hypers, params))
    pairs = spreading.padded(spread, jax.vmap(jax.random.split)(keys))
    begin_keys, judge_keys = spreading.place(spread, (pairs[:, 0], pairs[:, 1]))
    begin = _begin(phases[0].agent, env, spread)
    shapes = jax.eval_shape(begin, begin_keys, *shared)
    spreading.require_room(shapes, spread, memory)
    places = spreading.of_runs(spread, shapes)
    history = History(len(keys), judged=judged, progress=progress)
    found = store.latest(_like(shapes, len(keys), places), history) if store else None
    if found:
        runs = distributed.put(spreading.padded(spread, found.runs), places)
        found = found._replace(runs=())  # of what they keep there is to be one copy
    else:
        runs = jax.jit(begin, out_shardings=places)(begin_keys, *shared)  # born where they are to be
    advances = {
        (number, iterations): _advance(
            phases[number].agent, env, iterations, length, spread, places, debug_nans=debug_nans
        )
        for number, iterations in dict.fromkeys(chunks)
    }
    judge = _judge(phases[-1].agent, eval_env, eval_max_steps, spread) if eval_env is not None else None
    programs = _compiled(advances, judge, runs, judge_keys, shared, spread)
    compile_seconds = time.perf_counter() - began + (found.compile_seconds if found else 0.0)

    def evaluated(number: int) -> Any:
        return programs["judge"]((judge_keys, runs.agent), _number(spread, number), *shared)

    distributed.wait_for_all()
    history.start()
    unread: tuple[int, Any, Any] | None = None  # what was dispatched last and is not read yet: one chunk
    done, steps, last_evaluated = (found.done, found.steps, found.last_evaluated) if found else (0, 0, 0)
    interrupted = False
    with Interrupt() as interrupt:
        while done < len(chunks):
            ahead = steps + chunks[done][1] * per_iteration
            heard = distributed.all_hear(lambda: interrupt.asked, lambda ahead=ahead: bool(store and store.due(ahead)))
            # The runs are donated to their successors, so nothing is copied.
            advanced = programs[chunks[done]](runs, *shared)
            if debug_nans:
                error, advanced = advanced
                guards.require_none(error)
            runs, metrics = advanced
            steps = ahead
            done += 1
            verdict = None
            if judged and steps // eval_every > last_evaluated // eval_every:
                last_evaluated = steps
                verdict = evaluated(steps // eval_every)
            if unread:
                history.read(*unread)
            unread = steps, metrics, verdict
            enough = stop_at_return is not None and history.latest is not None and history.latest >= stop_at_return
            if enough or history.all_lost:
                break
            asked, due = heard()
            interrupted = asked and done < len(chunks)
            if store and (interrupted or due):
                history.read(*unread)
                unread = None
                if history.all_lost:
                    interrupted = False
                else:
                    kept = _kept(runs, len(keys))
                    store.save(kept, history, done, steps, last_evaluated, compile_seconds, must=interrupted)
            if interrupted or history.all_lost:
                break
        if unread:
            history.read(*unread)
        (due,) = distributed.all_hear(lambda: bool(store and store.due_at_end()))()
        if store and not interrupted and not history.all_lost and due:
            store.save(_kept(runs, len(keys)), history, len(chunks), steps, last_evaluated, compile_seconds)
        if eval_env is not None and last_evaluated != steps and not (store and interrupted):
            history.read(steps, None, evaluated(-1))  # a number that no other evaluation has
    if store:
        store.finish()
    returns, finished = history.evaluated(episodes)
    return Outcome(
        runs=_kept(runs, len(keys)),
        metrics=history.metrics(),
        diverged_at=history.diverged_at,
        interrupted=interrupted,
        evaluation_steps=np.asarray(history.evaluation_steps, np.int64),
        evaluation_returns=returns,
        evaluation_finished=finished,
        compile_seconds=compile_seconds,
        run_seconds=history.seconds,
    )


def _require_phases(keys: Any, phases: Sequence[Phase]) -> None:
    require_keys("keys", keys)
    for phase in phases:
        require_kind("a phase", phase, Phase, wanted="a Phase(agent, steps)")
        require_agent(phase.agent)
    if not phases or any(phase.steps < 1 for phase in phases):
        raise ValueError(f"phases take {[phase.steps for phase in phases]} steps; each takes at least 1")


def _require_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None or name != "checkpoint_every":
            require_count(name, count, least=0 if name in ("eval_every", "checkpoint_every") else 1)


def _require_kinds(eval_env: Any, stop_at_return: Any, memory: Any, spread: Any, checkpoints: Any) -> None:
    if eval_env is not None:
        require_env("eval_env", eval_env)
    if stop_at_return is not None:
        require_number("stop_at_return", stop_at_return)
    if memory is not None:
        require_count("memory", memory)
    require_kind("spread", spread, Spread | None, wanted="a Spread, as spread.choose returns")
    require_kind("checkpoints", checkpoints, Checkpoints | None, wanted="Checkpoints(directory)")


def _require_spread(spread: Spread | None, runs: int, *, debug_nans: bool) -> None:
    if spread is None or spread.layout is None:
        return
    if debug_nans:
        raise ValueError("debug_nans is True, and spread has a layout; it looks for them on one device")
    if runs % spread.shares:
        raise ValueError(f"keys are {runs}, and the mesh has run {spread.shares}; it takes a multiple of that")


def _compiled(
    advances: dict[Any, Any], judge: Any, runs: PyTree, eval_keys: Any, shared: tuple[PyTree, PyTree], spread: Spread
) -> dict[Any, Any]:
    """Return the programs compiled, all at one time: the compiler is content with one core each."""
    lowered = {chunk: program.lower(runs, *shared) for chunk, program in advances.items()}
    if judge is not None:
        lowered["judge"] = judge.lower((eval_keys, runs.agent), _number(spread, 0), *shared)
    with ThreadPoolExecutor() as pool:
        return dict(zip(lowered, pool.map(lambda program: program.compile(), lowered.values()), strict=True))


def _kept(runs: PyTree, count: int) -> PyTree:
    """Return the first so many runs: without those that fill up the devices, where there are such by way of the host.

    As devices have equal shares, to cut there would be to copy all to every device.
    """

    def cut(leaf: Any) -> Any:
        if len(leaf) == count:
            return leaf
        return leaf[:count] if _are_keys(leaf) else np.asarray(leaf)[:count]

    return jax.tree.map(cut, runs)


def _like(runs: PyTree, count: int, places: PyTree) -> PyTree:
    """Return like what `_kept` returned they are to be restored: each device's share there, if the shares are equal."""

    def like(leaf: Any, place: Any) -> Any:
        shape = (count, *leaf.shape[1:])
        if leaf.shape[0] == count:
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=place)
        return jax.ShapeDtypeStruct(shape, leaf.dtype) if _are_keys(leaf) else np.empty(shape, leaf.dtype)

    return jax.tree.map(like, runs, places)


def _are_keys(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _chunks(phases: Sequence[Phase], per_iteration: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield (phase, iterations) of every chunk: whole ones of `size` iterations, and what is left of a phase."""
    for number, phase in enumerate(phases):
        whole, rest = divmod(-(-phase.steps // per_iteration), size)
        yield from [(number, size)] * whole + [(number, rest)] * (rest > 0)


def _begin(agent: Agent, env: Any, spread: Spread) -> Callable[..., PyTree]:
    """Begin the runs one after another: a batched initialiser may call LAPACK, and two such calls can wait for ever."""

    def begin(key, hypers, params):
        return loop.begin(key, agent, env, hypers, env_params=params, layout=spread.layout)

    return spreading.over_runs(begin, spread._replace(together=1))


def _advance(
    agent: Agent, env: Any, iterations: int, length: int, spread: Spread, places: PyTree, *, debug_nans: bool = False
) -> Any:
    def advance(run, hypers, params):
        run, metrics = loop.advance(
            run, agent, env, hypers, iterations=iterations, length=length, env_params=params, layout=spread.layout
        )
        lost = guards.has_nan(jax.tree.map(lambda leaf: leaf[None], run.agent))
        return run, metrics | {"lost": lost}

    def one_by_one(runs, hypers, params):
        return jax.lax.map(lambda run: advance(run, hypers, params), runs)

    def every(runs, hypers, params):
        counts = jnp.full(spread.shares, len(runs.key) // spread.shares)
        return spreading.in_place(advance, spread)(counts, runs, hypers, params)

    if debug_nans:
        return jax.jit(guards.nan_checked(one_by_one), donate_argnums=0)
    return jax.jit(every, donate_argnums=0, out_shardings=(places, _read_at(spread)))


def _read_at(spread: Spread) -> Any:
    """Return where what is to be read lies: of split runs in every process, of others where it was made."""
    return spreading.in_shares(spread) if spread.layout is None else spreading.on_all(spread)


def _judge(agent: Agent, env: Any, max_steps: int, spread: Spread) -> Any:
    def judge(key_and_state, number, hypers, params):
        key, state = key_and_state
        key = jax.random.fold_in(key, number)
        return evaluate.evaluate(
            key, agent, state, env, hypers, max_steps=max_steps, env_params=params, layout=spread.layout
        )

    return jax.jit(spreading.over_runs(judge, spread), out_shardings=_read_at(spread))


def _number(spread: Spread, number: int) -> Array:
    return spreading.replicate(spread, jnp.int32(number))
