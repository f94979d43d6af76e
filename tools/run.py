"""Train one arm; see ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jestbench.launch.command import run_command

if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
