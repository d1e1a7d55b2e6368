"""Make every call of the tables as a user would, without the type checks of the tests: python -m bad_inputs.run FILE.

Writes what came of them as JSON: entry -> label -> nothing if nothing was raised, else the exception's classes, its
message, and the file that raised it. Entries after FILE are the only ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_inputs.rows import folder
from bad_inputs.tables import ROWS


def outcome(call: Callable[[], Any]) -> dict[str, Any] | None:
    """Return what a call raised."""
    began = time.perf_counter()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            call()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return {
            "classes": [kind.__name__ for kind in type(error).__mro__],
            "message": str(error),
            "file": last.filename,
            "line": last.lineno,
            "seconds": round(time.perf_counter() - began, 3),
        }
    return None


def main(file: str, *entries: str) -> None:
    found = {entry: {row.label: outcome(row.call) for row in ROWS[entry]} for entry in entries or ROWS}
    Path(file).write_text(json.dumps(found, indent=1))
    shutil.rmtree(folder(), ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
