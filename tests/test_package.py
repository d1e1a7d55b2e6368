"""What `import purerl` does: a version, and the XLA option that keeps small loops fast."""

import importlib
import os
import subprocess
import sys

import jax
import pytest

import purerl
from purerl import envs, loop
from purerl.agents import q_learning
from purerl.base import cast_hypers

OPTION = "xla_backend_extra_options"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, purerl._SMALL_LOOPS),
        ("--xla_dump_to=/tmp/x", f"--xla_dump_to=/tmp/x {purerl._SMALL_LOOPS}"),
        (f"--{OPTION}=mine=1", f"--{OPTION}=mine=1"),
        (purerl._SMALL_LOOPS, purerl._SMALL_LOOPS),
    ],
)
def test_the_option_is_added_once_and_the_users_own_wins(before, after, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", before or "")
    importlib.reload(purerl)
    assert os.environ["XLA_FLAGS"] == after


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the option is the CPU compiler's")
def test_a_tabular_loop_is_compiled_as_one_function():
    env = envs.make("CliffWalking-purerl", 1)
    agent = q_learning.q_learning(env.spec)
    program = jax.jit(lambda key, hypers: loop.train(key, agent, env, hypers, iterations=2_000))
    text = program.lower(jax.random.key(0), cast_hypers(q_learning.Hypers())).compile().as_text()
    calls = [line for line in text.splitlines() if 'xla_cpu_small_call="true"' in line]
    # Not only the few lines of a hash: the loop over iterations, with the table in it.
    assert any("f32[48,4]" in line for line in calls)


def test_who_reads_results_need_not_wait_for_jax():
    script = "import sys, purerl.results, purerl.scores, purerl.plots, purerl.metrics; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
