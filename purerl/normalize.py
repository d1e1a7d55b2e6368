"""Normalisation learned on the way: observations by their running moments, rewards by the spread of returns.

Both are wrappers around any agent, part of its state (so saved, and frozen in evaluation), and count each step of the
environments once: inside replay, which keeps what the environments gave, they go around the learner,
`with_replay(with_observation_norm(agent, spec), buffer, ...)`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from purerl import batches
from purerl.base import Agent, Box, Rollout, Spec, pytree_dataclass, require_agent, require_num_envs, require_spec
from purerl.checks import shown

_LARGEST = 10.0  # deviations from the mean that an observation may show: one that was never seen must not blow up
_MOST = 2**30  # samples after which new ones no longer count less


@pytree_dataclass
class Moments:
    """Mean and variance of the samples so far, and what rounding kept from them."""

    count: Any  # int32, up to 2^30
    mean: Any  # float32 [...]
    variance: Any  # float32 [...], of the population
    mean_rest: Any  # float32 [...]: what is still to be added to the mean, too small for its last digit
    variance_rest: Any


@pytree_dataclass
class ObservationNormState:
    """A learner, the moments of all it has seen, and those with which it acts until its next update."""

    learner: PyTree
    moments: list[Any]  # of every array in an observation; None for an integer
    acting: list[Any]


@pytree_dataclass
class ReturnScaleState:
    """A learner, and the moments of the discounted returns of all environments at all steps."""

    learner: PyTree
    moments: Moments
    running: Any  # float32 [N]: the discounted sum of the rewards of the episode under way


def no_moments(shape: tuple[int, ...]) -> Moments:
    """Return the moments of no sample: mean 0, variance 1."""
    return Moments(
        count=jnp.int32(0),
        mean=jnp.zeros(shape, jnp.float32),
        variance=jnp.ones(shape, jnp.float32),
        mean_rest=jnp.zeros(shape, jnp.float32),
        variance_rest=jnp.zeros(shape, jnp.float32),
    )


def merge(moments: Moments, samples: Float[Array, "M *shape"]) -> Moments:
    """Return the moments with those of M more samples (Chan, Golub & LeVeque 1979).

        mean + w d,   variance + w (v - variance) + w (1 - w) d^2,   w = M / (count + M)

    d is how far the samples' mean is from `mean`, v their variance. Sums are compensated (Kahan): after 10^8 samples
    w d is less than the last digit of the mean.
    """
    total = moments.count + len(samples)
    weight = len(samples) / jnp.asarray(total, jnp.float32)
    first = moments.count == 0
    # All is measured from near the samples: from afar their squares would be rounded to their own size.
    centre = jnp.where(first, samples[0], moments.mean)
    deviation = (samples - centre) - moments.mean_rest
    shift = jnp.mean(deviation, axis=0)
    spread = jnp.mean((deviation - shift) ** 2, axis=0)
    variance = jnp.where(first, 0.0, moments.variance)
    mean, mean_rest = _add(centre, moments.mean_rest, weight * shift)
    growth = weight * (spread - variance) + weight * (1.0 - weight) * shift**2
    variance, variance_rest = _add(variance, moments.variance_rest, growth)
    return Moments(
        count=jnp.minimum(total, _MOST),
        mean=mean,
        variance=jnp.maximum(variance, 0.0),
        mean_rest=mean_rest,
        variance_rest=variance_rest,
    )


def normalized(moments: Moments, value: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return (value - mean) / deviation, held within 10 deviations."""
    return jnp.clip((value - moments.mean) * jax.lax.rsqrt(moments.variance + 1e-8), -_LARGEST, _LARGEST)


def normalized_spec(spec: Spec) -> Spec:
    """Return what an agent within `with_observation_norm` observes: arrays are float32, whatever they were.

    An agent that keeps observations of its own (REINFORCE, QAC) must be made for this spec, and any other may be.
    """
    require_spec(spec, agent="an agent within with_observation_norm")

    def seen(space: Any) -> Any:
        return Box(space.shape, np.dtype(np.float32), -_LARGEST, _LARGEST) if isinstance(space, Box) else space

    return spec._replace(observation=jax.tree.map(seen, spec.observation))


def with_observation_norm(agent: Agent, spec: Spec) -> Agent:
    """Return `agent` seeing observations less their running mean and divided by their running deviation.

    `spec` is the environment's; `agent` is one for `normalized_spec(spec)`.
    Integers (`Discrete`) stay as they are. During a rollout the moments are fixed, and what is learned from it is
    normalised by those that acted; after each update those of all steps so far take their place. Until the first one
    observations are seen as they come, within 10. Raises ValueError where there is no array to normalise.
    """
    require_agent(agent)
    require_spec(spec, agent="with_observation_norm")
    spaces = jax.tree.leaves(spec.observation)
    if not any(isinstance(space, Box) for space in spaces):
        raise ValueError(f"observations are {spec.observation}; with_observation_norm takes some that are arrays")

    def seen(acting: list[Any], observation: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(observation)
        pairs = zip(acting, leaves, strict=True)
        return structure.unflatten(
            [leaf if moments is None else normalized(moments, leaf.astype(jnp.float32)) for moments, leaf in pairs]
        )

    def seen_rollout(acting: list[Any], rollout: Rollout) -> Rollout:
        steps = dataclasses.replace(
            rollout.steps,
            observation=seen(acting, rollout.steps.observation),
            next_observation=seen(acting, rollout.steps.next_observation),
        )
        return Rollout(steps=steps, memory=rollout.memory)

    def init(key, hypers):
        moments = [no_moments(space.shape) if isinstance(space, Box) else None for space in spaces]
        return ObservationNormState(
            learner=agent.init(key, hypers), moments=moments, acting=jax.tree.map(jnp.copy, moments)
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return agent.act(key, state.learner, memory, seen(state.acting, observation), hypers, greedy=greedy)

    def observe(state, rollout, hypers):
        def gather(moments, leaf):
            samples = batches.flat(leaf, spec.groups).astype(jnp.float32)
            return None if moments is None else merge(moments, samples)

        leaves = jax.tree.leaves(rollout.steps.observation)
        return ObservationNormState(
            learner=agent.observe(state.learner, seen_rollout(state.acting, rollout), hypers),
            moments=[gather(*pair) for pair in zip(state.moments, leaves, strict=True)],
            acting=state.acting,
        )

    def update(key, state, rollout, hypers):
        learner, metrics = agent.update(key, state.learner, seen_rollout(state.acting, rollout), hypers)
        return ObservationNormState(learner=learner, moments=state.moments, acting=state.moments), metrics

    return Agent(init=init, start=agent.start, act=act, update=update, observe=observe)


def with_return_scaling(agent: Agent, spec: Spec) -> Agent:
    """Return `agent` learning from rewards divided by the deviation of discounted returns (Engstrom et al. 2020).

    The return at a step is the discounted sum of the episode's rewards up to it, discounted by the agent's hyper
    `discount`. The deviation is that of all steps so far. Rewards are not shifted: that would change what is optimal.
    """
    require_agent(agent)
    require_spec(spec, agent="with_return_scaling")

    def init(key, hypers):
        if not hasattr(hypers, "discount"):
            raise TypeError(f"hypers is {shown(hypers)}, without discount; with_return_scaling takes what has one")
        return ReturnScaleState(
            learner=agent.init(key, hypers),
            moments=no_moments(()),
            running=jnp.zeros(spec.num_envs, jnp.float32),
        )

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return agent.act(key, state.learner, memory, observation, hypers, greedy=greedy)

    def scaled(moments, rollout):
        # While all returns were the same (at first, for instance, where every step gives 1) there is no deviation.
        spread = moments.variance > 1e-8 * moments.mean**2
        scale = jnp.where(spread, jax.lax.rsqrt(jnp.where(spread, moments.variance, 1.0)), 1.0)
        return dataclasses.replace(
            rollout, steps=dataclasses.replace(rollout.steps, reward=scale * rollout.steps.reward)
        )

    def observe(state, rollout, hypers):
        require_num_envs(rollout, spec.num_envs, what="with_return_scaling")

        def accumulate(running, step):
            running = hypers.discount * running + step.reward
            return jnp.where(step.terminated | step.truncated, 0.0, running), running

        running, sums = jax.lax.scan(accumulate, state.running, rollout.steps)
        moments = merge(state.moments, batches.flat(sums, spec.groups))
        learner = agent.observe(state.learner, scaled(moments, rollout), hypers)
        return ReturnScaleState(learner=learner, moments=moments, running=running)

    def update(key, state, rollout, hypers):
        learner, metrics = agent.update(key, state.learner, scaled(state.moments, rollout), hypers)
        return ReturnScaleState(learner=learner, moments=state.moments, running=state.running), metrics

    return Agent(init=init, start=agent.start, act=act, update=update, observe=observe)


def _add(total: Array, rest: Array, term: Array) -> tuple[Array, Array]:
    """Return the sum of all three, and what it leaves out."""
    term = term + rest
    result = total + term
    return result, term - (result - total)
