"""Pooling, padding, unfold, fold, max_unpool, and their gradients.

``pool`` and ``windows`` compute everything, a row at a time, by the kernels in ``maxima``, ``averages`` and ``window_rows``. The
others compute parts of it in vectors:

``vector_pooling``, ``vector_gather``
    Rows in registers: pooling and averages' gradients; the gradient of maxima, which finds the winners again.
``box_pooling``
    Averages: along the outer axes first, then by shuffles of what registers hold.
``flat_pooling``
    Windows side by side: along the outer axes first, then along one row of many planes.
``inside_pooling``
    Windows that reach no padding: rows in registers too, in one pass and without masks.
``wide_pooling``
    Windows as wide as whole channels: the lanes along the window.
``channelwise_pooling``
    Channels last, pixel by pixel.
``crosswise_pooling``
    The lanes over channels; ``crosswise_plans`` says what each result reads.
``vector_scatter``, ``found_scatter``
    The gradient of maxima from given indices, and from those that the cheapest pooling finds first. ``places`` checks indices.
``vector_windows``
    pad, unfold and fold: ``moved_rows`` where rows are copied, ``apart_folding`` where windows lie far apart.
``flat_unpooling``
    max_unpool where a channel is one row.
"""
