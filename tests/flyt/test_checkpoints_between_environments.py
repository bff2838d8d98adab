"""Checkpoints are read here if DataComp's torch and NumPy wrote them, and the reverse.

DATACOMP_PYTHON   a Python with torch 1.13, NumPy 1 and safetensors, such as DataComp's
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).parents[2]

WRITE = """
import argparse, pathlib, sys
import numpy as np, torch
folder = pathlib.Path(sys.argv[1])
net = torch.nn.Sequential(torch.nn.Linear(3, 2))
with torch.no_grad():
    net[0].weight.copy_(torch.arange(6.0).reshape(2, 3)), net[0].bias.fill_(0.5)
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
net(torch.ones(1, 3)).sum().backward()
optimizer.step()
with torch.no_grad():
    net[0].weight.copy_(torch.arange(6.0).reshape(2, 3)), net[0].bias.fill_(0.5)
optimizer.param_groups[0]["lr"] = np.float64(1e-3)
state = {"module." + name: value for name, value in net.state_dict().items()}
content = {"epoch": 1, "name": "run", "state_dict": state, "optimizer": optimizer.state_dict(),
           "args": argparse.Namespace(logs=folder, seed=np.int64(3), betas=np.ones(2)),
           "rng": [torch.get_rng_state(), np.random.get_state()]}
for protocol in (2, 4):
    for zipped in (True, False):
        torch.save(content, folder / f"{protocol}{zipped}.pt", pickle_protocol=protocol,
                   _use_new_zipfile_serialization=zipped)
half = {name: value.bfloat16() for name, value in state.items()}
torch.save({"state_dict": half}, folder / "half.pt")
"""

READ = """
import pathlib, sys
from datacomp_flyt.files.checkpoint_file import read_checkpoint
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.pt")):
    found = read_checkpoint(path, str(path)).tensors
    print(path.name, sorted(found), found["0.weight"].ravel().tolist(), found["0.bias"].tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("other_role", ["writes", "reads"])
def test_checkpoints_go_from_one_environment_to_the_other(tmp_path: Path, other_role: str) -> None:
    other = os.environ.get("DATACOMP_PYTHON")
    if not other:
        pytest.skip("DATACOMP_PYTHON does not name a Python")
    writer, reader = (other, sys.executable) if other_role == "writes" else (sys.executable, other)
    for python, code in ((writer, WRITE), (reader, READ)):
        done = subprocess.run(
            [python, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *_extra()))},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    tensors = f"['0.bias', '0.weight'] {np.arange(6.0).tolist()} [0.5, 0.5]"
    names = ["2False.pt", "2True.pt", "4False.pt", "4True.pt", "half.pt"]
    assert done.stdout.splitlines() == [f"{name} {tensors}" for name in names]


def _extra() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
