"""Checkpoints of any pytree of arrays, by orbax: written in the background, whole or not at all, and checked when read.

A folder holds one folder for each step that is kept, orbax's, and beside it `<step>.json` with the digest of each of
its files. The latter comes last: a step without it was never finished. What was damaged since is told, never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from purerl import distributed, results
from purerl.checks import is_count, make_folder, path_of, require_count

if TYPE_CHECKING:
    import orbax.checkpoint as orbax

FORMAT = 1  # of what is written here; another one is not read
_TALKATIVE = ("absl", "asyncio", "concurrent.futures")
_NOTHING = {"nothing": np.zeros(1)}  # instead of no arrays, which orbax refuses
REST = Ellipsis  # in the `like` of `restore`: whatever was saved there, as a flat dict of numpy arrays


class Unfit(ValueError):
    """A checkpoint is damaged, or of something else."""


class Checkpoints:
    """The checkpoints of one run, of which the last `keep` stay; a context manager, whose end waits for the last save.

    What a process that was killed left unfinished in the folder is removed. Raises ValueError for `keep` below two, as
    one must be whole while another is written, and OSError where the folder cannot be made.
    """

    def __init__(self, directory: Path, *, keep: int = 2):
        if not is_count(keep, least=2):
            raise ValueError(f"keep is {keep!r}; it takes the number of checkpoints that stay, from 2 on")
        self.directory, self.keep = path_of("directory", directory).absolute(), keep
        make_folder(self.directory, name="directory")
        self._manager: Any = None
        self._thread = ThreadPoolExecutor(1)
        self._unfinished: tuple[int, Future[None]] | None = None
        for name in _TALKATIVE:
            logging.getLogger(name).addFilter(self._is_news)

    def save(self, tree: PyTree, step: int, about: Mapping[str, Any] | None = None) -> None:
        """Save arrays, and of `about` what JSON takes. Returns when they may be changed or donated; writing goes on.

        Raises OSError if this one or the one before could not be written; later ones may be none the less. Raises
        TypeError for leaves that are no arrays, ValueError for a step that is not beyond the last one.
        """
        import orbax.checkpoint as orbax

        require_count("step", step, least=0)
        named = _named(tree)
        told = results.to_json(dict(about or {}), "about")
        header = {"format": FORMAT, "leaves": [_kind(*item) for item in named.items()], "about": told}
        # By number, as orbax has its own mind about names. Leaves without elements it refuses; their shapes say all.
        arrays = {str(place): leaf for place, leaf in enumerate(named.values()) if leaf.size} or _NOTHING
        arguments = orbax.args.Composite(tree=orbax.args.StandardSave(arrays), header=orbax.args.JsonSave(header))
        self.wait()
        last = distributed.from_first(lambda: max(steps(self.directory), default=-1))
        if step <= last:
            raise ValueError(f"step is {step}; {self.directory} holds step {last}: it takes a later one")
        with self._telling(step):
            self._manager = self._manager or self._opened()
            distributed.from_first(_begun(self.directory, step).touch)
            self._manager.save(step, args=arguments, force=True)
        self._unfinished = step, self._thread.submit(self._finish, step)

    def wait(self) -> None:
        """Wait until what was saved last is on disk. Raises OSError, naming the step, if it could not be written."""
        if self._unfinished:
            (step, written), self._unfinished = self._unfinished, None
            with self._telling(step):
                written.result()

    def _finish(self, step: int) -> None:
        self._manager.wait_until_finished()
        if not distributed.is_first():
            return
        listed = json.dumps(_digests(self.directory / str(step)))
        results.replace_file(_list_of(self.directory, step), listed.encode())
        _begun(self.directory, step).unlink()
        for path in self.directory.glob("*.json"):  # of steps that are kept no more
            if path.stem.isdecimal() and not path.with_suffix("").exists():
                path.unlink()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            # What ended the context is what is told, not that a save before it failed, too.
            with contextlib.suppress(OSError) if kind else contextlib.nullcontext():
                self.wait()
        finally:
            self._close()
            self._thread.shutdown()
            for name in _TALKATIVE:
                logging.getLogger(name).removeFilter(self._is_news)

    @staticmethod
    def _is_news(record: logging.LogRecord) -> bool:
        """What fails is told by an exception, once; orbax logs it from each of its threads, with tracebacks."""
        message = str(record.msg)
        return record.name != "absl" and "never retrieved" not in message and "calling callback" not in message

    def _close(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def _opened(self) -> orbax.CheckpointManager:
        import orbax.checkpoint as orbax  # takes seconds, of those who save

        distributed.from_first(self._tidy)
        options = orbax.CheckpointManagerOptions(max_to_keep=self.keep, cleanup_tmp_directories=True)
        return orbax.CheckpointManager(self.directory, options=options)

    def _tidy(self) -> None:
        """Remove what was never finished. Raises FileExistsError for what nobody here has begun."""
        known = set(steps(self.directory))
        begun = {int(path.stem) for path in self.directory.glob("*.begun")} - known
        there = {int(path.name) for path in self.directory.iterdir() if path.name.isdecimal()}
        if others := sorted(there - known - begun):
            raise FileExistsError(f"it holds a folder {others[0]}, which is no checkpoint of purerl's")
        results.tidy(self.directory)
        for step in begun:
            shutil.rmtree(self.directory / str(step), ignore_errors=True)
            _begun(self.directory, step).unlink()

    @contextlib.contextmanager
    def _telling(self, step: int) -> Iterator[None]:
        failure: Exception | None = None
        try:
            yield
        except Exception as error:  # orbax's and tensorstore's own, of many kinds
            failure = error
        (failed,) = distributed.all_hear(lambda: failure is not None)()  # what one could not do none has done
        if failed:
            with contextlib.suppress(Exception):  # one that has failed once tells of it for ever
                self._close()
            why = _reason(failure) if failure else "another process could not"
            raise OSError(f"step {step} could not be saved in {self.directory}: {why}") from failure


def save(tree: PyTree, directory: Path, step: int, about: Mapping[str, Any] | None = None) -> None:
    """Save one checkpoint, and wait for it; see `Checkpoints.save`."""
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(tree, step, about)


def restore(directory: Path, like: PyTree, step: int | None = None) -> Any:
    """Return what was saved at `step`, the latest if not given, with the structure, shapes and dtypes of `like`.

    `like` holds arrays or `jax.ShapeDtypeStruct`s. Where it holds `REST`, what was saved there comes as a flat dict.
    Raises FileNotFoundError if nothing is there, ValueError for keys below `REST`, and Unfit, in a sentence, for what
    is damaged, of another format, or not like it: the first difference is named. Nothing is touched.
    """
    import orbax.checkpoint as orbax

    step, header = _header(directory, step)
    wanted = _named(like, rest=True)
    rests = [name for name, leaf in wanted.items() if leaf is REST]
    place = f"the checkpoint {Path(directory) / str(step)}"
    _require_like(header["leaves"], [_kind(*item) for item in wanted.items() if item[1] is not REST], rests, place)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes: dict[str, Any] = {}
    for name, shape, dtype in header["leaves"]:
        leaf = wanted.get(name, np.empty(0))
        if name not in wanted and dtype.startswith("key<"):
            raise ValueError(f"like has REST for {name}, which holds keys; it takes keys by name")
        if isinstance(leaf, np.ndarray):
            shapes[name] = np.empty(shape, dtype)
        else:
            shapes[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or device)
    numbered = {str(number): leaf for number, leaf in enumerate(shapes.values()) if leaf.size} or _NOTHING
    try:
        handler = orbax.CompositeCheckpointHandler(tree=orbax.StandardCheckpointHandler())
        with orbax.Checkpointer(handler) as reader:
            arguments = orbax.args.Composite(tree=orbax.args.StandardRestore(numbered))
            arrays = reader.restore(Path(directory).absolute() / str(step), args=arguments)["tree"]
    except Exception as error:  # orbax's and tensorstore's own, of many kinds
        raise Unfit(f"{place} cannot be read: {_reason(error)}") from error
    found = {
        name: arrays[str(number)] if leaf.size else _empty(leaf) for number, (name, leaf) in enumerate(shapes.items())
    }
    rest = {name: {key.removeprefix(f"{name}/"): found[key] for key in found if _below(key, [name])} for name in rests}
    return jax.tree.unflatten(
        jax.tree.structure(like, is_leaf=_is_rest),
        [rest[name] if leaf is REST else found[name] for name, leaf in wanted.items()],
    )


def about(directory: Path, step: int | None = None) -> dict[str, Any]:
    """Return what was told about the checkpoint of `step`, the latest if not given.

    Raises as `restore` does, but for damage of the arrays, which are not read.
    """
    return _header(directory, step, within="header")[1]["about"]


def steps(directory: Path) -> list[int]:
    """Return the steps of which there are whole checkpoints, in order; damage is not looked for."""
    folder = path_of("directory", directory)
    found = [int(path.stem) for path in folder.glob("*.json") if path.stem.isdecimal()]
    return sorted(step for step in found if (folder / str(step)).is_dir())


def _header(directory: Path, step: int | None, *, within: str = ".") -> tuple[int, dict[str, Any]]:
    """Return the step and the header of a checkpoint, once every byte below `within` is known to be as written."""
    known = steps(directory)
    if not known or step not in (None, *known):
        there = f"of steps {known}" if known else "of none"
        raise FileNotFoundError(f"{directory} holds no checkpoint{'' if step is None else f' of step {step}'}; {there}")
    step = known[-1] if step is None else step
    folder = Path(directory) / str(step)
    try:
        written = results.read_json(_list_of(directory, step))
    except ValueError as error:
        raise Unfit(str(error)) from None
    now = _digests(folder, within)
    written = {name: digest for name, digest in written.items() if Path(name).is_relative_to(within)}
    if changed := sorted(name for name in {*written, *now} if written.get(name) != now.get(name)):
        which = "is missing" if changed[0] not in now else "is not what was written"
        earlier = f"; to go on from step {known[-2]}, remove {step}.json" if step == known[-1] and known[1:] else ""
        raise Unfit(f"the checkpoint {folder} is damaged: {changed[0]} {which}{earlier}")
    header = json.loads((folder / "header" / "metadata").read_bytes())
    if header.get("format") != FORMAT:
        raise Unfit(f"the checkpoint {folder} has format {header.get('format')}; this purerl reads {FORMAT}")
    return step, header


def _list_of(directory: Path, step: int) -> Path:
    return Path(directory) / f"{step}.json"


def _begun(directory: Path, step: int) -> Path:
    """Return the mark of a step that is being written: what has it and no list of files may be removed."""
    return directory / f"{step}.begun"


def _digests(folder: Path, within: str = ".") -> dict[str, str]:
    """Return the SHA-256 of each file of a folder, or of what of it is below `within`."""
    found = {}
    for path in sorted(path for path in (folder / within).rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _named(tree: PyTree, *, rest: bool = False) -> dict[str, Any]:
    """Return the leaves by their paths. Raises TypeError for one that is no array, ValueError for two of one path."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=_is_rest):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not (hasattr(leaf, "dtype") and hasattr(leaf, "shape")) and not (rest and leaf is REST):
            raise TypeError(f"{name} is of type {type(leaf).__name__}; a checkpoint takes arrays")
        if name in named:
            raise ValueError(f"{name} is the path of two leaves; a checkpoint takes one for each path")
        named[name] = leaf
    return named


def _empty(leaf: Any) -> Any:
    return leaf if isinstance(leaf, np.ndarray) else jnp.empty(leaf.shape, leaf.dtype)


def _is_rest(leaf: Any) -> bool:
    return leaf is REST


def _below(name: str, rests: list[str]) -> bool:
    return any(name.startswith(f"{rest}/") for rest in rests)


def _kind(name: str, leaf: Any) -> list[Any]:
    return [name, list(leaf.shape), str(leaf.dtype)]


def _require_like(saved: list[Any], wanted: list[Any], rests: list[str], place: str) -> None:
    """Raise a ValueError that names the first leaf that is not as wanted; those below `rests` may be anything."""

    def told(kind: list[Any]) -> str:
        return f"{kind[0]} of {kind[2]} {kind[1]}"

    held = {kind[0]: kind for kind in saved if not _below(kind[0], rests)}
    for kind in wanted:
        if kind[0] not in held:
            raise Unfit(f"{place} lacks {told(kind)}, which this run has: it is of another one")
        if held[kind[0]] != kind:
            raise Unfit(f"{place} holds {told(held[kind[0]])}, and this run has {told(kind)}")
    if more := [kind for name, kind in held.items() if name not in {kind[0] for kind in wanted}]:
        raise Unfit(f"{place} holds {told(more[0])}, which this run has not: it is of another one")


def _reason(error: BaseException) -> str:
    """Return why, in one line: the innermost cause's first one."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
