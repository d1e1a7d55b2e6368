"""The agents' factories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bad_inputs.rows import CART, PENDULUM, TABLE, Row, actor, critic, env, key, row, values
from purerl import exploration, features, networks, optimizers, prediction, tables
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
from purerl.base import Discrete, Network, Spec


def hypers_of(name: str, made: Callable[[], Any], wrong: Callable[[], Any], lacking: str) -> tuple[Row, ...]:
    """Return the rows of what `init` is handed as hypers."""
    return (
        row("hypers of another agent", lambda: made().init(key(), wrong()), TypeError, "hypers is", lacking, name),
        row("no hypers", lambda: made().init(key(), None), TypeError, "hypers is", lacking, name),
    )


def spec_of(name: str, make: Callable[..., Any]) -> tuple[Row, ...]:
    """Return the rows of what is given as `spec`."""
    return (
        row("an environment for its spec", lambda: make(env()), TypeError, "spec is", "env.spec", name),
        row("a name for the spec", lambda: make("CartPole-v1"), TypeError, "spec is 'CartPole-v1'", name),
        row("no environments", lambda: make(TABLE._replace(num_envs=0)), ValueError, "spec.num_envs is 0"),
    )


def table(name: str, make: Callable[..., Any], *more: Row, explores: bool = True, **given: Any) -> tuple[Row, ...]:
    """Return the rows of an agent that learns a table; `given` is what its factory needs beside the spec."""

    def made(spec: Any = TABLE, **changed: Any) -> Any:
        return make(spec, **given | changed)

    rows = (
        *spec_of(name, made),
        row("observations that are arrays", lambda: made(CART), ValueError, f"{name} needs a discrete observation"),
        row(
            "actions that are arrays",
            lambda: made(Spec(Discrete(6), PENDULUM.action, 2)),
            ValueError,
            f"{name} needs a discrete action",
        ),
        *hypers_of(
            name, made, optimizers.Hypers, "prior_mean" if make is thompson_sampling.thompson_sampling else "without"
        ),
        *more,
    )
    if not explores:
        return rows
    return (
        *rows,
        row("a number to explore by", lambda: made(explore=0.1), TypeError, "explore is 0.1", "epsilon_greedy"),
        row(
            "exploration made already",
            lambda: made(explore=exploration.epsilon_greedy(TABLE)),
            TypeError,
            "explore is",
            "a function of the spec",
        ),
        row("what explores no way", lambda: made(explore=lambda spec: None), TypeError, "what explore returns is None"),
    )


def counts(make: Callable[..., Any], name: str, least: int = 1, **given: Any) -> tuple[Row, ...]:
    """Return the rows of an argument that is a count."""
    bad = {"too few": least - 1, "a fraction": 2.5, "a bool": True, "text": "4", "none": None}
    return tuple(
        row(f"{name}: {label}", lambda got=got: make(**given | {name: got}), ValueError, f"{name} is {got!r}", "takes")
        for label, got in bad.items()
    )


def on_table(make: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **given: make(TABLE, **given)


def gradients(name: str, make: Callable[..., Any], **given: Any) -> tuple[Row, ...]:
    """Return the rows of an agent with an actor and a critic of V(s)."""

    def made(spec: Any = CART, actor_network: Any = None, critic_network: Any = None, **changed: Any) -> Any:
        own = actor() if actor_network is None else actor_network
        return make(spec, own, critic() if critic_network is None else critic_network, **given | changed)

    return (
        *spec_of(name, lambda spec: made(spec if not isinstance(spec, Spec) else CART._replace(num_envs=0))),
        row("a spec of other observations", lambda: made(PENDULUM), ValueError, "actor is a network that cannot read"),
        row(
            "an actor of arrays on a discrete environment",
            lambda: made(actor_network=actor(Spec(CART.observation, PENDULUM.action, 2))),
            ValueError,
            "actor returns a Gaussian",
            "Discrete(2)",
        ),
        row(
            "a discrete actor on an environment of arrays",
            lambda: made(Spec(CART.observation, PENDULUM.action, 2)),
            ValueError,
            "actor returns a Categorical of 2",
            "Box(shape=(1,)",
        ),
        row(
            "an actor of too many actions",
            lambda: made(actor_network=actor(Spec(CART.observation, Discrete(5), 2))),
            ValueError,
            "actor returns a Categorical of 5",
            "Discrete(2)",
        ),
        row("action values for an actor", lambda: made(actor_network=values()), TypeError, "actor returns is"),
        row(
            "action values for a critic",
            lambda: made(critic_network=values()),
            ValueError,
            "critic is a network that returns the shape (2,)",
            name,
        ),
        row("a module for a network", lambda: made(actor_network="mlp"), TypeError, "actor is 'mlp'", "Network"),
        *hypers_of(name, made, tables.Hypers, "without"),
    )


def shared_torso(make: Callable[..., Any]) -> tuple[Row, ...]:
    """Return the rows of a torso."""

    def made(torso: Any) -> Any:
        heads = networks.torso(CART, (4,)).spec
        return make(CART, networks.policy(heads, ()), networks.state_values(heads, ()), torso=torso)

    return (
        row("heads without their torso", lambda: made(networks.torso(CART, (5,)).network), ValueError, "actor is a"),
        row("torso and spec", lambda: made(networks.torso(CART, (4,))), TypeError, "torso is", "a Network"),
    )


def learner_of_values(name: str, make: Callable[..., Any], **given: Any) -> tuple[Row, ...]:
    """Return the rows of an agent that learns V of a policy."""

    def made(spec: Any = TABLE, *, of: Any = None, policy: Any = None) -> Any:
        of = features.table(TABLE) if of is None else of
        return make(spec, of, prediction.uniform(TABLE) if policy is None else policy, **given)

    tiles = features.tile_coding(CART, 4, 8, low=-1.0, high=1.0)
    return (
        *spec_of(name, made),
        row("features of another spec", lambda: made(of=tiles), ValueError, "features"),
        row("a table of arrays", lambda: made(CART), ValueError, "features returns the shape", "takes"),
        row("a count of features", lambda: made(of=48), TypeError, "features is 48", "features.table(spec)"),
        row("probabilities for a policy", lambda: made(policy=np.full((6, 3), 1 / 3)), TypeError, "policy is", "key"),
        row(
            "a policy of too many actions",
            lambda: made(policy=lambda key, observation: np.zeros((2, 3))),
            ValueError,
            "policy returns the shape (2, 3)",
        ),
        *hypers_of(name, made, tables.Hypers if name == "td_lambda" else optimizers.Hypers, "without"),
    )


def deep(**given: Any) -> Any:
    return dqn.dqn(CART, **{"network": values()} | given)


def taught(spec: Any = CART, actor_network: Any = None, critic_network: Any = None) -> Any:
    own = actor() if actor_network is None else actor_network
    return q_actor_critic.q_actor_critic(spec, own, values() if critic_network is None else critic_network)


ROWS: dict[str, tuple[Row, ...]] = {
    f"agents.{name}.{name}": rows
    for name, rows in {
        "action_value_bandit": table("action_value_bandit", action_value_bandit.action_value_bandit),
        "double_q_learning": table("double_q_learning", double_q_learning.double_q_learning),
        "expected_sarsa": table("expected_sarsa", expected_sarsa.expected_sarsa),
        "gradient_bandit": table("gradient_bandit", gradient_bandit.gradient_bandit, explores=False),
        "q_learning": table("q_learning", q_learning.q_learning),
        "sarsa": table("sarsa", sarsa.sarsa),
        "sarsa_lambda": table(
            "sarsa_lambda",
            sarsa_lambda.sarsa_lambda,
            row("text for a flag", lambda: sarsa_lambda.sarsa_lambda(TABLE, replacing="no"), TypeError, "replacing is"),
        ),
        "thompson_sampling": table("thompson_sampling", thompson_sampling.thompson_sampling, explores=False),
        "dyna_q": table(
            "dyna_q", dyna_q.dyna_q, *counts(on_table(dyna_q.dyna_q), "planning_steps", 0), planning_steps=2
        ),
        "prioritized_sweeping": table(
            "prioritized_sweeping",
            prioritized_sweeping.prioritized_sweeping,
            *counts(on_table(prioritized_sweeping.prioritized_sweeping), "planning_steps"),
            planning_steps=2,
        ),
        "n_step_sarsa": table(
            "n_step_sarsa", n_step_sarsa.n_step_sarsa, *counts(on_table(n_step_sarsa.n_step_sarsa), "n"), n=2
        ),
        "monte_carlo_control": table(
            "monte_carlo_control",
            monte_carlo_control.monte_carlo_control,
            *counts(on_table(monte_carlo_control.monte_carlo_control), "window"),
            row(
                "text for a flag",
                lambda: monte_carlo_control.monte_carlo_control(TABLE, window=3, first_visit="every"),
                TypeError,
                "first_visit is 'every'",
            ),
            window=3,
        ),
        "n_step_td": (
            *learner_of_values("n_step_td", n_step_td.n_step_td, n=2),
            *counts(lambda n: n_step_td.n_step_td(TABLE, features.table(TABLE), prediction.uniform(TABLE), n=n), "n"),
        ),
        "td_lambda": learner_of_values("td_lambda", td_lambda.td_lambda),
        "dqn": (
            *spec_of("dqn", lambda spec: dqn.dqn(spec, values())),
            row(
                "actions that are arrays",
                lambda: dqn.dqn(PENDULUM, values()),
                ValueError,
                "dqn needs a discrete action",
            ),
            *counts(deep, "n_step"),
            row("text for a flag", lambda: deep(double="no"), TypeError, "double is 'no'", "True or False"),
            row(
                "a network of other observations",
                lambda: deep(network=values(TABLE)),
                ValueError,
                "network is a network that",
            ),
            row(
                "a network of too many actions",
                lambda: deep(network=values(Spec(CART.observation, Discrete(7), 2))),
                ValueError,
                "network is a network that returns the shape (7,)",
                "takes (2,)",
            ),
            row("a critic for a network", lambda: deep(network=critic()), ValueError, "network is", "the shape ()"),
            row("a policy for a network", lambda: deep(network=actor()), ValueError, "network is", "takes (2,)"),
            row("widths for a network", lambda: deep(network=(64, 64)), TypeError, "network is (64, 64)", "Network"),
            row(
                "a network without parameters",
                lambda: deep(network=Network(init=None, apply=None)),
                ValueError,
                "network is a network that cannot read",
            ),
            row("a number for a schedule", lambda: deep(schedule=0.1), TypeError, "schedule is 0.1", "linear_schedule"),
            row("a number to explore by", lambda: deep(explore=0.1), TypeError, "explore is 0.1"),
            row(
                "visits of observations that are arrays",
                lambda: deep(explore=exploration.ucb),
                ValueError,
                "ucb, which counts visits, needs a discrete observation",
            ),
            *hypers_of("dqn", deep, ppo.Hypers, "without"),
        ),
        "a2c": (*gradients("a2c", a2c.a2c), *shared_torso(a2c.a2c)),
        "ppo": (
            *gradients("ppo", ppo.ppo),
            *shared_torso(ppo.ppo),
            *counts(lambda **given: ppo.ppo(CART, actor(), critic(), **given), "epochs"),
            *counts(lambda **given: ppo.ppo(CART, actor(), critic(), **given), "minibatches"),
            row(
                "text for a flag",
                lambda: ppo.ppo(CART, actor(), critic(), normalize_advantages="no"),
                TypeError,
                "normalize_advantages is 'no'",
            ),
        ),
        "trpo": (
            *gradients("trpo", trpo.trpo),
            *shared_torso(trpo.trpo),
            *(
                bad
                for name in ("cg_iterations", "max_backtracks", "critic_epochs", "critic_minibatches")
                for bad in counts(lambda **given: trpo.trpo(CART, actor(), critic(), **given), name)
            ),
        ),
        "reinforce": (
            *gradients("reinforce", reinforce.reinforce, window=4),
            *counts(lambda window: reinforce.reinforce(CART, actor(), window=window), "window"),
            row(
                "text for a flag",
                lambda: reinforce.reinforce(CART, actor(), window=4, discount_states="yes"),
                TypeError,
                "discount_states is 'yes'",
            ),
        ),
        "q_actor_critic": (
            *spec_of(
                "q_actor_critic", lambda spec: taught(spec if not isinstance(spec, Spec) else CART._replace(num_envs=0))
            ),
            row("actions that are arrays", lambda: taught(PENDULUM), ValueError, "q_actor_critic needs a discrete"),
            row(
                "a critic of V(s)",
                lambda: taught(critic_network=critic()),
                ValueError,
                "critic is a network that returns the shape ()",
                "takes (2,)",
            ),
            row(
                "an actor of too many actions",
                lambda: taught(actor_network=actor(Spec(CART.observation, Discrete(5), 2))),
                ValueError,
                "actor returns a Categorical of 5",
            ),
            row("action values for an actor", lambda: taught(actor_network=values()), TypeError, "actor returns is"),
            *hypers_of("q_actor_critic", taught, ppo.Hypers, "without"),
        ),
    }.items()
}
FEW: dict[str, str] = {}
