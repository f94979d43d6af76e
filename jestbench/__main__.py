"""``python -m jestbench run|sweep|compare|prepare|bench …``."""

import sys

from jestbench.launch.console import main

if __name__ == "__main__":
    sys.exit(main())
