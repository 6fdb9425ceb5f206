"""Who trains, and how the workers of a run are kept together: AllReduce, gossip, decent-dp, and many in one process."""
