"""Signals that ask the process to end, noted until a step is complete."""

import os
import signal
import threading
from types import FrameType

from resnet_ft import processes

_TO_END = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """Notes Ctrl-C and SIGTERM from `watch` until `forget`; a second Ctrl-C interrupts at once.

    What the process ignores, as one in the background does with Ctrl-C, it goes on to ignore. Only
    in the main thread signals can be handled; elsewhere they do what they always do.
    """

    def __init__(self):
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def watch(self) -> None:
        """Take the place of what handled these signals before."""
        self.received, self._process = None, os.getpid()
        if threading.current_thread() is threading.main_thread():
            heeded = [one for one in _TO_END if signal.getsignal(one) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._note) for number in heeded}

    def forget(self) -> None:
        """Let what handled the signals before handle them again, also the SIGTERM that came."""
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}
        if self.received == signal.SIGTERM:
            os.kill(os.getpid(), signal.SIGTERM)

    def raise_received(self) -> None:
        """Raise what ends the process, if a signal has come to any of all processes."""
        terminated, interrupted = processes.total(*(self.received == one for one in _TO_END))
        if terminated:
            raise SystemExit(128 + signal.SIGTERM)
        if interrupted:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that reads images, made while we watch
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
