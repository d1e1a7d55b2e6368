"""The one loop: an agent and environments, advanced by iterations of acting and learning; pure, to jit and vmap."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from purerl import rollout, sharding
from purerl.base import Agent, cast_hypers, pytree_dataclass, require_agent, require_key, require_state
from purerl.checks import require_count, require_kind

# Keys are drawn at once for as many iterations as make about this many steps: drawn so, a key costs a few nanoseconds.
_STEPS_PER_BLOCK = 1024


class Phase(NamedTuple):
    """A stretch of a run: this agent, for this many environment steps. Successive agents share one state."""

    agent: Agent
    steps: int


@pytree_dataclass
class Run:
    """A run, whole: to continue it, nothing else is needed."""

    key: Any  # the run's key, constant: iteration i folds i into the keys split from it
    iteration: Any  # int32: iterations done
    agent: PyTree  # the agent's state
    episodes: rollout.Episodes  # the N episodes under way
    table: PyTree  # EpisodeTable, or () if none was asked for


@pytree_dataclass
class EpisodeTable:
    """The first E episodes to be completed, in order of time and then of environments; later ones are not kept."""

    episode_return: Any  # float32 [E], NaN where none was completed yet
    episode_length: Any  # int32 [E]
    count: Any  # int32: episodes completed so far, kept or not


def begin(
    key: Key[Array, ""],
    agent: Agent,
    env: Any,
    hypers: PyTree,
    *,
    env_params: PyTree = None,
    episode_table: int = 0,
    layout: sharding.Layout | None = None,
) -> Run:
    """Return a run before its first iteration; `episode_table` asks for a record of that many single episodes.

    A `layout` splits it over a mesh of devices (`sharding`). Raises ValueError for a leaf of `hypers` that is not a
    single number, and for what the layout cannot split; TypeError for a key of the old kind.
    """
    require_key("key", key)
    require_agent(agent)
    require_count("episode_table", episode_table, least=0)
    hypers = cast_hypers(hypers)
    run_key, init_key, env_key = jax.random.split(key, 3)
    table = ()
    if episode_table:
        table = EpisodeTable(
            episode_return=jnp.full(episode_table, jnp.nan, jnp.float32),
            episode_length=jnp.zeros(episode_table, jnp.int32),
            count=jnp.int32(0),
        )
    run = Run(
        key=run_key,
        iteration=jnp.int32(0),
        agent=agent.init(init_key, hypers),
        episodes=rollout.start(env_key, agent, env, rollout.cast_params(env, env_params)),
        table=table,
    )
    sharding.require_fitting(layout, env, run)
    return sharding.placed(layout, run)


def advance(
    run: Run,
    agent: Agent,
    env: Any,
    hypers: PyTree,
    *,
    iterations: int,
    length: int = 1,
    rows: int = 1,
    env_params: PyTree = None,
    layout: sharding.Layout | None = None,
) -> tuple[Run, dict[str, Float[Array, " rows"]]]:
    """Continue a run by `iterations` of acting `length` steps and learning once.

    Metrics are reduced to `rows` rows of equally many iterations: the agent's as means; and of the episodes that
    ended in it `episodes` (how many), `episode_return` and `episode_length` (sums). Neither `rows` nor how iterations
    are spread over calls changes the run. With a `layout`, that of `begin`, agents act without a word between devices:
    what acts is gathered before each rollout, and environments stay where they are. Raises ValueError for counts below
    one, and for rows that do not divide the iterations.
    """
    require_kind("run", run, Run, wanted="a Run, as loop.begin returns")
    require_agent(agent)
    for name, count in {"iterations": iterations, "length": length, "rows": rows}.items():
        require_count(name, count)
    if iterations % rows:
        raise ValueError(f"rows is {rows}, which does not divide the {iterations} iterations")
    hypers = cast_hypers(hypers)
    require_state(agent, run.agent, hypers)
    params = rollout.cast_params(env, env_params)
    row = iterations // rows
    block = _block(row, at_most=max(1, _STEPS_PER_BLOCK // length))

    # One key per use of keys, into each of which an iteration folds its number: drawn apart from one another, those
    # that nobody uses cost nothing (an environment without chance, an agent that learns without).
    steps_key, update_key = jax.random.split(run.key)
    streams = rollout.step_keys(steps_key, length), update_key

    def draw(number):
        def fold(key):
            return jax.random.fold_in(key, number)

        step_streams, update_stream = streams
        return jax.tree.map(jax.vmap(fold), step_streams), fold(update_stream)

    def iterate(run, keys):
        step_keys, update_key = keys
        run = sharding.placed(layout, run)
        acting = sharding.acting(layout, run.agent)
        episodes, experience, totals = rollout.unroll(step_keys, agent, acting, env, params, run.episodes, hypers)
        state = agent.observe(run.agent, experience, hypers)
        state, metrics = agent.update(update_key, state, experience, hypers)
        ended = experience.steps.terminated | experience.steps.truncated
        table = _record(run.table, ended, totals) if isinstance(run.table, EpisodeTable) else ()
        run = Run(key=run.key, iteration=run.iteration + 1, agent=state, episodes=episodes, table=table)
        return run, (metrics, _finished(ended, totals))

    def one_iteration(carry, keys):
        run, sums = carry
        run, terms = iterate(run, keys)
        return (run, jax.tree.map(jnp.add, sums, terms)), None

    def one_block(carry, size):
        run, sums = carry
        numbers = run.iteration + jnp.arange(size)
        keys = jax.vmap(draw)(numbers)
        # Each block is summed by itself first: over millions of terms a single float32 sum would drift.
        (run, block_sums), _ = jax.lax.scan(one_iteration, (run, zeros), keys)
        return run, jax.tree.map(jnp.add, sums, block_sums)

    def one_row(run, _):
        carry = run, zeros
        carry, _ = jax.lax.scan(lambda carry, _: (one_block(carry, block), None), carry, length=row // block)
        run, (metrics, finished) = one_block(carry, row % block) if row % block else carry
        means = {name: jnp.float32(total / row) for name, total in metrics.items()}
        return run, means | {name: jnp.float32(total) for name, total in finished.items()}

    keys = jax.eval_shape(draw, run.iteration)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(iterate, run, keys)[1])
    return jax.lax.scan(one_row, run, length=rows)


def train(
    key: Key[Array, ""],
    agent: Agent,
    env: Any,
    hypers: PyTree,
    *,
    iterations: int,
    length: int = 1,
    rows: int = 1,
    env_params: PyTree = None,
    episode_table: int = 0,
    layout: sharding.Layout | None = None,
) -> tuple[Run, dict[str, Float[Array, " rows"]]]:
    """Begin a run and advance it: all of training as one pure function of a key and the hypers."""
    run = begin(key, agent, env, hypers, env_params=env_params, episode_table=episode_table, layout=layout)
    return advance(
        run,
        agent,
        env,
        hypers,
        iterations=iterations,
        length=length,
        rows=rows,
        env_params=env_params,
        layout=layout,
    )


def _block(row: int, *, at_most: int) -> int:
    """Return a size for blocks of a row, one that leaves no rest (which is compiled by itself) if it can be."""
    divisor = max(size for size in range(1, at_most + 1) if row % size == 0)
    return divisor if divisor >= min(row, at_most // 4) else at_most


def _finished(ended: Array, totals: rollout.Totals) -> dict[str, Array]:
    """Return the sums over the episodes that ended: [T, N] -> scalars."""
    return {
        "episodes": jnp.sum(ended, dtype=jnp.int32),
        "episode_return": jnp.sum(jnp.where(ended, totals.episode_return, 0.0)),
        "episode_length": jnp.sum(jnp.where(ended, totals.episode_length, 0)),
    }


def _record(table: EpisodeTable, ended: Array, totals: rollout.Totals) -> EpisodeTable:
    """Write the episodes that ended in a rollout [T, N] to the next free rows; those past the last row are dropped."""
    ended = ended.reshape(-1)
    order = table.count + jnp.cumsum(ended) - 1
    row = jnp.where(ended, order, table.episode_return.size)
    return EpisodeTable(
        episode_return=table.episode_return.at[row].set(totals.episode_return.reshape(-1), mode="drop"),
        episode_length=table.episode_length.at[row].set(totals.episode_length.reshape(-1), mode="drop"),
        count=table.count + jnp.sum(ended, dtype=jnp.int32),
    )
