"""HYPE: hyperbolic scores of alignment and specificity."""
