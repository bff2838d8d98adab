"""CLIP models by open_clip name: loading, encoding of images and texts, and `embed`."""
