"""A tour: a noisy pool, scores, M-FLYT, a subset, CLIP models trained on it, a report."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.installation import needs_extra, require_training


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "--work_dir",
        type=Path,
        default=Path("demo_output"),
        help="where its files go; what is there already is not done again (default: %(default)s)",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="pools, each with models of its own (default: 1)"
    )
    parser.add_argument(
        "--noise", type=float, default=0.5, help="share of spoiled pairs (default: %(default)s)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only select from the embedded pool of emoji: seconds, and no torch",
    )


def run(args: argparse.Namespace) -> int:
    if args.seeds < 1:
        raise InputError(f"--seeds {args.seeds} is none: give 1 or more")
    if not 0 <= args.noise <= 0.8:
        raise InputError(f"--noise {args.noise} leaves no good pairs: give 0 to 0.8")
    try:
        args.work_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.work_dir).close()
    except OSError as error:
        raise InputError(
            f"--work_dir {args.work_dir} cannot be written ({error.strerror}): choose another place"
        ) from None
    with lock_outputs(args.work_dir):
        return _show(args)


def _show(args: argparse.Namespace) -> int:
    if args.quick:
        from datacomp_flyt.demo import selection_tour  # builds the parser of all methods

        return selection_tour.run(args.work_dir)
    # first, since installing the extras below would not help an environment that is too old
    require_training("datacomp-flyt demo without --quick")
    with needs_extra("train,report"):
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import open_clip  # noqa: F401

        from datacomp_flyt.demo import tour
        from datacomp_flyt.demo.experiment import Experiment
    return tour.run(args.work_dir, [Experiment(args.noise, s) for s in range(args.seeds)])
