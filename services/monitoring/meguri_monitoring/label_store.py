"""Tables of labels, and of predictions with their labels."""
