"""How a process ends: requests to stop (SIGTERM, SIGINT), kept in every phase of a command; and the parent's end.

Cheap to import, without torch: it is the first thing that a command does, and worker processes import it anew.

A request ends what can be begun again (imports, preparation, the start of a run) at once, and what cannot after it is
whole: a training step, a checkpoint, a summary. An evaluation ends where it is a few seconds after the request.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

Manner = Literal["at once", "soon", "after"]
"""When a request ends what is at work: now, ``SOON_SECONDS`` after the request, or only once it is done."""
SOON_SECONDS = 4.0
_SAME_SECONDS = 1.0  # Ctrl-C reaches a rank from the terminal and from torchrun: one request
_WATCH = 0.2  # seconds between two looks at whether the parent still lives
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """The request to stop of this process; handlers of signals are the process's, and so is this."""

    def __init__(self) -> None:
        self.manner: Manner = "at once"
        self.installed = False
        self._since: float | None = None

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop."""
        return self._since is not None

    def check(self) -> None:
        """Begin nothing new once a stop was asked for.

        Raises:
            KeyboardInterrupt: it was.
        """
        if self.asked:
            raise KeyboardInterrupt

    @contextmanager
    def ending(self, manner: Manner) -> Iterator[None]:
        """Inside this context a request ends what is at work in this manner."""
        before, self.manner = self.manner, manner
        try:
            yield
        finally:
            self.manner = before

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals inside this context, by a second one at the latest; outside of the main thread: not at all."""
        if self.installed:
            yield
            return
        try:
            before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        except ValueError:  # not in the main thread: signals stay with their owner
            yield
            return
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._remind)
        self.installed, self._since, self.manner = True, None, "at once"
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            for number, handler in before.items():
                signal.signal(number, handler)
            self.installed, self._since = False, None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is not None and now - self._since > _SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._since is None:
            self._since = now
            # Again after a while: an exception that is raised inside a destructor or a callback is lost.
            signal.setitimer(signal.ITIMER_REAL, SOON_SECONDS, 0.5)
            if self.manner == "at once":
                raise KeyboardInterrupt

    def _remind(self, number: int, frame: FrameType | None) -> None:
        if self.asked and self.manner != "after":
            raise KeyboardInterrupt


STOP = Stop()
"""The request to stop of this process."""


def end_with(parent: int, last: Callable[[], object] = lambda: None) -> None:
    """End this process once its parent has ended or was killed, rather than wait for work for ever.

    The processes that this one has started end too, where it leads a process group.

    Args:
        parent: process id of the parent, passed by the parent, as ``os.getppid`` changes once the parent is gone.
        last: called just before the end.
    """

    def watch() -> None:
        # Waiting for a pipe to close would not do: forked siblings hold copies of the parent's end.
        while os.getppid() == parent:
            time.sleep(_WATCH)
        last()
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
