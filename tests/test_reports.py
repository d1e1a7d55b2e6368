"""What is printed of a run."""

from pathlib import Path

from purerl import reports, scores


def shown(capsys, *, training, evaluation, diverged=(), unfinished=()):
    reports.show(
        {
            "seeds": len(training),
            "episode_return": scores.summary(training),
            "evaluation": scores.summary(evaluation) | {"episodes": 10, "unfinished": list(unfinished)},
            "diverged": list(diverged),
            "seconds": {"compile": 1.5, "run": 2.5},
            "steps_per_second": 12_345.6,
        },
        Path("there"),
    )
    return capsys.readouterr().out.splitlines()


def test_returns_speed_and_place_are_shown(capsys):
    lines = shown(capsys, training=[1.0, 3.0], evaluation=[2.0, 2.0])
    assert lines == [
        "training return, last tenth: mean 2.0, interquartile mean 2.0, 95 % interval 1.0 to 3.0",
        "greedy return, 10 episodes a seed: mean 2.0, interquartile mean 2.0, 95 % interval 2.0 to 2.0",
        "12,346 steps/s (1.5 s to compile, 2.5 s to run)",
        "results in there: summary.json, metrics.npz, settings.json, learning_curve.png",
    ]


def test_what_diverged_and_what_was_not_finished_is_said(capsys):
    nan = float("nan")
    lines = shown(capsys, training=[1.0, nan, nan], evaluation=[2.0, nan, nan], diverged=[1, 2], unfinished=[0, 4, 3])
    assert lines[0] == "DIVERGED, and left out below: 2 of 3 seeds, [1, 2]"
    assert lines[1] == "training return, last tenth: mean 1.0, interquartile mean 1.0"
    assert lines[3] == "of these 7 were not finished, and count with what they had"


def test_without_any_score_it_says_none(capsys):
    nan = float("nan")
    lines = shown(capsys, training=[nan], evaluation=[nan], diverged=[0])
    assert lines[1:3] == ["training return, last tenth: none", "greedy return, 10 episodes a seed: none"]
