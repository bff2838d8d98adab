"""A small embedded pool, a noisy pool made from it, and tours over both."""

from pathlib import Path

POOL = Path(__file__).parent / "pool"
