"""What every service needs to be a good neighbour: log, bus, projection, telemetry, store, health. Knows no service."""
