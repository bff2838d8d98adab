"""The interface of a scorer, its registry, and the job that scores a pool shard by shard."""
