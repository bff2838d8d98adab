"""Tar shards: listing, samples, image-text pairs, and the list of available images."""
