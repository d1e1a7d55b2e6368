"""Every flag of every script refuses bad input in a sentence; a new flag without rows in the table fails here."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
import sys
from typing import Any

import jax
import numpy as np
import pytest
from bad_inputs.flags import EITHER, FEW, PLAY, ROWS, TINY
from scripts import EXPERIMENTS, load

from purerl import (
    agents,
    checks,
    cli,
    driver,
    envs,
    evaluate,
    export,
    pbt,
    play,
    prediction,
    results,
    sweep,
    tables,
    tune,
)
from purerl.agents import q_learning

LEAST = 2
NAMES = [file.stem for file in sorted(EXPERIMENTS.glob("*.py"))]
MAKE = functools.cache(envs.make)
# Groups whose flags are numbers of one kind, and stand in the table as one.
ALIKE = {"hypers", "env_params", "sweep", "static", "log_uniform", "uniform", "choice"}


@functools.cache
def program(name) -> Any:
    return play if name == PLAY else load(name)


def flags(settings):
    """Return the names of all flags of these settings, each by the module that declares it first."""
    found = []
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(field.default) and field.name not in ALIKE:
            found += flags(type(field.default))
            continue
        owner = [one for one in settings.__mro__ if field.name in vars(one).get("__annotations__", {})][-1]
        found.append(f"{owner.__module__.rpartition('.')[2].removeprefix('experiments_')}.{field.name}")
    return found


def all_flags():
    return list(dict.fromkeys(flag for name in (*NAMES, PLAY) for flag in flags(program(name).Settings)))


def lacking(names):
    """Return a sentence for each flag that has too few rows."""
    found = []
    for name in names:
        count = len(ROWS.get(name, ()))
        if name not in EITHER and count < LEAST and not (name in FEW and count):
            found.append(f"{name} has {count} rows in tests/bad_inputs/flags.py; it takes {LEAST}, or a reason there")
    return found


def test_every_flag_has_rows():
    found = lacking(all_flags())
    assert not found, "\n" + "\n".join(found)


def test_the_table_speaks_of_what_there_is():
    names = all_flags()
    assert set(ROWS) | set(EITHER) == set(names)
    assert set(ROWS) & set(EITHER) == set()
    assert {name for name in FEW if not 0 < len(ROWS[name]) < LEAST} == set()
    assert set(TINY) <= set(NAMES)
    every = [(row.script, row.arguments) for rows in ROWS.values() for row in rows]
    assert len(every) == len(set(every))
    for name in EITHER:
        (script,) = {script for script in NAMES if name in flags(program(script).Settings)} & {
            name.partition(".")[0].replace("policy_cli", "ppo")
        }
        field = next(one for one in dataclasses.fields(program(script).Settings) if one.name == name.split(".")[1])
        assert isinstance(field.default, bool)


def test_a_new_flag_without_rows_is_found():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Search:
        depth: int = 1

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Settings(load("q_learning").Settings):
        speed: float = 1.0
        seeds: int = 2  # another default makes no other flag
        search: Search = Search()

    found = lacking(flags(Settings))
    assert [sentence.partition(" has 0 rows")[0] for sentence in found] == [
        "test_bad_flags.speed",
        "test_bad_flags.depth",
    ]


def test_a_flag_that_loses_its_rows_is_found(monkeypatch):
    assert lacking(["cli.seeds"]) == []
    monkeypatch.setitem(ROWS, "cli.seeds", ROWS["cli.seeds"][: LEAST - 1])
    assert len(lacking(["cli.seeds"])) == 1
    monkeypatch.setitem(FEW, "cli.seeds", "for no reason")
    assert lacking(["cli.seeds"]) == []
    monkeypatch.delitem(ROWS, "cli.seeds")
    assert len(lacking(["cli.seeds"])) == 1


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What stands in arguments for paths that tests make."""
    root = tmp_path_factory.mktemp("flags")
    (root / "file").write_text("text")
    results.write(root / "finished", settings={}, metrics={}, summary={})
    (root / "policy").mkdir()
    env = envs.make("CliffWalking-purerl", 1)
    agent, hypers = q_learning.q_learning(env.spec), q_learning.Hypers()
    states = jax.vmap(lambda key: agent.init(key, hypers))(driver.seed_keys(0, 2))
    export.save_policy(root / "policy" / export.POLICY, agent, states, env, hypers, runs=2)
    return {name.upper(): str(root / name) for name in ("file", "finished", "policy", "nothing")}


@pytest.fixture
def untrained(monkeypatch):
    """Fail where anything is about to be trained, played or searched, and make each environment once."""

    def begun(*_, **__):
        raise AssertionError("the flags were taken, and work began")

    for module, name in (
        (driver, "drive"),
        (sweep, "run"),
        (sweep, "fitting"),
        (pbt, "evolve"),
        (tune, "work"),
        (evaluate, "evaluate"),
    ):
        monkeypatch.setattr(module, name, begun)
    monkeypatch.setattr(envs, "make", MAKE)
    monkeypatch.setattr(program("cliff_walking"), "train", begun)
    monkeypatch.setattr(program("textbook"), "panels_of", begun)
    monkeypatch.setattr(program("tensor_parallel"), "trained", begun)


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=f"{flag}: {' '.join(row.arguments)}") for flag, rows in ROWS.items() for row in rows],
)
def test_a_bad_flag_is_refused(row, places, untrained, monkeypatch, capsys, tmp_path):
    given = list(row.arguments)
    for name, path in places.items():
        given = [argument.replace(name, path) for argument in given]
    monkeypatch.chdir(tmp_path)
    script = program(row.script)
    monkeypatch.setattr(sys, "argv", [f"{row.script}.py", *TINY.get(row.script, "").split(), *given])
    with pytest.raises(SystemExit) as end:
        cli.start(script.main, script.Settings)
    printed = capsys.readouterr()
    assert end.value.code == 2, printed.err
    assert [word for word in row.words if word not in printed.err] == [], printed.err
    if not row.by_parser:
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        assert printed.out == "" or row.script == "compare"  # which says of agents why they are left out
    assert list(tmp_path.iterdir()) == []


# --- the ranges of hypers -------------------------------------------------------------------------------------------

AGENTS = [importlib.import_module(f"purerl.agents.{module.name}") for module in pkgutil.iter_modules(agents.__path__)]


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.__name__)
def test_every_number_of_every_agent_has_a_range_and_its_default_is_within(agent):
    numbers = vars(agent).get("Hypers", prediction.Hypers if "prediction" in vars(agent) else tables.Hypers)()
    assert [name for name in vars(numbers) if name not in checks.RANGES] == []
    cli.require_sensible(numbers)


def test_the_defaults_of_scripts_are_within_their_ranges():
    defaults = [program(name).Settings() for name in NAMES]
    for numbers in [settings.hypers for settings in defaults if hasattr(settings, "hypers")]:
        cli.require_sensible(numbers)


def test_ranges_speak_of_numbers_that_there_are():
    found = {name for agent in AGENTS if hasattr(agent, "Hypers") for name in vars(agent.Hypers())}
    assert set(checks.RANGES) <= found | set(vars(tables.Hypers())) | set(vars(prediction.Hypers()))


@pytest.mark.parametrize(
    ("kind", "within", "beyond"),
    [
        (checks.FINITE, (-1e30, 0), (np.inf, np.nan)),
        (checks.NOT_NEGATIVE, (0, 1e30), (-1e-9, np.inf, np.nan)),
        (checks.POSITIVE, (1e-9, 1e30), (0, -1, np.inf, np.nan)),
        (checks.AT_LEAST_ONE, (1, 1e30), (0.999, np.inf, np.nan)),
        (checks.FRACTION, (0, 1), (-1e-9, 1.001, np.nan)),
        (checks.BELOW_ONE, (0, 0.999), (-1e-9, 1, np.nan)),
    ],
    ids=lambda value: getattr(value, "wanted", ""),
)
def test_a_range_holds_what_it_says(kind, within, beyond):
    assert [value for value in within if not kind.holds(value)] == []
    assert [value for value in beyond if kind.holds(value)] == []


def test_a_number_without_a_range_takes_what_is_finite():
    checks.require_in_range("hypers", "temper", -7.0)
    with pytest.raises(ValueError, match=r"hypers.temper is inf; it takes a finite number"):
        checks.require_in_range("hypers", "temper", np.inf)


def test_what_diverges_is_no_mistake():
    cli.require_sensible(tables.Hypers(learning_rate=1e30))
    cli.require_sensible(tables.Hypers(learning_rate=3))
