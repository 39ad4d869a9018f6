"""Tables of evaluators: how far they have come, and windows of their numbers."""
