"""Images and labels of every kind become tile sets."""
