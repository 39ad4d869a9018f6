"""How many persons are in a frame: an example of an evaluator."""
