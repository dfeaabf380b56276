"""Few channels a group, filters: each loaded vector serves several taps and rows of results.

``planewise``, ``plane_weights``
    Short kernels over planes where they lie. ``plane_plans`` cuts the problem, ``plane_padding`` copies planes where the padding
    is not of zeros.
``depthwise``, ``depthwise_weights``
    Any kernel, over strips of packed rows (`dense.strips`). ``depthwise_plans`` chooses the tile.
``channelwise``, ``channelwise_weights``
    Channels last: the lanes are channels.
``crosswise``
    Small planes, transposed so that the lanes are channels.
``separable``
    Kernels of rank one, a pass of ``depthwise`` for each dimension.

``planewise`` and ``crosswise`` share ``contiguous``, which copies weights that do not lie side by side; the weight gradients share
``weight_sums``, which writes what the tiles have summed up.
"""
