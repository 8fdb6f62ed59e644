"""Losses of segmentation and the targets they compare with."""
