"""Images: where they come from, in which order, how they are cut, and who decodes them.

The order of the samples and the cut of each of them are pure functions of numbers (:mod:`~imgnet.data.order`,
:mod:`~imgnet.data.augment`). A source gives the bytes of image ``i`` (:mod:`~imgnet.data.source`); a back end turns
batch keys into batches (:mod:`~imgnet.data.backend`) and never decides which sample comes next. So every back end sees
the same crops, and a run is resumed in the middle of an epoch from two numbers.

Only :mod:`~imgnet.data.backend`, :mod:`~imgnet.data.decode`, :mod:`~imgnet.data.synthetic` and
:mod:`~imgnet.data.loader` import torch.
"""
