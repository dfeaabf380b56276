"""Networks that suit most folders: convolutions, normalised, pooled, and at the end the mean over all positions.

The mean at the end makes the scores (nearly) independent of where in the sound or picture something is, and the number of
parameters independent of its size. The network for sound works on the raw wave, after W. Dai, C. Dai, S. Qu, J. Li and S. Das,
"Very Deep Convolutional Neural Networks for Raw Waveforms", ICASSP 2017; those for images and video go on like K. Simonyan and
A. Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, with small kernels only. All have
batch normalisation (S. Ioffe and C. Szegedy, ICML 2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from numconv import nn
from numconv.errors import ProblemError

__all__ = ["epochs_for", "image_layers", "layers_for", "sound_layers", "video_layers"]

_FRAME_RATE = 2_000
"""Results a second of the first convolution over a sound."""
_ENOUGH_STEPS = 3_000
"""Steps after which a small data set has been learned."""
_FEWEST, _USUAL, _MOST = 6, 40, 150
"""Epochs."""
_WORK = 2.5e12
"""Operations of a training that takes a minute or so on two cores."""


def sound_layers(shape: Sequence[int], rate: int) -> list[nn.Layer]:
    """Layers for raw waves ``[C, T]`` at `rate` samples a second, about 65,000 parameters; without the scores.

    The first convolution, of 32 kernels of 8 ms, brings every sound to 2,000 results a second; three more follow with pooling.
    """
    stride = max(round(rate / _FRAME_RATE), 1)
    layers: list[nn.Layer] = [nn.Conv(32, 16 * stride, stride=stride, padding="same"), nn.BatchNorm(), nn.ReLU()]
    length = math.ceil(shape[1] / stride)
    for channels, window in ((48, 9), (64, 9), (64, 5)):
        pool = 4 if length >= 32 else 2
        if length >= 8:
            layers.append(nn.MaxPool(pool))
            length //= pool
        layers += [nn.Conv(channels, window, padding="same"), nn.BatchNorm(), nn.ReLU()]
    return [*layers, nn.GlobalAvgPool()]


def image_layers(shape: Sequence[int]) -> list[nn.Layer]:
    """Layers for images ``[C, H, W]``, 24,000 parameters for 8 x 8 pixels; without the scores.

    Kernels of 3 x 3; two convolutions, then pooling and one more until less than 8 pixels are left.
    """
    layers = _block(16)
    sizes = tuple(shape[1:])
    if min(sizes) >= 48:
        layers.append(nn.MaxPool(2))
        sizes = _halved(sizes)
    layers += _block(32)
    while min(sizes) >= 8:
        layers += [nn.MaxPool(2), *_block(64)]
        sizes = _halved(sizes)
    return [*layers, nn.GlobalAvgPool()]


def video_layers(shape: Sequence[int]) -> list[nn.Layer]:
    """Layers for videos ``[C, T, H, W]``, about 45,000 parameters; without the scores.

    Kernels span time, height and width, 3 x 3 x 3 and at first 3 x 5 x 5, so that they see what moves; time is pooled last.
    """
    layers: list[nn.Layer] = [nn.Conv(16, (3, 5, 5), padding="same"), nn.BatchNorm(), nn.ReLU()]
    sizes = tuple(shape[2:])
    for channels in (24, 48):
        if min(sizes) >= 8:
            layers.append(nn.MaxPool((1, 2, 2)))
            sizes = _halved(sizes)
        layers += _block(channels)
    return [*layers, nn.GlobalAvgPool()]


def layers_for(kind: str, shape: Sequence[int], rate: int | None = None) -> list[nn.Layer]:
    """The layers for a kind of data.

    Parameters
    ----------
    kind : str
        "sound", "image" or "video".
    shape : sequence of int
        ``[C, *S]`` of one sample.
    rate : int, optional
        Sounds: samples a second.

    Returns
    -------
    list of Layer
        All but the scores.

    Raises
    ------
    ProblemError
        If there is no such kind.

    Examples
    --------
    >>> from numconv import nn, training
    >>> layers = training.layers_for("image", (1, 8, 8))
    >>> model = nn.Sequential(*layers, nn.Linear(10)).build((1, 8, 8))
    >>> sum(array.size for array in model.parameters.values())
    24170
    """
    if kind == "sound":
        return sound_layers(shape, rate or 4 * _FRAME_RATE)
    if kind not in ("image", "video"):
        raise ProblemError(f"no network is known for kind={kind!r}: it is sound, image or video")
    return image_layers(shape) if kind == "image" else video_layers(shape)


def epochs_for(samples: int, batch_size: int, flops: int) -> int:
    """How often to go through the data: enough steps where there are few, and no more work than a minute or two allow.

    Parameters
    ----------
    samples : int
        N, the size of the training data.
    batch_size : int
        Samples in a step.
    flops : int
        Operations of the network for one sample, forward; the gradients take twice as many again.

    Returns
    -------
    int
        From 6 to 150.

    Examples
    --------
    >>> from numconv import training
    >>> training.epochs_for(100, 32, 10**6), training.epochs_for(1_000, 32, 10**6), training.epochs_for(10_000, 32, 3 * 10**7)
    (150, 94, 6)
    """
    steps = math.ceil(samples / batch_size)
    wanted = min(max(_USUAL, math.ceil(_ENOUGH_STEPS / steps)), _MOST)
    affordable = int(_WORK / (3 * flops * samples))
    return max(min(wanted, affordable), _FEWEST)


def _block(channels: int) -> list[nn.Layer]:
    return [nn.Conv(channels, 3, padding="same"), nn.BatchNorm(), nn.ReLU()]


def _halved(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size // 2 for size in sizes)
