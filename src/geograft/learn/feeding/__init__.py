"""Tiles on their way to the network."""
