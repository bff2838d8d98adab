"""The contract with a real DataComp checkout.

DATACOMP_DIR      a checkout of mlfoundations/datacomp at 4a8df19 (copied, never changed)
DATACOMP_PYTHON   a Python that can run it (default: this one)
DATACOMP_STUBS    optional folder with stub modules for what that Python lacks, e.g. gcld3
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

from .contract import Host, HostContract
from .real_datacomp import RealDataComp


@pytest.mark.slow
class TestRealDataComp(HostContract):
    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        checkout = os.environ.get("DATACOMP_DIR")
        if not checkout:
            pytest.skip("DATACOMP_DIR does not name a checkout of mlfoundations/datacomp")
        copy = tmp_path / "datacomp"
        unneeded = shutil.ignore_patterns(".git", "__pycache__", "figs")
        shutil.copytree(checkout, copy, ignore=unneeded)
        python = os.environ.get("DATACOMP_PYTHON", sys.executable)
        return RealDataComp(copy, python, os.environ.get("DATACOMP_STUBS", ""))
