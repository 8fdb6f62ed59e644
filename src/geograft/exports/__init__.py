"""Runs as model files for other programs."""
