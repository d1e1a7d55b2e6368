"""How good a policy is: returns of whole episodes, acted greedily."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from purerl import rollout, sharding
from purerl.base import Agent, cast_hypers, pytree_dataclass, require_agent, require_key, require_state
from purerl.checks import require_count


@pytree_dataclass
class Evaluation:
    """The first episode of each of E environments: every one counts once, the long ones as much as the short ones."""

    episode_return: Any  # float32 [E]
    episode_length: Any  # int32 [E]
    finished: Any  # bool [E]: False where the step cap came first; return and length are those up to it


def evaluate(
    key: Key[Array, ""],
    agent: Agent,
    state: PyTree,
    env: Any,
    hypers: PyTree,
    *,
    max_steps: int,
    env_params: PyTree = None,
    layout: sharding.Layout | None = None,
) -> Evaluation:
    """Act one episode in each environment of `env`, at most `max_steps` steps, and stop as soon as all have ended.

    It has its own key and its own environments, and leaves the run that it looks at as it is. Pure; to jit and vmap.
    Of a run that is split by a `layout` every device plays all episodes, which none has to wait for.
    Raises ValueError for a cap below one and for the state of another agent, TypeError for a key of the old kind.
    """
    require_key("key", key)
    require_agent(agent)
    require_count("max_steps", max_steps)
    hypers = cast_hypers(hypers)
    require_state(agent, state, hypers)
    params = rollout.cast_params(env, env_params)
    state = sharding.acting(layout, state)
    start_key, step_key = jax.random.split(key)
    counted = env.spec.num_envs

    def unfinished(carry: tuple[Array, rollout.Episodes, Evaluation]) -> Array:
        step, _, evaluation = carry
        return (step < max_steps) & ~jnp.all(evaluation.finished)

    def advance(
        carry: tuple[Array, rollout.Episodes, Evaluation],
    ) -> tuple[Array, rollout.Episodes, Evaluation]:
        step, episodes, evaluation = carry
        keys = rollout.step_keys(jax.random.fold_in(step_key, step), 1)
        episodes, experience, totals = rollout.unroll(keys, agent, state, env, params, episodes, hypers, greedy=True)
        ended = (experience.steps.terminated | experience.steps.truncated)[0]
        evaluation = Evaluation(
            episode_return=jnp.where(evaluation.finished, evaluation.episode_return, totals.episode_return[0]),
            episode_length=jnp.where(evaluation.finished, evaluation.episode_length, totals.episode_length[0]),
            finished=evaluation.finished | ended,
        )
        return step + 1, episodes, evaluation

    nothing = Evaluation(
        episode_return=jnp.zeros(counted, jnp.float32),
        episode_length=jnp.zeros(counted, jnp.int32),
        finished=jnp.zeros(counted, bool),
    )
    episodes = sharding.everywhere(layout, rollout.start(start_key, agent, env, params))
    return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), episodes, nothing))[2]
