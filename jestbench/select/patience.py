"""The limit on the time that a policy takes to choose."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from jestbench.select.contract import PolicyHang

GRACE_SECONDS = 10.0
"""How long a policy that was interrupted may take to return to Python before its process is ended."""
_LOOK_SECONDS = 1.0
_SIGNAL = signal.SIGVTALRM  # SIGALRM reminds of a stop that was asked for


@contextmanager
def patient(name: str, minutes: float | None) -> Iterator[None]:
    """Interrupt a policy that does not return in time; in the main thread, the only one that can be interrupted.

    Code that never returns to Python (a device that hangs) cannot be interrupted: the process then ends with status 2.

    Args:
        name: of the policy, for the message.
        minutes: until then; ``None`` for no limit.

    Raises:
        PolicyHang: the time is over.
    """
    if minutes is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    _WATCH.expect(60 * minutes, f"{name} did not return within run.patience = {minutes:g} minutes")
    try:
        yield
    finally:
        _WATCH.expect(math.inf, "")


class _Watch:
    """A thread that interrupts the main thread at a deadline, and ends the process after a grace; begun once."""

    def __init__(self) -> None:
        self._deadline, self._message, self._process = math.inf, "", 0

    def expect(self, seconds: float, message: str) -> None:
        """Set the deadline, or none (``inf``), and the message at its end."""
        self._deadline, self._message = time.monotonic() + seconds, message
        if signal.getsignal(_SIGNAL) != self._interrupt:  # it stays: a late signal must not end the process
            signal.signal(_SIGNAL, self._interrupt)
        if self._process != os.getpid():  # a forked process has no thread but its own
            self._process = os.getpid()
            threading.Thread(target=self._look, name="patience", daemon=True).start()

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if time.monotonic() >= self._deadline:
            raise PolicyHang(self._message)

    def _look(self) -> None:
        interrupted = math.inf  # the deadline at which the main thread was interrupted
        while (now := time.monotonic()) < self._deadline + GRACE_SECONDS:
            if now >= self._deadline != interrupted:
                interrupted = self._deadline
                signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            time.sleep(_LOOK_SECONDS)
        with suppress(OSError):
            os.write(2, f"error: {self._message}, and could not be interrupted\n".encode())
        os._exit(PolicyHang.exit_status)


_WATCH = _Watch()
