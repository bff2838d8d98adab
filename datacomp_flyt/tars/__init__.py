"""Tar shards in webdataset format: listing, samples, image-text pairs, and the images at hand."""
