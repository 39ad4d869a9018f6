"""An episode's messages to people: worded, sent, tried again."""
