"""Every public entry refuses bad input in words of its own; a new entry without rows in tests/bad_inputs fails here."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bad_inputs.tables import EXEMPT, FEW, KINDS, ROWS

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "purerl"
LEAST = 5
pytestmark = pytest.mark.timeout(400)  # one process makes all calls, for the first test that asks


def entries(module: str, code: str) -> list[str]:
    """Return the public functions and classes of a module but for records, protocols and networks' modules."""
    found = []
    for node in ast.parse(code).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        marks = [*node.decorator_list, *(node.bases if isinstance(node, ast.ClassDef) else [])]
        if not {_last(mark) for mark in marks} & set(KINDS):
            found.append(f"{module}.{node.name}")
    return list(dict.fromkeys(found))  # overloads repeat a name


def _last(node: ast.AST) -> str:
    """Return the last name of what decorates a class or is its base: EnvState of environment.EnvState."""
    match node:
        case ast.Call(func=inner) | ast.Subscript(value=inner):
            return _last(inner)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def package() -> list[str]:
    """Return all public names of the package that are functions or classes with a constructor to call."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        found += entries(".".join(part for part in parts if part != "__init__"), file.read_text(encoding="utf-8"))
    return found


def exemption(name: str) -> str | None:
    """Return the line of the table by which a name is no entry: its own, or that of its module."""
    return next((own for own in (name, name.rpartition(".")[0]) if own in EXEMPT), None)


def lacking(names: list[str]) -> list[str]:
    """Return a sentence for each name that is an entry and has too few rows."""
    found = []
    for name in names:
        count = len(ROWS.get(name, ()))
        if exemption(name) is None and count < LEAST and not (name in FEW and count):
            found.append(f"{name} has {count} rows in tests/bad_inputs; it takes {LEAST}, or a reason in FEW or EXEMPT")
    return found


def test_every_public_entry_has_rows():
    found = lacking(package())
    assert not found, "\n" + "\n".join(found)


def test_the_tables_speak_of_what_there_is():
    names = package()
    modules = {name.rpartition(".")[0] for name in names}
    assert set(ROWS) <= set(names)
    assert {name for name in ROWS if exemption(name)} == set()
    assert {name for name in EXEMPT if name not in names and name not in modules} == set()
    assert {name for name in FEW if not 0 < len(ROWS[name]) < LEAST} == set()
    labels = [(entry, row.label) for entry, rows in ROWS.items() for row in rows]
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def fresh(spec): ...", ["agents.fresh.fresh"]),
        ("class Fresh:\n    def __init__(self, count): ...", ["agents.fresh.Fresh"]),
        ("def _private(): ...\nclass _Private: ...", []),
        ("class Fresh(NamedTuple): ...\nclass Fn(Protocol): ...", []),
        ("@pytree_dataclass\nclass State: ...\n@dataclasses.dataclass(frozen=True)\nclass Record: ...", []),
        ("@struct.dataclass\nclass Params(environment.EnvParams): ...\nclass Net(nn.Module): ...", []),
        ("@overload\ndef fresh(x: int): ...\ndef fresh(x): ...", ["agents.fresh.fresh"]),
    ],
)
def test_a_new_entry_without_rows_is_found(code, found):
    names = entries("agents.fresh", code)
    assert names == found
    assert len(lacking(names)) == len(found)


def test_an_entry_that_loses_its_rows_is_found(monkeypatch):
    name = "replay.uniform"
    assert lacking([name]) == []
    monkeypatch.setitem(ROWS, name, ROWS[name][: LEAST - 1])
    assert [sentence.partition(" ")[0] for sentence in lacking([name])] == [name]
    monkeypatch.setitem(FEW, name, "for no reason")
    assert lacking([name]) == []
    monkeypatch.delitem(ROWS, name)
    assert lacking([name])


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What came of every call, made by a process as a user's is: without the types that conftest has checked."""
    file = tmp_path_factory.mktemp("bad-inputs") / "outcomes.json"
    path = os.pathsep.join([str(PACKAGE.parent), str(TESTS), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-m", "bad_inputs.run", str(file)], check=True, env=os.environ | {"PYTHONPATH": path}
    )
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("entry", "bad"),
    [pytest.param(entry, bad, id=f"{entry}: {bad.label}") for entry, rows in ROWS.items() for bad in rows],
)
def test_bad_input_is_refused(entry, bad, outcomes):
    found = outcomes[entry][bad.label]
    assert found is not None, "nothing was raised"
    assert bad.error.__name__ in found["classes"], found
    assert [word for word in bad.words if word not in found["message"]] == [], found["message"]
    assert Path(found["file"]).is_relative_to(PACKAGE), found
