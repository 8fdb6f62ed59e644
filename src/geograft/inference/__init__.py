"""Trained networks applied to pixels."""
