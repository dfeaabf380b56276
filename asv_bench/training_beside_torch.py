#!/usr/bin/env python3
"""Times a step of training of the networks of `benchmarks/training.py` beside torch's, each library in processes of its own.

    python training_beside_torch.py --peer-python PYTHON      # an interpreter that has torch; numconv runs in this one
    python training_beside_torch.py --networks digits --batches 32,128 --threads 1

A step is forward, cross-entropy, backward and AdamW with a cosine schedule; both libraries count accuracy as they go. With one
thread it is the processor's time that counts, which other programs disturb less. Ratios over 1 mean that numconv is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
SECONDS = 3


def clock() -> float:
    return time.process_time() if os.environ["OMP_NUM_THREADS"] == "1" else time.perf_counter()


class Same:
    """One batch, again and again, with the time of each."""

    def __init__(self, x, labels, steps: int):
        self.x, self.labels, self.steps, self.times = x, labels, steps, []

    def __len__(self) -> int:
        return self.steps * len(self.x)

    def batches(self, batch_size: int, rng=None):
        for _ in range(self.steps):
            self.times.append(clock())
            yield self.x, self.labels
        self.times.append(clock())


def arrays(shape: tuple[int, ...], classes: int, batch: int):
    import numpy as np

    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, *shape), np.float32), rng.integers(classes, size=batch)


def numconv_steps(name: str, batch: int):
    from benchmarks.training import SHAPES, network

    from numconv import nn

    model = network(name)
    x, labels = arrays(SHAPES[name], model[-1].features, batch)

    def run(steps: int) -> list[float]:
        data = Same(x, labels, steps)
        nn.fit(model, data, epochs=1, batch_size=batch, progress=False)
        return [after - before for before, after in zip(data.times, data.times[1:], strict=False)]

    return run


def torch_network(name: str):
    from torch import nn

    if name == "digits":
        return (1, 8, 8), 10, nn.Sequential(
            nn.Conv2d(1, 16, 3, padding="same"), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding="same"), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, 10),
        )  # fmt: skip
    found = []
    for before, after, window in ((1, 32, 15), (32, 64, 9), (64, 64, 5), (64, 64, 5)):
        geometry = {"stride": 4} if before == 1 else {"padding": "same"}
        found += [nn.Conv1d(before, after, window, **geometry), *([nn.BatchNorm1d(after)] if "norm" in name else [])]
        found += [nn.ReLU(), nn.MaxPool1d(4)]
    return (1, 8000), 5, nn.Sequential(*found[:-1], nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64, 5))


def torch_steps(name: str, batch: int):
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    shape, classes, model = torch_network(name)
    x, labels = map(torch.from_numpy, arrays(shape, classes, batch))
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 100_000)

    def step() -> None:
        optimiser.zero_grad()
        scores = model(x)
        loss = torch.nn.functional.cross_entropy(scores, labels)
        loss.backward()
        optimiser.step()
        schedule.step()
        (scores.argmax(dim=1) == labels).sum()

    def run(steps: int) -> list[float]:
        data = Same(x, labels, steps)
        for _ in data.batches(batch):
            step()
        return [after - before for before, after in zip(data.times, data.times[1:], strict=False)]

    return run


def time_steps(library: str, name: str, batch: int) -> None:
    """In a child: the median seconds of a step, and the mean of the fastest tenth."""
    run = (numconv_steps if library == "numconv" else torch_steps)(name, batch)
    run(3)
    times = sorted(run(max(20, int(SECONDS / min(run(5))))))
    print(json.dumps([statistics.median(times), statistics.mean(times[: max(1, len(times) // 10)])]))


def measure(library: str, python: str, name: str, batch: int, threads: int) -> list[float]:
    count = str(threads)
    kept = {key: value for key, value in os.environ.items() if library == "numconv" or key != "PYTHONPATH"}
    environment = kept | {"OMP_NUM_THREADS": count, "OPENBLAS_NUM_THREADS": count, "NUMCONV_NUM_THREADS": count}
    command = [python, str(HERE / "training_beside_torch.py"), "--time", library, "--networks", name, "--batches", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable, help="the interpreter that has torch")
    parser.add_argument("--networks", default="digits,sound,sound_norm", help="a comma-separated list")
    parser.add_argument("--batches", default="32,128", help="a comma-separated list of batch sizes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--time", choices=["numconv", "torch"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    names, batches = options.networks.split(","), [int(batch) for batch in options.batches.split(",")]
    if options.time:
        time_steps(options.time, names[0], batches[0])
        return
    print(f"{'network':12s}{'batch':>6s}{'numconv ms':>12s}{'torch ms':>10s}{'ratio':>7s}{'of the fastest tenth':>22s}")
    for name in names:
        for batch in batches:
            ours = measure("numconv", sys.executable, name, batch, options.threads)
            theirs = measure("torch", options.peer_python, name, batch, options.threads)
            median, fast = (other / own for other, own in zip(theirs, ours, strict=True))
            print(f"{name:12s}{batch:6d}{ours[0] * 1e3:12.2f}{theirs[0] * 1e3:10.2f}{median:7.2f}{fast:22.2f}", flush=True)


if __name__ == "__main__":
    main()
