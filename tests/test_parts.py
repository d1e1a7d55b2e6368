"""Scripts of several parts: what is kept of each, and that a process that ends costs the part under way alone."""

from __future__ import annotations

import dataclasses
import signal

import numpy as np
import pytest
from scripts import load

from purerl import cli, parts, results
from purerl.checkpoint import Checkpoints
from purerl.interrupts import Stopped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(cli.Place):
    size: int = 3


def opened(out, size=3, resume=None):
    return parts.opened(Settings(out=out, size=size, resume=resume), "script", "env")


def numbers(ask=False):
    if ask:
        signal.raise_signal(signal.SIGINT)
    return {"x": np.arange(3), "name": np.array(["a", "b"])}


def test_a_part_is_made_once_and_results_replace_it(tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(Stopped, match=r"^stopped after first$") as stop, opened(out) as folder:
        folder.part("first", lambda: numbers(ask=True))
    assert stop.value.directory == out
    capsys.readouterr()
    with opened(out, resume="auto") as folder:
        assert not folder.finished
        found = folder.part("first", lambda: pytest.fail("made again"))
        np.testing.assert_array_equal(found["x"], np.arange(3))
        assert found["name"].tolist() == ["a", "b"]
        folder.part("second", numbers)
        folder.finish({"x": found["x"]}, {"agent": "none"}, ["a.png"])
    assert capsys.readouterr().out == f"results in {out}: a.png, summary.json, metrics.npz, settings.json\n"
    assert {path.name for path in out.iterdir()} == {"settings.json", "metrics.npz", "summary.json"}
    left = results.load(out)
    assert (left.settings["size"], left.settings["script"], left.summary["agent"]) == (3, "script", "none")
    assert opened(out, resume=str(out)).finished
    assert capsys.readouterr().out == f"{out} holds this run, and it is finished\n"


def test_what_does_not_fit_is_told_and_nothing_is_touched(tmp_path):
    out = tmp_path / "run"
    with opened(out) as folder:
        folder.part("first", numbers)
        with pytest.raises(cli.BadInput, match="in which another process is at work"):
            opened(out, resume="auto")
    (out / ".old.json.7.tmp").write_text("half")
    (out / ".notes.tmp").write_text("a user's")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(cli.BadInput, match=f"holds a run to go on with: --resume {out}"):
        opened(out)
    with pytest.raises(cli.BadInput, match="holds a run with size 3, and this one has 4"):
        opened(out, size=4, resume="auto")
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    file = out / "parts" / "first.npz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(cli.BadInput, match=r"first.npz is not a valid npz file"), opened(out, resume="auto") as folder:
        folder.part("first", numbers)
    assert (out / ".notes.tmp").exists()
    assert not (out / ".old.json.7.tmp").exists()  # what a process that was killed left half-written


def test_a_disk_that_is_full_is_a_sentence(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError("No space left on device")

    with opened(tmp_path) as folder:
        monkeypatch.setattr(results, "replace_file", full)
        with pytest.raises(cli.Failed, match=r"^first: No space left on device$"):
            folder.part("first", numbers)


def stops_after_the_first_part(script, flags, monkeypatch):
    """Run a script that is asked to end during its first part, and then to its end; return what it left."""
    kept = parts.Parts.part

    def asked(self, name, make):
        def made():
            left = make()
            signal.raise_signal(signal.SIGTERM)
            return left

        return kept(self, name, made)

    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, "part", asked)
        with pytest.raises(Stopped) as stop:
            script.main(cli.parse(script.Settings, flags))
    (first,) = (stop.value.directory / "parts").glob("*.npz")
    written = first.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(parts.folders.Folder, "finish", lambda self: None)
        script.main(cli.parse(script.Settings, [*flags, "--resume", "auto"]))
    assert first.stat().st_mtime_ns == written
    return results.load(stop.value.directory)


POPULATIONS = "--members 4 --generations 2 --total-steps 512 --length 16 --hidden 8 --seeds 2 --eval-episodes 2"


@pytest.mark.thorough
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "flags"),
    [("cliff_walking", "--seeds 3 --episodes 20"), ("pbt", POPULATIONS)],
    ids=["cliff", "populations"],
)
def test_a_script_that_is_asked_to_end_after_a_part_leaves_what_it_would_have_left(name, flags, tmp_path, monkeypatch):
    script = load(name)
    script.main(cli.parse(script.Settings, [*flags.split(), "--out", str(tmp_path / "whole")]))
    whole = results.load(tmp_path / "whole")
    found = stops_after_the_first_part(script, [*flags.split(), "--out", str(tmp_path / "run")], monkeypatch)
    assert found.summary == whole.summary
    for metric, column in whole.metrics.items():
        np.testing.assert_array_equal(found.metrics[metric], column)


@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_critics_of_pendulums_are_gone_on_with_in_the_midst_of_their_training(tmp_path, monkeypatch):
    script = load("pendulum_truncation")
    flags = "--seeds 2 --total-steps 8000 --length 100 --hypers.discount 0.9 --checkpoint-every 800 --out"
    script.main(cli.parse(script.Settings, [*flags.split(), str(tmp_path / "whole")]))
    whole = results.load(tmp_path / "whole")
    out, kept = tmp_path / "run", Checkpoints.save

    def asked(self, tree, step, about=None):
        kept(self, tree, step, about)
        if step >= 4000:
            signal.raise_signal(signal.SIGTERM)

    settings = cli.parse(script.Settings, [*flags.split(), str(out), "--resume", "auto"])
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", asked)
        with pytest.raises(Stopped, match=r"clock ended: stopped after [4-7],.* of 8,000"):
            script.main(settings)
    assert (out / "checkpoints" / "0").is_dir()
    assert not (out / "parts").exists()
    with pytest.raises(cli.BadInput, match="holds a run to go on with"):
        script.main(dataclasses.replace(settings, resume=None, seed=1))
    script.main(settings)
    found = results.load(out)
    assert found.summary == whole.summary
    for name, column in whole.metrics.items():
        np.testing.assert_array_equal(found.metrics[name], column)
    assert not (out / "checkpoints").exists()
