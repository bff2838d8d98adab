"""The loop of Self-Filtering, by its own scores or FLYT's: train, score, select, and repeat.

After "Data Selection Through Iterative Self-Filtering for Vision-Language Settings" (arXiv
2606.23611, 2026). The loop is public and its details are not: the docstrings of `settings` say
which choices are made here.
"""
