"""Evaluate trained models, without training; see ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jestbench.launch.run_evaluate import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
