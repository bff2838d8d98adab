"""Deprecated name of `datacomp_flyt.scorers.hype.reference`, to be removed in the next release."""

from __future__ import annotations

import sys
import warnings

_AS_COMMAND = __name__ == "__main__"
warnings.warn(
    "datacomp_flyt.scorers.hype_reference is now datacomp_flyt.scorers.hype.reference",
    DeprecationWarning,
    stacklevel=1 if _AS_COMMAND else 2,
)

if _AS_COMMAND:
    from datacomp_flyt.exits import run_main

    run_main("datacomp_flyt.scorers.hype.reference")
else:
    from datacomp_flyt.scorers.hype import reference

    sys.modules[__name__] = reference
