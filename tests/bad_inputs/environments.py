"""Environments, and finite MDPs with what solves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from gymnax.environments import spaces

from bad_inputs.rows import TABLE, Row, env, row
from purerl import envs, mdps, planning, rollout
from purerl.envs import bandits, chains, gridworlds
from purerl.mdps import Successors


def count_of(name: str, make: Callable[[Any], Any], least: int = 1) -> tuple[Row, ...]:
    """Return the rows of an argument that is a count."""
    bad = {"too few": least - 1, "a negative count": -3, "a fraction": 2.5, "a bool": True, "text": "4", "none": None}
    return tuple(
        row(f"{name}: {label}", lambda got=got: make(got), ValueError, f"{name} is {got!r}", f"at least {least}")
        for label, got in bad.items()
    )


class Paired(bandits.Bandit):
    """A bandit whose actions come in pairs."""

    def action_space(self, params: Any = None) -> Any:
        return spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2)))


def moved(states: int = 3, actions: int = 2) -> np.ndarray:
    """Return transitions to the last state, which is the end."""
    transition = np.zeros((states, actions, states), np.float32)
    transition[..., -1] = 1.0
    return transition


def mdp(**changed: Any) -> dict[str, Any]:
    """Return the arguments of a small MDP, some changed."""
    given = {"transition": moved(), "reward": np.zeros((3, 2)), "terminal": np.array([False, False, True])}
    return given | {"discount": 0.9} | changed


def tabular(**changed: Any) -> Any:
    given = mdp()
    del given["discount"]
    return envs.tabular_mdp(**given | changed)


def arrays(call: Callable[..., Any]) -> tuple[Row, ...]:
    """Return the rows of an MDP's arrays."""
    outside = Successors(state=np.full((3, 2, 1), 3), probability=np.ones((3, 2, 1)))
    ragged = Successors(state=np.zeros((3, 2, 2), int), probability=np.ones((3, 2, 1)))
    return (
        row("a reward of states alone", lambda: call(reward=np.zeros(3)), ValueError, "reward has the shape (3,)"),
        row("text for a reward", lambda: call(reward="none"), ValueError, "reward has the shape ()"),
        row("NaN for a reward", lambda: call(reward=np.full((3, 2), np.nan)), ValueError, "reward is not finite"),
        row(
            "transitions of other states",
            lambda: call(transition=moved(4)),
            ValueError,
            "transition has the shape (4, 2, 4)",
            "(3, 2, 3)",
        ),
        row("transitions that sum to 2", lambda: call(transition=2 * moved()), ValueError, "transition takes", "2"),
        row("NaN for transitions", lambda: call(transition=moved() * np.nan), ValueError, "transition takes", "nan"),
        row(
            "less than no probability",
            lambda: call(transition=np.tile([-1.0, 1.0, 1.0], (3, 2, 1))),
            ValueError,
            "transition takes probabilities",
        ),
        row("a successor beyond the states", lambda: call(transition=outside), ValueError, "transition.state goes"),
        row("successors of two shapes", lambda: call(transition=ragged), ValueError, "transition.state has the shape"),
        row(
            "ends of other states", lambda: call(terminal=np.zeros(4, bool)), ValueError, "terminal has the shape (4,)"
        ),
    )


def solved(call: Callable[..., Any], *, of_policy: bool = False, iterates: bool = True) -> tuple[Row, ...]:
    """Return the rows of a solver: those of an MDP, of its discount, and of its own settings."""

    def given(**changed: Any) -> Any:
        own = {"policy": np.full((3, 2), 0.5)} if of_policy else {}
        return call(**own | mdp(**changed))

    rows = (
        *arrays(given),
        row("a discount above 1", lambda: given(discount=1.5), ValueError, "discount is 1.5", "from 0 to 1"),
        row("a discount below 0", lambda: given(discount=-0.1), ValueError, "discount is -0.1"),
        row("NaN for a discount", lambda: given(discount=float("nan")), ValueError, "discount is nan"),
        row("text for a discount", lambda: given(discount="0.9"), ValueError, "discount is '0.9'"),
        row(
            "no discount and no end",
            lambda: given(discount=1.0, terminal=np.zeros(3, bool)),
            ValueError,
            "discount is 1",
            "terminal state",
        ),
    )
    if of_policy:
        rows += (
            row("a policy of other states", lambda: given(policy=np.ones((4, 2)) / 2), ValueError, "policy has the"),
            row("a policy that sums to 2", lambda: given(policy=np.ones((3, 2))), ValueError, "policy takes rows"),
        )
    if iterates:
        rows += (
            row("less than no tolerance", lambda: given(tolerance=-1e-3), ValueError, "tolerance is -0.001"),
            row("NaN for a tolerance", lambda: given(tolerance=float("nan")), ValueError, "tolerance is nan"),
            row("no iterations", lambda: given(max_iterations=0), ValueError, "max_iterations is 0"),
            row("a fraction of iterations", lambda: given(max_iterations=1e4), ValueError, "max_iterations is 10000.0"),
        )
    return rows


ROWS: dict[str, tuple[Row, ...]] = {
    "envs.vectorised.make": (
        *count_of("num_envs", lambda count: envs.make("CliffWalking-purerl", count)),
        row("a near miss", lambda: envs.make("CartPole", 2), ValueError, "env is 'CartPole'", "CartPole-v1"),
        row("an unknown name", lambda: envs.make("Zaxxon 9000!", 2), ValueError, "env is 'Zaxxon 9000!'", "known are"),
        row("a class", lambda: envs.make(envs.CliffWalking, 2), TypeError, "env is", "gymnax Environment"),
        row("what make returned", lambda: envs.make(env(), 2), TypeError, "env is", "gymnax Environment"),
        row("nothing", lambda: envs.make(None, 2), TypeError, "env is None"),
        row(
            "a word it does not take",
            lambda: envs.make("Bandit-purerl", 2, legs=3),
            ValueError,
            "does not take",
            "legs",
        ),
        row(
            "words beside an object",
            lambda: envs.make(envs.Bandit(), 2, arms=3),
            ValueError,
            "{'arms': 3}",
            "give them to its constructor",
        ),
        row("actions in pairs", lambda: envs.make(Paired(), 2), ValueError, "action space", "Discrete or a Box"),
        row(
            "no dtype",
            lambda: envs.make("CartPole-v1", 2, observation_dtype="pictures"),
            ValueError,
            "observation_dtype is 'pictures'",
        ),
        row(
            "a dtype for an integer",
            lambda: envs.make("CliffWalking-purerl", 2, observation_dtype=bool),
            ValueError,
            "observation_dtype is bool",
        ),
    ),
    "envs.vectorised.create": (
        row("a near miss", lambda: envs.create("cliffwalking"), ValueError, "env is 'cliffwalking'", "CliffWalking"),
        row("a class", lambda: envs.create(envs.CliffWalking), TypeError, "env is"),
        row("what make returned", lambda: envs.create(env()), TypeError, "env is"),
        row("nothing", lambda: envs.create(None), TypeError, "env is None"),
        row("a number", lambda: envs.create(4), TypeError, "env is 4"),
        row("a word it does not take", lambda: envs.create("Gambler-purerl", goal=3), ValueError, "does not take"),
        row("a value it does not take", lambda: envs.create("Bandit-purerl", arms=0), ValueError, "arms is 0"),
        row("words beside an object", lambda: envs.create(envs.Bandit(), arms=3), ValueError, "{'arms': 3}"),
    ),
    "envs.finite.enumerate_mdp": (
        row("a near miss", lambda: envs.enumerate_mdp("Cliff-purerl"), ValueError, "env is 'Cliff-purerl'"),
        row("endless states", lambda: envs.enumerate_mdp("CartPole-v1"), TypeError, "'CartPole-v1' cannot be"),
        row("what make returned", lambda: envs.enumerate_mdp(env()), TypeError, "env is"),
        row("a word it does not take", lambda: envs.enumerate_mdp("Gambler-purerl", goal=3), ValueError, "take"),
        row(
            "parameters of another",
            lambda: envs.enumerate_mdp("Gambler-purerl", chains.RandomWalkParams()),
            TypeError,
            "params is",
            "GamblerParams",
        ),
        row("a number for parameters", lambda: envs.enumerate_mdp("Gambler-purerl", 0.4), TypeError, "params is 0.4"),
        row(
            "a dict for parameters",
            lambda: envs.enumerate_mdp("Gambler-purerl", {"heads": 0.4}),
            TypeError,
            "params is {'heads': 0.4}",
        ),
    ),
    "envs.gridworlds.grid_of": (
        row("a name", lambda: envs.grid_of("CliffWalking-purerl"), TypeError, "env is 'CliffWalking-purerl'"),
        row("what make returned", lambda: envs.grid_of(env()), TypeError, "env is", "envs.create"),
        row("a class", lambda: envs.grid_of(gridworlds.CliffWalking), TypeError, "env is"),
        row("nothing", lambda: envs.grid_of(None), TypeError, "env is None"),
        row("a spec", lambda: envs.grid_of(TABLE), TypeError, "env is"),
    ),
    "envs.finite.tabular_mdp": (
        *arrays(tabular),
        row("a start beyond the states", lambda: tabular(start=3), ValueError, "start is 3", "0 .. 2"),
        row("a start below the states", lambda: tabular(start=-1), ValueError, "start is -1"),
        row("a fraction of a state", lambda: tabular(start=1.5), ValueError, "start is 1.5"),
        row("starts of other states", lambda: tabular(start=np.ones(4) / 4), ValueError, "start has the shape (4,)"),
        row("starts that sum to 3", lambda: tabular(start=np.ones(3)), ValueError, "start takes", "3"),
        *count_of("max_steps", lambda count: tabular(max_steps=count)),
    ),
    "envs.bandits.Bandit": count_of("arms", envs.Bandit),
    "envs.chains.RandomWalk": count_of("states", envs.RandomWalk),
    "envs.textbook.MaximizationBias": count_of("actions", envs.MaximizationBias, least=2),
    "envs.mazes.DynaMaze": (
        row("another maze", lambda: envs.DynaMaze("labyrinth"), ValueError, "maze is 'labyrinth'", "dyna"),
        row("a list", lambda: envs.DynaMaze(["dyna"]), ValueError, "maze is ['dyna']"),
        row("a number", lambda: envs.DynaMaze(1), ValueError, "maze is 1"),
        row("nothing", lambda: envs.DynaMaze(None), ValueError, "maze is None"),
        row("another case", lambda: envs.DynaMaze("Dyna"), ValueError, "maze is 'Dyna'"),
        row("by name", lambda: envs.create("DynaMaze-purerl", maze="big"), ValueError, "maze is 'big'"),
    ),
    "envs.gridworlds.WindyGridworld": (
        row(
            "staying without moves", lambda: envs.WindyGridworld(with_stay=True), ValueError, "with_stay", "kings_moves"
        ),
        row("text for moves", lambda: envs.WindyGridworld("yes"), TypeError, "kings_moves is 'yes'"),
        row("a number for moves", lambda: envs.WindyGridworld(8), TypeError, "kings_moves is 8", "True or False"),
        row("text for staying", lambda: envs.WindyGridworld(True, "no"), TypeError, "with_stay is 'no'"),
        row("a chance for wind", lambda: envs.WindyGridworld(stochastic_wind=0.3), TypeError, "stochastic_wind is 0.3"),
    ),
    "rollout.cast_params": (
        row("a name", lambda: rollout.cast_params("CartPole-v1", None), TypeError, "env is 'CartPole-v1'"),
        row("one environment", lambda: rollout.cast_params(envs.Bandit(), None), TypeError, "env is", "envs.make"),
        row(
            "parameters of another",
            lambda: rollout.cast_params(env(), chains.GamblerParams()),
            ValueError,
            "env_params is",
            "CliffWalking-purerl takes CliffWalkingParams",
        ),
        row("a dict", lambda: rollout.cast_params(env(), {"cliff_reward": -1.0}), ValueError, "env_params is"),
        row(
            "many of one",
            lambda: rollout.cast_params(env(), gridworlds.CliffWalkingParams(cliff_reward=jnp.zeros(3))),
            ValueError,
            "env_params.cliff_reward has shape (3,)",
            "vmap",
        ),
        row(
            "text for one",
            lambda: rollout.cast_params(env(), gridworlds.CliffWalkingParams(cliff_reward="-1")),
            TypeError,
            "env_params.cliff_reward is '-1'",
        ),
        row("hypers", lambda: rollout.cast_params(env(), {}), ValueError, "env_params is {}"),
    ),
    "mdps.require_mdp": (
        *arrays(lambda **changed: mdps.require_mdp(**mdp(**changed))),
        row("a discount above 1", lambda: mdps.require_mdp(**mdp(discount=1.5)), ValueError, "discount is 1.5"),
        row("a discount of many", lambda: mdps.require_mdp(**mdp(discount=np.ones(2))), ValueError, "discount is"),
        row(
            "a policy of other states",
            lambda: mdps.require_mdp(**mdp(policy=np.ones((4, 2)) / 2)),
            ValueError,
            "policy has the shape (4, 2)",
        ),
    ),
    "mdps.require_probabilities": (
        row("a sum of 2", lambda: mdps.require_probabilities("start", np.ones(2)), ValueError, "start takes rows"),
        row(
            "less than none",
            lambda: mdps.require_probabilities("start", np.array([-1.0, 2.0])),
            ValueError,
            "start takes probabilities",
        ),
        row("NaN", lambda: mdps.require_probabilities("start", np.full(2, np.nan)), ValueError, "start takes", "nan"),
        row("infinity", lambda: mdps.require_probabilities("start", np.array([np.inf, 0])), ValueError, "start takes"),
        row("nothing", lambda: mdps.require_probabilities("start", np.zeros(2)), ValueError, "start takes", "0"),
    ),
    "planning.evaluate_policy": solved(planning.evaluate_policy, of_policy=True),
    "planning.solve_policy": solved(planning.solve_policy, of_policy=True, iterates=False),
    "planning.solve_policy_matrix_free": solved(planning.solve_policy_matrix_free, of_policy=True),
    "planning.value_iteration": solved(planning.value_iteration),
    "planning.modified_policy_iteration": (
        *solved(planning.modified_policy_iteration),
        row(
            "no sweeps",
            lambda: planning.modified_policy_iteration(**mdp(), sweeps=0),
            ValueError,
            "sweeps is 0; it takes a whole number",
        ),
    ),
    "planning.policy_iteration": solved(planning.policy_iteration),
}
FEW: dict[str, str] = {}
