import dataclasses
import os
import shutil
import subprocess
import sys

import pytest
import slow_tier

ROW = slow_tier.Row(
    test="tests/test_b.py::test_learns",
    figure="return 500 after 50000 steps",
    seconds=61.5,
    commit="abc1234",
    date="2026-01-31",
    source="0123456789ab",
)


def test_every_slow_test_has_a_row_and_every_row_a_test():
    tests = slow_tier.collect(slow_tier.ROOT)
    problems = slow_tier.discrepancies(tests, slow_tier.read(slow_tier.RESULTS))
    advice = [
        f"Measure with: {slow_tier.COMMAND}",
        f"Delete the rows of tests that are gone from tests/{slow_tier.RESULTS.name}.",
    ]
    assert not problems, "\n".join(["", *problems, *advice])


def test_discrepancies_name_tests_without_a_row_and_rows_without_a_test():
    problems = slow_tier.discrepancies(["tests/test_a.py::test_new[x]"], {ROW.test: ROW})
    assert problems == [
        "tests/test_a.py::test_new[x] is slow and has no row",
        "tests/test_b.py::test_learns has a row and is no slow test",
    ]
    assert slow_tier.discrepancies([ROW.test], {ROW.test: ROW}) == []


def test_rows_survive_the_file_sorted_and_replaced(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = dataclasses.replace(ROW, test="tests/test_a.py::test_learns", figure="error 0.1 ± 0.02")
    better = dataclasses.replace(ROW, figure="return 500 after 40000 steps")
    for row in (ROW, first, better):
        slow_tier.record(path, row)
    assert slow_tier.read(path) == {first.test: first, better.test: better}
    assert [line.split('"')[3] for line in path.read_text("utf-8").splitlines()] == [
        first.test,
        better.test,
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_failure_retracts_only_a_row_of_the_same_source(tmp_path):
    path = tmp_path / "rows.jsonl"
    slow_tier.record(path, ROW)
    slow_tier.retract(path, ROW.test, "another")
    assert slow_tier.read(path) == {ROW.test: ROW}
    slow_tier.retract(path, ROW.test, ROW.source)
    assert slow_tier.read(path) == {}


def test_source_follows_the_code_and_the_test_and_nothing_else(tmp_path):
    (tmp_path / "purerl" / "agents").mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    code, test = tmp_path / "purerl" / "agents" / "dqn.py", tmp_path / "tests" / "test_dqn.py"
    code.write_text("a = 1\n")
    test.write_text("b = 1\n")
    before = slow_tier.source(tmp_path, test)
    (tmp_path / "tests" / "test_other.py").write_text("c = 1\n")
    (tmp_path / "purerl" / "notes.txt").write_text("d\n")
    assert slow_tier.source(tmp_path, test) == before
    test.write_text("b = 2\n")
    assert slow_tier.source(tmp_path, test) != before
    test.write_text("b = 1\n")
    code.rename(code.with_name("ddqn.py"))
    assert slow_tier.source(tmp_path, test) != before


def test_commit_is_dirty_when_code_changes_and_not_when_rows_do(tmp_path):
    def git(*arguments):
        author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *arguments], check=True, capture_output=True)

    (tmp_path / "purerl").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "purerl" / "base.py").write_text("a = 1\n")
    git("init")
    assert slow_tier.commit(tmp_path) == "unknown"
    git("add", ".")
    git("commit", "-m", "first")
    clean = slow_tier.commit(tmp_path)
    assert clean.isalnum()
    (tmp_path / "tests" / slow_tier.RESULTS.name).write_text("{}\n")
    assert slow_tier.commit(tmp_path) == clean
    (tmp_path / "purerl" / "new.py").write_text("b = 1\n")
    assert slow_tier.commit(tmp_path) == f"{clean}-dirty"


SLOW_TESTS = """
import pathlib
import pytest

ran = pathlib.Path(__file__).with_name("ran.txt")

@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_learns(number, slow_result):
    with ran.open("a") as file:
        file.write(f"{number}\\n")
    slow_result(f"found {number}")

@pytest.mark.slow
def test_says_nothing():
    pass

@pytest.mark.slow
def test_fails(slow_result):
    slow_result("a figure that the failure below makes void")
    assert False

def test_fast():
    pass
"""


@pytest.fixture
def project(tmp_path):
    """A throwaway project under this one's conftest, with slow tests of every fate."""
    (tmp_path / "purerl").mkdir()
    (tmp_path / "purerl" / "base.py").write_text("a = 1\n")
    (tmp_path / "tests").mkdir()
    for name in ("tests/conftest.py", "tests/slow_tier.py", "pyproject.toml"):
        shutil.copy(slow_tier.ROOT / name, tmp_path / name)
    (tmp_path / "tests" / "test_tier.py").write_text(SLOW_TESTS)
    return tmp_path


def run(project, *options):
    """Return what pytest printed in `project`, and the parameters that `test_learns` ran with."""
    log = project / "tests" / "ran.txt"
    log.write_text("")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    finished = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
    return finished.stdout, log.read_text().split()


@pytest.mark.thorough
def test_the_tier_records_continues_and_refuses_silence(project):
    results = project / "tests" / slow_tier.RESULTS.name
    printed, ran = run(project)
    assert "1 passed, 4 deselected" in printed
    assert ran == []

    printed, ran = run(project, "--slow")
    assert "2 failed, 2 passed, 1 deselected" in printed
    assert "must call slow_result(figure) once" in printed
    learned = [f"tests/test_tier.py::test_learns[{number}]" for number in (1, 2)]
    rows = slow_tier.read(results)
    assert list(rows) == learned
    assert [row.figure for row in rows.values()] == ["found 1", "found 2"]

    printed, ran = run(project, "--slow")
    assert "2 failed, 2 skipped" in printed
    assert "already measured" in printed
    assert ran == []

    slow_tier.write(results, {learned[0]: rows[learned[0]]})
    assert run(project, "--slow")[1] == ["2"]
    assert run(project, "--slow", "--fresh")[1] == ["1", "2"]
    (project / "purerl" / "base.py").write_text("a = 2\n")
    assert run(project, "--slow")[1] == ["1", "2"]


def test_collection_expands_parameters(project):
    command = [
        sys.executable,
        "-c",
        "import pathlib, slow_tier; print(*slow_tier.collect(pathlib.Path('.').resolve()))",
    ]
    environment = os.environ | {"PYTHONPATH": str(project / "tests")}
    finished = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=True)
    names = ("learns[1]", "learns[2]", "says_nothing", "fails")
    assert finished.stdout.splitlines()[-1].split() == [f"tests/test_tier.py::test_{name}" for name in names]
