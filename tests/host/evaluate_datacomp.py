"""Runs DataComp's unmodified evaluate.py on one local data set.

    python evaluate_datacomp.py CHECKOUT FOLDER --train_output_dir RUN

The program writes to FOLDER a task list with one task, the downstream pictures of the demo, and
links to the checkout.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from pathlib import Path

import open_clip

REPOSITORY = Path(__file__).resolve().parents[2]
PICTURES = REPOSITORY / "datacomp_flyt" / "demo" / "downstream"
TASKS = "cifar10:\n  name: the demo's pictures\n  size: 210\n"


def write_host(checkout: Path, folder: Path) -> None:
    """Link the files of evaluate.py into a folder with another task list."""
    for name in ("evaluate.py", "eval_utils", "scale_configs.py"):
        (folder / name).symlink_to(checkout / name)
    (folder / "tasklist.yml").write_text(TASKS)


def write_data(folder: Path) -> None:
    """Write the pictures in the layout of a data set of clip_benchmark."""
    test = folder / "wds_cifar10_test" / "test"
    test.mkdir(parents=True)
    tars = sorted(PICTURES.glob("*.tar"))
    for index, tar in enumerate(tars):
        shutil.copy(tar, test / f"{index}.tar")
    (test / "nshards.txt").write_text(str(len(tars)))
    for text in PICTURES.glob("*.txt"):
        shutil.copy(text, test.parent)


if __name__ == "__main__":
    checkout, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    folder.mkdir(parents=True)
    write_host(checkout, folder)
    write_data(folder / "data")
    open_clip.add_model_config(REPOSITORY / "tests" / "open_clip_hook" / "model_configs")
    script = os.path.join(folder, "evaluate.py")
    sys.path.insert(0, str(folder))
    sys.argv = [script, *sys.argv[3:], "--data_dir", str(folder / "data"), "--batch_size", "32"]
    runpy.run_path(script, run_name="__main__")
