"""The embedded demo pool, and the tour over it."""
