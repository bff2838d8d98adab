"""Bounds of rounding errors, and the measurement of closest calls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.closest_calls import (
    error_and_tolerance,
    largest_ratio,
    read_calls,
    settings_of_processors,
    table,
)
from tests.conftest import REPOSITORY
from tests.tolerances import epsilon, float_bound


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        (np.float32, 2**-23),
        (np.dtype("f2"), 2**-10),
        ("float64", 2**-52),
        ("torch.float32", 2**-23),
        ("bfloat16", 2**-7),
        ("torch.bfloat16", 2**-7),
    ],
)
def test_epsilon(dtype: object, wanted: float) -> None:
    assert epsilon(dtype) == wanted


@pytest.mark.parametrize("terms", [1, 2, 8, 50, 1000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_no_order_of_summation_exceeds_the_bound(dtype: type, terms: int) -> None:
    rng = np.random.default_rng(terms)
    for _ in range(20):
        values = rng.normal(size=terms).astype(dtype)
        exact, bound = values.astype(float).sum(), float_bound(dtype, abs(values).sum(), terms)
        for order in (np.arange(terms), rng.permutation(terms), np.argsort(values)):
            one_by_one = np.cumsum(values[order], dtype=dtype)[-1]
            assert abs(float(one_by_one) - exact) <= bound
        assert abs(float(values[1:].sum()) - exact) > bound or abs(values[0]) < bound


def test_a_bound_without_a_digit_is_refused() -> None:
    with pytest.raises(ValueError, match="leave no digit"):
        float_bound("bfloat16", 1, 10_000)


@pytest.mark.parametrize(
    ("explanation", "wanted"),
    [
        ("1e-07 < 1e-06", (1e-7, 1e-6)),
        ("np.float64(2e-07) < 1e-06\n  + where ...", (2e-7, 1e-6)),
        ("tensor(3e-07, dtype=torch.float64) <= (2e-06 * np.float32(2.0))", (3e-7, 4e-6)),
        ("0 <= 0.001 < 0.01", (0.001, 0.01)),
        ("3 < 4", None),
        ("0.5 < 2.5", None),
        ("'a' < 'b'", None),
        ("found == wanted", None),
    ],
)
def test_assertions_with_a_tolerance(explanation: str, wanted: tuple[float, float] | None) -> None:
    assert error_and_tolerance(explanation) == wanted


def test_ratios() -> None:
    assert largest_ratio([1.0, 2.0], [1.0, 2.1], 0, 0.2) == pytest.approx(0.5)
    assert largest_ratio([1.0, np.nan], [1.0, 2.0], 1e-3, 0) == 0
    assert largest_ratio(3.0, 2.0, 0.25, 0.0) == pytest.approx(2)


def test_settings_have_a_level_for_each_library() -> None:
    plain, *levels = settings_of_processors()
    assert plain == {}
    assert [settings["ATEN_CPU_CAPABILITY"] for settings in levels] == ["default", "avx2", "avx512"]


def test_a_run_records_the_closest_call_of_each_line(tmp_path: Path) -> None:
    """In a process of its own, since the plugin replaces functions."""
    (tmp_path / "pytest.ini").write_text("[pytest]\nenable_assertion_pass_hook = true\n")
    (tmp_path / "test_it.py").write_text(
        "import numpy as np, pytest\n"
        "def test_it():\n"
        "    for error in (1e-3, 5e-3):\n"
        "        assert 1 + error == pytest.approx(1, abs=1e-2)\n"
        "    np.testing.assert_allclose([2.0, 4.0], [2.0, 4.1], atol=1)\n"
        "    assert not np.allclose(1.0, 2.0)\n"
        "    assert np.float64(2e-7) < 1e-6\n"
    )
    calls = tmp_path / "calls.jsonl"
    command = [sys.executable, "-m", "pytest", "-p", "tests.closest_calls", "test_it.py"]
    subprocess.run(
        [*command, "--closest_calls", str(calls)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        timeout=300,
        stdout=subprocess.DEVNULL,
    )
    ratios = {call["line"]: call["ratio"] for call in read_calls([calls])}
    wanted = {4: 0.5, 5: 0.1 / 1.00000041, 6: 1 / 2.001e-5, 7: 0.2}
    assert ratios == {
        f"test_it.py:{line}": pytest.approx(ratio, rel=1e-2) for line, ratio in wanted.items()
    }
    assert json.loads(calls.read_text().splitlines()[0])["test"] == "test_it.py::test_it"


def test_a_table_has_each_line_once_and_the_closest_first() -> None:
    calls = [
        {"test": "a", "line": "x:1", "ratio": 0.2, "settings": {"numpy": "1"}},
        {"test": "b", "line": "x:1", "ratio": 0.9, "settings": {"numpy": "2"}},
        {"test": "b", "line": "x:1", "ratio": 0.1, "settings": {"numpy": "1"}},
        {"test": "c", "line": "x:2", "ratio": 0.5, "settings": {}},
        {"test": "d", "line": "x:3", "ratio": 8.0, "settings": {}},
    ]
    rows = table(calls, 2).splitlines()[2:]
    assert [row.split(" | ")[:3] for row in rows] == [["| 0.9", "0.1", "b"], ["| 0.5", "0.5", "c"]]
