"""Data on disk: uids, metadata, score tables, embeddings and uid subsets."""
