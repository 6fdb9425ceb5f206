"""How and when workers average; with whom is the topology's.

A way to average is one file with a :class:`~imgnet.parallel.averaging.method.Method`, a schema in
``imgnet/config/schemas.py``, a file in ``conf/averaging`` and a line in :mod:`.build`.
"""
