"""Monte-Carlo control: action values are averages of returns, and the policy explores (Sutton & Barto, section 5.4)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from purerl import exploration, tables, whole_episodes
from purerl.base import Agent, Spec, no_memory, pytree_dataclass, require_hypers, require_num_envs
from purerl.checks import require_count, require_flag
from purerl.exploration import Explore


@pytree_dataclass
class Hypers(tables.Hypers):
    """The numbers of Monte-Carlo control; as they stand, values are averages."""

    learning_rate: float = 1.0  # alpha: the n-th return of a pair counts for alpha n^-omega ...
    learning_rate_decay: float = 1.0  # ... omega, [0, 1]: 1 makes an average, 0 a constant rate


@pytree_dataclass
class State:
    """The table Q, how often each pair was moved, and the episodes under way."""

    values: Any  # float32 [S, A]
    counts: Any  # float32 [S, A]
    pending: whole_episodes.Pending
    visits: Any  # what exploration remembers


def monte_carlo_control(
    spec: Spec, *, window: int, first_visit: bool = True, explore: Explore = exploration.epsilon_greedy
) -> Agent:
    """Return on-policy Monte-Carlo control for discrete observations and actions.

        G_t = r_t+1 + gamma r_t+2 + ... to the episode's end
        N(s_t, a_t) <- N(s_t, a_t) + 1
        Q(s_t, a_t) <- Q(s_t, a_t) + alpha N(s_t, a_t)^-omega [G_t - Q(s_t, a_t)]

    for the first visit to a pair in an episode, or without `first_visit` for every one, in the order of time. Episodes
    count once, in the update after they ended; one of which more than `window` steps would have to wait until then is
    left out, and counted in the metric `excluded`. Where the clock ended the episode, G goes on with the expectation of
    Q under the policy. With `first_visit` an update compares all steps of its stretch, (window + T)^2 an environment.
    Not for replay: it learns from rollouts that follow one another. Raises ValueError for other spaces and a window
    below one.
    """
    states, actions = tables.sizes(spec, agent="monte_carlo_control")
    require_count("window", window)
    require_flag("first_visit", first_visit)
    strategy = exploration.made(explore, spec)

    def init(key, hypers):
        require_hypers(hypers, Hypers, agent="monte_carlo_control")
        return State(
            values=jnp.full((states, actions), hypers.initial_value, jnp.float32),
            counts=jnp.zeros((states, actions), jnp.float32),
            pending=whole_episodes.nothing_pends(spec, window),
            visits=strategy.init(),
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        values, visits = state.values[observation], state.visits
        return exploration.act(key, strategy, values, visits, observation, hypers.exploration, greedy=greedy), memory

    def visited_before(stretch):
        """Return, for each step [W + T, N], whether its pair came up before in its episode."""
        number = jnp.arange(len(stretch.time))
        cell = stretch.observation * actions + stretch.action
        begun = number[:, None] - stretch.time  # where in the stretch the step's episode began
        same = (cell[:, None] == cell) & (begun[:, None] == begun) & (stretch.time >= 0)
        return jnp.any(same & (number[:, None] > number)[..., None], axis=1)

    def update(key, state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="monte_carlo_control")

        def last_value(step):
            return tables.value_after(state.values, step, strategy, state.visits, hypers.exploration)

        next_value = jax.vmap(jax.vmap(last_value))(rollout.steps)
        stretch, pending = whole_episodes.extend(state.pending, rollout.steps, next_value, hypers.discount)
        counted = stretch.included & ~visited_before(stretch) if first_visit else stretch.included

        def learn(learned, step):
            values, counts = learned
            observation, action, target, where = step
            values, counts, error = tables.move_and_count(
                values, counts, observation, action, target, hypers, where=where
            )
            return (values, counts), jnp.abs(error)

        steps = stretch.observation, stretch.action, stretch.target, counted
        one_by_one = jax.tree.map(lambda leaf: leaf.reshape(-1), steps)
        (values, counts), errors = jax.lax.scan(learn, (state.values, state.counts), one_by_one)
        state = State(values=values, counts=counts, pending=pending, visits=state.visits)
        error = jnp.sum(errors) / jnp.maximum(jnp.sum(counted), 1)
        return state, {"error": error, "excluded": jnp.float32(stretch.excluded)}

    return Agent(init=init, start=no_memory, act=act, update=update, observe=exploration.observing(strategy))
