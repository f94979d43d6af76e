"""The command that fetches and prepares a data set: ``python tools/prepare.py DATASET [--out DIR]``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from jestbench.disk import command_name
from jestbench.launch.command import guarded
from jestbench.parallel.stop import STOP

DATASETS = ("icons", "iconify")


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare the data set and print what is in it, as JSON; exit status 0, 3 where it cannot be, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog=command_name("prepare"), description="Fetch and prepare a data set; what is there already is kept."
    )
    parser.add_argument("dataset", choices=DATASETS)
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="prepare here instead of in the cache folder; runs find it there with JESTBENCH_CACHE=DIR",
    )
    arguments = parser.parse_args(argv)
    with STOP.handled():
        return guarded(
            lambda: _prepare(arguments.dataset, arguments.out, parser.prog), "the same command goes on where it stopped"
        )


def _prepare(dataset: str, out: str | None, command: str) -> int:
    """Prepare a data set in a folder, or in the cache folder, and print what is in it, or why it cannot be prepared."""
    from jestbench.batch import DataError
    from jestbench.data.icons.iconify import Iconify
    from jestbench.data.icons.icons import Icons

    data = (Icons if dataset == "icons" else Iconify)(cache_dir=out)
    try:
        data.prepare(thorough=True)
        manifest = data.manifest()
    except DataError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 3
    keys = ("splits", "pool_captions_by_hands", "left_out", "near", "copies_left")
    print(json.dumps({"folder": str(data.folder)} | {key: manifest[key] for key in keys}, indent=2))
    return 0
