#!/usr/bin/env bash
# The whole test command: lint, format, types, layers, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
ruff check .
ruff format --check .
mypy
lint-imports --no-cache
pytest -n 2 -m "not slow and not network" "$@"
