"""The verbs of the command line, one file each. Here geography and learning meet."""
