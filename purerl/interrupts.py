"""Asking a run to stop: Ctrl-C, or the signal by which schedulers preempt."""

from __future__ import annotations

import builtins
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

SECONDS_APART = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """Work was asked to stop, and what is done is kept in `directory`; the message says how far it is."""

    def __init__(self, message: str, directory: Path):
        super().__init__(message)
        self.directory = directory


class Interrupt:
    """A context in which the first Ctrl-C or SIGTERM is taken for a wish, `asked`, and the second ends the process.

    The wish is for an end `after` something, which is told. One context within another hears of it in its place, and
    leaves it to the outer one.

    Within a second of the first a second one is the same one: schedulers send it to a process and to its group. In a
    notebook, whose kernel is to live, it is a KeyboardInterrupt, once the device gives back the main thread. Python
    hears of a signal only then, which may take as long as a chunk; so a thread listens. Where signals cannot be heard
    (outside the main thread) nothing is changed.
    """

    def __init__(self, after: str = "this chunk"):
        self.after = after

    def __enter__(self) -> Interrupt:
        self.asked, self._first = False, 0.0
        self._former: dict[int, Any] = {}
        outer = getattr(signal.getsignal(signal.SIGINT), "__self__", None)
        self._outer = outer if isinstance(outer, Interrupt) else None
        if self._outer:
            self.asked, self._first = self._outer.asked, self._outer._first
        if threading.current_thread() is not threading.main_thread():
            return self
        self._ear, self._bell = socket.socketpair()
        self._bell.setblocking(False)
        self._former_bell = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        self._former = {number: signal.signal(number, self._ask) for number in _SIGNALS}
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()
        return self

    def _ask(self, *_: Any) -> None:
        if self.asked and hasattr(builtins, "__IPYTHON__") and time.monotonic() - self._first > SECONDS_APART:
            raise KeyboardInterrupt
        self.asked = True

    def _listen(self) -> None:
        while number := self._ear.recv(1):
            if number[0] not in _SIGNALS:
                continue
            if self._first:
                if time.monotonic() - self._first < SECONDS_APART or hasattr(builtins, "__IPYTHON__"):
                    continue
                if sys.stdout.isatty():
                    print("\x1b[?25h", end="", flush=True)  # the cursor, which a progress line hides
                os._exit(128 + number[0])
            self._first = time.monotonic()
            self.asked = True  # as the handler does, but at once
            print(f"\nstopping after {self.after}; Ctrl-C again ends at once", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if not self._former:
            return
        for number, former in self._former.items():
            signal.signal(number, former)
        signal.set_wakeup_fd(self._former_bell)
        self._bell.close()  # the thread reads the end
        self._thread.join()
        self._ear.close()
        if self._outer:
            self._outer.asked, self._outer._first = self.asked, self._first
