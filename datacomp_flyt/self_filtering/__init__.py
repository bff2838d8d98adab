"""Self-Filtering-style training, and FLYT in a closed loop: train, score, select, and again.

After "Data Selection Through Iterative Self-Filtering for Vision-Language Settings" (arXiv
2606.23611, 2026). The loop is public and its details are not: the docstrings of `settings` say
which choices are made here.
"""
