"""The contract against the stand-in host, for machines with no DataComp checkout.

The stand-in gets the very lines that the real patch adds, at the stand-in's own line numbers.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from datacomp_flyt.cli.install import Patch, check, install, load_patches, revert
from datacomp_flyt.errors import InputError

from .contract import REPOSITORY, Host, HostContract, Outcome

STAND_IN = Path(__file__).with_name("stand_in")

# what lines of the real patch say -> the line of the stand-in that they follow
ANCHORS = {
    "BASELINES.update(": 'BASELINES = {"no_filter", "clip_score"}',
    "add_arguments(": '    parser.add_argument("--num_workers", type=int, default=2)',
    "run_if_ours(": "    args = parser.parse_args()",
    "import ": "import pyarrow.parquet as pq",
}


def carry_over(real: Patch) -> Patch:
    """The patch of DataComp's baselines.py, for the stand-in's."""
    clean = (STAND_IN / real.file).read_text()
    source = clean.splitlines()
    insertions = []
    for insertion in real.insertions:
        text = "\n".join(insertion.lines)
        anchor = next(line for about, line in ANCHORS.items() if about in text)
        insertions.append(replace(insertion, after_line=source.index(anchor) + 1))
    patched = list(source)
    for insertion in sorted(insertions, key=lambda insertion: -insertion.after_line):
        patched[insertion.after_line : insertion.after_line] = insertion.lines
    return replace(
        real,
        sha256=hashlib.sha256(clean.encode()).hexdigest(),
        sha256_patched=hashlib.sha256(("\n".join(patched) + "\n").encode()).hexdigest(),
        insertions=tuple(insertions),
    )


class StandIn(Host):
    """Patched by the functions behind the command line, with a patch of its own."""

    def _call(self, function: Callable[[Path, Sequence[Patch]], object]) -> Outcome:
        patches = [carry_over(patch) for patch in load_patches(REPOSITORY / "patches")]
        try:
            answer = function(self.directory, patches)
        except InputError as error:
            return Outcome(2, "", str(error))
        return Outcome(1 if function is check and not answer else 0, "", "")

    def install(self) -> Outcome:
        return self._call(install)

    def check(self) -> Outcome:
        return self._call(check)

    def revert(self) -> Outcome:
        return self._call(revert)


class TestStandIn(HostContract):
    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        copy = tmp_path / "stand_in"
        shutil.copytree(STAND_IN, copy, ignore=shutil.ignore_patterns("__pycache__"))
        return StandIn(copy, sys.executable)
