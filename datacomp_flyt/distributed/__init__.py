"""Ranks started by `torchrun`: rendezvous, commands that all ranks run, and collectives."""
