"""Says what follows from judged windows, from silence and from commands."""
