#!/usr/bin/env bash
# The whole test command: lint, format, types, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy
pytest -n 2 -m "not slow and not network" "$@"
