"""Makes the patch of the stand-in from the patch of DataComp's baselines.py."""

import hashlib
from dataclasses import replace
from pathlib import Path

from datacomp_flyt.datacomp.checkout_patch import Patch

STAND_IN = Path(__file__).with_name("stand_in")

# text in the added lines -> the line of the stand-in after which they are added
ANCHORS = {
    "BASELINES.update(": 'BASELINES = {"no_filter", "clip_score"}',
    "add_arguments(": '    parser.add_argument("--num_workers", type=int, default=2)',
    "run_if_ours(": "    args = parser.parse_args()",
    "import ": "import pyarrow.parquet as pq",
}


def carry_over(real: Patch) -> Patch:
    """Return a patch of the stand-in's baselines.py that adds the same lines."""
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
