"""Engines, which run a function over many items in worker processes, or on a Ray cluster."""
