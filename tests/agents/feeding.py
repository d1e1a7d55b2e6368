"""Recorded experience for agents, in chunks, and for the loops that they are compared with, a step at a time."""

from types import SimpleNamespace

import jax
import numpy as np
from agents.tables_by_the_book import rollout_of


def fed(update, state, experience, hypers, chunk):
    """The state after a compiled `update` has learned from experience [T, N] in chunks, and the metrics of each."""
    found = []
    for first in range(0, len(experience["reward"]), chunk):
        state, metrics = update(jax.random.key(0), state, rollout_of(experience, first, first + chunk), hypers)
        found.append({name: float(metric) for name, metric in metrics.items()})
    return state, found


def rows(experience):
    """The transitions one at a time, in the order of time and then of environments."""
    for time, environment in np.ndindex(*experience["reward"].shape):
        leaves = {name: leaf[time, environment].item() for name, leaf in experience.items()}
        ended = leaves["terminated"] or leaves["truncated"]
        yield SimpleNamespace(time=time, environment=environment, ended=ended, **leaves)


def everything_once(mdp):
    """The pairs [P, 2] of states, ends apart, and actions of a deterministic MDP, and experience [P, 1] of each."""
    pairs = np.array([pair for pair in np.ndindex(*mdp.reward.shape) if not mdp.terminal[pair[0]]])
    successor = np.asarray(mdp.transition.state)[*pairs.T, 0]
    return pairs, {
        "observation": pairs[:, :1],
        "action": pairs[:, 1:],
        "next_observation": successor[:, None],
        "reward": np.asarray(mdp.reward)[*pairs.T][:, None],
        "terminated": np.asarray(mdp.terminal)[successor][:, None],
        "truncated": np.zeros((len(pairs), 1), bool),
    }


def means(errors, chunk):
    """The mean of errors [T, N] in each chunk."""
    return [errors[first : first + chunk].mean() for first in range(0, len(errors), chunk)]
