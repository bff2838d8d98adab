"""Writes an HTML page on what was selected and why."""
