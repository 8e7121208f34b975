"""First values of parameters: Keras' initializers by name or as objects, reproducible.

Every parameter draws from its own stream, numbered when the layer is built: the values depend on the seed and on the
order in which layers are built, not on when (or whether) an earlier parameter is first read.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import DTypeError, ShapeError, Unsupported

Shape = tuple[int, ...]

_seed = 0
_streams = itertools.count()


def set_seed(seed: int) -> None:
    """Start the random numbers of new layers anew: the same seed and the same layers give the same weights.

    Without a call the seed is 0. Layers that are already built keep their weights.

    Errors: ShapeError for a negative seed, DTypeError for anything but an integer.
    Source: keras.utils.set_random_seed, for the numbers of this package only.

    >>> from convkern.layers import Dense, Input
    >>> def first():
    ...     set_seed(7)
    ...     layer = Dense(3)
    ...     layer(Input((2,)))
    ...     return layer.get_weights()[0]
    >>> bool((first() == first()).all())
    True
    """
    global _seed, _streams
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise DTypeError(f"seed: got {seed!r}, want an integer")
    if seed < 0:
        raise ShapeError(f"seed: got {seed}, want 0 or more")
    _seed, _streams = int(seed), itertools.count()


def current_seed() -> int:
    """The seed that `set_seed` set last."""
    return _seed


def next_stream() -> Callable[[], np.random.Generator]:
    """The random numbers of the next parameter, as a function that makes a fresh generator of them."""
    key = (_seed, next(_streams))
    return lambda: np.random.default_rng(key)


def fans(shape: Shape) -> tuple[float, float]:
    """Values that flow into and out of one unit: Keras' rule, all axes but the last two being the receptive field.

    >>> fans((3, 3, 64, 128))
    (576.0, 1152.0)
    """
    if len(shape) < 1:
        return 1.0, 1.0
    if len(shape) == 1:
        return float(shape[0]), float(shape[0])
    field = math.prod(shape[:-2])
    return float(shape[-2] * field), float(shape[-1] * field)


class Initializer:
    """Base: `initializer(shape, generator)` gives a float32 array; `get_config` gives the arguments back.

    An own initializer is a subclass, or any function of (shape, generator).
    """

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.get_config().items())})"


class Zeros(Initializer):
    """All values 0."""

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        return np.zeros(shape, np.float32)


class Ones(Initializer):
    """All values 1."""

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        return np.ones(shape, np.float32)


class Constant(Initializer):
    """One value, or an array of the parameter's shape."""

    def __init__(self, value: float = 0.0):
        self.value = value

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        value = np.asarray(self.value, np.float32)
        if value.shape not in ((), shape):
            raise ShapeError(f"Constant: got a value of shape {value.shape}, want {shape}")
        return np.full(shape, value, np.float32)

    def get_config(self) -> dict[str, Any]:
        return {"value": np.asarray(self.value).tolist()}


class RandomNormal(Initializer):
    """Normal numbers."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05):
        self.mean, self.stddev = mean, stddev

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        values = generator.standard_normal(shape, np.float32)
        values *= np.float32(self.stddev)
        values += np.float32(self.mean)
        return values


class RandomUniform(Initializer):
    """Uniform numbers in [minval, maxval)."""

    def __init__(self, minval: float = -0.05, maxval: float = 0.05):
        self.minval, self.maxval = minval, maxval

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        values = generator.random(shape, np.float32)
        values *= np.float32(self.maxval - self.minval)
        values += np.float32(self.minval)
        return values


class TruncatedNormal(Initializer):
    """Normal numbers, those beyond two standard deviations drawn again."""

    def __init__(self, mean: float = 0.0, stddev: float = 0.05):
        self.mean, self.stddev = mean, stddev

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        values = generator.standard_normal(shape, np.float32)
        while (outside := np.abs(values) > 2.0).any():
            values[outside] = generator.standard_normal(int(outside.sum()), np.float32)
        values *= np.float32(self.stddev)
        values += np.float32(self.mean)
        return values


class VarianceScaling(Initializer):
    """Variance scale / n, where n is the fan in, the fan out or their mean (Glorot 2010, He 2015).

    mode: "fan_in", "fan_out", "fan_avg"; distribution: "truncated_normal", "untruncated_normal", "uniform".
    """

    _TRUNCATION = 0.87962566103423978  # the standard deviation of a unit normal cut at +-2

    def __init__(self, scale: float = 1.0, mode: str = "fan_in", distribution: str = "truncated_normal"):
        if mode not in ("fan_in", "fan_out", "fan_avg"):
            raise Unsupported(f"VarianceScaling: mode={mode!r}; want fan_in, fan_out or fan_avg")
        if distribution not in ("truncated_normal", "untruncated_normal", "uniform"):
            raise Unsupported(
                f"VarianceScaling: distribution={distribution!r}; want truncated_normal, untruncated_normal or uniform"
            )
        if not scale > 0:
            raise ShapeError(f"VarianceScaling: scale={scale}, want more than 0")
        self.scale, self.mode, self.distribution = scale, mode, distribution

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        fan_in, fan_out = fans(shape)
        n = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, n)
        if self.distribution == "uniform":
            limit = math.sqrt(3 * variance)
            return RandomUniform(-limit, limit)(shape, generator)
        if self.distribution == "untruncated_normal":
            return RandomNormal(0.0, math.sqrt(variance))(shape, generator)
        return TruncatedNormal(0.0, math.sqrt(variance) / self._TRUNCATION)(shape, generator)


class Orthogonal(Initializer):
    """Orthonormal rows or columns of the (rest, last axis) matrix (Saxe 2014)."""

    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        if len(shape) < 2:
            raise ShapeError(f"Orthogonal: got the shape {shape}, want at least two axes")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(generator.standard_normal((max(rows, columns), min(rows, columns))))
        q *= np.sign(np.diag(r))
        return np.ascontiguousarray(self.gain * (q.T if rows < columns else q), np.float32).reshape(shape)


_CLASSES = {
    cls.__name__: cls
    for cls in (Zeros, Ones, Constant, RandomNormal, RandomUniform, TruncatedNormal, VarianceScaling, Orthogonal)
}

# Keras' names; the six classics are variance scaling with other numbers.
_NAMES: dict[str, Callable[[], Initializer]] = {
    "zeros": Zeros,
    "ones": Ones,
    "constant": Constant,
    "random_normal": RandomNormal,
    "random_uniform": RandomUniform,
    "truncated_normal": TruncatedNormal,
    "variance_scaling": VarianceScaling,
    "orthogonal": Orthogonal,
    "glorot_uniform": lambda: VarianceScaling(1.0, "fan_avg", "uniform"),
    "glorot_normal": lambda: VarianceScaling(1.0, "fan_avg", "truncated_normal"),
    "he_uniform": lambda: VarianceScaling(2.0, "fan_in", "uniform"),
    "he_normal": lambda: VarianceScaling(2.0, "fan_in", "truncated_normal"),
    "lecun_uniform": lambda: VarianceScaling(1.0, "fan_in", "uniform"),
    "lecun_normal": lambda: VarianceScaling(1.0, "fan_in", "truncated_normal"),
}

if TYPE_CHECKING:  # numpy.random takes as long to import as all of this package: it is left until numbers are drawn
    Spec = str | dict[str, Any] | Initializer | Callable[[Shape, np.random.Generator], np.ndarray]


def get(spec: Spec) -> Callable[[Shape, np.random.Generator], np.ndarray]:
    """The initializer that a layer's argument names: a name, an object, a function, or what `serialize` wrote.

    >>> get("he_normal")
    VarianceScaling(scale=2.0, mode='fan_in', distribution='truncated_normal')
    """
    if isinstance(spec, str) and spec in _NAMES:
        return _NAMES[spec]()
    if isinstance(spec, dict) and spec.get("class_name") in _CLASSES:
        return _CLASSES[spec["class_name"]](**spec.get("config", {}))
    if isinstance(spec, dict) and "function" in spec:
        return _Forgotten(spec["function"])
    if callable(spec):
        return spec
    raise Unsupported(f"initializer {spec!r}; want one of {', '.join(_NAMES)}, an Initializer or a function")


class _Forgotten:
    """Stands for an own function in a model that was read back: its weights come from the file, so it is not run as a
    rule.
    """

    def __init__(self, function: str):
        self.function = function

    def __call__(self, shape: Shape, generator: np.random.Generator) -> np.ndarray:
        raise Unsupported(
            f"the initializer was the function {self.function}, which saved architectures do not hold; set the weights"
        )


def serialize(spec: Spec) -> str | dict[str, Any]:
    """What stands for an initializer in a saved architecture. Of an own function only the name is kept: code is never
    stored.
    """
    if isinstance(spec, (str, dict)):
        return spec
    if isinstance(spec, _Forgotten):
        return {"function": spec.function}
    if isinstance(spec, Initializer) and _CLASSES.get(type(spec).__name__) is type(spec):
        return {"class_name": type(spec).__name__, "config": spec.get_config()}
    return {"function": getattr(spec, "__qualname__", type(spec).__qualname__)}
