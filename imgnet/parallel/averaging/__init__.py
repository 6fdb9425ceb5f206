"""How and when workers average; with whom is the topology's.

A way to average is one file in ``methods``, with a :class:`~imgnet.parallel.averaging.method.Method` and a ``WAY``, and
one file for each of its names in ``conf/averaging``. Nothing here imports torch: tensors are asked for what they can
do, so that the settings of every method are known before a process is started.
"""
