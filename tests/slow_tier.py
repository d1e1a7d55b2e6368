"""The slow tier's notebook: one row per slow test in slow_results.jsonl, kept from run to run.

Learning tests take minutes, so a row outlives the run that wrote it: it says what was found, on
which commit and from which source, and a test whose source has not changed need not run again.
"""

import dataclasses
import datetime
import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "tests" / "slow_results.jsonl"
TIMEOUT = 3600  # seconds for one slow test
COMMAND = "make test-slow   (or: python -m pytest --slow)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What one slow test last measured."""

    test: str  # pytest's node id
    figure: str  # what was found, in words and numbers
    seconds: float  # the test with its fixtures, on the wall clock
    commit: str  # short hash; "-dirty" when files of purerl, tests or experiments differed from it
    date: str  # ISO
    source: str  # see `source`


def read(path: Path) -> dict[str, Row]:
    """Return the rows of `path` by test; none if there is no such file."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [Row(**json.loads(line)) for line in lines if line]
    return {row.test: row for row in rows}


def write(path: Path, rows: dict[str, Row]) -> None:
    """Replace `path` at one stroke, sorted by test: an interruption leaves the old or the new."""
    ordered = (dataclasses.asdict(rows[test]) for test in sorted(rows))
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ordered)
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def record(path: Path, row: Row) -> None:
    """Put `row` in the place of the former row of its test."""
    write(path, read(path) | {row.test: row})


def retract(path: Path, test: str, source: str) -> None:
    """Remove the row of `test` if it is of this very `source`: a failure has contradicted it."""
    rows = read(path)
    if test in rows and rows[test].source == source:
        del rows[test]
        write(path, rows)


def source(root: Path, test_file: Path) -> str:
    """Return 12 hex digits of the SHA-256 of purerl's code and `test_file`, names and contents."""
    digest = hashlib.sha256()
    for file in [*sorted((root / "purerl").rglob("*.py")), test_file]:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def commit(root: Path) -> str:
    """Return HEAD's short hash, and "-dirty" if the code differs; "unknown" where there is none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "--short", "HEAD")
        # The tier rewrites its own notebook as it goes: that is no change of the code.
        notebook = f":(exclude){RESULTS.relative_to(ROOT).as_posix()}"
        changed = git("status", "--porcelain", "--", "purerl", "tests", "experiments", notebook)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-dirty" if changed else head


def today() -> str:
    """Return today's date in UTC, ISO."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def collect(root: Path) -> list[str]:
    """Return the node ids of all slow tests under `root`/tests, parameters expanded.

    pytest itself collects them, in this process and from the files that name the marker: modules
    already imported are not imported again, so within a full run this takes a moment.
    """

    class Collected:
        ids: tuple[str, ...] = ()

        def pytest_collection_finish(self, session: pytest.Session) -> None:
            self.ids = tuple(item.nodeid for item in session.items)

    marked = re.compile(r"\bmark\.slow\b")
    files = sorted((root / "tests").rglob("test_*.py"))
    files = [str(file) for file in files if marked.search(file.read_text(encoding="utf-8"))]
    if not files:
        return []
    collected = Collected()
    options = ["--collect-only", "--quiet", "--quiet", "--slow", f"--rootdir={root}"]
    status = pytest.main([*options, "-p", "no:cacheprovider", *files], plugins=[collected])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"collecting the slow tests of {root / 'tests'} ended with {status!r}")
    return list(collected.ids)


def discrepancies(tests: list[str], rows: dict[str, Row]) -> list[str]:
    """Return a sentence per slow test without a row and per row without a test."""
    missing = [f"{test} is slow and has no row" for test in sorted(set(tests) - set(rows))]
    stale = [f"{test} has a row and is no slow test" for test in sorted(set(rows) - set(tests))]
    return missing + stale
