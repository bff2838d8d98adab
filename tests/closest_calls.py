"""Measure how near each numeric test comes to its tolerance.

As a pytest plugin, this module writes comparisons with a tolerance as JSON lines:

    pytest -p tests.closest_calls --closest_calls calls.jsonl tests/scorers

The ratio of a comparison is its error divided by the error allowed. Comparisons are those by
`pytest.approx`, `numpy.testing.assert_allclose`, `numpy.allclose`, `numpy.isclose`,
`torch.testing.assert_close`, `torch.allclose` and `torch.isclose`, and assertions that a float is
less than another. Of each line of a test only the closest comparison is kept.

As a program, it runs tests under the settings of other processors, and prints the closest calls:

    python -m tests.closest_calls run --save_path calls.jsonl tests/scorers tests/flyt
    python -m tests.closest_calls table calls.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

TESTS = Path(__file__).resolve().parent
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "NPY_DISABLE_CPU_FEATURES",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "MKL_CBWR",
)
# a number in the repr of a NumPy or torch scalar
_SCALAR = re.compile(r"(?:np\.float\d+|tensor)\(([^(),]+)(?:, [^()]*)?\)")
_ARITHMETIC = re.compile(r"[\d.e+\-*/() <=]+")
_LARGEST_TOLERANCE = 0.1  # a larger bound is no tolerance but a property of the values


def settings_of_processors() -> list[dict[str, str]]:
    """Return environment variables that make the libraries behave as on other processors.

    Each library has its own variables, and one run sets all of them to one level: none, the oldest
    supported one (SSE), AVX2, or AVX-512.
    """
    try:
        from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatched
    except ImportError:  # before NumPy 2
        from numpy.core._multiarray_umath import __cpu_dispatch__ as dispatched
    avx512 = [name for name in dispatched if name.startswith("AVX512") or name == "X86_V4"]
    levels = {
        "ATEN_CPU_CAPABILITY": ("default", "avx2", "avx512"),
        "NPY_DISABLE_CPU_FEATURES": (" ".join(dispatched), " ".join(avx512), None),
        "ONEDNN_MAX_CPU_ISA": ("SSE41", "AVX2", "AVX512_CORE"),
        "OPENBLAS_CORETYPE": ("Prescott", "Haswell", "SkylakeX"),
        "MKL_CBWR": ("COMPATIBLE", "AVX2", "AVX512"),
    }
    return [{}] + [
        {name: value for name in VARIABLES if (value := levels[name][level]) is not None}
        for level in range(3)
    ]


class Calls:
    """The closest comparison of each line of each test.

    Attributes:
        ratios: by the test's id and the line, the ratio of error to tolerance.
        test: the id of the running test.
    """

    def __init__(self) -> None:
        self.ratios: dict[tuple[str, str], float] = {}
        self.test = ""

    def add(self, ratio: float, line: str | None = None) -> None:
        if line is None:
            line = _line_of_test()
        if self.test and line and ratio == ratio:
            key = (self.test, line)
            previous = self.ratios.get(key)
            if previous is None or _closeness(ratio) > _closeness(previous):
                self.ratios[key] = ratio


def _closeness(ratio: float) -> float:
    """Return a number that is 1 at the tolerance and smaller on both sides of it."""
    return ratio if ratio <= 1 else 1 / ratio


def _line_of_test() -> str | None:
    """Return file and line of the innermost frame that is in the tests."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and (TESTS in path.parents or path.name.startswith("test_")):
            return f"{os.path.relpath(path)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


def largest_ratio(actual: object, desired: object, rtol: float, atol: float) -> float:
    """Return the largest error over tolerance of the finite elements, or 0 if all are equal."""
    ours, theirs = (np.asarray(_to_numpy(side), dtype=np.complex128) for side in (actual, desired))
    with np.errstate(all="ignore"):
        error, allowed = abs(ours - theirs), atol + rtol * abs(theirs)
        ratios = np.where(error == 0, 0, error / allowed)
    ratios = ratios[np.isfinite(ratios)]
    return float(ratios.max()) if ratios.size else 0.0


def _to_numpy(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return [_to_numpy(item) for item in value]
    if hasattr(value, "detach"):
        return value.detach().double().cpu().numpy()
    return value


def _recorded(calls: Calls, function: Callable[..., Any], rtol: float, atol: float) -> Any:
    @functools.wraps(function)
    def compare(actual: Any, desired: Any, *args: Any, **options: Any) -> Any:
        names = dict(zip(("rtol", "atol"), args, strict=False)) | options
        with contextlib.suppress(
            TypeError, ValueError
        ):  # of other shapes; the function itself raises then
            calls.add(
                largest_ratio(actual, desired, names.get("rtol", rtol), names.get("atol", atol))
            )
        return function(actual, desired, *args, **options)

    return compare


def _recorded_assert_close(calls: Calls, function: Callable[..., Any]) -> Any:
    from torch.testing._comparison import default_tolerances

    @functools.wraps(function)
    def compare(actual: Any, expected: Any, **options: Any) -> None:
        rtol, atol = options.get("rtol"), options.get("atol")
        with contextlib.suppress(TypeError, ValueError):
            if rtol is None:
                rtol, atol = default_tolerances(actual, expected)
            calls.add(largest_ratio(actual, expected, rtol, atol))
        function(actual, expected, **options)

    return compare


def _record_approx(calls: Calls) -> None:
    scalar = type(pytest.approx(1.0))  # `approx` of sequences and mappings compares by it
    equals = scalar.__eq__

    def compare(self: Any, actual: Any) -> bool:
        with contextlib.suppress(TypeError, ValueError, ZeroDivisionError):
            if np.ndim(actual) == 0:
                error, allowed = abs(float(actual) - float(self.expected)), float(self.tolerance)
                calls.add(0.0 if error == 0 else error / allowed)
        return equals(self, actual)

    scalar.__eq__ = compare  # type: ignore[method-assign]


def error_and_tolerance(explanation: str) -> tuple[float, float] | None:
    """Return error and tolerance of an explained assertion `error < tolerance`, or None."""
    line = _SCALAR.sub(r"\1", explanation.partition("\n")[0].removeprefix("assert "))
    *_, error, allowed = ["", "", *re.split("<=?", line)]
    if not (_ARITHMETIC.fullmatch(line) and error.strip() and ("." in allowed or "e" in allowed)):
        return None
    try:
        ours, theirs = (float(eval(side, {"__builtins__": {}})) for side in (error, allowed))
    except (SyntaxError, NameError, TypeError, ZeroDivisionError):
        return None
    return (ours, theirs) if 0 < theirs <= _LARGEST_TOLERANCE else None


class Plugin:
    """A pytest plugin that wraps the comparing functions and writes the closest calls."""

    def __init__(self, path: Path) -> None:
        self.path, self.calls = path, Calls()
        _record_approx(self.calls)
        for module, name, rtol in ((np.testing, "assert_allclose", 1e-7), (np, "allclose", 1e-5)):
            atol = 0 if module is np.testing else 1e-8
            setattr(module, name, _recorded(self.calls, getattr(module, name), rtol, atol))
        np.isclose = _recorded(self.calls, np.isclose, 1e-5, 1e-8)
        try:
            import torch
        except ImportError:
            return
        for name in ("allclose", "isclose"):
            setattr(torch, name, _recorded(self.calls, getattr(torch, name), 1e-5, 1e-8))
        torch.testing.assert_close = _recorded_assert_close(self.calls, torch.testing.assert_close)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.calls.test = item.nodeid
        try:
            return (yield)
        finally:
            self.calls.test = ""
            self._write()

    def pytest_assertion_pass(self, item: pytest.Item, lineno: int, expl: str) -> None:
        sides = error_and_tolerance(expl)
        if sides is not None:
            error, allowed = sides
            self.calls.add(error / allowed, f"{item.location[0]}:{lineno}")

    def _write(self) -> None:
        settings = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        for name in ("numpy", "torch"):
            settings[name] = importlib.metadata.version(name)
        lines = [
            json.dumps({"test": test, "line": line, "ratio": ratio, "settings": settings})
            for (test, line), ratio in self.calls.ratios.items()
        ]
        self.calls.ratios.clear()
        with self.path.open("a") as file:  # one write: workers of pytest-xdist share the file
            file.write("".join(f"{line}\n" for line in lines))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--closest_calls", type=Path, metavar="FILE", help="append comparisons here")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--closest_calls")
    if path is not None:
        config.pluginmanager.register(Plugin(path), "closest_calls")


def read_calls(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def run(tests: list[str], save_path: Path) -> int:
    """Run tests under each setting: all of them once, then those that compare with a tolerance.

    Returns:
        the number of settings under which a test failed.
    """
    failed = 0
    with tempfile.TemporaryDirectory() as cache:  # of test modules compiled with the hook
        for settings in settings_of_processors():
            command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.closest_calls"]
            command += ["--closest_calls", str(save_path), "-o", "enable_assertion_pass_hook=true"]
            result = subprocess.run(
                [*command, *tests], env=os.environ | settings | {"PYTHONPYCACHEPREFIX": cache}
            )
            print(f"exit code {result.returncode} with {settings}", flush=True)
            failed += result.returncode != 0
            tests = sorted({call["test"] for call in read_calls([save_path])})
    return failed


def table(calls: list[dict[str, Any]], rows: int) -> str:
    """Return a Markdown table of the closest call of each line of a test, closest first.

    The second column has the smallest ratio of the same comparison under any setting. If both are
    equal, the error does not depend on the processor.
    """
    closest: dict[str, dict[str, Any]] = {}
    smallest: dict[tuple[str, str], float] = {}
    for call in calls:
        same = (call["test"], call["line"])
        smallest[same] = min(smallest.get(same, call["ratio"]), call["ratio"])
        previous = closest.get(call["line"])
        if previous is None or _closeness(call["ratio"]) > _closeness(previous["ratio"]):
            closest[call["line"]] = call
    lines = ["| error / tolerance | smallest | test | line | setting |", "|---|---|---|---|---|"]
    for call in sorted(closest.values(), key=lambda call: -_closeness(call["ratio"]))[:rows]:
        settings = ", ".join(f"{name}={value}" for name, value in call["settings"].items())
        least = smallest[call["test"], call["line"]]
        numbers = f"{call['ratio']:.3g} | {least:.3g}"
        lines.append(f"| {numbers} | {call['test']} | {call['line']} | {settings} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="run tests under the settings of other processors")
    runner.add_argument("tests", nargs="+", help="arguments of pytest")
    runner.add_argument("--save_path", type=Path, required=True, help="append comparisons here")
    printer = commands.add_parser("table", help="print the closest calls")
    printer.add_argument("files", nargs="+", type=Path)
    printer.add_argument("--rows", type=int, default=20)
    flags = parser.parse_args()
    if flags.command == "table":
        print(table(read_calls(flags.files), flags.rows))
        return 0
    return int(run(flags.tests, flags.save_path) > 0)


if __name__ == "__main__":
    sys.exit(main())
