"""The agents that the contract test runs: a new agent joins by one line in CASES."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from probes import Walk

from purerl import exploration, features, networks, prediction, replay, tables
from purerl.agents import (
    a2c,
    action_value_bandit,
    double_q_learning,
    dqn,
    dyna_q,
    expected_sarsa,
    gradient_bandit,
    monte_carlo_control,
    n_step_sarsa,
    n_step_td,
    ppo,
    prioritized_sweeping,
    q_actor_critic,
    q_learning,
    reinforce,
    sarsa,
    sarsa_lambda,
    td_lambda,
    thompson_sampling,
    trpo,
)
from purerl.base import Agent, Network, Spec


class Case(NamedTuple):
    """An agent, and where it is looked at: `hypers` is a generic point, at which every number matters."""

    name: str
    make: Callable[[Spec], Agent]
    hypers: Any
    env: Any  # a name or an environment, for learning something worth comparing
    table: bool  # exact arithmetic on a table: bit-equal where networks are equal to rounding
    probe_hypers: Any  # fast and greedy enough to solve the probe environment
    probe_iterations: int
    values: Callable[[Any, Any], Any]  # (state, observations) -> what the agent believes, [..., A] or [...]


def _dqn(spec: Spec) -> Agent:
    learner = dqn.dqn(spec, networks.action_values(spec, (16, 16)))
    return replay.with_replay(learner, replay.uniform(spec, 64 * spec.num_envs), batch_size=16)


def _dqn_with_options(spec: Spec) -> Agent:
    learner = dqn.dqn(
        spec,
        networks.action_values(spec, (16, 16), dueling=True),
        double=False,
        n_step=2,
        explore=exploration.boltzmann,
        schedule=exploration.exponential_schedule,
    )
    return replay.with_replay(learner, replay.uniform(spec, 64 * spec.num_envs, length=2), batch_size=16, updates=2)


def _dqn_values(*, dueling: bool) -> Callable[[Any, Any], Any]:
    def values(state: Any, observation: Any) -> Any:
        from probes import Ends

        from purerl import envs

        network = networks.action_values(envs.make(Ends(), 1).spec, (16, 16), dueling=dueling)
        return network.apply(state.learner.params, observation)

    return values


def _table(
    name: str,
    make: Callable[[Spec], Agent],
    hypers: type = tables.Hypers,
    *,
    env: Any = "CliffWalking-purerl",
    probe_number: float = 0.5,
    **more: Any,
) -> Case:
    def values(state: Any, observation: Any) -> Any:
        if isinstance(state, double_q_learning.State):
            return (state.first[observation] + state.second[observation]) / 2
        return state.values[observation]

    here = hypers(**{"learning_rate": 0.3, "discount": 0.9, "exploration": 0.3, "initial_value": 0.2}, **more)
    probe = hypers(**{"learning_rate": 0.1, "discount": 0.9, "exploration": probe_number, "initial_value": 0.0}, **more)
    return Case(name, make, here, env, True, probe, 2_000, values)


def _prediction(name: str, make: Callable[..., Agent], hypers: type = prediction.Hypers, **more: Any) -> Case:
    """An agent that learns V of the uniform policy as a table."""

    def made(spec: Spec) -> Agent:
        return make(spec, features.table(spec), prediction.uniform(spec))

    here = hypers(learning_rate=0.3, discount=0.9, initial_value=0.2, **more)
    probe = hypers(learning_rate=0.1, discount=0.9, **more)
    values = lambda state, observation: state.weights[observation][:, None]  # noqa: E731
    return Case(name, made, here, "CliffWalking-purerl", True, probe, 2_000, values)


def _bandit(name: str, make: Callable[[Spec], Agent], hypers: Any, values: Callable[[Any, Any], Any]) -> Case:
    """An agent to which only the reward at hand counts."""
    return Case(name, make, hypers, "CliffWalking-purerl", True, hypers, 2_000, values)


def _policy(
    name: str,
    make: Callable[..., Agent],
    hypers: Any,
    probe: Any,
    *,
    critic: Callable[..., Network] = networks.state_values,
    env: str = "CartPole-v1",
    iterations: int = 2_000,
    wrap: Callable[[Agent, Spec], Agent] = lambda agent, spec: agent,
    **static: Any,
) -> Case:
    """An agent with a policy and a critic, small networks apart."""

    def made(spec: Spec) -> Agent:
        return wrap(make(spec, networks.policy(spec, (16,)), critic(spec, (16,)), **static), spec)

    def values(state: Any, observation: Any) -> Any:
        from probes import Ends

        from purerl import envs

        while hasattr(state, "learner"):
            state = state.learner
        found = critic(envs.make(Ends(), 1).spec, (16,)).apply(state.params.critic, observation)
        return found[:, None] if found.ndim == 1 else found

    return Case(name, made, hypers, env, False, probe, iterations, values)


_ADAM = {
    "learning_rate": 1e-2,
    "learning_rate_end_fraction": 0.3,
    "learning_rate_horizon": 40.0,
    "discount": 0.9,
    "max_gradient_norm": 0.1,
}
_ADAM_PROBE = {"learning_rate": 3e-3, "discount": 0.9}
_PPO = ppo.Hypers(**_ADAM, value_clip=0.05, max_kl=0.003, rate_adaptation=1.5, target_kl=0.003)

_DQN = dqn.Hypers(
    learning_rate=1e-2,
    learning_rate_end_fraction=0.3,
    learning_rate_horizon=40.0,
    discount=0.9,
    exploration_start=0.9,
    exploration_end=0.3,
    exploration_horizon=50.0,
    target_period=3.0,
    target_rate=0.7,
    max_gradient_norm=0.5,
    huber_delta=0.5,
)
_DQN_PROBE = dqn.Hypers(
    learning_rate=3e-3, learning_rate_end_fraction=1.0, discount=0.9, exploration_end=1.0, target_period=50.0
)

_WARM = dataclasses.replace(_DQN, exploration_start=9.0, exploration_end=5.0)  # temperatures

CASES = [
    _table("q_learning", q_learning.q_learning),
    _table("q_learning by UCB", lambda spec: q_learning.q_learning(spec, explore=exploration.ucb), probe_number=20.0),
    _table("sarsa", sarsa.sarsa),
    _table("expected_sarsa", expected_sarsa.expected_sarsa),
    _table("double_q_learning", double_q_learning.double_q_learning),
    _table("n_step_sarsa", lambda spec: n_step_sarsa.n_step_sarsa(spec, n=3)),
    _table("dyna_q", lambda spec: dyna_q.dyna_q(spec, planning_steps=3)),
    _table("sarsa_lambda", sarsa_lambda.sarsa_lambda, sarsa_lambda.Hypers, trace_decay=0.8),
    _table(
        "prioritized_sweeping",
        lambda spec: prioritized_sweeping.prioritized_sweeping(spec, planning_steps=3),
        prioritized_sweeping.Hypers,
    )._replace(
        hypers=prioritized_sweeping.Hypers(
            learning_rate=0.3, discount=0.9, exploration=0.3, initial_value=0.2, threshold=0.6
        )
    ),
    _table(
        "monte_carlo_control",
        lambda spec: monte_carlo_control.monte_carlo_control(spec, window=7),
        monte_carlo_control.Hypers,
        env=Walk(),
        learning_rate_decay=0.2,
    ),
    _prediction("td_lambda", td_lambda.td_lambda, td_lambda.Hypers, trace_decay=0.8),
    _prediction("n_step_td", functools.partial(n_step_td.n_step_td, n=3)),
    _bandit(
        "action_value_bandit",
        action_value_bandit.action_value_bandit,
        action_value_bandit.Hypers(exploration=0.5, initial_value=0.2, learning_rate=0.9, learning_rate_decay=0.7),
        lambda state, observation: state.values[observation],
    ),
    _bandit(
        "gradient_bandit",
        gradient_bandit.gradient_bandit,
        gradient_bandit.Hypers(baseline=0.9),
        lambda state, observation: state.average[observation][:, None],
    ),
    _bandit(
        "thompson_sampling",
        thompson_sampling.thompson_sampling,
        thompson_sampling.Hypers(prior_mean=0.3, prior_deviation=9.0),
        lambda state, observation: state.mean[observation],
    ),
    Case("dqn", _dqn, _DQN, "CartPole-v1", False, _DQN_PROBE, 2_000, _dqn_values(dueling=False)),
    Case(
        "dqn with options", _dqn_with_options, _WARM, "CartPole-v1", False, _DQN_PROBE, 2_000, _dqn_values(dueling=True)
    ),
    _policy(
        "reinforce",
        reinforce.reinforce,
        reinforce.Hypers(**_ADAM, entropy_weight=0.1),
        reinforce.Hypers(**_ADAM_PROBE),
        window=50,
    ),
    _policy(
        "q_actor_critic",
        q_actor_critic.q_actor_critic,
        q_actor_critic.Hypers(**_ADAM),
        q_actor_critic.Hypers(**_ADAM_PROBE, critic_speed=1.0, entropy_weight=3.0),
        critic=networks.action_values,
    ),
    _policy("a2c", a2c.a2c, a2c.Hypers(**_ADAM, trace_decay=0.9), a2c.Hypers(**_ADAM_PROBE)),
    _policy("ppo", ppo.ppo, _PPO, ppo.Hypers(**_ADAM_PROBE), epochs=3, minibatches=2),
    _policy(
        "trpo, continuous",
        trpo.trpo,
        trpo.Hypers(**_ADAM),
        trpo.Hypers(**_ADAM_PROBE),
        env="Pendulum-v1",
        iterations=500,
        critic_epochs=4,
        critic_minibatches=2,
    ),
]
