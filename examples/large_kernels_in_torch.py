"""A depthwise layer of 31x31 in a network of torch, trained a step by torch's convolution and by numconv's.

One call converts the model; parameters and gradients stay torch's. It prints the loss before and after some steps, which is the
same, and the time of a step. It needs the package torch.
"""

import copy
import sys
import time

try:
    import torch
except ImportError:
    sys.exit('this example needs torch: pip install "numconv-nd[torch]"')

import numconv.torch

CHANNELS, SIZE, KERNEL = 64, 28, 31


def network():
    """A block as RepLKNet has it (Ding and others, 2022, arXiv:2203.06717): large and depthwise, then pointwise."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(CHANNELS, CHANNELS, KERNEL, padding=KERNEL // 2, groups=CHANNELS),
        torch.nn.GELU(),
        torch.nn.Conv2d(CHANNELS, CHANNELS, 1),
    )


def step(model, x, target):
    """The loss before a step of gradient descent, and the seconds that it took."""
    start = time.perf_counter()
    loss = torch.nn.functional.mse_loss(model(x), target)
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.1 * parameter.grad)
    return loss.item(), time.perf_counter() - start


def main():
    """Train both, and say whether they agree."""
    torch.manual_seed(0)
    theirs = network()
    ours = copy.deepcopy(theirs)
    numconv.torch.convert(ours, where=lambda _, layer: max(layer.kernel_size) > 7)
    x, target = torch.randn(4, CHANNELS, SIZE, SIZE), torch.randn(4, CHANNELS, SIZE, SIZE)
    for name, model in (("torch", theirs), ("numconv", ours)):
        steps = [step(model, x, target) for _ in range(8)]
        milliseconds = 1e3 * min(seconds for _, seconds in steps[1:])
        print(f"{name:8s} loss {steps[0][0]:.4f} -> {steps[-1][0]:.4f}, {milliseconds:.1f} ms a step")
    difference = (theirs[0].weight - ours[0].weight).abs().max() / theirs[0].weight.abs().max()
    print(f"largest difference of a weight: {difference:.0e} of the largest weight")
    if difference > 1e-4:
        sys.exit("they disagree")


if __name__ == "__main__":
    main()
