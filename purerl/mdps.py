"""Finite MDPs as arrays, and what is checked of them.

An MDP is four arguments, everywhere in this order: `transition`, the probabilities of s' given s and a, an array
[S, A, S] or `Successors`; `reward` [S, A], its mean; `terminal` [S], where an episode has ended: nothing follows, the
value is 0 whatever the other arrays say there; and `discount`, gamma. Policies are probabilities [S, A].

Memory: an array of transitions takes 4 S^2 A bytes (a thousand states with four actions 16 MB), `Successors` 8 S A K (a
million states, four actions, one successor each: 32 MB).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from purerl.base import pytree_dataclass
from purerl.checks import require_number


@pytree_dataclass
class Successors:
    """Transitions with at most K outcomes: from s by a to `state`[s, a, k] with `probability`[s, a, k]."""

    state: Any  # int32 [S, A, K]
    probability: Any  # float [S, A, K]; 0 for places not needed


Transitions = Float[Array, "S A S"] | Successors


class MDP(NamedTuple):
    """A finite MDP but for its discount: `value_iteration(*mdp.arrays, discount)`."""

    transition: Transitions
    reward: Float[Array, "S A"]
    terminal: Bool[Array, " S"]
    start: Float[Array, " S"]  # probabilities of an episode's first state

    @property
    def arrays(self) -> tuple[Transitions, Float[Array, "S A"], Bool[Array, " S"]]:
        """What the functions of this module take, in their order."""
        return self.transition, self.reward, self.terminal


def require_mdp(transition: Any, reward: Any, terminal: Any, discount: Any, policy: Any = None) -> None:
    """Raise a ValueError for what is no MDP, or no policy in it; under a trace only shapes are looked at."""
    states, actions = np.shape(reward) if np.ndim(reward) == 2 else (0, 0)
    sparse = isinstance(transition, Successors)
    probability = transition.probability if sparse else transition
    shapes = {"transition": np.shape(probability), "terminal": np.shape(terminal)}
    wanted = {"transition": (states, actions, shapes["transition"][-1] if sparse else states), "terminal": (states,)}
    if policy is not None:
        shapes["policy"], wanted["policy"] = np.shape(policy), (states, actions)
    if sparse:
        shapes["transition.state"], wanted["transition.state"] = np.shape(transition.state), wanted["transition"]
    if not states or not actions:
        raise ValueError(
            f"reward has the shape {np.shape(reward)}; it takes [S, A], a number for each state and action"
        )
    for name, shape in shapes.items():
        if shape != wanted[name]:
            raise ValueError(
                f"{name} has the shape {shape}; beside {states} states x {actions} actions it takes {wanted[name]}"
            )
    arguments = transition, reward, terminal, discount, policy
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments)):
        return
    ended = np.asarray(terminal)
    require_number("discount", discount, least=0.0, most=1.0)
    if not np.isfinite(np.asarray(reward)[~ended]).all():
        raise ValueError("reward is not finite everywhere")
    require_probabilities("transition", np.asarray(probability)[~ended])
    if sparse and ((np.asarray(transition.state) < 0) | (np.asarray(transition.state) >= states)).any():
        raise ValueError(f"transition.state goes outside 0 .. {states - 1}")
    if policy is not None:
        require_probabilities("policy", np.asarray(policy)[~ended])
    if float(discount) == 1.0:
        _require_ends(transition, ended, policy)


def require_probabilities(name: str, rows: Float[np.ndarray, "*batch K"]) -> None:
    """Raise a ValueError unless numbers [..., K] are probabilities that sum to one."""
    if not rows.size:
        return
    sums = rows.sum(axis=-1, dtype=np.float64)
    worst = np.unravel_index(np.argmax(np.abs(sums - 1.0)), sums.shape)
    if not (np.abs(sums - 1.0) < 1e-4).all():
        raise ValueError(
            f"{name} takes rows that sum to 1, and one of a state that is not terminal sums to {sums[worst]:g}"
        )
    if (rows < 0.0).any():
        raise ValueError(f"{name} takes probabilities, and one is {rows.min():g}")


def require_policy(name: str, policy: Any) -> None:
    """Raise a ValueError unless this is a policy, probabilities [S, A]; under a trace only the shape is looked at."""
    if np.ndim(policy) != 2:
        raise ValueError(f"{name} has the shape {np.shape(policy)}; it takes probabilities [S, A]")
    if not isinstance(policy, Tracer):
        require_probabilities(name, np.asarray(policy))


def _require_ends(transition: Any, ended: np.ndarray, policy: Any) -> None:
    """Raise a ValueError unless a terminal state can be reached from everywhere: by the policy, or by any at all."""
    allowed = np.ones(1, bool) if policy is None else np.asarray(policy)[..., None] > 0
    if isinstance(transition, Successors):
        possible = (np.asarray(transition.probability) > 0) & allowed
        state, _, _ = origin = np.nonzero(possible)
        edges = state, np.asarray(transition.state)[origin]
    else:
        edges = np.nonzero(((np.asarray(transition) > 0) & allowed).any(axis=1))
    size = len(ended)
    # Backwards from one more node that stands for the end.
    to = np.concatenate([edges[1], np.full(ended.sum(), size)])
    origin = np.concatenate([edges[0], np.flatnonzero(ended)])
    graph = scipy.sparse.csr_matrix((np.ones(len(to), bool), (to, origin)), shape=(size + 1, size + 1))
    reached = scipy.sparse.csgraph.breadth_first_order(graph, size, return_predecessors=False)
    if len(reached) < size + 1:
        lost = np.setdiff1d(np.arange(size), reached)
        who = "no policy ever" if policy is None else "the policy never"
        raise ValueError(
            f"discount is 1, and from {len(lost)} states, {lost[0]} among them, {who} comes to a terminal "
            "state, so that they have no value. It takes a discount below 1, or episodes that end"
        )
