"""Run the Python blocks of a page in one namespace, as a notebook does.

    python -m tests.docs.run_blocks FOLDER

FOLDER has the pipes `requests` and `answers`. For each number that is read from `requests`, the
block `NUMBER.py` is run, its output goes to `NUMBER.txt`, and its exit code to `answers`. An empty
request ends the program.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any


def run_block(path: Path, namespace: dict[str, Any]) -> int:
    """Run one block, and return 0, or 1 if it raised."""
    try:
        exec(compile(path.read_text(), str(path), "exec"), namespace)
    except BaseException:  # a block that exits must not end the page
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    folder = Path(sys.argv[1])
    namespace: dict[str, Any] = {"__name__": "__main__"}
    while index := (folder / "requests").read_text().strip():
        output = os.open(folder / f"{index}.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        code = run_block(folder / f"{index}.py", namespace)
        sys.stdout.flush()
        sys.stderr.flush()
        (folder / "answers").write_text(f"{code}\n")


if __name__ == "__main__":
    main()
