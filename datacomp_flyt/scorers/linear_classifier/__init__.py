"""A linear classifier on CLIP embeddings, its file and its training."""
