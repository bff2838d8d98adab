"""Selection in Python: a pool with score columns, scores, and subsets."""
