"""The families of topologies: each a function from the workers and nodes there are to the rounds of one period.

Every family is built for every number of workers and nodes, or refuses with a ValueError that says what would be right.
A new one is a function in a module here, a line in ``registry.py`` and a file in ``conf/topology``.
"""
