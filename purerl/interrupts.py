"""Asking a run to stop: Ctrl-C, or the signal by which schedulers preempt."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A context in which the first Ctrl-C or SIGTERM is taken for a wish, `asked`, and the second ends the process.

    Python hears of a signal only when the device gives the main thread back, which may take as long as a chunk; so a
    thread listens. Where signals cannot be heard (outside the main thread) nothing is changed.
    """

    def __enter__(self) -> Interrupt:
        self.asked = False
        self._former: dict[int, Any] = {}
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
        self.asked = True

    def _listen(self) -> None:
        heard = 0
        while number := self._ear.recv(1):
            heard += number[0] in _SIGNALS
            if not heard:
                continue
            if heard > 1:
                if sys.stdout.isatty():
                    print("\x1b[?25h", end="", flush=True)  # the cursor, which a progress line hides
                os._exit(128 + number[0])
            self.asked = True  # as the handler does, but at once
            print("\nstopping after this chunk; Ctrl-C again ends at once", file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if not self._former:
            return
        for number, former in self._former.items():
            signal.signal(number, former)
        signal.set_wakeup_fd(self._former_bell)
        self._bell.close()  # the thread reads the end
        self._thread.join()
        self._ear.close()
