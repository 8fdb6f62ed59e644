"""Scenes, tiles, labels and splits."""
