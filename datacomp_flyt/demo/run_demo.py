"""Run the demo: the tour from a noisy pool to trained models, or only selections from emoji."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from datacomp_flyt.errors import InputError
from datacomp_flyt.files.locks import lock_outputs
from datacomp_flyt.installation import needs_extra, require_training


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo.

    Attributes:
        subsets: the selected subsets, sorted `u8,u8` `.npy` files.
        problems: faults of these subsets; none are expected.
        figures: the tour's results by pool, selection and figure: `pairs`, `spoiled` (the share of
            draws that are noise), `accuracy` and `retrieval` (0 to 1). Empty for `quick`.
        page: the tour's HTML page; None for `quick`.
    """

    subsets: Sequence[Path]
    problems: Sequence[str] = ()
    figures: Sequence[Mapping[str, Mapping[str, float]]] = field(default_factory=list)
    page: Path | None = None


def run_demo(
    work_dir: str | Path = "demo_output", *, seeds: int = 1, noise: float = 0.5, quick: bool = False
) -> DemoResult:
    """Run the demo, print its steps as commands, and print its results.

    Args:
        work_dir: a folder for all files; steps that are done there are not run again.
        seeds: the number of pools, each with models of its own.
        noise: the share of spoiled pairs, 0 to 0.8.
        quick: only select from the embedded pool of emoji, which takes seconds and no torch.

    Raises:
        InputError: an argument is out of range, `work_dir` cannot be written, a package is missing,
            or a step failed.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds} is none: give 1 or more")
    if not 0 <= noise <= 0.8:
        raise InputError(f"--noise {noise} leaves no good pairs: give 0 to 0.8")
    work_dir = Path(work_dir)
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=work_dir).close()
    except OSError as error:
        raise InputError(
            f"--work_dir {work_dir} cannot be written ({error.strerror}): choose another place"
        ) from None
    with lock_outputs(work_dir):
        return _quick_tour(work_dir) if quick else _tour(work_dir, seeds, noise)


def _quick_tour(work_dir: Path) -> DemoResult:
    from datacomp_flyt.demo.selection_tour import run_selection_tour

    subsets, problems = run_selection_tour(work_dir)
    return DemoResult(subsets, problems)


def _tour(work_dir: Path, seeds: int, noise: float) -> DemoResult:
    # first, since installing the extras below would not help an environment that is too old
    require_training("datacomp-flyt demo without --quick")
    with needs_extra("train,report"):
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
        import open_clip  # noqa: F401

        from datacomp_flyt.demo.experiment import Experiment
        from datacomp_flyt.demo.tour import page_of, run_tour, subsets_of
    experiments = [Experiment(noise, seed) for seed in range(seeds)]
    figures = run_tour(work_dir, experiments)
    subsets = [path for experiment in experiments for path in subsets_of(work_dir, experiment)]
    return DemoResult(subsets, figures=figures, page=page_of(work_dir, experiments[0]))
