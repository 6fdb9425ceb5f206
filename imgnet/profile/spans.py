"""Named stretches of a worker's time, which a profile is made of. While nobody records, a span is a null context."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.profiler import record_function

from imgnet.profile.activity import Activity

MOST_WATCHERS = 256
"""Exchanges of a worker under way whose end is seen at once; that of others when an earlier one has ended."""

_watchers: ThreadPoolExecutor | None = None
_nothing = nullcontext()


def span(activity: Activity) -> AbstractContextManager[object]:
    """What is done inside is this activity, but for what spans inside it take."""
    return _nothing if _watchers is None else record_function(activity.value)


def unseen() -> AbstractContextManager[object]:
    """What is done inside leaves no trace: a word between workers that is no part of the training."""
    return _nothing if _watchers is None else _without_records()


def watched(wait: Callable[[], object]) -> Callable[[], object]:
    """The same wait, begun at once by a thread while somebody records.

    torch's record of a message ends when somebody has waited for it, which tells nothing of when it came. For gloo: a
    wait for NCCL is one of the stream of the thread that calls it.
    """
    return wait if _watchers is None else _watchers.submit(wait).result


@contextmanager
def recording() -> Iterator[None]:
    """Spans count inside."""
    global _watchers
    assert _watchers is None
    _watchers = ThreadPoolExecutor(MOST_WATCHERS, thread_name_prefix="profile")
    try:
        yield
    finally:
        _watchers.shutdown(wait=False)
        _watchers = None


@contextmanager
def _without_records() -> Iterator[None]:
    enable = torch._C._autograd._enable_record_function  # pyright: ignore[reportAttributeAccessIssue]
    enable(False)
    try:
        yield
    finally:
        enable(True)
