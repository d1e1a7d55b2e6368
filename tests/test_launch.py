"""Several processes that are one run: the bits of one, begun again when one is lost, ended when one is asked to."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from purerl import checkpoint, distributed, launch

ROOT = Path(__file__).parent.parent
A2C = ["experiments/a2c.py", "--hidden", "8", "8"]
TABLE = ["experiments/q_learning.py"]  # quick to compile
USUAL = ["--num-envs", "4", "--groups", "4", "--eval-every", "0", "--log-every", "400", "--checkpoint-every", "400"]


def command(agent, processes, devices, mesh, out, steps, *more):
    script = [*agent, *USUAL, "--mesh", mesh, "--total-steps", str(steps), "--out", str(out), *more]
    if processes == 1:
        return [sys.executable, *script]
    gang = ["-m", "purerl.launch", "--processes", str(processes), "--devices", str(devices), "--restarts", "10"]
    return [sys.executable, *gang, *script]


def begun(agent, processes, devices, mesh, out, steps, *more):
    """Start a run, and return the process that does it, or that started those which do."""
    return subprocess.Popen(
        command(agent, processes, devices, mesh, out, steps, *more),
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process, *, status=0):
    said = process.communicate()[0]
    assert process.returncode == status, said
    return said


@pytest.fixture(autouse=True)
def none_is_left(monkeypatch):
    """End what a test that failed has begun."""
    started = []
    popen = subprocess.Popen

    def begin(*arguments, **named):
        started.append(popen(*arguments, **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", begin)
    yield
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)


def learned(out):
    """Return the bytes of what the policy in a run directory has learned."""
    with zipfile.ZipFile(out / "policy.zip") as file:
        arrays = [name for name in file.namelist() if name.startswith("arrays/")]
        assert arrays
        return b"".join(file.read(name) for name in arrays)


def kill_one(process, number, which):
    """Send a signal to one of the processes that a launcher has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    if children:  # none, while all are begun again
        os.kill(int(children[which % len(children)]), number)


def wait_for_checkpoint(process, out, beyond=0):
    while process.poll() is None and not [step for step in checkpoint.steps(out / "checkpoints") if step > beyond]:
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]


@pytest.mark.timeout(400)  # each of six starts takes seconds, of a core that is free
def test_two_processes_are_one_run_that_stops_when_one_is_asked_to_and_goes_on_when_one_is_killed(tmp_path):
    ended(begun(TABLE, 1, 2, "data=2", tmp_path / "one", 6_000))
    again = TABLE, 2, 1, "data=2", tmp_path / "two", 6_000, "--resume", "auto"
    gang = begun(*again)
    wait_for_checkpoint(gang, tmp_path / "two")
    kill_one(gang, signal.SIGTERM, 1)
    said = ended(gang)
    assert "go on, in as many processes or others, with" in said
    (*_, saved) = checkpoint.steps(tmp_path / "two" / "checkpoints")
    assert saved < 6_000
    gang = begun(*again)
    wait_for_checkpoint(gang, tmp_path / "two", beyond=saved)
    kill_one(gang, signal.SIGKILL, 1)
    said = ended(gang)
    assert "launch: process 1 was killed by SIGKILL; the run begins again, 10 more times if need be" in said
    assert f"goes on after {saved:,} steps" in said
    assert learned(tmp_path / "one") == learned(tmp_path / "two")


def test_what_is_wrong_is_not_tried_again(tmp_path):
    (tmp_path / "script.py").write_text("import sys\nprint(sys.argv[1], file=sys.stderr)\nraise SystemExit(2)\n")
    done = subprocess.run(
        [sys.executable, "-m", "purerl.launch", "--processes", "2", str(tmp_path / "script.py"), "nonsense"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "begins again" in done.stderr) == (2, False)
    missing = subprocess.run(
        [sys.executable, "-m", "purerl.launch", "--processes", "2", "nowhere.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert missing.returncode == 2
    assert "script is nowhere.py, which is no file" in missing.stderr


def test_a_script_that_fails_is_tried_as_often_as_asked(tmp_path, capfd):
    script = tmp_path / "script.py"
    script.write_text("import os, sys\nprint(os.environ['PURERL_PROCESS'], flush=True)\nsys.exit(3)\n")
    assert launch.launch([str(script)], 1, restarts=2) == 3
    said = capfd.readouterr()
    assert said.out == "0\n0\n0\n"
    assert said.err.count("launch: process 0 ended with status 3; the run begins again") == 2
    assert "the run is given up" in said.err


def test_a_process_alone_agrees_with_itself():
    assert distributed.alone()
    assert distributed.is_first()
    assert distributed.from_first(lambda: {"any": [1]}) == {"any": [1]}
    asked = [False]
    hear = distributed.all_hear(lambda: asked[0], lambda: True)
    asked[0] = True
    assert hear() == (True, True)


def rounds(processes, devices, out, steps):
    """Train on a mesh of four devices, and return what was learned."""
    mesh = "data=2,model=2"
    ended(begun(A2C, processes, devices, mesh, out, steps))
    return learned(out)


@pytest.mark.slow
def test_any_number_of_processes_repeats_itself_and_two_are_one(tmp_path, slow_result):
    told = []
    one = rounds(1, 4, tmp_path / "one", 1_200)
    for processes in (2, 4):
        twice = [rounds(processes, 4 // processes, tmp_path / f"{processes} {again}", 1_200) for again in range(2)]
        assert twice[0] == twice[1]
        far = np.abs(np.frombuffer(twice[0], np.float32) - np.frombuffer(one, np.float32)).max()
        assert far <= (0.0 if processes == 2 else 1e-6)
        told.append(f"{processes} processes: {far:.1e} from one")
    slow_result("; ".join(told) + "; each repeats itself bit for bit")


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path, slow_result):
    steps, chance = 60_000, random.Random(0)
    ended(begun(A2C, 1, 2, "data=2", tmp_path / "whole", steps))
    gang = begun(A2C, 2, 1, "data=2", tmp_path / "killed", steps, "--resume", "auto")
    kills, before = 0, 0
    while kills < 10:
        wait_for_checkpoint(gang, tmp_path / "killed", beyond=before)
        time.sleep(chance.uniform(0.0, 1.0))
        before = max(checkpoint.steps(tmp_path / "killed" / "checkpoints"), default=0)
        kill_one(gang, signal.SIGKILL, chance.randrange(2))
        kills += 1
    said = ended(gang)
    assert said.count("was killed by SIGKILL") == kills
    assert learned(tmp_path / "whole") == learned(tmp_path / "killed")
    slow_result(f"{kills} kills, each once the run had gone on; final parameters bit-equal after {steps:,} steps")
