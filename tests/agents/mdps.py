"""What tests of policy gradients share: MDPs whose episodes can all be listed, networks that are tables, and Adam."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.actor_critic import Params
from purerl.base import Network, cast_hypers
from purerl.distributions import Categorical

# --- MDPs -----------------------------------------------------------------------------------------------------------


class Mdp(NamedTuple):
    """An MDP in which every step leads to a later state, the last of which, number S, is the end: at most S steps."""

    start: np.ndarray  # [S]
    successor: np.ndarray  # [S, A, S + 1]: probabilities
    reward: np.ndarray  # [S, A, S + 1]


def random_mdp(seed, states, actions):
    rng = np.random.default_rng(seed)
    successor = np.triu(rng.random((actions, states, states + 1)), 1).swapaxes(0, 1)
    start = rng.random(states)
    return Mdp(
        start=start / start.sum(),
        successor=successor / successor.sum(axis=-1, keepdims=True),
        reward=rng.normal(size=successor.shape),
    )


def softmax(logits):
    weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def expected_return(mdp, logits, discount, clock=None):
    """The expected discounted return from the start, or what is seen of it until the clock ends the episode."""
    policy = jax.nn.softmax(logits)
    moves = discount * jnp.einsum("sa,sat->st", policy, mdp.successor)[:, :-1]
    reward = jnp.einsum("sa,sat,sat->s", policy, mdp.successor, mdp.reward)
    if clock is None:
        return mdp.start @ jnp.linalg.solve(jnp.eye(len(reward)) - moves, reward)
    return sum(mdp.start @ jnp.linalg.matrix_power(moves, time) @ reward for time in range(clock))


def gradient_of_return(mdp, logits, discount, clock=None):
    """Its derivative by the logits [S, A], in float64, without the theorem."""
    with jax.enable_x64(True):
        return np.asarray(jax.grad(expected_return, 1)(mdp, jnp.asarray(logits), discount, clock))


def action_values(mdp, logits, discount):
    """V [S] and Q [S, A] of the policy."""
    value = np.zeros(len(mdp.start) + 1)  # that of the end stays 0
    q = np.zeros_like(logits)
    for state in reversed(range(len(mdp.start))):
        q[state] = np.sum(mdp.successor[state] * (mdp.reward[state] + discount * value), axis=-1)
        value[state] = softmax(logits[state]) @ q[state]
    return value[:-1], q


def occupancy(mdp, logits, discount, clock=None):
    """The sum over t (before the clock ends it) of discount^t P(s_t = s): [S]."""
    moves = np.einsum("sa,sat->st", softmax(logits), mdp.successor)[:, :-1]
    total, now = np.zeros_like(mdp.start), mdp.start
    for _ in range(len(total) if clock is None else clock):
        total, now = total + now, discount * now @ moves
    return total


def by_the_theorem(weight, logits, q):
    """The sum over s of weight(s) times the sum over a of Q(s, a) grad pi(a|s): [S, A]."""
    policy = softmax(logits)
    return weight[:, None] * policy * (q - np.sum(policy * q, axis=-1, keepdims=True))


def episodes_of(mdp, clock=None):
    """All episodes, each a list of (s, a, s'), s' = S at the end, up to those that the clock ends earlier."""
    states, actions = mdp.reward.shape[:2]
    under_way = [[(state, action)] for state in range(states) for action in range(actions)]
    found = []
    while under_way:
        *steps, (state, action) = under_way.pop()
        for successor in range(state + 1, states + 1):
            episode = [*steps, (state, action, successor)]
            if successor == states or len(episode) == clock:
                found.append(episode)
            else:
                under_way += [[*episode, (successor, action)] for action in range(actions)]
    return found


def probability(mdp, logits, episode):
    policy = softmax(logits)
    steps = [policy[state, action] * mdp.successor[state, action, after] for state, action, after in episode]
    return mdp.start[episode[0][0]] * np.prod(steps)


def experience_of(mdp, episode, length, clock=None):
    """An episode as experience [T, 1]; what fills it up belongs to an episode that does not end.

    The observation after the end is that of state 0, which is worth something; what the clock ends is truncated, and
    may have terminated besides.
    """
    states = len(mdp.start)
    rows = [
        (state, action, mdp.reward[state, action, after], after == states, time + 1 == clock, after % states)
        for time, (state, action, after) in enumerate(episode)
    ]
    rows += [(0, 0, 99.0, False, False, 0)] * (length - len(rows))
    names = {
        "observation": np.int32,
        "action": np.int32,
        "reward": np.float32,
        "terminated": bool,
        "truncated": bool,
        "next_observation": np.int32,
    }
    return {
        name: np.array(column, dtype)[:, None]
        for (name, dtype), column in zip(names.items(), zip(*rows, strict=True), strict=True)
    }


def pieces(experience, cuts):
    """The experience as rollouts of these lengths in turn, over and over."""
    first, found = 0, []
    while first < len(experience["reward"]):
        length = cuts[len(found) % len(cuts)]
        found.append({name: leaf[first : first + length] for name, leaf in experience.items()})
        first += length
    return found


# --- tables as networks ---------------------------------------------------------------------------------------------


def _look_up(params, observation):
    return (jax.lax.stop_gradient(params["at"]) + params["by"])[observation]


def placed(table):
    """Parameters of a table, held as a sum whose second part learns: as that starts from zero no step is rounded."""
    return {"at": jnp.asarray(table, jnp.float32), "by": jnp.zeros(np.shape(table))}


def value_table(*shape):
    """A network whose outputs are the rows of a table of this shape."""
    return Network(init=lambda key, observation: placed(np.zeros(shape)), apply=_look_up)


def policy_table(*shape):
    """The same, with a policy of them."""
    network = value_table(*shape)
    return network._replace(apply=lambda params, observation: Categorical(logits=_look_up(params, observation)))


def begun(agent, hypers, logits, values=None):
    """The agent's first state, with these tables."""
    params = Params(torso=(), actor=placed(logits), critic=() if values is None else placed(values))
    return dataclasses.replace(agent.init(jax.random.key(0), hypers), params=params)


def tables_of(state):
    """What the state has learned, in float64: logits, and values if there is a critic."""
    heads = state.params.actor, state.params.critic
    return [np.float64(head["at"]) + np.float64(head["by"]) for head in heads if head]


def moves_of(state):
    """How far a state has gone from where it was placed: the logits, and the values if there is a critic."""
    return [np.float64(head["by"]) for head in (state.params.actor, state.params.critic) if head]


def descending(hypers, rate=1.0, entropy_weight=0.0, **numbers):
    """Hypers with which a step of Adam is -rate times the gradient: beside such an epsilon nothing else counts."""
    large = 1e9
    return cast_hypers(
        hypers(
            learning_rate=rate * large,
            max_gradient_norm=large,
            adam_b1=0.0,
            adam_b2=0.0,
            adam_eps=large,
            entropy_weight=entropy_weight,
            **numbers,
        )
    )


# --- in float64 -----------------------------------------------------------------------------------------------------


def score(logits, action):
    """The gradient of log pi(action) by the logits [A]."""
    return np.eye(len(logits))[action] - softmax(logits)


def entropy(logits):
    policy = softmax(logits)
    return -np.sum(policy * np.log(policy))


def entropy_slope(logits):
    """The gradient of the entropy by the logits [A]."""
    policy = softmax(logits)
    return -policy * (np.log(policy) + entropy(logits))


class Adam:
    """Kingma & Ba 2015, after clipping by the norm of all gradients together; the rate goes straight to its end."""

    def __init__(self, hypers):
        self.numbers = {name: float(number) for name, number in dataclasses.asdict(hypers).items()}
        self.count, self.first, self.second = 0, 0.0, 0.0
        self.norms = []  # before clipping

    def steps(self, gradients, updates=None):
        """Return the steps; `updates` is how many came before, those without a step too."""
        h, sizes = self.numbers, [np.size(one) for one in gradients]
        gradient = np.concatenate([np.ravel(one) for one in gradients])
        self.norms.append(np.linalg.norm(gradient))
        gradient = gradient * min(1.0, h["max_gradient_norm"] / self.norms[-1]) if self.norms[-1] else gradient
        share = min(1.0, (self.count if updates is None else updates) / h["learning_rate_horizon"])
        rate = h["learning_rate"] * (1 - share + share * h["learning_rate_end_fraction"])
        self.count += 1
        self.first = h["adam_b1"] * self.first + (1 - h["adam_b1"]) * gradient
        self.second = h["adam_b2"] * self.second + (1 - h["adam_b2"]) * gradient**2
        first = self.first / (1 - h["adam_b1"] ** self.count)
        second = self.second / (1 - h["adam_b2"] ** self.count)
        step = -rate * first / (np.sqrt(second) + h["adam_eps"])
        parts = np.split(step, np.cumsum(sizes)[:-1])
        return [part.reshape(np.shape(one)) for part, one in zip(parts, gradients, strict=True)]
