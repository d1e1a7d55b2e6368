"""What runs agents: the loop, evaluation, the driver, and training as what is swept."""

from __future__ import annotations

import functools
from typing import Any

import jax

from bad_inputs.rows import CART, PENDULUM, TABLE, Row, actor, critic, env, key, keys, old_key, row
from purerl import driver, envs, evaluate, loop, tables, training
from purerl.agents import a2c, dqn, ppo, q_learning, sarsa
from purerl.base import Spec
from purerl.envs import chains


@functools.cache
def walker() -> Any:
    return q_learning.q_learning(env().spec)


def begun(**changed: Any) -> Any:
    given = {"key": key(), "agent": walker(), "env": env(), "hypers": tables.Hypers()}
    return jax.eval_shape(lambda: loop.begin(**given | changed))


def advanced(**changed: Any) -> Any:
    """Trace, and no more, what continues a run."""
    given = {"agent": walker(), "env": env(), "hypers": tables.Hypers(), "iterations": 4} | changed
    run = given.pop("run") if "run" in given else begun()
    return jax.eval_shape(lambda run: loop.advance(run, **given), run)


def trained(**changed: Any) -> Any:
    given = {"key": key(), "agent": walker(), "env": env(), "hypers": tables.Hypers(), "iterations": 4}
    return jax.eval_shape(lambda: loop.train(**given | changed))


def played(**changed: Any) -> Any:
    given = {"key": key(), "agent": walker(), "env": env(), "hypers": tables.Hypers(), "max_steps": 4}
    given |= {"state": walker().init(key(), tables.Hypers())} | changed
    return jax.eval_shape(lambda: evaluate.evaluate(**given))


def phases(steps: Any = 4) -> list[Any]:
    return [loop.Phase(walker(), steps)]


def driven(**changed: Any) -> Any:
    given = {"keys": keys(), "phases": phases(), "env": env(), "hypers": tables.Hypers(), "log_every": 4}
    return driver.drive(**given | changed)


def pushing() -> Any:
    """Return an agent whose actions are arrays, which sees what CartPole shows."""
    spec = Spec(CART.observation, PENDULUM.action, 2)
    return a2c.a2c(spec, actor(spec), critic(spec))


def numbers_of(call: Any) -> tuple[Row, ...]:
    """Return the rows of what is given as hypers and as the environment."""
    return (
        row("hypers of another agent", lambda: call(hypers=ppo.Hypers()), TypeError, "hypers is", "tables.Hypers"),
        row("the class of hypers", lambda: call(hypers=tables.Hypers), TypeError, "hypers is the class Hypers"),
        row("no hypers", lambda: call(hypers=None), TypeError, "hypers is", "without"),
        row("NaN", lambda: call(hypers=tables.Hypers(discount=float("nan"))), ValueError, "Hypers.discount is nan"),
        row("text", lambda: call(hypers=tables.Hypers(discount="1")), TypeError, "Hypers.discount is '1'"),
        row(
            "many numbers", lambda: call(hypers=tables.Hypers(discount=[1, 2])), ValueError, "Hypers.discount has shape"
        ),
        row("a name for the environment", lambda: call(env="CliffWalking-purerl"), TypeError, "env is 'CliffWalking"),
        row("a single environment", lambda: call(env=envs.CliffWalking()), TypeError, "env is", "envs.make"),
        row(
            "parameters of another environment",
            lambda: call(env_params=chains.GamblerParams()),
            ValueError,
            "env_params is",
            "CliffWalkingParams",
        ),
    )


def counted(name: str, call: Any) -> tuple[Row, ...]:
    bad = {"none": 0, "fewer than none": -1, "a fraction": 2.5, "a bool": True, "text": "4"}
    return tuple(
        row(f"{name}: {label}", lambda got=got: call(got), ValueError, f"{name} is {got!r}")
        for label, got in bad.items()
    )


def phased(call: Any) -> tuple[Row, ...]:
    """Return the rows of phases, environments and judges."""
    return (
        row("no phases", lambda: call([]), ValueError, "phases is empty"),
        row("one phase and no list", lambda: call(phases()[0]), TypeError, "phases is", "[Phase(agent, steps)]"),
        row("an agent", lambda: call([walker()]), TypeError, "a phase is", "loop.Phase"),
        row("a factory", lambda: call([loop.Phase(q_learning.q_learning, 4)]), TypeError, "agent is", "an Agent"),
        *counted("steps", lambda steps: call(phases(steps))),
        row("a name for the environment", lambda: call(phases(), "CliffWalking-purerl"), TypeError, "env is 'Cliff"),
        *counted("length", lambda length: call(phases(), length=length)),
        row("a name for a judge", lambda: call(phases(), judge="CartPole-v1"), TypeError, "judge is 'CartPole-v1'"),
        *counted("max_steps", lambda cap: call(phases(), judge=env(), max_steps=cap)),
    )


def whole(phases: Any, where: Any = None, **options: Any) -> Any:
    return training.trainer(phases, env() if where is None else where, **options)


def in_units(phases: Any, where: Any = None, **options: Any) -> Any:
    return training.learner(phases, env() if where is None else where, **options)


ROWS: dict[str, tuple[Row, ...]] = {
    "loop.begin": (
        row("a key of the old kind", lambda: begun(key=old_key()), TypeError, "key is", "jax.random.key(seed)"),
        row("a seed", lambda: begun(key=0), TypeError, "key is 0", "jax.random.key(seed)"),
        row("several keys", lambda: begun(key=keys()), ValueError, "key has the shape (2,)"),
        row("a factory", lambda: begun(agent=q_learning.q_learning), TypeError, "agent is", "an Agent"),
        *numbers_of(begun),
        *counted("episode_table", lambda rows: begun(episode_table=rows))[1:],
    ),
    "loop.advance": (
        *numbers_of(advanced)[1:2],
        *numbers_of(advanced)[3:],
        row("an agent's state", lambda: advanced(run=tables.Hypers()), TypeError, "run is"),
        row(
            "a run of another agent",
            lambda: advanced(agent=sarsa.sarsa(env().spec)),
            ValueError,
            "state is",
        ),
        row("a factory", lambda: advanced(agent=q_learning.q_learning), TypeError, "agent is"),
        *counted("iterations", lambda count: advanced(iterations=count)),
        *counted("length", lambda count: advanced(length=count)),
        *counted("rows", lambda count: advanced(rows=count)),
        row("rows that do not divide", lambda: advanced(rows=3), ValueError, "rows is 3", "the 4 iterations"),
        row(
            "an agent for more environments",
            lambda: trained(agent=sarsa.sarsa(TABLE._replace(num_envs=3))),
            ValueError,
            "sarsa was made for 3 environments",
        ),
    ),
    "loop.train": (
        row("a key of the old kind", lambda: trained(key=old_key()), TypeError, "key is"),
        *numbers_of(trained),
        *counted("iterations", lambda count: trained(iterations=count)),
        row("rows that do not divide", lambda: trained(rows=3), ValueError, "rows is 3"),
        row(
            "actions that are arrays on a discrete environment",
            lambda: trained(agent=pushing(), env=env("CartPole-v1"), hypers=a2c.Hypers()),
            ValueError,
            "agent acts with the shape (2, 1) in CartPole-v1",
        ),
        row(
            "discrete actions on an environment of arrays",
            lambda: trained(agent=walker(), env=env("Pendulum-v1")),
            ValueError,
            "agent cannot act on what Pendulum-v1 shows",
        ),
    ),
    "evaluate.evaluate": (
        row("a key of the old kind", lambda: played(key=old_key()), TypeError, "key is", "jax.random.key(seed)"),
        row("several keys", lambda: played(key=keys()), ValueError, "key has the shape (2,)"),
        row("a factory", lambda: played(agent=dqn.dqn), TypeError, "agent is", "an Agent"),
        row("hypers for a state", lambda: played(state=tables.Hypers()), ValueError, "state is"),
        row("a whole run", lambda: played(state=begun()), ValueError, "state is of type Run", "run.agent"),
        row(
            "the state of another agent",
            lambda: played(agent=sarsa.sarsa(env().spec)),
            ValueError,
            "state is",
        ),
        *numbers_of(played),
        *counted("max_steps", lambda cap: played(max_steps=cap)),
    ),
    "training.trainer": (
        *phased(whole),
        *counted("rows", lambda rows: whole(phases(), rows=rows)),
        row("rows that do not divide", lambda: whole(phases(8), rows=3), ValueError, "rows is 3", "4 iterations"),
    ),
    "training.learner": phased(in_units),
    "training.watched": (
        row("a factory", lambda: training.watched(dqn.dqn), TypeError, "agent is", "an Agent"),
        row("a name", lambda: training.watched("dqn"), TypeError, "agent is 'dqn'"),
        row("a phase", lambda: training.watched(phases()[0]), TypeError, "agent is"),
        row("nothing", lambda: training.watched(None), TypeError, "agent is None"),
        row("its functions", lambda: training.watched(tuple(walker())), TypeError, "agent is"),
    ),
    "driver.seed_keys": (
        row("less than 0", lambda: driver.seed_keys(-1, 2), ValueError, "seed is -1"),
        row("more than 32 bits", lambda: driver.seed_keys(2**32, 2), ValueError, "seed is 4294967296"),
        row("a fraction", lambda: driver.seed_keys(1.5, 2), ValueError, "seed is 1.5"),
        row("text", lambda: driver.seed_keys("1", 2), ValueError, "seed is '1'"),
        row("no seeds", lambda: driver.seed_keys(0, 0), ValueError, "seeds is 0"),
        row("a fraction of seeds", lambda: driver.seed_keys(0, 2.5), ValueError, "seeds is 2.5"),
    ),
    "driver.drive": (
        row("keys of the old kind", lambda: driven(keys=old_key()), TypeError, "keys is"),
        row("one key", lambda: driven(keys=key()), ValueError, "keys has the shape ()"),
        row("a seed", lambda: driven(keys=0), TypeError, "keys is 0"),
        row("no phases", lambda: driven(phases=[]), ValueError, "phases take []"),
        row("a phase of no steps", lambda: driven(phases=phases(0)), ValueError, "phases take [0] steps"),
        row("an agent", lambda: driven(phases=[walker()]), TypeError, "a phase is"),
        *numbers_of(driven),
        row("no steps at a time", lambda: driven(length=0), ValueError, "length is 0"),
        row("no chunks", lambda: driven(log_every=0), ValueError, "log_every is 0"),
        row("a name to evaluate in", lambda: driven(eval_env="CartPole-v1"), TypeError, "eval_env is"),
        row("fewer than no steps between", lambda: driven(eval_every=-1), ValueError, "eval_every is"),
        row(
            "no steps of an evaluation", lambda: driven(eval_env=env(), eval_max_steps=0), ValueError, "max_steps is 0"
        ),
        row("NaN to stop at", lambda: driven(stop_at_return=float("nan")), ValueError, "stop_at_return"),
        row("devices for a spread", lambda: driven(spread=2), TypeError, "spread is 2"),
        row("less than no memory", lambda: driven(memory=-1), ValueError, "memory is -1"),
    ),
}
FEW: dict[str, str] = {}
