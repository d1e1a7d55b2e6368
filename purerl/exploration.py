"""How values become a policy, and a policy an action.

A way to explore is what the factory of an agent takes as `explore`: `epsilon_greedy`, `boltzmann`, `ucb`, or another
function of the spec that returns an `Exploration`. Each has one number, traced: the hyper `exploration` of the agent,
or what its schedule makes of it. An action whose value is -inf is never chosen: that is how illegal ones are masked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from purerl import base
from purerl.base import Rollout, Spec, require_discrete, require_spec
from purerl.checks import require_function, require_kind

Number = Float[Array, ""] | float


class Exploration(NamedTuple):
    """A way to explore as three pure functions; `visits` is what it remembers, () if nothing."""

    init: InitFn
    observe: ObserveFn
    policy: PolicyFn


@runtime_checkable
class InitFn(Protocol):
    def __call__(self) -> Any:
        """Return the visits before the first step."""
        ...


@runtime_checkable
class ObserveFn(Protocol):
    def __call__(self, visits: Any, rollout: Rollout) -> Any:
        """Return the visits with those of a new rollout."""
        ...


@runtime_checkable
class PolicyFn(Protocol):
    def __call__(
        self, values: Float[Array, "*batch A"], visits: Any, observation: Any, number: Number
    ) -> Float[Array, "*batch A"]:
        """Return the probabilities of the actions in states observed as `observation` that have these values."""
        ...


Explore = Callable[[Spec], Exploration]


# --- policies -------------------------------------------------------------------------------------------------------


def greedy_policy(values: Float[Array, "*batch A"]) -> Float[Array, "*batch A"]:
    """Return Uniform(argmax values): ties are broken evenly."""
    best = values >= jnp.max(values, axis=-1, keepdims=True)
    return best / jnp.sum(best, axis=-1, keepdims=True, dtype=jnp.float32)


def epsilon_greedy_policy(values: Float[Array, "*batch A"], epsilon: Number) -> Float[Array, "*batch A"]:
    """Return (1 - epsilon) Uniform(argmax values) + epsilon Uniform(A) (S&B section 2.2).

    Epsilon beyond [0, 1] counts as 0 or 1.
    """
    epsilon = jnp.clip(epsilon, 0.0, 1.0)
    best = values >= jnp.max(values, axis=-1, keepdims=True)
    possible = best | (values > -jnp.inf)
    # Quotients first and then their sum: a product that feeds a sum is rounded once or twice, as XLA happens to fuse.
    exploring = epsilon / jnp.sum(possible, axis=-1, keepdims=True, dtype=jnp.float32)
    exploiting = (1.0 - epsilon) / jnp.sum(best, axis=-1, keepdims=True, dtype=jnp.float32)
    return jnp.where(best, exploiting + exploring, jnp.where(possible, exploring, 0.0))


def boltzmann_policy(values: Float[Array, "*batch A"], temperature: Number) -> Float[Array, "*batch A"]:
    """Return softmax(values / temperature) (S&B equation 2.11 with values for preferences); at 0, the greedy policy."""
    best = jnp.max(values, axis=-1, keepdims=True)
    # Also where the best is infinite: there values - best would be no number.
    below = jnp.where(values >= best, 0.0, values - best)
    # Between the numbers that have a reciprocal: then 0 / temperature is 0, and -inf / temperature -inf.
    return jax.nn.softmax(below / jnp.clip(temperature, 1e-37, 1e37), axis=-1)


def ucb_policy(values: Float[Array, "*batch A"], visits: Int[Array, "*batch A"], c: Number) -> Float[Array, "*batch A"]:
    """Return Uniform(argmax_a values_a + c sqrt(ln N / N_a)), N_a visits of action a, N of all (S&B equation 2.10).

    Actions not yet tried come first.
    """
    total = jnp.maximum(jnp.sum(visits, axis=-1, keepdims=True, dtype=jnp.float32), 1.0)
    bonus = jnp.where(visits > 0, c * jnp.sqrt(jnp.log(total) / jnp.maximum(visits, 1)), jnp.inf)
    return greedy_policy(jnp.where(values > -jnp.inf, values + bonus, -jnp.inf))


def draw(key: Key[Array, ""], policy: Float[Array, "*batch A"]) -> Int[Array, "*batch"]:
    """Draw actions from probabilities, by one uniform number each (a second would double what a tabular step costs).

    The number has 23 bits: a probability is off by up to 2^-23, and one of zero is never drawn.
    """
    return pick(jax.random.uniform(key, policy.shape[:-1]), policy)


def pick(uniform: Float[Array, "*batch"], policy: Float[Array, "*batch A"]) -> Int[Array, "*batch"]:
    """Return the actions at which the sums of the probabilities exceed numbers drawn uniformly from [0, 1)."""
    # Long sums are not taken in order, and may rise by a rounding where the probability is zero; nor end at one.
    reached = jnp.where(policy > 0, jnp.cumsum(policy, axis=-1), 0.0)
    chosen = reached > uniform[..., None] * jnp.max(reached, axis=-1, keepdims=True)
    return jnp.argmax(chosen, axis=-1).astype(jnp.int32)


def act(
    key: Key[Array, ""],
    strategy: Exploration,
    values: Float[Array, "*batch A"],
    visits: Any,
    observation: Any,
    number: Number,
    *,
    greedy: bool,
) -> Int[Array, "*batch"]:
    """Draw actions by the greedy policy, or else by that of `strategy`."""
    policy = greedy_policy(values) if greedy else strategy.policy(values, visits, observation, number)
    return draw(key, policy)


def observing(strategy: Exploration) -> base.ObserveFn:
    """Return the `observe` of an agent whose state holds the `visits` of `strategy`."""

    def observe(state: Any, rollout: Rollout, hypers: Any) -> Any:
        return dataclasses.replace(state, visits=strategy.observe(state.visits, rollout))

    return observe


# --- ways to explore ------------------------------------------------------------------------------------------------


def made(explore: Explore, spec: Spec) -> Exploration:
    """Return the way to explore that an agent's factory was given; TypeError for what is no function, or makes none."""
    wanted = "a function of the spec that returns an Exploration, such as exploration.epsilon_greedy"
    require_function("explore", explore, wanted=wanted)
    strategy = explore(spec)
    require_kind("what explore returns", strategy, Exploration, wanted=f"{wanted} does")
    return strategy


def epsilon_greedy(spec: Spec) -> Exploration:
    """Explore by `epsilon_greedy_policy`; the number is epsilon. ValueError unless actions are discrete."""
    _actions(spec, "epsilon_greedy")
    return _without_visits(epsilon_greedy_policy)


def boltzmann(spec: Spec) -> Exploration:
    """Explore by `boltzmann_policy`; the number is the temperature. ValueError unless actions are discrete."""
    _actions(spec, "boltzmann")
    return _without_visits(boltzmann_policy)


def ucb(spec: Spec) -> Exploration:
    """Explore by `ucb_policy`; the number is c. ValueError unless observations are discrete, so that visits count."""
    require_spec(spec, agent="ucb")
    states = require_discrete(spec.observation, what="observation", agent="ucb, which counts visits,")
    actions = _actions(spec, "ucb")

    def count(visits: Int[Array, "S A"], rollout: Rollout) -> Int[Array, "S A"]:
        visits = visits.at[rollout.steps.observation, rollout.steps.action].add(1)
        return jnp.minimum(visits, 2**30)  # beyond that nothing changes, and no count may turn negative

    return Exploration(
        init=lambda: jnp.zeros((states, actions), jnp.int32),
        observe=count,
        policy=lambda values, visits, observation, number: ucb_policy(values, visits[observation], number),
    )


def _actions(spec: Spec, name: str) -> int:
    require_spec(spec, agent=name)
    return require_discrete(spec.action, what="action", agent=name)


def _without_visits(policy: Callable[..., Float[Array, "*batch A"]]) -> Exploration:
    return Exploration(
        init=lambda: (),
        observe=lambda visits, rollout: visits,
        policy=lambda values, visits, observation, number: policy(values, number),
    )


# --- schedules ------------------------------------------------------------------------------------------------------


def linear_schedule(count: Int[Array, ""], *, start: Number, end: Number, horizon: Number) -> Float[Array, ""]:
    """Go from `start` at count 0 to `end` at count `horizon` in a straight line, and stay there."""
    return start + (end - start) * jnp.clip(count / jnp.maximum(horizon, 1.0), 0.0, 1.0)


def exponential_schedule(count: Int[Array, ""], *, start: Number, end: Number, horizon: Number) -> Float[Array, ""]:
    """Return end + (start - end) exp(-count / horizon): softly down, a twentieth of the way left at 3 horizons."""
    return end + (start - end) * jnp.exp(-count / jnp.maximum(horizon, 1.0))
