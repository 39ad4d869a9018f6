"""What a window says: distances to its reference, the rules over them, who is to blame and what is shown as evidence."""
