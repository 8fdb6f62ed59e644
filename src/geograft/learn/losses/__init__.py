"""What training makes small, and what labels say to it."""
