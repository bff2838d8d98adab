"""Files: listing, opening, locking and atomic writing, and formats that need no torch to read."""
