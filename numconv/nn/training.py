"""`fit`: batches, steps, epochs, and when to stop."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from numconv.errors import NumconvError, ProblemError

from . import schedules
from .data import Arrays, Data, as_data, check_batch
from .devices import namespace
from .evaluation import Loss, Tally, checked_size, evaluate
from .files import check_path
from .layer import Array, Layer, pack
from .losses import cross_entropy
from .optimisers import AdamW, Optimiser, clip_norm
from .progress import Bar
from .resuming import Row, State, entropy_of, restore, store
from .schedules import Schedule, cosine

__all__ = ["History", "fit"]

_ADVICE = "lower the rate, give clip=, or look for labels that are no class and for values that are not finite in x"

Augment = Callable[[Array, np.random.Generator], Array]


@dataclass(frozen=True)
class History:
    """How a training went: one entry an epoch.

    Attributes
    ----------
    loss, accuracy : tuple of float
        On the training data, while it was learned from; accuracy None where targets are no classes.
    validation_loss, validation_accuracy : tuple of float
        After the epoch; None without validation data.
    seconds : tuple of float
    best : int or None
        The epoch, counted from 0, whose weights were restored at the end.
    """

    loss: tuple[float, ...] = ()
    accuracy: tuple[float | None, ...] = ()
    validation_loss: tuple[float | None, ...] = ()
    validation_accuracy: tuple[float | None, ...] = ()
    seconds: tuple[float, ...] = ()
    best: int | None = None


def fit(
    model: Layer,
    train: Any,
    *,
    epochs: int,
    batch_size: int = 32,
    loss: Loss = cross_entropy,
    optimiser: Optimiser = AdamW(),
    schedule: Schedule = cosine(),
    rng: int | np.random.Generator | None = 0,
    validation: Any = None,
    augment: Augment | None = None,
    clip: float | None = None,
    patience: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    progress: bool = True,
) -> History:
    """Train a model.

    Parameters
    ----------
    model : Layer
        Built; its parameters change.
    train, validation : (x, targets) or an object with ``__len__`` and ``batches(batch_size, rng=None)``
        Of the dtype and on the device of the parameters. `batches` yields all samples as (x, targets), in an order that it draws
        from `rng`, or in their own if that is None.
    epochs, batch_size : int
    loss : function
        ``loss(scores, targets) -> (value, gradient)``.
    optimiser : SGD, AdamW or another `Optimiser`
    schedule : function
        ``schedule(step, steps) -> factor`` of the optimiser's rate.
    rng : int, numpy.random.Generator or None
        From which the order of the samples and all noise follow; None: another one each time.
    augment : function, optional
        ``augment(x, rng) -> x``, for each batch of the training data.
    clip : float, optional
        The largest Euclidean norm of the gradient of all parameters.
    patience : int, optional
        Stop after so many epochs without a lower validation loss. The best weights are restored, however training ends.
    checkpoint : path, optional
        A file for the whole state of the training, replaced after each epoch. It never holds half of one.
    checkpoint_every : int, optional
        Write it after so many steps of an epoch, too.
    resume : bool
        Go on from `checkpoint` where there is one: the result has the bits of a training that never stopped.
    progress : bool
        Show a bar, if tqdm is installed.

    Returns
    -------
    History

    Raises
    ------
    ProblemError
        If arguments, data and model do not fit together, or the checkpoint is of another training.
    NumconvError
        If the loss is not finite.

    Notes
    -----
    The result is a function of the arguments: the same bits from run to run, and for any number of threads of the backend.

    Examples
    --------
    >>> import numpy as np
    >>> from numconv import nn
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((200, 2), dtype="float32")
    >>> labels = (x[:, 0] * x[:, 1] > 0).astype(int)
    >>> model = nn.Sequential(nn.Linear(16), nn.ReLU(), nn.Linear(2)).build((2,))
    >>> history = nn.fit(model, (x, labels), epochs=20, optimiser=nn.AdamW(0.02), progress=False)
    >>> len(history.loss), history.accuracy[-1] > 0.9
    (20, True)
    """
    training = _Training(
        model, as_data(train, "fit: train"), None if validation is None else as_data(validation, "fit: validation"),
        epochs, batch_size, loss, optimiser, schedule, augment, clip, patience,
        None if checkpoint is None else Path(checkpoint), checkpoint_every,
    )  # fmt: skip
    training.begin(rng, resume)
    return training.run(progress)


@dataclass
class _Training:
    """A training: its settings, and where it is."""

    model: Layer
    train: Data
    validation: Data | None
    epochs: int
    batch_size: int
    loss: Loss
    optimiser: Optimiser
    schedule: Schedule
    augment: Augment | None
    clip: float | None
    patience: int | None
    path: Path | None
    every: int | None

    vector: Array = field(init=False)
    """All parameters."""
    decays: Array = field(init=False)
    """1 where weights decay, else 0."""
    steps: int = field(init=False)
    """In an epoch."""
    state: State = field(init=False)

    def check(self) -> None:
        """Raise ProblemError unless settings, data and model fit together."""
        model: Any = self.model
        if not isinstance(model, Layer):
            raise ProblemError(f"fit: model={model!r} is no layer; give one, such as nn.Sequential(...).build(shape)")
        self.batch_size = checked_size(self.batch_size)
        counts: dict[str, Any] = {"epochs": self.epochs, "patience": self.patience, "checkpoint_every": self.every}
        for name, value in counts.items():
            if value is not None and not (isinstance(value, int | np.integer) and value > 0):
                raise ProblemError(f"fit: {name}={value!r} must be an integer of at least 1")
        if self.clip is not None and not self.clip > 0:
            raise ProblemError(f"fit: clip={self.clip!r} must be above 0")
        if self.patience is not None and self.validation is None:
            raise ProblemError("fit: patience watches the validation loss; give validation=(x, targets)")
        if self.every is not None and self.path is None:
            raise ProblemError("fit: checkpoint_every needs a file; give checkpoint=path")
        if self.path is not None:
            check_path(self.path)
        self._check_functions()
        vector = pack(self.model)
        if vector is None:
            raise ProblemError("fit: the model has no parameters; call model.build(shape) first")
        if vector.dtype not in (np.float32, np.float64):
            raise ProblemError(f"fit: parameters of {vector.dtype} are too coarse for small steps; build with float32 or float64")
        for data, name in ((self.train, "train"), (self.validation, "validation")):
            if not isinstance(data, Arrays):
                continue
            check_batch(self.model, data.x, f"fit: {name}: x")
            if data.x.dtype != vector.dtype:
                raise ProblemError(
                    f"fit: {name} has x of dtype {data.x.dtype} and the model is {vector.dtype}; x.astype({str(vector.dtype)!r})"
                )
        self.vector = vector

    def _check_functions(self) -> None:
        """Raise ProblemError unless what is called is a function, or an optimiser: not its name."""
        for name, example in {"loss": "nn.cross_entropy", "schedule": "nn.cosine()", "augment": "training.Shift(0.1)"}.items():
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise ProblemError(f"fit: {name}={value!r} must be a function, such as {example}")
        makers: tuple[Any, ...] = (schedules.constant, schedules.cosine, schedules.step)
        if self.schedule in makers:
            raise ProblemError(f"fit: schedule=nn.{_name(self.schedule)} makes schedules; call it: nn.{_name(self.schedule)}()")
        if isinstance(self.optimiser, type) or not all(
            callable(getattr(self.optimiser, name, None)) for name in ("start", "update")
        ):
            raise ProblemError(f"fit: optimiser={self.optimiser!r} must be an optimiser, such as nn.AdamW(3e-3)")

    def begin(self, rng: int | np.random.Generator | None, resume: bool) -> None:
        """The state before the first step, or that of the checkpoint."""
        self.check()
        xp = namespace(self.vector)
        weights = self.model.parameters.values()
        self.decays = xp.concatenate([xp.full(a.size, a.ndim > 1, dtype=self.vector.dtype) for a in weights])
        self.steps = math.ceil(len(self.train) / self.batch_size)
        self.state = State(entropy_of(rng), self.optimiser.start(self.vector))
        if not resume:
            return
        if self.path is None:
            raise ProblemError("fit: resume=True goes on from a file; give checkpoint=path")
        if self.path.exists():
            restore(self.path, self.model, self.state, self.settings | ({"rng": rng} if isinstance(rng, int | np.integer) else {}))

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same where a training goes on."""
        return {
            "samples": len(self.train), "batch_size": self.batch_size, "loss": _name(self.loss),
            "optimiser": _name(self.optimiser), "schedule": _name(self.schedule), "augment": _name(self.augment),
            "clip": None if self.clip is None else float(self.clip),
            "patience": None if self.patience is None else int(self.patience),
        }  # fmt: skip

    def run(self, progress: bool) -> History:
        """Train to the end, and put the best weights back."""
        state = self.state
        _keep_memory()
        with Bar(self.epochs * self.steps, state.epoch * self.steps + state.step, progress) as bar:
            while state.epoch < self.epochs and not self.stopped:
                self.learn(bar)
                self.judge(bar)
        if state.best:
            for name, array in (self.model.parameters | self.model.state).items():
                array[...] = state.best[name]
        loss, accuracy, validation_loss, validation_accuracy, seconds = zip(*state.rows, strict=True)
        return History(loss, accuracy, validation_loss, validation_accuracy, seconds, state.best_epoch)

    @property
    def stopped(self) -> bool:
        """Whether the validation loss has not fallen for too long."""
        best = self.state.best_epoch
        return self.patience is not None and best is not None and self.state.epoch - 1 - best >= self.patience

    def learn(self, bar: Bar) -> None:
        """All steps of an epoch, or those that are left of it."""
        state = self.state
        order, noise = state.generators()
        since = time.perf_counter() - state.seconds
        for x, targets in itertools.islice(self.train.batches(self.batch_size, order), state.step, None):
            self.step(x, targets, noise)
            state.step += 1
            bar.step()
            if self.every is not None and state.step % self.every == 0:
                state.noise, state.seconds = dict(noise.bit_generator.state), time.perf_counter() - since
                self.save()
        state.seconds = time.perf_counter() - since

    def step(self, x: Array, targets: Array, noise: np.random.Generator) -> None:
        """One batch: forward, backward, and the optimiser."""
        state = self.state
        if self.augment is not None:
            x = self.augment(x, noise)
        scores, backward = self.model.forward(x, training=True, rng=noise)
        value, grad_scores = self.loss(scores, targets)
        state.tally.add(value, scores, targets)
        _, grads = backward(grad_scores, needs_x=False)
        grad = namespace(self.vector).concatenate([grads[name].reshape(-1) for name in self.model.parameters])
        if self.clip is not None:
            clip_norm(grad, self.clip)
        step = state.epoch * self.steps + state.step
        factor = self.schedule(step, self.epochs * self.steps)
        self.optimiser.update(self.vector, grad, state.optimiser, step=step, factor=factor, decays=self.decays)

    def judge(self, bar: Bar) -> None:
        """After an epoch: validation, history, the best weights, the checkpoint."""
        state = self.state
        loss, accuracy = state.tally.means
        if not math.isfinite(loss):
            raise NumconvError(f"fit: the loss of epoch {state.epoch + 1} is {loss}; {_ADVICE}")
        row = Row(loss, accuracy, None, None, state.seconds)
        if self.validation is not None:
            found = evaluate(self.model, self.validation, max(self.batch_size, 256), self.loss)
            row = row._replace(validation_loss=found.loss, validation_accuracy=found.accuracy)
            if self.patience is not None and found.loss < state.best_loss:
                state.best_epoch = state.epoch
                state.best = {name: a.copy() for name, a in (self.model.parameters | self.model.state).items()}
        state.rows.append(row)
        state.epoch, state.step, state.noise, state.tally, state.seconds = state.epoch + 1, 0, None, Tally(), 0.0
        bar.tell(_told(row))
        self.save()

    def save(self) -> None:
        """Write the checkpoint, if one is wanted."""
        if self.path is None:
            return
        if not math.isfinite(float((self.vector * 0).sum())):
            raise NumconvError(
                f"fit: step {self.state.step} of epoch {self.state.epoch + 1} left weights that are not finite; {_ADVICE}"
            )
        store(self.path, self.model, self.state, self.settings | {"rng": self.state.entropy})


def _keep_memory() -> None:
    """Have the C library keep the memory of a step for the next one.

    Steps allocate and free the same large arrays. The GNU C library raises what it keeps to twice the largest size that it saw
    freed, up to 64 MiB: below that each step would touch fresh pages, which took 40 % of its time where this was measured. The
    array itself is never written, so it takes no memory; other C libraries see nothing but a free.
    """
    np.empty(2**25 - 2**13, np.uint8)


def _name(function: Any) -> str | None:
    """What stays the same in another process: plain settings, or the name of a function."""
    if function is None or dataclasses.is_dataclass(function):
        return None if function is None else repr(function)
    return getattr(function, "__qualname__", type(function).__qualname__)


def _told(row: Row) -> str:
    shown = {"loss": row.loss, "accuracy": row.accuracy, "validation loss": row.validation_loss,
             "validation accuracy": row.validation_accuracy}  # fmt: skip
    return ", ".join(f"{name} {value:.4f}" for name, value in shown.items() if value is not None)
