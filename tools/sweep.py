"""Run a W&B sweep file without a server; see ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jestbench.launch.command import importing

with importing():
    from jestbench.sweep.run_sweep import main

if __name__ == "__main__":
    sys.exit(main())
