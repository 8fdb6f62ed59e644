"""Scores, confidence intervals and calibration, on arrays."""
