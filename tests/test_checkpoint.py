"""Checkpoints: every bit of any pytree comes back, and what does not fit or is damaged is told in a sentence."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import textwrap

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from purerl import checkpoint
from purerl.base import pytree_dataclass
from purerl.checkpoint import Checkpoints


@pytree_dataclass
class State:
    """Something of every kind."""

    weights: object
    counts: object
    keys: object


def tree():
    weights = {"dense": jnp.linspace(0.0, 1.0, 7), "half": jnp.arange(5, dtype=jnp.bfloat16) / 3}
    state = State(weights=weights, counts=jnp.arange(3), keys=jax.random.split(jax.random.key(0), (2, 2)))
    return {
        "state": state,
        "optimizer": optax.adam(0.1).init(weights),
        "nothing": (),
        "no elements": jnp.zeros((4, 0)),
        "other keys": jax.random.key(3, impl="rbg"),
        "bits": jnp.array([True, False]),
        "scalar": jnp.float32(jnp.nan),
        "host": np.array([2**40, -1]),
        "seconds": np.array([[0.1, 0.2]]),
    }


def shapes(of):
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, np.ndarray) else jax.eval_shape(lambda: leaf), of)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder with two checkpoints; not to be changed."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step in (1, 20, 300):
            checkpoints.save(tree(), step, {"told": step})
    return directory


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def test_every_bit_and_every_type_comes_back(saved):
    found = checkpoint.restore(saved, shapes(tree()))
    assert jax.tree.structure(found) == jax.tree.structure(tree())
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(tree()), strict=True):
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
        assert isinstance(new, np.ndarray) == isinstance(old, np.ndarray)
        keys = jnp.issubdtype(old.dtype, jax.dtypes.prng_key)
        assert np.asarray(jax.random.key_data(new) if keys else new).tobytes() == (
            np.asarray(jax.random.key_data(old) if keys else old).tobytes()
        )
    assert checkpoint.about(saved) == {"told": 300}


def test_the_last_two_are_kept_and_each_can_be_had(saved):
    assert checkpoint.steps(saved) == [20, 300]
    assert {path.name for path in saved.iterdir()} == {"20", "20.json", "300", "300.json"}
    assert checkpoint.about(saved, 20) == {"told": 20}


def test_what_may_have_any_shape_comes_as_a_flat_dict(tmp_path):
    history = {"rows": {"loss": np.float64([1, 2, 3])}, "flat/name": np.int64([5])}
    checkpoint.save({"history": history, "rest": jnp.ones(2)}, tmp_path, 1)
    found = checkpoint.restore(tmp_path, {"history": checkpoint.REST, "rest": jnp.zeros(2)})
    chex.assert_trees_all_equal(found["history"], {"rows/loss": history["rows"]["loss"], "flat/name": np.int64([5])})
    assert found["history"]["flat/name"].dtype == np.int64


def test_what_is_donated_after_a_save_was_saved_as_it_was(tmp_path):
    add = jax.jit(lambda leaf: leaf + 1, donate_argnums=0)
    leaf = jnp.zeros(1_000_000)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save({"leaf": leaf}, 1)
        for _ in range(20):
            leaf = add(leaf)
    assert not np.asarray(checkpoint.restore(tmp_path, {"leaf": leaf})["leaf"]).any()


def changed(**leaves):
    return {**tree(), **leaves}


UNFIT = {
    "another shape": (changed(bits=jnp.ones(3, bool)), "holds bits of bool [2], and this run has bits of bool [3]"),
    "another dtype": (changed(bits=jnp.ones(2)), "holds bits of bool [2], and this run has bits of float32 [2]"),
    "a leaf more": (changed(more=jnp.ones(2)), "lacks more of float32 [2], which this run has"),
    "a leaf less": (
        {name: leaf for name, leaf in tree().items() if name != "scalar"},
        "holds scalar of float32 [], which this run has not",
    ),
    "another network": (
        changed(state=dataclasses.replace(tree()["state"], weights={"dense": jnp.ones(7), "half": jnp.ones((5, 2))})),
        "holds state/weights/half of bfloat16 [5], and this run has state/weights/half of float32 [5, 2]",
    ),
    "another generator": (changed(**{"other keys": jax.random.key(0)}), "holds other keys of key<rbg> []"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_does_not_fit_is_told_and_nothing_is_touched(name, saved):
    like, words = UNFIT[name]
    before = contents(saved)
    with pytest.raises(checkpoint.Unfit) as told:
        checkpoint.restore(saved, shapes(like))
    assert words in str(told.value)
    assert contents(saved) == before


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("tree", [{}, {"a": np.zeros((0, 3), np.float32)}], ids=["no leaves", "no elements"])
def test_nothing_at_all_comes_back_as_it_was(tree, tmp_path):
    checkpoint.save(tree, tmp_path, 1)
    chex.assert_trees_all_equal(checkpoint.restore(tmp_path, tree), tree)


def test_keys_are_not_among_the_rest(tmp_path):
    checkpoint.save({"a": {"key": jax.random.key(0)}}, tmp_path, 1)
    with pytest.raises(ValueError, match="like has REST for a/key, which holds keys; it takes keys by name"):
        checkpoint.restore(tmp_path, {"a": checkpoint.REST})


def test_what_is_told_of_a_checkpoint_is_read_without_its_arrays(tmp_path):
    checkpoint.save({"a": np.arange(3)}, tmp_path, 1, {"name": "x"})
    for path in (tmp_path / "1" / "tree").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert checkpoint.about(tmp_path) == {"name": "x"}
    with pytest.raises(checkpoint.Unfit, match="is damaged"):
        checkpoint.restore(tmp_path, {"a": np.arange(3)})
    header = tmp_path / "1" / "header" / "metadata"
    header.write_bytes(header.read_bytes().replace(b"x", b"y"))
    with pytest.raises(checkpoint.Unfit, match="header/metadata is not what was written"):
        checkpoint.about(tmp_path)


def test_other_bad_input(saved, tmp_path, monkeypatch):
    with pytest.raises(TypeError, match="name is of type str; a checkpoint takes arrays"):
        checkpoint.save({"name": "text"}, tmp_path / "a", 1)
    with pytest.raises(ValueError, match="a/b is the path of two leaves"):
        checkpoint.save({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}}, tmp_path / "a", 1)
    with pytest.raises(ValueError, match="keep is 1; it takes"):
        Checkpoints(tmp_path / "a", keep=1)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint; of none"):
        checkpoint.restore(tmp_path / "none", {})
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint of step 7; of steps \[20, 300\]"):
        checkpoint.restore(saved, {}, 7)
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    with pytest.raises(checkpoint.Unfit, match="has format 1; this purerl reads 2"):
        checkpoint.restore(saved, shapes(tree()))


def test_a_hundred_damages_are_told_and_none_is_read(copy, capfd):
    """Flipped bits, files cut short, removed or added: each in a sentence that names the file."""
    like, rng = shapes(tree()), random.Random(0)
    files = sorted(
        path for path in copy.rglob("*") if path.is_file() and ("300/" in str(path) or path.name == "300.json")
    )
    kinds = ("flip", "cut", "remove", "add", "swap")
    for number in range(100):
        path = files[number % len(files)]
        content, kind = path.read_bytes(), kinds[rng.randrange(5)] if number % 2 else "flip"
        if kind == "flip":
            place = rng.randrange(len(content))
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        elif kind == "cut":
            path.write_bytes(content[: rng.randrange(len(content))])
        elif kind == "remove":
            path.unlink()
        elif kind == "add":
            path.with_name("added").write_bytes(b"0")
        else:
            path.write_bytes(content[::-1])
        if path.name != "300.json" or kind not in ("add", "remove"):  # without its list a step was never finished
            with pytest.raises(checkpoint.Unfit) as told:
                checkpoint.restore(copy, like)
            assert len(str(told.value).splitlines()) == 1
            assert "300" in str(told.value)
        path.write_bytes(content)
        path.with_name("added").unlink(missing_ok=True)
    checkpoint.restore(copy, like)
    assert capfd.readouterr().err == ""


def test_the_sentence_of_a_damaged_one_says_how_to_go_on_from_the_one_before(copy):
    (copy / "300" / "header" / "metadata").unlink()
    with pytest.raises(checkpoint.Unfit, match=r"header/metadata is missing; to go on from step 20, remove .*300.json"):
        checkpoint.restore(copy, shapes(tree()))
    (copy / "300.json").unlink()
    assert checkpoint.about(copy) == {"told": 20}


def test_what_a_killed_process_left_is_passed_over_and_then_removed(copy):
    (copy / "300.json").unlink()  # killed before it was whole
    (copy / "300.begun").touch()
    (copy / "400.orbax-checkpoint-tmp").mkdir()
    assert checkpoint.steps(copy) == [20]
    with Checkpoints(copy) as checkpoints:
        checkpoints.save(tree(), 300, {"told": "again"})
    assert {path.name for path in copy.iterdir()} == {"20", "20.json", "300", "300.json"}
    assert checkpoint.about(copy) == {"told": "again"}


def test_what_is_not_a_checkpoint_of_its_own_is_left_alone(tmp_path):
    for name in ("settings.json", "package.json", "notes.begun.txt"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "folder").mkdir()
    for step in (1, 2, 3):
        checkpoint.save({"leaf": jnp.ones(1)}, tmp_path, step)
    left = {"settings.json", "package.json", "notes.begun.txt", "folder", "2", "2.json", "3", "3.json"}
    assert {path.name for path in tmp_path.iterdir()} == left
    with pytest.raises(ValueError, match=r"step is 3; .* holds step 3: it takes a later one"):
        checkpoint.save({"leaf": jnp.ones(1)}, tmp_path, 3)
    (tmp_path / "7").mkdir()
    with pytest.raises(OSError, match="it holds a folder 7, which is no checkpoint of purerl's"):
        checkpoint.save({"leaf": jnp.ones(1)}, tmp_path, 9)
    assert (tmp_path / "7").exists()


def test_loggers_are_left_as_they_were(tmp_path):
    before = {name: list(logging.getLogger(name).filters) for name in ("absl", "asyncio", "concurrent.futures")}
    checkpoint.save({"leaf": jnp.ones(1)}, tmp_path, 1)
    assert before == {name: list(logging.getLogger(name).filters) for name in before}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of three megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root alone")
    yield place
    subprocess.run(["umount", place], check=True)


def save_whole(checkpoints, leaf, step):
    checkpoints.save({"leaf": leaf}, step)
    checkpoints.wait()


def test_a_full_disk_is_told_and_the_earlier_checkpoint_is_whole_and_later_ones_are_saved(small_disk):
    leaf = jax.random.normal(jax.random.key(0), (100_000,))
    filler = small_disk / "filler"
    with Checkpoints(small_disk / "checkpoints") as checkpoints:
        save_whole(checkpoints, leaf, 1)
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(os.urandom(4096))
        for step in (2, 3):
            with pytest.raises(OSError, match=f"step {step} could not be saved in .*: .*No space left on device"):
                save_whole(checkpoints, leaf + 1, step)
            assert checkpoint.steps(checkpoints.directory) == [1]
            chex.assert_trees_all_equal(checkpoint.restore(checkpoints.directory, {"leaf": leaf})["leaf"], leaf)
        filler.unlink()
        checkpoints.save({"leaf": leaf + 2}, 4)
    found = checkpoint.restore(small_disk / "checkpoints", {"leaf": leaf})["leaf"]
    chex.assert_trees_all_equal(found, leaf + 2)


def test_a_folder_that_may_not_be_written_to_is_told(tmp_path):
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("root alone can give up being root, with setpriv")
    folder = tmp_path / "of another"
    folder.mkdir(mode=0o755)
    os.chown(folder, 65534, 65534)
    code = """
        import sys
        from pathlib import Path
        from purerl.checkpoint import Checkpoints
        try:
            Checkpoints(Path(sys.argv[1]) / "checkpoints")
        except OSError as error:
            print(type(error).__name__, error)
    """
    # Without its capabilities root is a user like others.
    powerless = ["setpriv", "--inh-caps=-all", "--bounding-set=-all", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run([*powerless, folder], capture_output=True, text=True)
    assert done.stdout.startswith("PermissionError"), done.stderr
    assert str(folder) in done.stdout


def test_a_list_of_files_holds_a_digest_of_each(saved):
    listed = json.loads((saved / "300.json").read_text())
    assert set(listed) == {name.removeprefix("300/") for name in contents(saved) if name.startswith("300/")}
