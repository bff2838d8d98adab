"""Self-Filtering-style training, and FLYT in a closed loop: train, score, mix, again.

After "Data Selection Through Iterative Self-Filtering for Vision-Language Settings" (arXiv
2606.23611, 2026), of which the loop is public and the details are not: `settings` says which
choices here are ours.
"""
