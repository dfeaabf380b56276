"""The equivariance error of any function of arrays, and where it comes from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from numconv.errors import ProblemError

from .lattice import Lattice, locate
from .sampling import are_samples, by_fourier_series, by_splines, grid, samples
from .transforms import Transform

__all__ = ["EquivarianceError", "Residuals", "equivariance_error", "residuals"]

Array = np.ndarray[Any, Any]
Function = Callable[[Any], Any]


class EquivarianceError(NamedTuple):
    """Norms relative to that of f(x); `error` is at most the sum of the others (see `equivariance_error` for their formulas).

    Attributes
    ----------
    error : float
        All of it.
    exact : float
        What the operation itself does, under an ideal transformation, without stride and border.
    stride : float
        What keeping only every s-th output adds.
    border : float
        What the frame adds: padding, and what enters and leaves.
    interpolation : float
        What the splines of the transformation add.
    """

    error: float
    exact: float
    stride: float
    border: float
    interpolation: float


class Residuals(NamedTuple):
    """The error and its parts as maps ``[N, K, *Q]``, ``error == exact + stride + border + interpolation``, and f(x).

    For a function whose outputs are vectors ``[N, K]``, `stride` and `border` are None: they cannot be told from `exact`, which
    holds them.
    """

    error: Array
    exact: Array
    stride: Array | None
    border: Array | None
    interpolation: Array
    output: Array


def equivariance_error(
    f: Function,
    x: Any,
    transform: Transform,
    *,
    channels: Sequence[int] | None = None,
    pooled: bool = False,
    lattice: Lattice | None = None,
    order: int = 3,
) -> EquivarianceError:
    """How far f is from being equivariant: norm(f(T x) - T' f(x)) / norm(f(x)), and its parts.

    Parameters
    ----------
    f : callable
        From an array ``[N, C, *S]`` to an array ``[N, K, *Q]``, for any S; or to vectors ``[N, K]``. Of any framework: what it
        returns is read by `numpy.asarray`.
    x : array ``[N, C, *S]``
        Real, of a dtype that f takes; whole numbers make exact zeros visible. S is a multiple of the stride of f.
    transform : Transform
        T.
    channels : sequence of int, optional
        How T' permutes the output channels: output channel k of T' comes from channel ``channels[k]``, as for the layers of group
        convolutions. By default they stay.
    pooled : bool
        Whether the mean over all positions follows f: the error is then that of a network that ends with global average pooling, of
        which f is the part before it.
    lattice : Lattice, optional
        Where the outputs of f lie; by default found out by `locate`.
    order : int
        Of the splines with which T and T' interpolate, 0 to 5.

    Returns
    -------
    EquivarianceError

    Raises
    ------
    ProblemError
        If shapes, dtype and transformation do not go together.

    Notes
    -----
    x is continued periodically to the whole plane (line, space), and T is a map of the plane; (T x)(p) = x(T^-1 p). Output q of f
    lies at ``p = offset + s q``; T' is T on these points: shifts are divided by s. Write

    - f° for the operation on the plane, without any border: f on x continued far enough, cut out again;
    - F for f° with stride 1, put together from f° on shifted inputs, and D for keeping every s-th output, so f° = D F;
    - T* for the ideal transformation: the Fourier series of the periodic signal, evaluated at T^-1 p, without the frequencies that
      T would bring beyond the Nyquist frequency.

    The error r = f(T x) - T' f(x) is then the sum of four maps, whose norms are the parts:

    - border: ``(f - f°)(T x) - T' (f - f°)(x)``
    - stride: ``D T F(x) - T' D F(x)``
    - exact: ``D (F(T* x) - T* F(x))``
    - interpolation: ``D (F(T x) - T F(x)) - exact``

    T moves samples to samples for whole shifts, quarter turns and reflections. Then T = T*, and nothing is rounded. What T' needs
    beyond the outputs that f gives is 0; of more outputs than a period has, as with padding "full", those in the middle count.
    T* takes prod(S)^2 operations a channel: images of some hundred rows at the most.

    With ``pooled=True`` each map is averaged over its positions, and the mean of ``T' f(x) - f(x)``, what enters and leaves the
    frame, joins the border. For vectors, exact is ``f(T* x) - f(x)``, interpolation ``f(T x) - f(T* x)``, and stride and border are
    NaN.

    Examples
    --------
    A convolution with circular padding moves with its input; with a stride of 2 only for shifts by multiples of 2:

    >>> import numpy as np, numconv as nc
    >>> from numconv.equivariance import equivariance_error, translation
    >>> rng = np.random.default_rng(0)
    >>> x, w = rng.integers(-9, 9, (1, 1, 8, 8)).astype(float), rng.integers(-9, 9, (4, 1, 3, 3)).astype(float)
    >>> def f(x, stride=1):
    ...     return nc.conv(x, w, stride=stride, padding=1, pad_mode="circular", accuracy="strict")
    >>> equivariance_error(f, x, translation(1, 1)).error
    0.0
    >>> [equivariance_error(lambda x: f(x, stride=2), x, translation(t, t)).stride > 0 for t in (1, 2)]
    [True, False]
    """
    parts = residuals(f, x, transform, channels=channels, pooled=pooled, lattice=lattice, order=order)
    size = float(np.linalg.norm(parts.output))

    def relative(part: Array | None) -> float:
        if part is None:
            return math.nan
        norm = float(np.linalg.norm(part))
        return norm / size if size else (math.inf if norm else 0.0)

    return EquivarianceError(*(relative(part) for part in parts[:-1]))


def residuals(
    f: Function,
    x: Any,
    transform: Transform,
    *,
    channels: Sequence[int] | None = None,
    pooled: bool = False,
    lattice: Lattice | None = None,
    order: int = 3,
) -> Residuals:
    """The error of `equivariance_error` and its parts as maps, to look at.

    Parameters
    ----------
    f, x, transform, channels, pooled, lattice, order
        As for `equivariance_error`.

    Returns
    -------
    Residuals
        In double precision.

    Raises
    ------
    ProblemError
        As for `equivariance_error`.

    Examples
    --------
    Zeros beyond the border are seen by the outputs there, and by those that come from there:

    >>> import numpy as np, numconv as nc
    >>> from numconv.equivariance import residuals, translation
    >>> found = residuals(lambda x: nc.conv(x, np.ones((1, 1, 3)), padding=1), np.ones((1, 1, 8)), translation(3))
    >>> found.border[0, 0]
    array([-1.,  0.,  1.,  1.,  0.,  0.,  0., -1.])
    """
    x = _checked(x, transform, order)
    output = np.asarray(f(x))
    if output.ndim == 2 and not pooled:
        return _of_vectors(f, x, transform, output, order)
    lattice = locate(f, x) if lattice is None else lattice
    frame = _frame(lattice, x.shape[2:], output.shape[2:])
    order_of = list(range(output.shape[1])) if channels is None else list(channels)
    if sorted(order_of) != list(range(output.shape[1])):
        raise ProblemError(f"channels={order_of} is no permutation of the {output.shape[1]} output channels")
    return _of_maps(_Moves(f, x, transform, frame, order_of, order), pooled)


def _checked(given: Any, transform: Transform, order: int) -> Array:
    """x as an array that the transformation takes."""
    if not isinstance(transform, Transform):
        raise ProblemError(
            f"transform={transform!r} is a {type(transform).__name__}; give one of this module's, such as rotation(90), or "
            "parse_transform(text)"
        )
    x: Array = np.asarray(given)
    if x.ndim != transform.ndim + 2:
        raise ProblemError(
            f"x {x.shape} has {x.ndim - 2} spatial dimensions ([N, C, *S]), and {transform.name!r} is for {transform.ndim}"
        )
    if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer)) or not x.size:
        raise ProblemError(f"x {x.shape} of dtype {x.dtype} must hold real numbers")
    if order not in range(6):
        raise ProblemError(f"order={order!r} of the splines must be 0 to 5")
    if np.issubdtype(x.dtype, np.integer) and not are_samples(transform.sources(samples(x.shape[2:]), x.shape[2:])):
        raise ProblemError(f"{transform.name!r} of x {x.shape} needs values between samples, and x is {x.dtype}; give floats")
    return x


def _of_vectors(f: Function, x: Array, transform: Transform, output: Array, order: int) -> Residuals:
    """For outputs without positions: T' leaves them as they are."""
    sources = transform.sources(samples(x.shape[2:]), x.shape[2:])
    moved = np.asarray(f(by_splines(x, sources, order))).astype(np.float64)
    ideal = np.asarray(f(by_fourier_series(x, sources, np.asarray(transform.matrix)))).astype(np.float64)
    return Residuals(moved - output, ideal - output, None, None, moved - ideal, output.astype(np.float64))


@dataclass(frozen=True)
class _Frame:
    """The outputs that are compared, among those of one period of the plane."""

    lattice: Lattice
    """Of the compared outputs: they begin at 0."""
    first: tuple[int, ...]
    """The output of f with which they begin."""
    count: tuple[int, ...]
    """How many there are."""
    period: tuple[int, ...]
    """How many there would be in a whole period."""


def _frame(lattice: Lattice, size: tuple[int, ...], outputs: tuple[int, ...]) -> _Frame:
    if not len(size) == len(outputs) == len(lattice.stride):
        raise ProblemError(f"f gives {len(outputs)} spatial dimensions, x has {len(size)}, the lattice {len(lattice.stride)}")
    periods = [Fraction(s) / step for s, step in zip(size, lattice.stride, strict=True)]
    if any(period.denominator != 1 for period in periods):
        stride = tuple(str(step) for step in lattice.stride)
        raise ProblemError(f"spatial sizes {size} of x must be multiples of the stride ({', '.join(stride)}): crop x")
    period = tuple(int(each) for each in periods)
    first = tuple(max((q - whole) // 2, 0) for q, whole in zip(outputs, period, strict=True))
    offset = tuple(o + s * q for o, s, q in zip(lattice.offset, lattice.stride, first, strict=True))
    return _Frame(lattice._replace(offset=offset), first, tuple(map(min, outputs, period)), period)


class _Moves(NamedTuple):
    """f, x and T of one question, and the maps of its formulas, each ``[N, K, *period]`` or a cut of it."""

    f: Function
    x: Array
    transform: Transform
    frame: _Frame
    channels: list[int]
    order: int

    @property
    def dense(self) -> tuple[Fraction, ...]:
        """Distance between the outputs of F."""
        return tuple(min(s, Fraction(1)) for s in self.frame.lattice.stride)

    def image(self, ideal: bool, margin: tuple[int, ...] | None = None) -> Array:
        """T x or T* x on the frame of x, or on a wider one."""
        size = self.x.shape[2:]
        margin = (0,) * len(size) if margin is None else margin
        wide = tuple(s + 2 * m for s, m in zip(size, margin, strict=True))
        sources = self.transform.sources(grid(tuple(-m for m in margin), wide, (1,) * len(size)), size)
        return (
            by_fourier_series(self.x, sources, np.asarray(self.transform.matrix))
            if ideal
            else by_splines(self.x, sources, self.order)
        )

    def output(self, step: tuple[Fraction, ...], values: Array, ideal: bool = False) -> Array:
        """T' or T* of a map whose outputs lie `step` apart, at the places of f's outputs, ``[N, K, *period]``."""
        lattice, size = self.frame.lattice, self.x.shape[2:]
        column = (-1, *(1,) * len(size))
        offset = np.array([float(o) for o in lattice.offset]).reshape(column)
        steps = np.array([float(s) for s in step])
        points = grid(lattice.offset, self.frame.period, lattice.stride)
        coordinates = (self.transform.sources(points, size) - offset) / steps.reshape(column)
        if ideal:
            matrix = np.asarray(self.transform.matrix) * steps / steps[:, None]
            moved = by_fourier_series(values, coordinates, matrix)
        else:
            moved = by_splines(values, coordinates, self.order)
        return moved[:, self.channels]

    def here(self, x: Array) -> Array:
        """f, as it is; 0 where it gives nothing."""
        values = np.asarray(self.f(x)).astype(np.float64)
        cut = tuple(slice(q, q + n) for q, n in zip(self.frame.first, self.frame.count, strict=True))
        missing = [(0, whole - n) for whole, n in zip(self.frame.period, self.frame.count, strict=True)]
        return np.pad(values[:, :, *cut], [(0, 0), (0, 0), *missing])

    @property
    def margin(self) -> tuple[int, ...]:
        """By how much x is continued on each side, so that f sees no border; a multiple of the stride."""
        lattice = self.frame.lattice
        far = [math.ceil(abs(o)) + reach + 1 for o, reach in zip(lattice.offset, lattice.reach, strict=True)]
        return tuple(-(-m // math.ceil(s)) * math.ceil(s) for m, s in zip(far, lattice.stride, strict=True))

    def plane(self, wide: Array) -> Array:
        """f° from the input with its margin."""
        values = np.asarray(self.f(wide)).astype(np.float64)
        spans = zip(self.margin, self.frame.lattice.stride, self.frame.first, self.frame.period, strict=True)
        cut = [slice(int(m / s) + first, int(m / s) + first + n) for m, s, first, n in spans]
        found = values[:, :, *cut]
        if found.shape[2:] != self.frame.period:
            raise ProblemError(
                f"f gives {values.shape} for x {wide.shape}, and {self.frame.lattice} asks for outputs {cut}; give lattice="
            )
        return found

    def everywhere(self) -> Array:
        """F(x): f° on x shifted by 0 to s - 1 samples in each dimension, interlaced."""
        strides = [math.ceil(s) for s in self.frame.lattice.stride]
        shape = [n * s for n, s in zip(self.frame.period, strides, strict=True)]
        whole: Array | None = None
        axes = tuple(range(2, self.x.ndim))
        for shifts in itertools.product(*(range(s) for s in strides)):
            x = np.roll(self.x, [-shift for shift in shifts], axes)
            found = self.plane(np.pad(x, [(0, 0), (0, 0), *((m, m) for m in self.margin)], mode="wrap"))
            whole = np.empty((*found.shape[:2], *shape)) if whole is None else whole
            whole[:, :, *(slice(shift, None, s) for shift, s in zip(shifts, strides, strict=True))] = found
        assert whole is not None  # a stride is at least one step
        return whole


def _of_maps(moves: _Moves, pooled: bool) -> Residuals:
    """The formulas of `equivariance_error`."""
    lattice = moves.frame.lattice
    moved = moves.image(ideal=False)
    f_x, f_moved = moves.here(moves.x), moves.here(moved)
    dense = moves.everywhere()
    plane_x = dense[:, :, *(slice(None, None, math.ceil(s)) for s in lattice.stride)]
    plane_moved = moves.plane(moves.image(ideal=False, margin=moves.margin))
    plane_ideal = moves.plane(moves.image(ideal=True, margin=moves.margin))

    t_f_x = moves.output(lattice.stride, f_x)
    t_plane_x = moves.output(lattice.stride, plane_x)
    t_dense = moves.output(moves.dense, dense)
    exact = plane_ideal - moves.output(moves.dense, dense, ideal=True)
    maps = {
        "error": f_moved - t_f_x,
        "exact": exact,
        "stride": t_dense - t_plane_x,
        "border": (f_moved - plane_moved) - (t_f_x - t_plane_x),
        "interpolation": (plane_moved - t_dense) - exact,
        "output": f_x,
    }
    cut = tuple(slice(n) for n in moves.frame.count)
    maps = {name: values[:, :, *cut] for name, values in maps.items()}
    if pooled:
        entered = t_f_x[:, :, *cut] - f_x[:, moves.channels][:, :, *cut]
        maps["error"] = maps["error"] + entered
        maps["border"] = maps["border"] + entered
        maps = {name: values.mean(axis=tuple(range(2, values.ndim))) for name, values in maps.items()}
    return Residuals(**maps)
