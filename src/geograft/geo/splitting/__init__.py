"""Which ground trains and which is held out, and what that gives away."""
