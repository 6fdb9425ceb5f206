"""Where the milliseconds of a step go: traces of torch's profiler, and what they come to for each worker."""
