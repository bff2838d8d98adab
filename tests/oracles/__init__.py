"""Slow, simple implementations of the papers to compare with. They share no code with ours."""
