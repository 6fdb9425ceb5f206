"""How the workers of a run reach one another: what is sent and has come, without a word on what is made of it.

Arithmetic stands in :mod:`imgnet.parallel.transfers`, which sends through one of these: :mod:`.processes` for workers
that are processes, with torch's collectives, and :mod:`.memory` for workers that share one process.
"""

from imgnet.parallel.wire.interface import Arrival, Message, Start, Wire

__all__ = ["Arrival", "Message", "Start", "Wire"]
