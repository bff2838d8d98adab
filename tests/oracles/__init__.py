"""Slow, obvious versions to compare with: written from the papers, sharing no code with us."""
