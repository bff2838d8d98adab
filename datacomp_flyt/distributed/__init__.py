"""Ranks of `torchrun`: how they meet, and collectives between them."""
