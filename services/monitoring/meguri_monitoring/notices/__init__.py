"""An episode's messages to people: sent, tried again."""
