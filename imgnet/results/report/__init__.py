"""One page that holds a study: tables, curves, configuration, code and failures, without a network."""
