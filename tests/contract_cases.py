"""The agents that the contract test runs: a new agent joins by one line in CASES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from purerl import networks, replay
from purerl.agents import dqn, q_learning, sarsa
from purerl.base import Agent, Spec


class Case(NamedTuple):
    """An agent, and where it is looked at: `hypers` is a generic point, at which every number matters."""

    name: str
    make: Callable[[Spec], Agent]
    hypers: Any
    env: str  # for learning something worth comparing
    table: bool  # exact arithmetic on a table: bit-equal where networks are equal to rounding
    probe_hypers: Any  # fast and greedy enough to solve the probe environment
    probe_iterations: int
    values: Callable[[Any, Any], Any]  # (state, observations) -> what the agent believes, [..., A] or [...]


def _dqn(spec: Spec, *, double: bool = True) -> Agent:
    learner = dqn.dqn(spec, networks.action_values(spec, (16, 16)), double=double)
    return replay.with_replay(learner, replay.uniform(spec, 64 * spec.num_envs), batch_size=16)


def _dqn_values(state: Any, observation: Any) -> Any:
    from probes import Ends

    from purerl import envs

    return networks.action_values(envs.make(Ends(), 1).spec, (16, 16)).apply(state.learner.params, observation)


_TABLE = {"learning_rate": 0.3, "discount": 0.9, "exploration": 0.3, "initial_value": 0.2}
_TABLE_PROBE = {"learning_rate": 0.1, "discount": 0.9, "exploration": 0.5, "initial_value": 0.0}
_DQN = dqn.Hypers(
    learning_rate=1e-2,
    learning_rate_end=3e-3,
    learning_rate_horizon=40.0,
    discount=0.9,
    exploration_start=0.9,
    exploration_end=0.3,
    exploration_horizon=50.0,
    target_period=3.0,
    huber_delta=0.5,
)
_DQN_PROBE = dqn.Hypers(
    learning_rate=3e-3, learning_rate_end=3e-3, discount=0.9, exploration_end=1.0, target_period=50.0
)

CASES = [
    Case("q_learning", q_learning.q_learning, q_learning.Hypers(**_TABLE), "CliffWalking-purerl", True,
         q_learning.Hypers(**_TABLE_PROBE), 2_000, lambda state, observation: state.values[observation]),
    Case("sarsa", sarsa.sarsa, sarsa.Hypers(**_TABLE), "CliffWalking-purerl", True,
         sarsa.Hypers(**_TABLE_PROBE), 2_000, lambda state, observation: state.values[observation]),
    Case("dqn", _dqn, _DQN, "CartPole-v1", False, _DQN_PROBE, 2_000, _dqn_values),
]  # fmt: skip
