"""Records the defaults that ``identity.VERSION`` stands for: ``python tests/make_defaults.py``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "tests" / "golden" / "defaults.json"
LONGEST = 200


def current() -> dict[str, Any]:
    """The version, and the defaults; of a long one (an icon recipe) its digest."""
    from jestbench.config import identity
    from jestbench.disk import digest

    def short(value: Any) -> Any:
        return digest(value, 8) if isinstance(value, str) and len(value) > LONGEST else value

    return {"version": identity.VERSION, "defaults": {key: short(value) for key, value in identity.defaults().items()}}


def fault(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What is wrong with the stored table; ``None`` where it holds the defaults of this version."""
    before, after = stored["defaults"], now["defaults"]
    changed = [key for key in before if key not in after or after[key] != before[key]]
    if changed and now["version"] <= stored["version"]:
        return (
            f"the defaults of {', '.join(changed)} changed: raise identity.VERSION and regenerate "
            "(python tests/make_defaults.py)"
        )
    return None if stored == now else "regenerate tests/golden/defaults.json: python tests/make_defaults.py"


def main() -> None:
    """Write the table, unless a default changed and the version is the old one."""
    sys.path.insert(0, str(ROOT))
    now = current()
    said = fault(json.loads(FILE.read_text(encoding="utf-8")), now) if FILE.exists() else None
    if said is not None and "raise" in said:
        sys.exit(said)
    FILE.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
