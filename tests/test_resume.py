"""Runs that end before their time: what they save, and that they go on as if nothing had come between."""

from __future__ import annotations

import dataclasses
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from contract_cases import CASES
from scripts import load

from purerl import checkpoint, cli, driver, envs, export, folders, interrupts, results, runs, store
from purerl.agents import q_learning
from purerl.checkpoint import Checkpoints
from purerl.driver import Phase
from purerl.interrupts import Interrupt, Stopped
from purerl.metrics import Progress

CLIFF = "CliffWalking-purerl"
STEPS, CHUNK = 600, 60


@pytest.fixture(scope="module")
def learner():
    """Q-learning by three seeds on two devices, one of which has a run too few, judged twice and at the end."""
    env, judge = envs.make(CLIFF, 2), envs.make(CLIFF, 3)
    agent = q_learning.q_learning(env.spec)

    def learn_on(hypers=q_learning.Hypers(), seed=0, log_every=CHUNK, **options):  # noqa: B008
        return driver.drive(
            driver.seed_keys(seed, 3),
            [Phase(agent, STEPS)],
            env,
            hypers,
            log_every=log_every,
            eval_env=judge,
            eval_every=250,
            eval_max_steps=40,
            **options,
        )

    return learn_on


@pytest.fixture(scope="module")
def whole(learner):
    return learner()


class Ends(Exception):
    """Instead of the end of the process."""


class Ending(Progress):
    """Ends the run, by an exception or a signal, once a chunk is read with which so many steps are done."""

    def __init__(self, at, number=None):
        super().__init__(1, description="", enabled=False)
        self.at, self.number = at, number

    def update(self, steps_done, **_):
        if steps_done >= self.at:
            self.at = float("inf")
            if self.number is None:
                raise Ends
            signal.raise_signal(self.number)


def assert_same(one, other):
    """Of two outcomes all is the same to the bit, but the time that they took."""
    chex.assert_trees_all_equal(one.runs, other.runs)
    assert one.metrics.keys() == other.metrics.keys()
    for name in one.metrics.keys() - {"seconds"}:
        np.testing.assert_array_equal(one.metrics[name], other.metrics[name], err_msg=name)
    for name in ("evaluation_steps", "evaluation_returns", "evaluation_finished", "diverged_at", "interrupted"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_runs_that_end_and_go_on_are_the_same_to_the_bit(learner, whole, tmp_path):
    for end in (70, 190, 430):
        with pytest.raises(Ends), Checkpoints(tmp_path) as checkpoints:
            learner(checkpoints=checkpoints, checkpoint_every=CHUNK, progress=Ending(3 * end))
        assert checkpoint.steps(tmp_path)[-1] <= end + CHUNK
    before = checkpoint.about(tmp_path)
    with Checkpoints(tmp_path) as checkpoints:
        gone_on = learner(checkpoints=checkpoints, checkpoint_every=0)
    assert_same(gone_on, whole)
    assert before["steps"] > 200
    assert (np.diff(gone_on.metrics["seconds"]) > 0).all()
    assert gone_on.run_seconds > before["history"]["seconds"]
    assert gone_on.compile_seconds > before["compile_seconds"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_what_is_done_even_if_nothing_else_does(learner, whole, number, tmp_path, capsys):
    with Checkpoints(tmp_path) as checkpoints:
        stopped = learner(checkpoints=checkpoints, checkpoint_every=0, progress=Ending(3 * 200, number))
    assert stopped.interrupted
    steps = int(stopped.metrics["environment_steps"][0, -1])
    assert 200 < steps < STEPS
    assert checkpoint.steps(tmp_path) == [steps]
    assert stopped.evaluation_steps.tolist() == [at for at in whole.evaluation_steps if at <= steps]
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(learner(checkpoints=checkpoints), whole)


def test_a_stop_by_the_return_comes_where_it_would_have_come(tmp_path):
    env, judge = envs.make(probes.Walk(), 1), envs.make(probes.Walk(), 2)
    agent = q_learning.q_learning(env.spec)

    def walk(**options):
        # From the start greedily right, and judged after every chunk but one: reached long before the end.
        return driver.drive(
            driver.seed_keys(0, 2),
            [Phase(agent, 400)],
            env,
            q_learning.Hypers(),
            log_every=10,
            eval_env=judge,
            eval_every=30,
            stop_at_return=-0.5,
            **options,
        )

    whole = walk()
    last = int(whole.metrics["environment_steps"][0, -1])
    assert last < 400
    # What was read last before the end is enough already, and stops the run one chunk later.
    with pytest.raises(Ends), Checkpoints(tmp_path) as checkpoints:
        walk(checkpoints=checkpoints, checkpoint_every=10, progress=Ending(2 * (last - 20)))
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(walk(checkpoints=checkpoints), whole)


def test_without_a_number_of_steps_it_is_time_that_tells_when_to_save(learner, tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        learner(checkpoints=checkpoints)
    assert checkpoint.steps(tmp_path) == []
    monkeypatch.setattr(store, "SECONDS_BETWEEN", 0.0)
    with Checkpoints(tmp_path) as checkpoints:
        learner(checkpoints=checkpoints)
    assert checkpoint.steps(tmp_path)[-1] == STEPS


def test_a_save_that_fails_is_told_and_the_runs_go_on(learner, whole, tmp_path, monkeypatch, capsys):
    kept, calls = Checkpoints.save, []

    def save(self, tree, step, about=None):
        calls.append(step)
        if len(calls) in (1, 2):
            raise OSError(f"step {step} could not be saved: No space left on device")
        kept(self, tree, step, about)

    monkeypatch.setattr(Checkpoints, "save", save)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(learner(checkpoints=checkpoints, checkpoint_every=2 * CHUNK), whole)
    assert len(calls) > 3
    assert checkpoint.steps(tmp_path) == calls[-2:]
    told = [line for line in capsys.readouterr().err.splitlines() if line]
    assert len(told) == 2
    assert told[0] == f"warning: step {calls[0]} could not be saved: No space left on device; the run goes on"


@pytest.mark.parametrize("ending", [None, signal.SIGTERM])
def test_a_save_that_fails_in_the_background_costs_nothing_but_itself(
    learner, whole, ending, tmp_path, monkeypatch, capsys
):
    """Neither the results of a run that comes to its end, nor the save of one that is asked to stop."""
    finish, failed = Checkpoints._finish, []

    def fail(self, step):
        finish(self, step)
        if step > 300 and (ending is None or not failed):
            failed.append(step)
            raise OSError("No space left on device")

    monkeypatch.setattr(Checkpoints, "_finish", fail)
    progress = None if ending is None else Ending(3 * 420, ending)
    with Checkpoints(tmp_path) as checkpoints:
        outcome = learner(checkpoints=checkpoints, checkpoint_every=CHUNK, progress=progress)
    assert failed
    assert "could not be saved" in capsys.readouterr().err
    if ending is None:
        assert_same(outcome, whole)
    else:
        assert outcome.interrupted
        assert checkpoint.steps(tmp_path)[-1] == outcome.metrics["environment_steps"][0, -1]


def test_checkpoints_of_other_runs_are_told_by_what_differs(learner, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        learner(checkpoints=checkpoints, checkpoint_every=CHUNK)
    for options, words in [
        ({"hypers": q_learning.Hypers(learning_rate=0.25)}, "hypers.learning_rate 0.5, and this one has 0.25"),
        ({"seed": 1}, "keys another one, and this one has another one"),
        ({"log_every": 50}, "log_every 60, and this one has 50"),
        ({"stop_at_return": 0.0}, "stop_at_return None, and this one has 0.0"),
    ]:
        with pytest.raises(checkpoint.Unfit) as told, Checkpoints(tmp_path) as checkpoints:
            learner(checkpoints=checkpoints, **options)
        assert words in str(told.value)


def poisoned(at):
    """Q-learning whose values become no numbers in one of its updates."""
    env = envs.make(CLIFF, 1)
    agent = q_learning.q_learning(env.spec)

    def init(key, hypers):
        return agent.init(key, hypers), jnp.int32(0)

    def act(key, state, memory, observation, hypers, *, greedy=False):
        return agent.act(key, state[0], memory, observation, hypers, greedy=greedy)

    def update(key, state, rollout, hypers):
        learned, metrics = agent.update(key, state[0], rollout, hypers)
        values = learned.values + jnp.log(jnp.where(state[1] == at, -1.0, 1.0))
        return (dataclasses.replace(learned, values=values), state[1] + 1), metrics

    return env, agent._replace(init=init, act=act, update=update, observe=lambda state, rollout, hypers: state)


def drive_poisoned(at, **options):
    env, agent = poisoned(at)
    return driver.drive(driver.seed_keys(0, 2), [Phase(agent, 400)], env, q_learning.Hypers(), log_every=20, **options)


def test_runs_that_are_lost_stop_and_the_last_good_ones_are_kept(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        outcome = drive_poisoned(110, checkpoints=checkpoints, checkpoint_every=20)
    assert outcome.diverged_at.tolist() == [120, 120]
    assert outcome.metrics["environment_steps"][0, -1] <= 140
    assert not outcome.interrupted
    assert checkpoint.steps(tmp_path) == [80, 100]


def test_debugging_names_the_operation_and_its_line():
    with pytest.raises(FloatingPointError, match=r"^log made a NaN in .*test_resume.py, line \d+: values = learned"):
        drive_poisoned(110, debug_nans=True)


def test_debugging_changes_nothing_where_all_is_well(learner, whole):
    assert_same(learner(debug_nans=True), whole)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_agent_makes_a_nan_on_the_way(slow_result):
    """No false alarm: nothing of what agents mask is made of NaN."""
    for case in CASES:
        env = envs.make(case.env, 3)
        plan = [Phase(case.make(env.spec), 90)]
        driver.drive(driver.seed_keys(0, 1), plan, env, case.hypers, length=2, log_every=90, debug_nans=True)
    slow_result(f"no NaN in 15 iterations of {len(CASES)} agents")


# --- by the command line --------------------------------------------------------------------------------------------

FLAGS = ["--total-steps", "600", "--num-envs", "2", "--seeds", "2", "--eval-episodes", "3", "--eval-every", "250"]


@pytest.fixture(scope="module")
def script():
    return load("q_learning")


def settings_of(script, out, *flags):
    return cli.parse(script.Settings, [*FLAGS, "--out", str(out), *flags])


def stopped(script, out, monkeypatch, at=400, flags=()):
    """A run that Ctrl-C has stopped."""
    monkeypatch.setattr(runs, "Progress", lambda *_, **__: Ending(at, signal.SIGINT))
    with pytest.raises(Stopped) as stop:
        script.main(settings_of(script, out, *flags))
    monkeypatch.setattr(runs, "Progress", Progress)
    return stop.value


@pytest.fixture(scope="module")
def finished(script, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    script.main(settings_of(script, out))
    return results.load(out)


def test_an_interrupted_run_comes_out_as_if_it_never_was(script, finished, tmp_path, monkeypatch, capsys):
    out = tmp_path / "run"
    stop = stopped(script, out, monkeypatch)
    assert stop.directory == out
    steps = checkpoint.steps(out / folders.CHECKPOINTS)[-1]
    assert str(stop) == f"stopped after {steps} of 600 steps"
    assert not (out / results.SUMMARY).exists()
    with pytest.raises(FileNotFoundError, match="has not finished"):
        results.load(out)
    with pytest.raises(cli.BadInput, match=f"holds a run to go on with: --resume {out}"):
        script.main(settings_of(script, out))
    capsys.readouterr()
    script.main(settings_of(script, out, "--resume", "auto"))
    assert f"goes on after {steps} steps" in capsys.readouterr().out
    found = results.load(out)
    assert {path.name for path in out.iterdir()} == {path.name for path in finished.directory.iterdir()}
    assert found.metrics.keys() == finished.metrics.keys()
    for name in found.metrics.keys() - {"seconds"}:
        np.testing.assert_array_equal(found.metrics[name], finished.metrics[name], err_msg=name)
    for name in ("episode_return", "evaluation", "total_steps", "hypers"):
        assert found.summary[name] == finished.summary[name]
    script.main(settings_of(script, out, "--resume", str(out)))
    assert f"{out} holds this run, and it is finished" in capsys.readouterr().out


def test_auto_begins_where_nothing_is_there(script, finished, tmp_path):
    script.main(settings_of(script, tmp_path / "run", "--resume", "auto"))
    found = results.load(tmp_path / "run")
    np.testing.assert_array_equal(found.metrics["episode_return"], finished.metrics["episode_return"])


def test_what_does_not_fit_is_told_and_nothing_is_touched(script, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stopped(script, out, monkeypatch)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = load("sarsa")
    cases = [
        (script, ["--num-envs", "4"], "holds a run with num_envs 2, and this one has 4"),
        (script, ["--hypers.discount", "0.5"], "discount 1.0, and this one has 0.5"),
        (script, ["--seed", "1"], "holds a run with seed 0, and this one has 1"),
        (script, ["--env", "FrozenLake-purerl"], "FrozenLake-purerl"),
        (other, [], "holds a run with agent 'q_learning', and this one has 'sarsa'"),
    ]
    for module, flags, words in cases:
        with pytest.raises(cli.BadInput) as told:
            module.main(settings_of(module, out, "--resume", "auto", *flags))
        assert words in str(told.value)
        assert "\n" not in str(told.value)
    steps = checkpoint.steps(out / folders.CHECKPOINTS)[-1]
    damaged = next((out / folders.CHECKPOINTS / str(steps)).rglob("manifest.ocdbt"))
    damaged.write_bytes(b"0" + damaged.read_bytes()[1:])
    with pytest.raises(cli.BadInput, match=r"is damaged: .*manifest.ocdbt is not what was written"):
        script.main(settings_of(script, out, "--resume", "auto"))
    damaged.write_bytes(before[damaged])
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_bad_flags_are_told(script, tmp_path):
    for flags, words in [
        (["--resume", "auto"], "resume is auto and out is not given"),
        (["--resume", str(tmp_path), "--out", str(tmp_path / "x")], "a run goes on where it is"),
        (["--resume", str(tmp_path / "none")], "which holds no run"),
        (["--checkpoint-every", "-1"], "checkpoint_every is -1; it takes a whole number from 0"),
    ]:
        with pytest.raises(cli.BadInput, match=words):
            script.main(cli.parse(script.Settings, [*FLAGS, *flags]))


def test_the_command_to_go_on_with_is_printed_and_the_status_is_0(script, monkeypatch, capsys, tmp_path):
    flags = ["--out", "elsewhere", "--resume=auto", "--seed", "3", "--env", "a b"]
    monkeypatch.setattr(sys, "argv", ["experiments/q_learning.py", *flags])

    def main(settings):
        raise Stopped("stopped after 5 of 9 steps", tmp_path)

    monkeypatch.setattr(cli, "parse", lambda settings: None)
    cli.start(main, script.Settings)
    assert capsys.readouterr().out == (
        "stopped after 5 of 9 steps; go on with\n"
        f"  python experiments/q_learning.py --seed 3 --env 'a b' --resume {tmp_path}\n"
    )


def test_seeds_that_are_all_lost_end_in_a_sentence(script, tmp_path, monkeypatch, capsys):
    with pytest.raises(cli.Failed) as told:
        script.main(settings_of(script, tmp_path / "run", "--hypers.learning-rate", "1e30"))
    assert "each of the 2 seeds diverged, no longer finite after iteration" in str(told.value)
    assert "there is no checkpoint; this command with --debug-nans names the operation" in str(told.value)
    assert not (tmp_path / "run" / results.SUMMARY).exists()


# --- by other processes ---------------------------------------------------------------------------------------------

SLEEPER = """
import ctypes
from purerl.interrupts import Interrupt
with Interrupt() as interrupt:
    print("ready", flush=True)
    while True:
        ctypes.CDLL(None).sleep(60)  # as a device: who waits here hears of no signal
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once_whatever_it_waits_for(number):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    assert process.stderr.readline() == "\n"
    assert process.stderr.readline() == "stopping after this chunk; Ctrl-C again ends at once\n"
    assert process.poll() is None
    process.send_signal(number)  # the same one, for who sends it to a process and to its group
    time.sleep(interrupts.SECONDS_APART + 0.2)
    assert process.poll() is None
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(timeout=30) == 128 + number
    assert time.monotonic() - begun < 5


def test_of_two_contexts_the_inner_one_leaves_the_wish_to_the_outer_one(capfd):
    with Interrupt("this part") as outer:
        with Interrupt() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert inner.asked
            assert not outer.asked
        assert outer.asked
        assert outer._first == inner._first > 0  # so that the next signal is the second one
        with Interrupt() as later:
            assert later.asked
    assert capfd.readouterr().err == "\nstopping after this chunk; Ctrl-C again ends at once\n"


def test_signals_are_those_of_before_once_nothing_is_to_be_asked():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interrupts.Interrupt() as interrupt:
        assert not interrupt.asked
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert signal.set_wakeup_fd(-1) == -1


RUN = """
from purerl import driver, envs
from purerl.agents import q_learning

def run(checkpoints):
    env = envs.make("CliffWalking-purerl", 2)
    plan = [driver.Phase(q_learning.q_learning(env.spec), 2_000_000)]
    outcome = driver.drive(
        driver.seed_keys(0, 2), plan, env, q_learning.Hypers(), log_every=20_000,
        checkpoints=checkpoints, checkpoint_every=40_000,
    )
    return {"values": outcome.runs.agent.values, "iteration": outcome.runs.iteration, **outcome.metrics}
"""
SCRIPT = (
    RUN
    + """
import sys
from pathlib import Path
from purerl import results
from purerl.checkpoint import Checkpoints

with Checkpoints(Path(sys.argv[1])) as checkpoints:
    results.replace_file(Path(sys.argv[2]), results.npz_bytes(run(checkpoints)))
"""
)


def killed(command, place, end, kills, seed, longest):
    """Start runs again and again, and kill them at random moments; then let them come to their end: how many kills."""
    rng, done = random.Random(seed), 0
    while done < kills:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before, deadline = checkpoint.steps(place), time.monotonic() + 300
        # At random, but once something more is saved: or many kills would come before the first.
        while checkpoint.steps(place) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, longest))
        process.kill()
        process.wait()
        if end.exists():
            return done
        done += 1
        checkpoint.about(place)  # the latest one is whole: every byte of it is looked at
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return done


@pytest.mark.timeout(400)
def test_three_kills_leave_what_no_kill_would_have_left(tmp_path):
    here: dict[str, Any] = {}
    exec(RUN, here)
    expected = here["run"](None)
    place, end = tmp_path / "checkpoints", tmp_path / "end.npz"
    assert killed([sys.executable, "-c", SCRIPT, place, end], place, end, 3, 0, 0.3) == 3
    found = results.read_npz(end)
    assert found.keys() == expected.keys()
    for name in found.keys() - {"seconds"}:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert (np.diff(found["seconds"]) > 0).all()


EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
CHAINS = {"dqn": (2_000_000, 10_000), "ppo": (6_000_000, 30_000)}  # steps, and those between checkpoints


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CHAINS)
def test_thirty_kills_of_an_experiment_leave_what_no_kill_would_have_left(name, tmp_path, slow_result):
    """DQN with its replay, PPO with its normalisers."""
    total, between = map(str, CHAINS[name])
    flags = ["--total-steps", total, "--checkpoint-every", between, "--log-every", between, "--eval-every", "500000"]
    command = [sys.executable, EXPERIMENTS / f"{name}.py", *flags, "--resume", "auto", "--out"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, whole], check=True, stdout=subprocess.DEVNULL)
    begun = time.monotonic()
    kills = killed([*command, out], out / folders.CHECKPOINTS, out / results.SUMMARY, 30, 0, 1.0)
    expected, found = results.load_run(whole), results.load_run(out)
    assert found.metrics.keys() == expected.metrics.keys()
    for column in found.metrics.keys() - {"seconds"}:
        np.testing.assert_array_equal(found.metrics[column], expected.metrics[column], err_msg=column)
    one, other = (export.load_policy(folder) for folder in (whole, out))
    chex.assert_trees_all_equal(one.arrays, other.arrays)
    assert (np.diff(found.metrics["seconds"]) > 0).all()
    assert found.summary["evaluation"] == expected.summary["evaluation"]
    assert kills == 30
    slow_result(
        f"{kills} kills, every checkpoint whole, metrics and policy to the bit, {time.monotonic() - begun:.0f} s"
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_and_files_do_not_grow_in_twelve_minutes(tmp_path, slow_result):
    flags = ["--total-steps", "4000000000", "--log-every", "200000", "--eval-every", "2000000"]
    command = [
        sys.executable,
        EXPERIMENTS / "ppo.py",
        *flags,
        "--checkpoint-every",
        "200000",
        "--out",
        tmp_path / "run",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while not checkpoint.steps(tmp_path / "run" / folders.CHECKPOINTS):
        assert process.poll() is None
        time.sleep(0.1)
    begun, seconds, resident, files = time.monotonic(), [], [], []
    while time.monotonic() - begun < 12 * 60:
        time.sleep(1.0)
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident.append(int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024)
        files.append(len(list(Path(f"/proc/{process.pid}/fd").iterdir())))
        seconds.append(time.monotonic() - begun)
    process.terminate()
    told = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert "go on with" in told
    saved = checkpoint.steps(tmp_path / "run" / folders.CHECKPOINTS)[-1] // 200_000
    late = np.array(seconds) > 60
    slope = np.polyfit(np.array(seconds)[late] / 60, np.array(resident)[late], 1)[0]
    held, most, least = np.median(np.array(resident)[late]), max(np.array(files)[late]), min(np.array(files)[late])
    slow_result(
        f"{slope:+.2f} MiB/min of {held:.0f} MiB, {least} to {most} files open, {saved} checkpoints, "
        f"{np.ptp(np.array(resident)[late]):.0f} MiB between least and most"
    )
    # Eleven minutes of it are less than what memory goes up and down by between two looks.
    assert abs(slope) * 11 < 0.03 * held
    assert np.median(np.array(files)[late][-60:]) == np.median(np.array(files)[late][:60])
