"""Compare finished runs at equal compute; see ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jestbench.compare.report import main

if __name__ == "__main__":
    sys.exit(main())
