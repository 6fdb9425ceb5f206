"""Images: where they come from, in which order, how they are cut, and who decodes them.

The order of the samples and the cut of each of them are pure functions of numbers (:mod:`~imgnet.data.sampling.order`,
:mod:`~imgnet.data.sampling.augment`). A source gives the bytes of image ``i`` (:mod:`~imgnet.data.sources.source`); a
back end turns batch keys into batches (:mod:`~imgnet.data.backends.backend`) and never decides which sample comes next.
So every back end sees the same crops, and a run is resumed in the middle of an epoch from two numbers.

Only :mod:`~imgnet.data.backends.backend`, :mod:`~imgnet.data.backends.decode`,
:mod:`~imgnet.data.backends.synthetic` and :mod:`~imgnet.data.loader` import torch.
"""
