"""Search by Optuna: batches in one compile, and no trial lost or doubled, whoever is killed."""

from __future__ import annotations

import collections
import os
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

from purerl import points, spread, tables, tune, workers

optuna.logging.set_verbosity(optuna.logging.WARNING)
KEYS = jax.random.split(jax.random.key(0), 2)
SPACE = {
    "learning_rate": points.log_uniform(1e-4, 1.0),
    "discount": points.uniform(0.0, 1.0),
    "initial_value": points.choice(0.0, 1.0),
}


def hill(key, hypers):
    """Highest, at 0, where the rate is .01, the discount .3 and the value 1."""
    away = (jnp.log10(hypers.learning_rate) + 2) ** 2 + (hypers.discount - 0.3) ** 2 + (1 - hypers.initial_value)
    return {"score": -away}


def score(outputs):
    return outputs["score"]


def search(study, train=hill, **options):
    given = {"score": score, "batch": 4} | options
    return tune.work(study, train, KEYS, tables.Hypers(), SPACE, **given)


def test_a_batch_of_trials_is_one_program_and_the_search_finds_the_hill(tmp_path):
    traces = []

    def counted(key, hypers):
        traces.append(1)
        return hill(key, hypers)

    study = tune.create(tmp_path / "journal.log", "hill", trials=42)
    assert search(study, counted, spread=spread.choose(8, together=1)) == 42
    assert tune.finished(study) == 42
    assert len(traces) <= 3  # for shapes, and for the program; the last batch is of two
    for trial in study.trials:
        values = {name: jnp.float32(value) for name, value in trial.params.items()}
        expected = hill(None, tables.Hypers(**values))["score"]
        np.testing.assert_allclose(trial.value, expected, rtol=1e-5)
        np.testing.assert_allclose(trial.user_attrs["scores"], [expected] * 2, rtol=1e-5)
    assert study.best_value > -0.2  # at random the best of 42 is about -.3, two in three of them below -1


def test_all_points_have_the_same_seeds_and_a_value_is_their_interquartile_mean(tmp_path):
    study = tune.create(tmp_path / "journal.log", "noise", trials=3)
    keys = jax.random.split(jax.random.key(1), 5)

    def train(key, hypers):
        return {"score": jax.random.normal(key) + 0 * hypers.discount}

    tune.work(study, train, keys, tables.Hypers(), SPACE, score=score, batch=2)
    drawn = np.sort([float(jax.random.normal(key)) for key in keys])
    np.testing.assert_allclose([trial.value for trial in study.trials], drawn[1:-1].mean(), rtol=1e-6)


def test_what_diverges_is_finished_and_told_as_failed(tmp_path):
    study = tune.create(tmp_path / "journal.log", "lost", trials=9)

    def train(key, hypers):
        return {"score": jnp.where(hypers.discount > 0.5, jnp.nan, hypers.discount)}

    search(study, train)
    assert tune.finished(study) == len(study.trials) == 9
    for trial in study.trials:
        failed = trial.params["discount"] > 0.5
        assert trial.user_attrs["diverged"] == failed
        assert (trial.state == optuna.trial.TrialState.FAIL) == failed
    assert 0 < sum(trial.user_attrs["diverged"] for trial in study.trials) < 9


def left_running(study, worker, life, count=2):
    """Trials as a worker leaves them that is killed while it runs them."""
    for _ in range(count):
        trial = study.ask()
        trial.set_user_attr("owner", [worker, life])
        for name in SPACE:
            tune._suggest(trial, name, SPACE[name])


def state_of(study):
    """How many trials count and fail; and of each ticket the numbers of its trials."""
    tickets = collections.defaultdict(list)
    for trial in study.trials:
        tickets[trial.user_attrs["ticket"]].append(trial)
    for trials in tickets.values():
        assert sum(tune._counts(trial) for trial in trials) == 1  # none lost, none doubled
        assert len({tuple(sorted(trial.params.items())) for trial in trials if len(trial.params) == 3}) == 1
    return len(tickets), len(study.trials) - len(tickets)


def test_a_worker_that_is_started_again_does_at_once_what_it_had_left_running(tmp_path):
    study = tune.create(tmp_path / "journal.log", "again", trials=6)
    left_running(study, 0, "former life")
    began = time.monotonic()
    assert search(study, patience=1000.0) == 6
    assert time.monotonic() - began < 60
    assert state_of(study) == (6, 2)


def test_what_others_left_is_handed_out_when_they_have_been_silent_for_long(tmp_path):
    study = tune.create(tmp_path / "journal.log", "silent", trials=6)
    left_running(study, 1, "who never came back")
    study.ask()  # and one by a worker that was killed before it could say who it is
    assert search(study, patience=0.5) == 6
    assert state_of(study) == (6, 3)


def test_whoever_lives_keeps_its_trials(tmp_path):
    study = tune.create(tmp_path / "journal.log", "slow", trials=2)
    left_running(study, 1, "slow", 1)
    with workers.SignsOfLife(study, 1, 0.6) as other:
        study.set_user_attr("worker 1", [0, "slow"])
        other.owner = workers.Owner(1, "slow")
        watch = workers.Watch(0.6)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            watch.fail_the_dead(study)
            time.sleep(0.05)
        assert study.trials[0].state == optuna.trial.TrialState.RUNNING
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        watch.fail_the_dead(study)
        time.sleep(0.05)
    assert study.trials[0].state == optuna.trial.TrialState.FAIL


def test_a_ticket_that_was_handed_out_twice_counts_once(tmp_path):
    study = tune.create(tmp_path / "journal.log", "twice", trials=3)
    study.enqueue_trial({}, user_attrs={"ticket": 1})
    assert search(study) == 3
    assert state_of(study) == (3, 1)


def test_a_result_that_comes_after_its_trial_was_taken_away_is_not_told(tmp_path):
    study = tune.create(tmp_path / "journal.log", "late", trials=1)
    trial = study.ask()
    trial.set_user_attr("owner", [0, "late"])
    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    assert not tune._tell(study, trial, workers.Owner(0, "late"), np.zeros(2))
    assert tune.finished(study) == 0


def test_a_result_of_a_trial_that_another_has_is_not_told(tmp_path):
    study = tune.create(tmp_path / "journal.log", "other", trials=1)
    trial = study.ask()
    trial.set_user_attr("owner", [1, "other"])
    assert not tune._tell(study, trial, workers.Owner(0, "mine"), np.zeros(2))
    assert study.trials[0].state == optuna.trial.TrialState.RUNNING


def test_a_process_that_goes_on_draws_anew(tmp_path):
    drawn = []
    for _ in range(2):
        study = tune.create(tmp_path / "journal.log", "drawn", trials=8)
        drawn += [study.ask().suggest_float("discount", 0.0, 1.0) for _ in range(3)]
    assert len(set(drawn)) == 6


# Processes that take waiting trials as fast as they can: each is taken once.
TAKER = """
import sys, optuna
from purerl import tune
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = tune.open_study(sys.argv[1], "taken")
print("ready", flush=True)
sys.stdin.readline()
while study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,)):
    print(study.ask().number, flush=True)
"""


@pytest.mark.thorough
def test_on_sqlite_no_trial_is_taken_twice(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    tune.create(storage, "taken", trials=60)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    takers = [subprocess.Popen([sys.executable, "-c", TAKER, storage], **pipes) for _ in range(2)]
    for taker in takers:
        assert taker.stdout.readline() == "ready\n"
    for taker in takers:
        taker.stdin.write("go\n")
        taker.stdin.flush()
    taken = [int(line) for taker in takers for line in taker.communicate(timeout=100)[0].split()]
    tickets = [number for number in taken if number < 60]  # one too many may be made by whoever comes too late
    assert sorted(tickets) == list(range(60))


def test_two_processes_with_one_number_are_told_apart(tmp_path):
    study = tune.create(tmp_path / "journal.log", "one number", trials=3)

    def usurped(outputs):
        study.set_user_attr("worker 0", [1, "another"])
        return score(outputs)

    with pytest.raises(RuntimeError, match="another process works as worker 0; each takes a number of its own"):
        search(study, score=usurped, batch=1)


def test_a_study_that_is_another_is_refused(tmp_path):
    where = tmp_path / "journal.log"
    tune.create(where, "a", trials=3, description={"env": "CartPole-v1"})
    with pytest.raises(ValueError, match=r"study 'a' in .* with trials 3, and this one has 4"):
        tune.create(where, "a", trials=4, description={"env": "CartPole-v1"})
    with pytest.raises(ValueError, match="with env 'CartPole-v1', and this one has 'Acrobot-v1'"):
        tune.open_study(where, "a", description={"env": "Acrobot-v1"})
    assert tune.size(tune.open_study(where, "a", description={"env": "CartPole-v1"})) == 3
    with pytest.raises(TimeoutError, match=r"there is no study 'b' in .* after 0 seconds; worker 0 makes it"):
        tune.open_study(where, "b", wait=0.0)


def test_a_distribution_that_optuna_has_no_like_of_is_refused(tmp_path):
    class Own:
        def draw(self, key):
            return jax.random.normal(key)

    study = tune.create(tmp_path / "journal.log", "own", trials=1)
    with pytest.raises(ValueError, match=r"the distribution of discount is .*Own.* it takes uniform, log_uniform or"):
        tune.work(study, hill, KEYS, tables.Hypers(), {"discount": Own()}, score=score, batch=1)
    with pytest.raises(ValueError, match="Hypers has no rate"):
        tune.work(study, hill, KEYS, tables.Hypers(), {"rate": points.uniform(0, 1)}, score=score, batch=1)
    with pytest.raises(ValueError, match=r"patience is 0.1; it takes at least 0.5 seconds"):
        search(study, patience=0.1)


# --- killed workers -------------------------------------------------------------------------------------------------

# A worker on a storage, whose runs each take a little while.
SCRIPT = """
import sys
from purerl import spread
spread.use_all_cores(1)
import jax, jax.numpy as jnp, optuna
from purerl import points, tables, tune

def train(key, hypers):
    def step(carry, number):
        return carry + 1e-9 * jax.random.normal(jax.random.fold_in(key, number)), None
    last, _ = jax.lax.scan(step, hypers.discount, jnp.arange(1_000_000))
    return {"score": last}

optuna.logging.set_verbosity(optuna.logging.ERROR)
storage, worker = sys.argv[1], int(sys.argv[2])
study = tune.open_study(storage, "killed", seed=worker)
keys = jax.random.split(jax.random.key(0), 1)
space = {"discount": points.uniform(0.0, 1.0), "learning_rate": points.log_uniform(1e-4, 1.0)}
tune.work(study, train, keys, tables.Hypers(), space, score=lambda outputs: outputs["score"], batch=2, worker=worker,
    patience=6.0)
"""


def survives(tmp_path, storage, *, kills, trials, seed):
    """Kill one of two workers at random so often, start it again each time, and look at what is left."""
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    study, rng = tune.create(storage, "killed", trials=trials), random.Random(seed)

    def start(worker):
        return subprocess.Popen([sys.executable, str(script), str(storage), str(worker)])

    processes, done = [start(0), start(1)], 0
    deadline = time.monotonic() + 400
    while done < kills and time.monotonic() < deadline:
        # At random, but with trials under way: or most kills would come before a worker has begun.
        chosen = rng.randrange(2)
        while time.monotonic() < deadline and not any(
            trial.user_attrs.get("owner", [None])[0] == chosen
            for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        ):
            time.sleep(0.01)
            if tune.finished(study) == trials:
                break
        time.sleep(rng.uniform(0.0, 0.2))
        if tune.finished(study) == trials:
            break
        os.kill(processes[chosen].pid, signal.SIGKILL)
        processes[chosen].wait()
        done += 1
        processes[chosen] = start(chosen)
    for worker in processes:
        assert worker.wait(timeout=200) == 0
    study = tune.open_study(storage, "killed")
    assert tune.finished(study) == trials
    tickets, failed = collections.defaultdict(list), 0
    for trial in study.trials:
        tickets[trial.user_attrs["ticket"]].append(trial)
        failed += not tune._counts(trial)
    assert sorted(tickets) == list(range(trials))
    for own in tickets.values():
        assert sum(tune._counts(trial) for trial in own) == 1
        assert len({tuple(sorted(trial.params.items())) for trial in own if len(trial.params) == 2}) == 1
    for trial in study.trials:
        if tune._counts(trial):
            np.testing.assert_allclose(trial.value, trial.params["discount"], atol=1e-4)
    return done, failed


def test_two_workers_of_which_one_is_killed_twice_lose_and_double_nothing(tmp_path):
    assert survives(tmp_path, tmp_path / "journal.log", kills=2, trials=12, seed=0)[0] == 2


@pytest.mark.slow
def test_ten_kills_of_two_workers_on_a_journal_lose_and_double_nothing(tmp_path, slow_result):
    kills, failed = survives(tmp_path, tmp_path / "journal.log", kills=10, trials=40, seed=1)
    assert kills == 10
    slow_result(f"{kills} kills, 40 trials finished once each, {failed} handed out again")


@pytest.mark.slow
def test_ten_kills_of_two_workers_on_sqlite_lose_and_double_nothing(tmp_path, slow_result):
    kills, failed = survives(tmp_path, f"sqlite:///{tmp_path / 'study.db'}", kills=10, trials=40, seed=2)
    assert kills == 10
    slow_result(f"{kills} kills, 40 trials finished once each, {failed} handed out again")


@pytest.mark.slow
def test_ten_kills_of_two_workers_on_postgresql_lose_and_double_nothing(tmp_path, slow_result):
    pgserver = pytest.importorskip("pgserver", reason="no PostgreSQL: pgserver has no wheel for this system")
    with pgserver.get_server(tmp_path / "postgresql") as server:
        storage = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        kills, failed = survives(tmp_path, storage, kills=10, trials=40, seed=3)
    assert kills == 10
    slow_result(f"{kills} kills, 40 trials finished once each, {failed} handed out again")
