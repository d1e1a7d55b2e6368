"""The scripts that search: tune.py and its workers, and pbt.py."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys

import numpy as np
import pytest
from scripts import EXPERIMENTS, load

from purerl import cli, folders, loop, points, results, sweep_cli, tables, tune, tune_cli
from purerl.agents import q_learning
from purerl.interrupts import Stopped

Axes = sweep_cli.axes(tables.Hypers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Settings):
    """A search with an agent that compiles in a second."""

    env: str = "CliffWalking-purerl"
    total_steps: int = 300
    seeds: int = 2
    eval_episodes: int = 2
    eval_max_steps: int = 30
    hypers: tables.Hypers = tables.Hypers()
    search: tune_cli.Search = tune_cli.Search(trials=6, batch=4)
    log_uniform: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]
    uniform: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]
    choice: Axes = Axes()  # pyright: ignore[reportInvalidTypeForm]


def run(flags):
    return tune_cli.run(
        cli.parse(Settings, flags),
        lambda settings, spec: [loop.Phase(q_learning.q_learning(spec), settings.total_steps)],
        agent="q",
        hypers=lambda settings: settings.hypers,
        usual={"exploration": points.uniform(0.0, 1.0)},
    )


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tune") / "run"
    flags = ["--log-uniform.learning-rate", "1e-3", "1", "--choice.exploration", "0.1", "0.3", "--out", str(directory)]
    return flags, run(flags)


def test_a_search_leaves_a_table_a_picture_and_its_study(searched):
    _, found = searched
    names = {path.name for path in found.directory.iterdir()}
    assert {"settings.json", "metrics.npz", "summary.json", "search.png", "journal.log"} <= names
    assert found.metrics["score"].shape == (6, 2)
    study = tune.open_study(found.directory / "journal.log", "study")
    for place, trial in enumerate(tune.finished_trials(study)):
        row = found.summary["points"][place]
        np.testing.assert_allclose(row["per_seed"], found.metrics["score"][place])
        np.testing.assert_allclose(row["mean"], trial.value, rtol=1e-6)
        assert row["learning_rate"] == trial.params["learning_rate"]
    table = results.frame(results.load(found.directory))
    assert list(table.columns) == ["learning_rate", "exploration", "seed", "score"]
    assert len(table) == 12
    assert set(table.exploration) <= {0.1, 0.3}


def test_another_worker_finds_nothing_left_and_another_search_is_refused(searched, tmp_path, capsys):
    flags, _ = searched
    assert run([*flags, "--search.worker", "1"]) is None
    assert "worker 1 ran 0 of 6 trials" in capsys.readouterr().out
    out = ["--out", str(tmp_path / "x")]
    for changed, sentence in [
        (flags, "already holds a finished run"),
        ([*flags, "--search.worker", "1", "--total-steps", "301"], "total_steps 300, and this one has 301"),
        ([*out, "--search.trials", "0"], "search.trials is 0"),
        ([*out, "--uniform.discount", "1"], "uniform.discount has 1 values; it takes two, LOW HIGH"),
        ([*out, "--uniform.discount", "0", "1", "--choice.discount", "1"], "discount has two distributions"),
        ([*out, "--log-uniform.discount", "0", "1"], "low is 0.0; a log-uniform"),
        (["--search.worker", "2"], "out is not given, and this is worker 2"),
    ]:
        with pytest.raises(cli.BadInput, match=sentence):
            run(changed)
    assert not (tmp_path / "x").exists()


def test_a_search_that_is_asked_to_end_finishes_the_batch_and_is_gone_on_with(tmp_path, monkeypatch, capsys):
    out, tell = tmp_path / "run", tune._tell

    def asked(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return tell(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "_tell", asked)
        with pytest.raises(Stopped, match="stopped after 4 of 6 trials") as stop:
            run(["--out", str(out)])
    assert stop.value.directory == out
    found = run(["--resume", str(out)])
    assert found.metrics["score"].shape == (6, 2)
    assert "worker 0 ran 2 of 6 trials" in capsys.readouterr().out
    assert run(["--resume", str(out)]).summary == found.summary
    assert f"{out} holds this search, and it is finished" in capsys.readouterr().out


def test_a_search_in_a_database_is_gone_on_with_though_it_has_left_nothing(tmp_path, monkeypatch):
    out, tell = tmp_path / "run", tune._tell
    flags = ["--search.storage", f"sqlite:///{tmp_path / 'study.db'}", "--search.trials", "3", "--search.batch", "2"]

    def asked(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return tell(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tune, "_tell", asked)
        with pytest.raises(Stopped, match="stopped after 2 of 3 trials"):
            run([*flags, "--out", str(out)])
    assert run([*flags, "--resume", str(out)]).metrics["score"].shape == (3, 2)


def test_a_search_takes_no_other_s_folder_and_no_other_takes_its(searched, tmp_path):
    flags, found = searched
    out = tmp_path / "run"
    results.write(out, settings={"env": "CliffWalking-purerl"}, metrics={}, summary={"agent": "q"})
    with pytest.raises(cli.BadInput, match="which holds another run"):
        run(["--out", str(out), "--resume", "auto"])
    assert {path.name for path in out.iterdir()} == {"settings.json", "metrics.npz", "summary.json"}
    journal = (found.directory / "journal.log").read_bytes()
    for changed, sentence in [
        (["--search.name", "other"], "search.name 'study', and this one has 'other'"),
        (["--total-steps", "301"], "total_steps 300, and this one has 301"),
    ]:
        with pytest.raises(cli.BadInput, match=sentence):
            run([*flags, "--resume", "auto", *changed])
    assert (found.directory / "journal.log").read_bytes() == journal
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "settings.json").write_bytes((found.directory / "settings.json").read_bytes())
    with pytest.raises(FileExistsError, match="which holds a sweep or a search; give another"):
        folders.opened(tmp_path / "search", {}, resume=None)


def test_the_environment_s_numbers_are_those_that_are_asked_for(tmp_path):
    rewards = ["--env-params.step-reward", "0", "--env-params.cliff-reward", "0"]
    found = run([*rewards, "--search.trials", "2", "--search.batch", "2", "--out", str(tmp_path / "run")])
    np.testing.assert_array_equal(found.metrics["score"], np.zeros((2, 2)))


@pytest.mark.slow
def test_two_workers_that_submitit_starts_share_a_search(tmp_path, slow_result):
    pytest.importorskip("submitit", reason="the extra `tune` without submitit")
    flags = ["--total-steps", "20000", "--seeds", "2", "--search.trials", "12", "--search.batch", "3"]
    command = [sys.executable, str(EXPERIMENTS / "tune.py"), *flags, "--search.submit", "local"]
    subprocess.run([*command, "--out", str(tmp_path / "run")], check=True, timeout=600)
    found = results.load(tmp_path / "run")
    study = tune.open_study(tmp_path / "run" / "journal.log", "study")
    workers = {trial.user_attrs["owner"][0] for trial in tune.finished_trials(study)}
    assert workers == {0, 1}
    assert len(found.summary["points"]) == 12
    best = max(row["iqm"] for row in found.summary["points"])
    assert best > 60
    slow_result(f"12 trials by 2 workers, the best {best:.0f} after 20 000 steps")


@pytest.mark.slow
def test_population_based_training_runs_as_it_stands(tmp_path, slow_result):
    script = load("pbt")
    flags = ["--members", "8", "--generations", "8", "--total-steps", "32768", "--seeds", "2"]
    found = script.main(cli.parse(script.Settings, [*flags, "--out", str(tmp_path / "run")]))
    assert (tmp_path / "run" / "population.png").exists()
    assert found.metrics["score"].shape == found.metrics["parents"].shape == (2, 8, 8)
    assert found.metrics["learning_rate"].shape == (2, 8, 8)
    best = found.summary["episode_return"]["mean"]
    assert best > 60
    slow_result(f"best members of two populations {best:.0f} after 32 768 steps")
