"""Scripts that made the embedded data of the demo."""
