"""Ten steps of training (forward, loss, backward, optimiser) of small networks: on digits, and on raw sound of one second."""

import functools

import numpy as np

from numconv import nn

SHAPES = {"digits": (1, 8, 8), "sound": (1, 8000), "sound_norm": (1, 8000)}
BATCH, STEPS = 32, 10


def layers_of(name: str) -> list[nn.Layer]:
    """The layers of a network; with "norm", BatchNorm after each convolution."""
    if name == "digits":
        return [
            nn.Conv(16, 3, padding="same"), nn.ReLU(),
            nn.Conv(32, 3, padding="same"), nn.ReLU(), nn.MaxPool(2),
            nn.Conv(32, 3, padding="same"), nn.ReLU(), nn.MaxPool(2),
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(10),
        ]  # fmt: skip
    found = []
    for layer in (nn.Conv(32, 15, stride=4), *(nn.Conv(64, window, padding="same") for window in (9, 5, 5))):
        found += [layer, *([nn.BatchNorm()] if "norm" in name else []), nn.ReLU(), nn.MaxPool(4)]
    return [*found[:-1], nn.GlobalAvgPool(), nn.Dropout(0.3), nn.Linear(5)]


@functools.cache
def prepared(name: str) -> tuple[nn.Sequential, tuple[np.ndarray, np.ndarray]]:
    """The network, after a step that compiled its kernels, and the samples of the steps."""
    model = nn.Sequential(*layers_of(name)).build(SHAPES[name])
    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS * BATCH, *SHAPES[name]), np.float32)
    labels = rng.integers(model[-1].features, size=len(x))
    train(model, (x[:BATCH], labels[:BATCH]))
    return model, (x, labels)


def train(model: nn.Sequential, data: tuple[np.ndarray, np.ndarray]) -> None:
    nn.fit(model, data, epochs=1, batch_size=BATCH, progress=False)


def setup(name: str) -> None:
    prepared(name)


def time_ten_steps(name: str) -> None:
    train(*prepared(name))


time_ten_steps.params = [list(SHAPES)]
time_ten_steps.param_names = ["network"]
