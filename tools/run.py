"""Train one arm; see ``--help``."""

import os
import signal
import sys

if __name__ == "__main__":
    # Until the command takes the signals over, some milliseconds later, there is nothing to bring to an end.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(130))
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

    from jestbench.launch.command import main

    sys.exit(main())
