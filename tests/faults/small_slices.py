"""`python -m baselines_plugin` with slices of few rows, so that a small pool has several.

python -m tests.faults.small_slices --name scs ... --work_dir work
"""

from __future__ import annotations

import functools

from baselines_plugin.__main__ import build_parser
from baselines_plugin.run import run_if_ours
from datacomp_flyt.mixing import columns_in_files
from datacomp_flyt.pool.external_sort.sorted_files import sort_into_files

if __name__ == "__main__":
    small = functools.partial(sort_into_files, rows_at_once=20_000)
    columns_in_files.sort_into_files = small  # type: ignore[attr-defined]
    parser = build_parser()
    run_if_ours(parser.parse_args(), parser.prog)
