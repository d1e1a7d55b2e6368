"""Training as what is swept: whole runs as a pure function (`trainer`), or runs in units with a score (`learner`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from purerl import evaluate, loop
from purerl.base import Agent, pytree_dataclass, require_agent, require_env
from purerl.checks import require_count, require_kind, shown
from purerl.loop import Phase
from purerl.sharding import Layout
from purerl.sweep import Train


@pytree_dataclass
class Watched:
    """An agent's state, and when it went astray."""

    state: PyTree
    updates: Any  # int32
    diverged_at: Any  # int32: the first update in which a metric was not finite, or -1


def watched(agent: Agent) -> Agent:
    """Return an agent that does the same, and notes in which update its metrics first held a NaN or an infinity."""
    require_agent(agent)

    def init(key, hypers):
        return Watched(state=agent.init(key, hypers), updates=jnp.int32(0), diverged_at=jnp.int32(-1))

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return agent.act(key, state.state, memory, observation, hypers, greedy=greedy)

    def update(key, state, rollout, hypers):
        own, metrics = agent.update(key, state.state, rollout, hypers)
        astray = ~jnp.all(jnp.isfinite(jnp.stack(list(metrics.values())))) if metrics else jnp.bool_(False)
        first = astray & (state.diverged_at < 0)
        diverged_at = jnp.where(first, state.updates, state.diverged_at)
        return Watched(state=own, updates=state.updates + 1, diverged_at=diverged_at), metrics

    def observe(state, rollout, hypers):
        return dataclasses.replace(state, state=agent.observe(state.state, rollout, hypers))

    return Agent(init=init, start=agent.start, act=act, update=update, observe=observe)


def trainer(
    phases: Sequence[Phase],
    env: Any,
    *,
    length: int = 1,
    rows: int = 1,
    judge: Any = None,
    max_steps: int = 10_000,
    layout: Layout | None = None,
) -> Train:
    """Return `train(key, hypers)`, a whole run as a pure function; `hypers` may be a pair (hypers, env_params).

    It returns a dict: the metrics of the last phase [rows], as means over its iterations, `episode_return` and
    `episode_length` as means over the episodes that ended in a row (NaN if none did); `evaluation_return` [E], greedy
    returns in the E environments of `judge`, if there is one, of at most `max_steps` steps; and `diverged_at`, the
    first update whose metrics were not finite (the last one, if only the agent's state then held a NaN), or -1. With a
    `layout` each run is split over a mesh; a sweep's `spread` then has the same (`spread.choose`). Raises
    ValueError for no phases, for steps and rows below one, and for rows that do not divide the last phase.
    """
    agents, counts = _checked(phases, env, length)
    _require_judge(judge, max_steps)
    agents = [watched(agent) for agent in agents]
    require_count("rows", rows)
    if counts[-1] % rows:
        raise ValueError(f"rows is {rows}, which does not divide the {counts[-1]} iterations of the last phase")

    def train(key: Key[Array, ""], hypers: Any) -> dict[str, Array]:
        numbers, params = hypers if isinstance(hypers, tuple) else (hypers, None)
        train_key, judge_key = jax.random.split(key)
        run, metrics = loop.begin(train_key, agents[0], env, numbers, env_params=params, layout=layout), {}
        for place, (agent, iterations) in enumerate(zip(agents, counts, strict=True)):
            wanted = rows if place == len(agents) - 1 else 1
            run, metrics = loop.advance(
                run,
                agent,
                env,
                numbers,
                iterations=iterations,
                length=length,
                rows=wanted,
                env_params=params,
                layout=layout,
            )
        for name in ("episode_return", "episode_length"):
            metrics[name] = metrics[name] / metrics["episodes"]
        leaves = [leaf for leaf in jax.tree.leaves(run.agent.state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        lost = jnp.any(jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in leaves])) if leaves else jnp.bool_(False)
        unseen = lost & (run.agent.diverged_at < 0)
        found = metrics | {"diverged_at": jnp.where(unseen, run.agent.updates - 1, run.agent.diverged_at)}
        if judge is not None:
            verdict = evaluate.evaluate(
                judge_key,
                agents[-1],
                run.agent,
                judge,
                numbers,
                max_steps=max_steps,
                env_params=params,
                layout=layout,
            )
            found["evaluation_return"] = verdict.episode_return
        return found

    return train


@runtime_checkable
class BeginFn(Protocol):
    def __call__(self, key: Key[Array, ""], hypers: Any) -> PyTree:
        """Return a run before its first unit."""
        ...


@runtime_checkable
class AdvanceFn(Protocol):
    def __call__(self, run: PyTree, hypers: Any) -> tuple[PyTree, Array]:
        """Continue a run by one unit, and return it with its score: a float32, the more the better, NaN for none."""
        ...


@runtime_checkable
class InheritFn(Protocol):
    def __call__(self, run: PyTree, parent: PyTree) -> PyTree:
        """Return the parent's run with the keys of `run`: what the agent keeps may be of the episodes under way."""
        ...


class Learner(NamedTuple):
    """Training in units: what searches need that compare runs on the way. Pure; `hypers` may change between units."""

    begin: BeginFn
    advance: AdvanceFn
    inherit: InheritFn


def learner(
    phases: Sequence[Phase],
    env: Any,
    *,
    length: int = 1,
    judge: Any = None,
    max_steps: int = 10_000,
    layout: Layout | None = None,
) -> Learner:
    """Return training in units of the last phase's steps; the phases before it belong to the beginning.

    The score of a unit is the mean return of the episodes that ended in it (NaN if none did), or with a `judge` that of
    one greedy episode of at most `max_steps` steps in each of its environments. `layout` and what is raised are as of
    `trainer`.
    """
    agents, counts = _checked(phases, env, length)
    _require_judge(judge, max_steps)

    def begin(key, hypers):
        run_key, judge_key = jax.random.split(key)
        run = loop.begin(run_key, agents[0], env, hypers, layout=layout)
        for agent, iterations in zip(agents[:-1], counts[:-1], strict=True):
            run, _ = loop.advance(run, agent, env, hypers, iterations=iterations, length=length, layout=layout)
        return run, judge_key

    def advance(run, hypers):
        own, judge_key = run
        own, metrics = loop.advance(own, agents[-1], env, hypers, iterations=counts[-1], length=length, layout=layout)
        if judge is None:
            return (own, judge_key), metrics["episode_return"][0] / metrics["episodes"][0]
        key = jax.random.fold_in(judge_key, own.iteration)
        verdict = evaluate.evaluate(key, agents[-1], own.agent, judge, hypers, max_steps=max_steps, layout=layout)
        return (own, judge_key), jnp.mean(verdict.episode_return)

    def inherit(run, parent):
        return dataclasses.replace(parent[0], key=run[0].key), run[1]

    return Learner(begin, advance, inherit)


def for_units(learner: Learner, state: PyTree, units: Int[Array, ""]) -> tuple[PyTree, Float[Array, ""]]:
    """Continue (run, hypers) by so many units, a traced number; the score is that of the last, NaN of none."""
    run, hypers = state

    def unit(_, carry):
        run, score = learner.advance(carry[0], hypers)
        return run, jnp.float32(score)

    run, score = jax.lax.fori_loop(0, units, unit, (run, jnp.float32(jnp.nan)))
    return (run, hypers), score


def _checked(phases: Sequence[Phase], env: Any, length: int) -> tuple[list[Agent], list[int]]:
    """Return the agents of the phases and their iterations."""
    require_env("env", env)
    if isinstance(phases, Phase) or not isinstance(phases, Sequence):
        raise TypeError(f"phases is {shown(phases)}; it takes a list of them: [Phase(agent, steps)]")
    for phase in phases:
        require_kind("a phase", phase, Phase, wanted="a loop.Phase: Phase(agent, steps)")
        require_agent(phase.agent)
    if not phases:
        raise ValueError("phases is empty; it takes at least one")
    for name, count in [("length", length), *[("steps", phase.steps) for phase in phases]]:
        require_count(name, count)
    return [phase.agent for phase in phases], [-(-phase.steps // (length * env.spec.num_envs)) for phase in phases]


def _require_judge(judge: Any, max_steps: int) -> None:
    """Raise a TypeError or ValueError for what nothing can be judged in."""
    if judge is not None:
        require_env("judge", judge)
    require_count("max_steps", max_steps)
