"""How workers agree: AllReduce of gradients, or averaging of parameters over a topology."""
