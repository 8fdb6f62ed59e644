"""One command each; geography and learning meet here and in `mapping`."""
