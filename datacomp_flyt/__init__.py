"""Learn which image-text pairs are worth training CLIP on, for DataComp and open_clip."""

__version__ = "0.1.0"
