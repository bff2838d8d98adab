"""Speed and memory of selection: each file prints one JSON line, its ratios measured in one run."""
