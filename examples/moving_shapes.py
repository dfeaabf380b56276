"""Which way does it move? Kernels over time and space tell; the same network on single frames cannot.

Little videos show a square, a disc or a cross that moves left, right, up or down and comes back in on the other side, so that each
frame is equally likely in all four classes. The network with kernels of 3 frames learns the motion; with kernels of one frame it
stays at chance (25 %), as the mean over all frames at its end forgets their order.
"""

from __future__ import annotations

import argparse

from numconv import nn, training


def network(frames: int) -> nn.Sequential:
    """Two convolutions over `frames` frames each, and the mean over all positions in time and space."""
    return nn.Sequential(
        *(nn.Conv(12, (frames, 5, 5), padding="same"), nn.BatchNorm(), nn.ReLU(), nn.MaxPool((1, 2, 2))),
        *(nn.Conv(24, (frames, 3, 3), padding="same"), nn.BatchNorm(), nn.ReLU(), nn.GlobalAvgPool()),
        nn.Linear(4),
    )


def main() -> None:
    """Train both networks on the same videos."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=400, help="how many videos to make")
    count = parser.parse_args().count

    x, labels, classes = training.moving_shapes(count, rng=0)
    task = training.split_task("shapes", "video", classes, x, labels, held_out=0.25, seed=0)
    print(training.describe_task(task))
    for frames in (3, 1):
        model = network(frames).build(task.shape, rng=0)
        result = training.train(task, training.Settings(epochs=8), model=model)
        print(f"\nkernels of {frames} frame{'s' * (frames > 1)}\n{training.describe_result(result)}")


if __name__ == "__main__":
    main()
