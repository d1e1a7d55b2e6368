"""Runs over devices: cores are made devices in time, or it is told which line comes too late."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from purerl import spread


def script(tmp_path, text):
    """Run a script in a process of its own."""
    path = tmp_path / "script.py"
    path.write_text(text)
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=120)


def test_every_core_becomes_a_device_and_asking_again_is_no_error(tmp_path):
    text = """
import jax
from purerl import spread
spread.use_all_cores(3)
spread.use_all_cores(3)
from purerl import envs
print(jax.numpy.ones(2).sum(), len(jax.devices()))
spread.use_all_cores(3)
"""
    done = script(tmp_path, text)
    assert (done.returncode, done.stdout) == (0, "2.0 3\n"), done.stderr


def test_too_late_it_says_which_line_to_move(tmp_path):
    text = "import jax\nfrom purerl import spread\njax.numpy.ones(2)\n\nspread.use_all_cores(5)\n"
    done = script(tmp_path, text)
    assert done.returncode == 1
    assert f"move line 5 of {tmp_path / 'script.py'} up, before anything that computes with jax" in done.stderr


@pytest.mark.thorough
def test_scripts_have_all_cores_by_importing_the_command_line_and_the_user_s_number_wins(tmp_path, monkeypatch):
    text = "import jax\nfrom purerl import cli\nprint(len(jax.devices()))\n"
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    assert script(tmp_path, text).stdout == "3\n"
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    assert script(tmp_path, text).stdout == f"{len(os.sched_getaffinity(0))}\n"


def test_what_suits_the_devices_is_chosen_and_can_be_overridden():
    devices = len(jax.devices())
    assert devices == 2, "conftest.py makes two"
    assert spread.choose(7) == spread.Spread(tuple(jax.devices()), 1)
    assert len(spread.choose(1).devices) == 1
    assert spread.choose(7, devices=1, together=3) == spread.Spread((jax.devices()[0],), 3)
    assert str(spread.choose(7)) == "2 cpu devices, one run after another on each"
    assert str(spread.choose(7, devices=1, together=3)) == "1 cpu device, 3 runs together on each"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"devices": 3}, "devices is 3; there are 2"),
        ({"devices": 0}, "devices is 0"),
        ({"together": 0}, "together is 0"),
    ],
)
def test_what_there_is_not_is_told(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        spread.choose(4, **options)


@pytest.mark.parametrize("together", [1, 2, 3])
def test_every_run_is_computed_once_and_in_its_place(together):
    spreading = spread.choose(6, devices=2, together=together)
    batch = spread.place(spreading, jnp.arange(6.0))
    found = jax.jit(spread.over_runs(lambda run, shared: run * 2 + shared, spreading))(
        batch, spread.replicate(spreading, 1.0)
    )
    np.testing.assert_array_equal(found, np.arange(6.0) * 2 + 1)
    assert {shard.device for shard in found.addressable_shards} == set(jax.devices())


@pytest.mark.parametrize("together", [1, 2, 3, 9])
@pytest.mark.parametrize("counts", [[3, 3], [2, 1], [0, 3]])
def test_each_device_advances_the_first_of_its_share_once(together, counts):
    spreading = spread.choose(6, devices=2, together=together)
    placed = spread.place(spreading, (jnp.array(counts), jnp.arange(1.0, 7.0)))
    shared = spread.replicate(spreading, 10.0)
    after, left = jax.jit(spread.in_place(lambda run, shared: (run + shared, -run), spreading))(*placed, shared)
    runs, chosen = np.arange(1.0, 7.0), np.concatenate([np.arange(3) < count for count in counts])
    np.testing.assert_array_equal(after, np.where(chosen, runs + 10, runs))
    np.testing.assert_array_equal(left, np.where(chosen, -runs, 0))


def test_runs_are_padded_with_the_last_until_they_divide():
    spreading = spread.choose(5, devices=2)
    np.testing.assert_array_equal(spread.padded(spreading, jnp.arange(5)), [0, 1, 2, 3, 4, 4])
    np.testing.assert_array_equal(spread.padded(spreading, jnp.arange(4)), np.arange(4))
