"""Who works on an Optuna study, and who is dead: signs of life in the study itself, whatever its storage."""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
import uuid
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

OWNER = "owner"  # the attribute of a trial that says which process runs it


class Taken(RuntimeError):
    """Another process works with this worker's number."""


class Owner(NamedTuple):
    """Which process runs a trial."""

    worker: int
    life: str  # of one process, however often its number is used


class SignsOfLife:
    """Tells the study every now and then that this worker lives, while it computes."""

    def __init__(self, study: optuna.Study, worker: int, patience: float):
        self.study, self.pause, self.beats = study, patience / 6, 0
        self.owner = Owner(worker, f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> SignsOfLife:
        self._tell()
        self.thread.start()
        return self

    def require_own(self) -> None:
        """Raise Taken if another process has taken this worker's number."""
        _, life = _signs(self.study).get(self.owner.worker, (0, None))
        if life != self.owner.life:
            raise Taken(f"another process works as worker {self.owner.worker}; each takes a number of its own")

    def _tell(self) -> None:
        self.beats += 1
        self.study.set_user_attr(f"worker {self.owner.worker}", [self.beats, self.owner.life])

    def _beat(self) -> None:
        while not self.ended.wait(self.pause):
            with contextlib.suppress(Exception):  # a storage that is away for a moment is no reason to stop
                self.require_own()
                self._tell()

    def __exit__(self, *_: Any) -> None:
        self.ended.set()
        self.thread.join()


def _signs(study: optuna.Study) -> dict[int, tuple[int, str]]:
    """Return the last sign of life of every worker: (its number, which process)."""
    signs = {name: sign for name, sign in study.user_attrs.items() if name.startswith("worker ")}
    return {int(name.split()[1]): tuple(sign) for name, sign in signs.items()}


class Watch:
    """Finds trials left running by the dead: by this process's clock alone, since clocks of machines differ."""

    def __init__(self, patience: float):
        self.patience = patience
        self.seen: dict[int, tuple[Any, float]] = {}  # of each running trial its owner's last sign, and since when

    def fail_the_dead(self, study: optuna.Study) -> None:
        """Fail what is running of workers that are silent for too long, or whose number another process has now."""
        # Trials first: of one that is claimed after the signs were read, the owner might seem to be another's heir.
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        signs, now = _signs(study), time.monotonic()
        for trial in running:
            owner = trial.user_attrs.get(OWNER)
            sign = None if owner is None else signs.get(owner[0])
            former, since = self.seen.get(trial.number, (None, now))
            self.seen[trial.number] = sign, since if sign == former and trial.number in self.seen else now
            succeeded = sign is not None and owner is not None and sign[1] != owner[1]
            if succeeded or now - self.seen[trial.number][1] > self.patience:
                with contextlib.suppress(UpdateFinishedTrialError):  # others have seen it, too
                    study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
