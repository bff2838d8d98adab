"""A pool small enough to be embedded, a noisy one made of it, and tours over both."""

from pathlib import Path

POOL = Path(__file__).parent / "pool"
