"""Selection, resharding and training on a pool that lacks a quarter of its images.

DATACOMP_DIR       a checkout of mlfoundations/datacomp at 4a8df19 (copied, never changed)
DATACOMP_PYTHON    a Python that runs its download_upstream.py, baselines.py, resharder.py and, with
                   open_clip 2.16.1, its trainer
DATACOMP_STUBS     optional folder with stub modules for what that Python lacks, e.g. gcld3
IMAGES_DIR         optional folder of pictures (default: the demo pool's 420)
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.host.contract import REPOSITORY, Outcome, count_draws, reshard, succeed
from tests.host.lossy_download import download, fate_of
from tests.host.real_datacomp import RealDataComp
from tests.open_clip_hook.running import datacomp_dir

DRAWS = 3_000
CLI = ("-m", "datacomp_flyt.cli")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]


@dataclass(frozen=True)
class Participant:
    """A DataComp checkout with the plugin, and a downloaded pool.

    Attributes:
        host: the checkout.
        folder: the folder of the pool.
        downloaded: the uids of the images that the server has.
    """

    host: RealDataComp
    folder: Path
    downloaded: set[str]

    def select(self, subset: Path, *flags: str | Path) -> Outcome:
        """Select with M-FLYT and Soft Cap Sampling from scores that 93% of the rows have."""
        words = ["--name", "m_flyt", "--scoring_model", "paper", "--allow_partial_scores"]
        words += ["--scores_dir", str(self.folder / "scores"), "--repetition_penalty", "0.15"]
        words += ["--num_samples", str(DRAWS), *map(str, flags)]
        return succeed(self.host.select(words, self.folder / "metadata", subset))

    def trained(self, subset: Path) -> tuple[str, Counter[str]]:
        """Train one epoch with batches of 1; return the log and how often each uid was seen."""
        counts, logs = self.folder / "counts.json", self.folder / "logs"
        shutil.rmtree(logs, ignore_errors=True)
        script = REPOSITORY / "tests" / "host" / "count_trained.py"
        command = [*CLI, "train_clip", "--subset", subset, "--", script]
        command += [self.folder / "captions.json", counts, "--model", "hook-tiny"]
        command += ["--train-data", f"{self.folder}/shards/{{00000000..00000003}}.tar"]
        command += ["--dataset-type", "webdataset", "--batch-size", "1", "--epochs", "1"]
        command += ["--workers", "1", "--precision", "fp32", "--warmup", "0", "--lr", "1e-4"]
        outcome = succeed(self.host.run(*command, "--logs", logs, "--name", "run"))
        return outcome.stdout + outcome.stderr, Counter(json.loads(counts.read_text()))


@pytest.fixture(scope="module")
def participant(tmp_path_factory: pytest.TempPathFactory) -> Participant:
    python = os.environ.get("DATACOMP_PYTHON")
    if not python:
        pytest.skip("DATACOMP_PYTHON does not name a Python that runs DataComp")
    checkout, folder = datacomp_dir(), tmp_path_factory.mktemp("participant")
    copy = folder / "datacomp"
    shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", "figs"))
    images = os.environ.get("IMAGES_DIR")
    downloaded = download(folder / "pool", copy, python, Path(images) if images else None)
    host = RealDataComp(copy, python, os.environ.get("DATACOMP_STUBS", ""))
    succeed(host.install())
    captions = json.loads((folder / "pool" / "captions.json").read_text())
    assert {uid for uid in captions if fate_of(uid) is None} == downloaded
    return Participant(host, folder / "pool", downloaded)


def hexes(draws: Mapping[tuple[int, int], int]) -> Counter[str]:
    return Counter({f"{high:016x}{low:016x}": times for (high, low), times in draws.items()})


def test_every_selected_draw_is_trained_on(participant: Participant, tmp_path: Path) -> None:
    shards, subset = participant.folder / "shards", tmp_path / "m_flyt.npy"
    output = participant.select(subset, "--shards_dir", shards).stdout
    print(output)
    draws = hexes(count_draws(np.load(subset)))
    assert draws.total() == DRAWS
    assert draws.keys() <= participant.downloaded
    assert f"{len(participant.downloaded):,}" in output

    # a saved list of the available images gives the same subset
    available = tmp_path / "available.npy"
    listing = succeed(participant.host.run(*CLI, "available", shards, "--save_path", available))
    print(listing.stdout)
    again = tmp_path / "again.npy"
    participant.select(again, "--available", available)
    assert again.read_bytes() == subset.read_bytes()

    metadata = participant.folder / "metadata"
    words = [subset, "--metadata_dir", metadata, "--shards_dir", shards]
    print(succeed(participant.host.run(*CLI, "check", *words)).stdout)

    assert hexes(reshard(participant.host, subset, tmp_path / "resharded", shards)[1]) == draws
    log, trained = participant.trained(subset)
    line = re.search(r"subset: .* draws .* have an image", log)
    assert line, log
    print(line[0])
    assert trained == draws


def test_draws_without_an_image_are_reported_and_left_out(
    participant: Participant, tmp_path: Path
) -> None:
    shards, subset = participant.folder / "shards", tmp_path / "whole.npy"
    participant.select(subset)
    draws = hexes(count_draws(np.load(subset)))
    kept = Counter({uid: times for uid, times in draws.items() if uid in participant.downloaded})
    assert 0 < kept.total() < draws.total()

    words = [subset, "--metadata_dir", participant.folder / "metadata", "--shards_dir", shards]
    output = succeed(participant.host.run(*CLI, "check", *words)).stdout
    print(output)
    assert f"{draws.total() - kept.total():,}" in output
    assert f"{len(draws) - len(kept):,}" in output
    log, trained = participant.trained(subset)
    assert f"{kept.total():,}" in log
    assert trained == kept
    assert hexes(reshard(participant.host, subset, tmp_path / "resharded", shards)[1]) == kept
