"""A tour with little work: `python -m tests.demo.tiny_tour WORK_DIR [SEEDS]`."""

from __future__ import annotations

import sys
from pathlib import Path

from datacomp_flyt.demo.experiment import Experiment
from datacomp_flyt.demo.tour import run_tour


def experiment(seed: int = 0) -> Experiment:
    """Return an experiment of 400 pairs and four batches for each training."""
    return Experiment(
        0.5, seed, pairs=400, samples_seen=512, reference_samples_seen=512, m_flyt_steps=3
    )


if __name__ == "__main__":
    seeds = range(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    run_tour(Path(sys.argv[1]), [experiment(seed) for seed in seeds])
