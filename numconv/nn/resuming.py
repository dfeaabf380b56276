"""Where a training is, and how that goes to a file and back."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from numconv.errors import ProblemError

from .devices import namespace
from .evaluation import Tally
from .files import describe, fill, read, write
from .layer import Array, Layer

__all__ = ["Row", "State", "entropy_of", "restore", "store"]


class Row(NamedTuple):
    """What the history says of an epoch."""

    loss: float
    accuracy: float | None
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float


@dataclass
class State:
    """Where a training is. With the model's own arrays it is all that the further course depends on."""

    entropy: int
    """From which all random numbers follow, with the number of the epoch."""
    optimiser: dict[str, Array]
    epoch: int = 0
    step: int = 0
    """Steps done in this epoch."""
    noise: dict[str, Any] | None = None
    """Of the generator of this epoch's noise, where steps are done in it."""
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    """Spent in this epoch."""
    rows: list[Row] = field(default_factory=list)
    best_epoch: int | None = None
    best: dict[str, Array] = field(default_factory=dict)
    """The parameters and the model's state after that epoch."""

    @property
    def best_loss(self) -> float:
        """The lowest validation loss so far."""
        lowest = None if self.best_epoch is None else self.rows[self.best_epoch].validation_loss
        return math.inf if lowest is None else lowest

    def generators(self) -> tuple[np.random.Generator, np.random.Generator]:
        """For the order of this epoch's samples, and for its noise."""
        order, noise = (np.random.default_rng(np.random.SeedSequence(self.entropy, spawn_key=(self.epoch, i))) for i in range(2))
        if self.noise is not None:
            noise.bit_generator.state = self.noise
        return order, noise


def entropy_of(rng: int | np.random.Generator | None) -> int:
    """A number from which all others follow."""
    if isinstance(rng, np.random.Generator):
        return int(rng.integers(2**63))
    seed: Any = rng
    if seed is not None and not (isinstance(seed, int | np.integer) and seed >= 0):
        raise ProblemError(f"fit: rng={seed!r} must be an integer of at least 0, a numpy.random.Generator or None")
    return int(np.random.SeedSequence(rng).entropy)  # type: ignore[arg-type]  # of one number


def store(path: Path, model: Layer, state: State, settings: dict[str, Any]) -> None:
    """Write a checkpoint."""
    arrays = {f"model.{name}": a for name, a in (model.parameters | model.state).items()}
    arrays |= {f"optimiser.{name}": a for name, a in state.optimiser.items()}
    arrays |= {f"best.{name}": a for name, a in state.best.items()}
    loss, right = float(state.tally.loss), int(state.tally.right)
    progress = {
        "entropy": state.entropy, "epoch": state.epoch, "step": state.step, "noise": state.noise, "seconds": state.seconds,
        "tally": dataclasses.astuple(dataclasses.replace(state.tally, loss=loss, right=right)),
        "rows": state.rows, "best_epoch": state.best_epoch,
    }  # fmt: skip
    write(path, "checkpoint", arrays, describe(model) | {"settings": settings, "progress": progress})


def restore(path: Path, model: Layer, state: State, settings: dict[str, Any]) -> None:
    """Set the model and the state to those of a checkpoint, if it is one of this training."""
    arrays, header = read(path, "checkpoint")
    what = f"fit: {path} is a checkpoint of another training"
    for name, ours, theirs in [("the model", model.config, header["config"])] + [
        (name, value, header["settings"].get(name)) for name, value in settings.items()
    ]:
        if ours != theirs:
            raise ProblemError(f"{what}: {name} was {theirs} and is {ours}; give the same, or begin anew with resume=False")
    parts: dict[str, dict[str, Any]] = {"model": {}, "optimiser": {}, "best": {}}
    for name, array in arrays.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = array
    fill(model.parameters | model.state, parts["model"], what)
    fill(state.optimiser, parts["optimiser"], what)
    xp = namespace(next(iter(model.parameters.values())))
    state.best = {name: xp.asarray(array) for name, array in parts["best"].items()}
    found = header["progress"]
    state.tally = Tally(*found.pop("tally"))
    state.rows = [Row(*row) for row in found.pop("rows")]
    for name, value in found.items():
        setattr(state, name, value)
