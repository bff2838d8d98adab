"""The contract with the stand-in host, for machines without a DataComp checkout.

The patch of the stand-in adds the same lines as the real patch, at other line numbers.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from datacomp_flyt.datacomp.checkout_patch import install, is_installed, load_patches, revert
from datacomp_flyt.errors import InputError

from .contract import REPOSITORY, Host, HostContract, Outcome
from .stand_in_patch import STAND_IN, carry_over


class StandIn(Host):
    """A copy of the stand-in; functions add and remove its own patch."""

    def _call(self, function: Callable[..., object]) -> Outcome:
        patches = [carry_over(patch) for patch in load_patches(REPOSITORY / "patches")]
        try:
            answer = function(self.directory, patches=patches)
        except InputError as error:
            return Outcome(2, "", str(error))
        return Outcome(1 if function is is_installed and not answer else 0, "", "")

    def install(self) -> Outcome:
        return self._call(install)

    def check(self) -> Outcome:
        return self._call(is_installed)

    def revert(self) -> Outcome:
        return self._call(revert)


class TestStandIn(HostContract):
    @pytest.fixture
    def host(self, tmp_path: Path) -> Host:
        copy = tmp_path / "stand_in"
        shutil.copytree(STAND_IN, copy, ignore=shutil.ignore_patterns("__pycache__"))
        return StandIn(copy, sys.executable)
