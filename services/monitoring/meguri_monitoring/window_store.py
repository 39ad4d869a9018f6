"""Tables of windows: planned, counted in parts, judged."""
