"""What every test runs under: shapes checked, a cold compile cache, two tiers (slow_tier.py)."""

import atexit
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path

import jaxtyping
import pytest

# Test modules import modules that lie beside this file, and importlib mode leaves sys.path alone.
sys.path.append(str(Path(__file__).parent))

import slow_tier

# Compile times and hangs must show: no test profits from an earlier session's cache unless the user names one. But
# what one test has compiled another need not compile again. Through the environment, so that workers and scripts which
# tests start inherit it.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="purerl-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": _cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

# Most of the fast tier's time is the compiler's, and with less effort it takes two thirds of it. The slow tier compiles
# as users do, and so do all tests with XLA_FLAGS=" ". XLA ends a process for a flag that it does not know: these are of
# the pinned jaxlib.
if "--slow" not in sys.argv and "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1"

# Tracing makes many objects and few cycles: to look for these less often saves a twentieth.
gc.set_threshold(200_000, 20, 20)

# Two devices, as on a machine with two cores: what is spread over devices is so here too.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")

# Functions imported after this check every annotated shape and type when called.
if any(name.partition(".")[0] == "purerl" for name in sys.modules):
    raise RuntimeError("purerl was imported before tests/conftest.py could install the shape checks")
jaxtyping.install_import_hook("purerl", "beartype.beartype")
# Before any test module: some import a library first that compiles as it is imported, and purerl's option for the
# compiler would come too late.
import purerl  # noqa: E402, F401

_TIERS = ("slow", "thorough")
_FIGURE = pytest.StashKey[str]()
_STARTED = pytest.StashKey[float]()
_SOURCE = pytest.StashKey[str]()
_COMMIT = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("slow tier")
    group.addoption("--slow", action="store_true", help="run the tests marked slow, and only those")
    group.addoption("--thorough", action="store_true", help="run the tests marked thorough, and only those")
    group.addoption("--fresh", action="store_true", help="with --slow: measure all of them again")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    _leave_to_the_thorough_tier(items)
    tier = next((name for name in _TIERS if config.getoption(name)), "fast")
    others = [item for item in items if _tier(item) != tier]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if _tier(item) == tier]
    if tier != "slow":
        return
    # Taken now, not at each test's end: what is measured is the code as imported, edited since or
    # not.
    config.stash[_COMMIT] = slow_tier.commit(slow_tier.ROOT)
    rows = slow_tier.read(slow_tier.RESULTS)
    sources = {path: slow_tier.source(slow_tier.ROOT, path) for path in {item.path for item in items}}
    for item in items:
        item.stash[_SOURCE] = sources[item.path]
        row = rows.get(item.nodeid)
        if row and row.source == item.stash[_SOURCE] and not config.getoption("fresh"):
            reason = f"already measured on {row.date} at {row.commit}: {row.figure}"
            item.add_marker(pytest.mark.skip(reason=reason))
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(slow_tier.TIMEOUT))


def _leave_to_the_thorough_tier(items: list[pytest.Item]) -> None:
    """Mark, of the cases of a test with the marker fast_cases(n), all but n, evenly spread, as thorough."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("fast_cases") and _tier(item) == "fast":
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for several in cases.values():
        (most,) = several[0].get_closest_marker("fast_cases").args
        kept = {round(place * (len(several) - 1) / max(most - 1, 1)) for place in range(most)}
        for place, item in enumerate(several):
            if place not in kept:
                item.add_marker(pytest.mark.thorough)


@pytest.fixture
def slow_result(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Give a slow test the function that takes, once, its figure: what it found, with numbers."""

    def take(figure: str) -> None:
        if _FIGURE in request.node.stash:
            raise ValueError(f"slow_result takes one figure, and already has {request.node.stash[_FIGURE]!r}")
        request.node.stash[_FIGURE] = figure

    return take


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    item.stash[_STARTED] = time.perf_counter()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    if _tier(item) != "slow":
        return (yield)
    try:
        result = yield
    except (Exception, pytest.fail.Exception):
        slow_tier.retract(slow_tier.RESULTS, item.nodeid, item.stash[_SOURCE])
        raise
    if _FIGURE not in item.stash:
        pytest.fail(
            "a slow test must call slow_result(figure) once, so that what it found is kept",
            pytrace=False,
        )
    row = slow_tier.Row(
        test=item.nodeid,
        figure=item.stash[_FIGURE],
        seconds=round(time.perf_counter() - item.stash[_STARTED], 1),
        commit=item.config.stash[_COMMIT],
        date=slow_tier.today(),
        source=item.stash[_SOURCE],
    )
    slow_tier.record(slow_tier.RESULTS, row)
    return result


def _tier(item: pytest.Item) -> str:
    return next((name for name in _TIERS if item.get_closest_marker(name)), "fast")
