"""Tables of episodes, their timeline and evidence."""
