"""All tables joined, and what of the package is no entry."""

from __future__ import annotations

import importlib

from bad_inputs.rows import Row

AREAS = ("agents", "environments", "host", "parts", "running", "searches")

ROWS: dict[str, tuple[Row, ...]] = {}
FEW: dict[str, str] = {}
for _area in AREAS:
    _module = importlib.import_module(f"bad_inputs.{_area}")
    for _table, _own in ((ROWS, _module.ROWS), (FEW, _module.FEW)):
        if both := set(_table) & set(_own):
            raise ValueError(f"{both} stand in two tables")
        _table.update(_own)

# Classes with such a decorator or base are made by the package, or are made of what it has checked.
KINDS = {
    "Protocol": "says what a function is; nobody calls it",
    "NamedTuple": "a record: what it holds is checked where it is passed",
    "pytree_dataclass": "a record of arrays or numbers, which may be tracers; hypers are checked by cast_hypers",
    "dataclass": "a record: state, parameters of an environment, or results",
    "Module": "a flax module: networks.* checks what it makes them of, and flax whoever writes one",
    "Exception": "is raised, not called",
}

# What is no entry: a module, or one name of it, and why.
EXEMPT = {
    "cli": "flags, which have tests of their own",
    "policy_cli": "flags, which have tests of their own",
    "sweep_cli": "flags, which have tests of their own",
    "tune_cli": "flags, which have tests of their own",
    "losses": "runs inside the trace, on arrays alone",
    "returns": "runs inside the trace, on arrays alone",
    "optimizers": "runs inside the trace, on arrays alone",
    "tables": "what agents that learn a table share, called by them",
    "whole_episodes": "what agents that learn from whole episodes share, called by them",
    "actor_critic": "what agents with an actor share, called by them",
    "workers": "machinery of tune, which checks what it hands on",
    "reports": "speaks of what driver.drive returned",
    "sweep_reports": "speaks of what sweep.run returned",
    "sweep.diverged": "speaks of what runs left, called by run",
    "checks": "the checks themselves",
    "base.pytree_dataclass": "a decorator of classes",
    "base.zeros": "runs inside the trace",
    "base.where": "runs inside the trace",
    "base.select": "runs inside the trace",
    "base.require_key": "a check itself",
    "base.require_number_or_tracer": "a check itself",
    "base.require_keys": "a check itself",
    "base.require_spec": "a check itself",
    "base.require_discrete": "a check itself",
    "base.require_num_envs": "a check itself",
    "base.require_env": "a check itself",
    "base.require_agent": "a check itself",
    "base.require_hypers": "a check itself",
    "base.require_state": "a check itself",
    "base.require_values": "a check itself",
    "base.output_of": "a check itself",
    "base.no_observe": "a part of an agent, called by the loop",
    "base.no_memory": "a part of an agent, called by the loop",
    "exploration.greedy_policy": "runs inside the trace, on arrays alone",
    "exploration.epsilon_greedy_policy": "runs inside the trace, on arrays alone",
    "exploration.boltzmann_policy": "runs inside the trace, on arrays alone",
    "exploration.ucb_policy": "runs inside the trace, on arrays alone",
    "exploration.draw": "runs inside the trace, on arrays alone",
    "exploration.pick": "runs inside the trace, on arrays alone",
    "exploration.act": "runs inside the trace, called by agents",
    "exploration.observing": "a part of an agent, called by its factory",
    "exploration.made": "a check itself, called by agents' factories",
    "exploration.linear_schedule": "runs inside the trace, on arrays alone",
    "exploration.exponential_schedule": "runs inside the trace, on arrays alone",
    "layers.encode": "runs inside the trace, called by networks",
    "normalize.no_moments": "runs inside the trace, called by the wrappers",
    "normalize.merge": "runs inside the trace, on arrays alone",
    "normalize.normalized": "runs inside the trace, on arrays alone",
    "mdps.require_policy": "a check itself, of prediction.of_table",
    "prediction.start": "runs inside the trace, called by agents",
    "prediction.value": "runs inside the trace, on arrays alone",
    "prediction.move": "runs inside the trace, on arrays alone",
    "prediction.acting": "a part of an agent, called by its factory",
    "prediction.require_parts": "a check itself, called by agents' factories",
    "planning.action_values": "runs inside the trace, on arrays alone; the solvers check",
    "planning.bellman_expectation": "runs inside the trace, on arrays alone; the solvers check",
    "planning.bellman_optimality": "runs inside the trace, on arrays alone; the solvers check",
    "planning.optimal_actions": "runs inside the trace, on arrays alone; the solvers check",
    "planning.greedy_policy": "runs inside the trace, on arrays alone; the solvers check",
    "rollout.step_keys": "runs inside the trace, called by the loop",
    "rollout.start": "runs inside the trace, called by the loop",
    "rollout.unroll": "runs inside the trace, called by the loop",
    "training.for_units": "runs inside the trace, called by halving and pbt",
    "pbt.chosen_parents": "runs inside the trace, called by evolve",
    "pbt.explored": "runs inside the trace, called by evolve",
    "driver.has_nan": "runs inside the trace, called by drive",
    "spread.free_memory": "machinery of drivers, on what spread.choose returned",
    "spread.shares_memory": "machinery of drivers, on what spread.choose returned",
    "spread.memory_of": "machinery of drivers, on what spread.choose returned",
    "spread.require_room": "a check itself",
    "spread.gib": "machinery of drivers: bytes in words",
    "spread.mesh_of": "machinery of drivers, on what spread.choose returned",
    "spread.place": "machinery of drivers, on what spread.choose returned",
    "spread.replicate": "machinery of drivers, on what spread.choose returned",
    "spread.padded": "machinery of drivers, on what spread.choose returned",
    "spread.sharded": "machinery of drivers, on what spread.choose returned",
    "spread.over_runs": "machinery of drivers, on what spread.choose returned",
    "spread.in_place": "machinery of drivers, on what spread.choose returned",
    "archive.description_of": "machinery of Archive",
    "archive.require_same": "a check itself",
    "archive.require_equal": "a check itself",
    "envs.register": "takes nothing",
    "envs.vectorised.names": "takes nothing",
    "results.versions": "takes nothing",
    "envs.finite.certain": "runs inside the trace: one outcome of a step",
    "envs.finite.FiniteEnvironment": "abstract, and its constructor takes nothing",
    "envs.finite.TabularMDP": "made by tabular_mdp, which checks",
    "envs.chains.Gambler": "its constructor takes nothing",
    "envs.chains.ShortCorridor": "its constructor takes nothing",
    "envs.chains.BairdsCounterexample": "its constructor takes nothing",
    "envs.gridworlds.Gridworld": "what gridworlds share; its constructor takes nothing",
    "envs.gridworlds.CliffWalking": "its constructor takes nothing",
    "envs.gridworlds.CornerGridworld": "its constructor takes nothing",
    "envs.gridworlds.JumpingGridworld": "its constructor takes nothing",
}
