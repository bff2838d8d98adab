"""What is on disk: uids, metadata shards, score tables, uid subsets."""
