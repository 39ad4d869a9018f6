"""What the services of meguri say to each other: events, model spec, topology, names and errors. Imports pydantic only."""
