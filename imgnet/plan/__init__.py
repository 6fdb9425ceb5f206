"""How long a step would take on a cluster: the engine's own order of events, replayed with measured times."""
