"""Dense convolution and its gradients: blocks of results, packed factors, register tiles.

The implementations, by what they pack:

``blocked``, ``weights``
    A slab of x and panels of w, the lanes over output channels; weight gradients in the same way.
``implicit_gemm``
    Panels of the columns of im2col, the lanes over pixels: many output channels, kernels of one tap. ``gemm_blocks`` is its kernel.
``tile``
    A slab of x, the lanes over pixels, w where it lies: few output channels.
``inner_product``, ``connected_gradients``
    Next to nothing: many weights for few pixels, fully connected layers.
``polyphase``
    A large dilation, by those above on views.
``paired``
    ``blocked`` and ``implicit_gemm`` on pairs of bfloat16 numbers.

What they share: ``base`` (an input_grad is a forward convolution for each phase of the stride, or one product, ``patches``),
``slab`` (how a problem is cut into blocks) and ``packing`` (how x gets there), ``panels`` (w, and results on their way to y),
``columns``. ``strips`` cuts problems of few channels, for the folder ``depthwise``.
"""
