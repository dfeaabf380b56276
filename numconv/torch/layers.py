"""torch's layers of convolution in which numconv computes, and models converted to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .functions import conv, conv_transpose

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "convert"]


class _Conv(nn.modules.conv._ConvNd):
    """What the three convolutions share: torch's parameters and names, numconv's padding."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ):
        rest: dict[str, Any] = {"groups": groups, "bias": bias, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, stride, 0, dilation, **rest)
        self.padding = (padding,) * len(self.kernel_size) if isinstance(padding, int) else padding
        self.padding_mode = padding_mode

    def forward(self, x: Tensor) -> Tensor:
        return conv(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups,
            pad_mode=self.padding_mode,
        )  # fmt: skip


class Conv1d(_Conv, nn.Conv1d):
    """`torch.nn.Conv1d` in which numconv computes.

    Padding may also be (low, high) pairs, "full", "causal", or "same" with a stride, and `padding_mode` "symmetric".

    Examples
    --------
    >>> import torch, numconv.torch
    >>> layer = numconv.torch.Conv1d(1, 2, kernel_size=3, padding="causal")
    >>> layer(torch.zeros(1, 8)).shape
    torch.Size([2, 8])
    """


class Conv2d(_Conv, nn.Conv2d):
    """`torch.nn.Conv2d` in which numconv computes; see `Conv1d`."""


class Conv3d(_Conv, nn.Conv3d):
    """`torch.nn.Conv3d` in which numconv computes; see `Conv1d`."""


class _ConvTranspose(nn.modules.conv._ConvTransposeNd):
    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        extra = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation
        )
        return conv_transpose(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding, dilation=self.dilation, groups=self.groups,
            output_padding=extra,
        )  # fmt: skip


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` in which numconv computes."""


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` in which numconv computes."""


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` in which numconv computes."""


_OURS: dict[Any, Any] = {
    nn.Conv1d: Conv1d, nn.Conv2d: Conv2d, nn.Conv3d: Conv3d,
    nn.ConvTranspose1d: ConvTranspose1d, nn.ConvTranspose2d: ConvTranspose2d, nn.ConvTranspose3d: ConvTranspose3d,
}  # fmt: skip


def convert(model: nn.Module, where: Callable[[str, nn.Module], bool] | None = None) -> nn.Module:
    """Let numconv compute the convolutions of a model.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place: its convolutions become those of this module. Parameters, hooks and the state dictionary stay.
    where : function of (name, module), optional
        Which of them; all by default. Subclasses of torch's layers are left as they are.

    Returns
    -------
    torch.nn.Module
        The model.

    Examples
    --------
    Large kernels by numconv, the others by torch:

    >>> import torch, numconv.torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 31, padding=15, groups=8))
    >>> numconv.torch.convert(net, where=lambda name, module: max(module.kernel_size) > 7)
    Sequential(
      (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
      (1): Conv2d(8, 8, kernel_size=(31, 31), stride=(1, 1), padding=(15, 15), groups=8)
    )
    >>> type(net[1]).__module__
    'numconv.torch.layers'
    """
    for name, module in model.named_modules():
        ours = _OURS.get(type(module))
        if ours is not None and (where is None or where(name, module)):
            module.__class__ = ours  # what torch's own lazy layers do: everything that refers to the layer stays
    return model
