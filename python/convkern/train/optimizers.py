"""Optimizers: how parameters follow their gradients. Formulas are those of torch.optim, arguments Keras' words.

A step is one fused pass over each parameter in the compiled core, in place, on all threads. An optimizer keeps its
slots (momentum, second moments) by the parameter's name, so that a checkpoint of it belongs to an architecture, not to
a process.
"""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _core
from ..errors import CheckpointError, DTypeError, ShapeError, Unsupported
from ..graph import Param
from .schedules import LearningRateSchedule

Gradients = Sequence[tuple[str, Param, np.ndarray]]  # name, parameter, gradient of the parameter's shape


class Optimizer:
    """Base of optimizers.

    learning_rate: a number, or a schedule (convkern.train.schedules); may be set at any time.
    weight_decay: as the class says; 0 or None for none.
    clipnorm: the largest norm of each parameter's gradient; global_clipnorm: of all together; clipvalue: the largest
        size of a single value. At most one of them.
    gradient_accumulation_steps: so many batches are averaged for one step.
    multipliers: {pattern: factor} on the learning rate of the parameters whose name ("layer/kernel") matches; the first
        pattern that does counts. 0 keeps a parameter as it is, without weight decay.
    no_decay: patterns of the names of parameters without weight decay: ("*/bias", "*/gamma", "*/beta").
    """

    slots: tuple[str, ...] = ()
    passes = 1  # how often a batch is run for one step

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        global_clipnorm: float | None = None,
        clipvalue: float | None = None,
        gradient_accumulation_steps: int | None = None,
        multipliers: Mapping[str, float] | None = None,
        no_decay: Iterable[str] = (),
        name: str | None = None,
    ):
        self.name = name or type(self).__name__.lower()
        self.learning_rate = learning_rate
        self.weight_decay = _at_least("weight_decay", weight_decay or 0.0, 0.0)
        self.clipnorm, self.global_clipnorm, self.clipvalue = clipnorm, global_clipnorm, clipvalue
        clips = {
            k: v
            for k, v in (("clipnorm", clipnorm), ("global_clipnorm", global_clipnorm), ("clipvalue", clipvalue))
            if v is not None
        }
        if len(clips) > 1:
            raise Unsupported(f"{self.name}: got {' and '.join(clips)}, want at most one kind of clipping")
        for key, value in clips.items():
            if not value > 0:
                raise ShapeError(f"{self.name}: {key}={value}, want more than 0")
        self.gradient_accumulation_steps = int(gradient_accumulation_steps or 1)
        if self.gradient_accumulation_steps < 1:
            raise ShapeError(f"{self.name}: gradient_accumulation_steps={gradient_accumulation_steps}, want at least 1")
        self.multipliers = dict(multipliers or {})
        self.no_decay = tuple(no_decay)
        self.iterations = 0  # steps that changed the parameters
        self.state: dict[str, dict[str, np.ndarray]] = {}  # slot -> name of the parameter -> values
        self.pending = 0  # batches in the accumulated gradients
        self._scales: dict[str, tuple[float, float]] = {}

    @property
    def learning_rate(self) -> float | LearningRateSchedule:
        """What was given: a number or a schedule; `rate` is its value for the next step."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float | LearningRateSchedule) -> None:
        self._learning_rate = value if callable(value) else _at_least("learning_rate", value, 0.0)

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._learning_rate(self.iterations)) if callable(self._learning_rate) else self._learning_rate

    def apply(self, gradients: Gradients) -> bool:
        """Take one step along the gradients of a batch, or add them to those of the batches before.

        The parameters change in place. Returns whether they did. The gradients' arrays may be changed.
        """
        if self.gradient_accumulation_steps > 1:
            gradients = self._accumulated(gradients)
            if self.pending < self.gradient_accumulation_steps:
                return False
            self.pending = 0
        factors = self._clip(gradients)
        if self.gradient_accumulation_steps > 1:
            factors = [factor / self.gradient_accumulation_steps for factor in factors]
        rate = self.rate
        groups: dict[tuple[float, float, float], list[tuple[np.ndarray, ...]]] = {}  # what one call can change
        for (name, param, gradient), factor in zip(gradients, factors):
            multiplier, decay = self._scale(name)
            if multiplier:
                slots = (self._slot(slot, name, param.shape) for slot in self.slots)
                group = groups.setdefault((rate * multiplier, decay, factor), [])
                group.append((param.writable(), gradient, *slots))
                param.changed()
        for (own_rate, decay, factor), rows in groups.items():
            self._update([list(column) for column in zip(*rows)], own_rate, decay, factor)
        self.iterations += 1
        for _, _, gradient in gradients if self.gradient_accumulation_steps > 1 else ():
            gradient[...] = 0
        return True

    def _update(self, columns: list[list[np.ndarray]], rate: float, decay: float, scale: float) -> None:
        """Change parameters and slots in place for gradients times `scale`; self.iterations counts the steps before.

        columns: the parameters' values, their gradients, and each slot's.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define _update")

    def _slot(self, slot: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = self.state.setdefault(slot, {})
        if name not in values or values[name].shape != shape:
            values[name] = np.zeros(shape, np.float32)
        return values[name]

    def _scale(self, name: str) -> tuple[float, float]:
        """The multiplier and the weight decay of a parameter."""
        if name not in self._scales:
            matching = (m for pattern, m in self.multipliers.items() if fnmatch.fnmatchcase(name, pattern))
            free = any(fnmatch.fnmatchcase(name, pattern) for pattern in self.no_decay)
            self._scales[name] = float(next(matching, 1.0)), 0.0 if free else self.weight_decay
        return self._scales[name]

    def _accumulated(self, gradients: Gradients) -> Gradients:
        sums = [(name, param, self._slot("accumulated", name, param.shape)) for name, param, _ in gradients]
        for (_, _, total), (_, _, gradient) in zip(sums, gradients):
            total += gradient
        self.pending += 1
        return sums

    def _clip(self, gradients: Gradients) -> list[float]:
        """Factors that bring the gradients to their largest norms; single values are clipped in place."""
        count = self.gradient_accumulation_steps
        if self.clipvalue is not None:
            for _, _, gradient in gradients:
                np.clip(gradient, -self.clipvalue * count, self.clipvalue * count, out=gradient)
        if self.clipnorm is None and self.global_clipnorm is None:
            return [1.0] * len(gradients)
        norms = [norm(gradient) / count for _, _, gradient in gradients]
        if self.global_clipnorm is not None:
            total = math.sqrt(sum(n * n for n in norms))
            return [min(1.0, self.global_clipnorm / total) if total else 1.0] * len(gradients)
        assert self.clipnorm is not None
        return [min(1.0, self.clipnorm / n) if n else 1.0 for n in norms]

    # Description and state.

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this optimizer again, as JSON types (but for own schedules)."""
        config = {}
        for cls in type(self).__mro__:
            for key in inspect.signature(cls.__init__).parameters if issubclass(cls, Optimizer) else ():
                if key not in ("self", "base") and hasattr(self, key):
                    value = getattr(self, key)
                    config[key] = list(value) if isinstance(value, tuple) else value
        rate = config["learning_rate"]
        if isinstance(rate, LearningRateSchedule):
            config["learning_rate"] = {"class_name": type(rate).__name__, "config": rate.get_config()}
        return config

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a checkpoint keeps: the slots as "slot/parameter", and the counters with the learning rate."""
        arrays = {f"{slot}/{name}": array for slot, values in self.state.items() for name, array in values.items()}
        rate = None if callable(self._learning_rate) else self._learning_rate
        return arrays, {"kind": self.name, "iterations": self.iterations, "pending": self.pending, "rate": rate}

    def check_state(
        self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], shapes: Mapping[str, Any]
    ) -> None:
        """CheckpointError if the state is that of another optimizer or of other parameters (shapes: by name)."""
        if facts["kind"] != self.name:
            raise CheckpointError(f"the checkpoint was written with the optimizer {facts['kind']!r}, not {self.name!r}")
        for key, array in arrays.items():
            name = key.partition("/")[2]
            if shapes.get(name) != array.shape:
                raise CheckpointError(
                    f"the optimizer's {key} has the shape {array.shape}, the model's parameter {shapes.get(name)}"
                )

    def load_state(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self.state = {}
        for key, array in arrays.items():
            slot, _, name = key.partition("/")
            self.state.setdefault(slot, {})[name] = np.array(array, np.float32)
        self.iterations, self.pending = int(facts["iterations"]), int(facts["pending"])
        if facts["rate"] is not None and not callable(self._learning_rate):
            self._learning_rate = float(facts["rate"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(learning_rate={self._learning_rate!r}, iterations={self.iterations})"


class SGD(Optimizer):
    """v = momentum * v + g; w -= rate * v (with nesterov: rate * (g + momentum * v)); g includes weight_decay * w.

    Source: torch.optim.SGD.

    >>> SGD(0.1, momentum=0.9).rate
    0.1
    """

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        **base: Any,
    ):
        super().__init__(learning_rate, **base)
        self.momentum, self.nesterov = _at_least("momentum", momentum, 0.0), bool(nesterov)
        if self.nesterov and not self.momentum:
            raise Unsupported("sgd: nesterov=True needs a momentum")
        self.slots = ("momentum",) if self.momentum else ()

    def _update(self, columns: list[list[np.ndarray]], rate: float, decay: float, scale: float) -> None:
        _core.sgd_step(*columns, rate=rate, momentum=self.momentum, nesterov=self.nesterov, decay=decay, scale=scale)


class RMSprop(Optimizer):
    """v = rho * v + (1 - rho) * g**2; w -= rate * g / (sqrt(v) + epsilon); momentum and weight decay as in SGD.

    Source: torch.optim.RMSprop.
    """

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        **base: Any,
    ):
        super().__init__(learning_rate, **base)
        self.rho, self.momentum, self.epsilon = float(rho), _at_least("momentum", momentum, 0.0), float(epsilon)
        self.slots = ("square", "momentum") if self.momentum else ("square",)

    def _update(self, columns: list[list[np.ndarray]], rate: float, decay: float, scale: float) -> None:
        _core.rmsprop_step(
            *columns, rate=rate, alpha=self.rho, momentum=self.momentum, eps=self.epsilon, decay=decay, scale=scale
        )


class Adam(Optimizer):
    """w -= rate * m / (sqrt(v) + epsilon), m and v the running means of g and g**2 without their bias to zero.

    weight_decay * w is added to g.
    Source: torch.optim.Adam (Kingma and Ba 2015, arXiv:1412.6980); epsilon 1e-7 as in Keras.
    """

    slots = ("m", "v")
    decoupled = False

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **base: Any,
    ):
        super().__init__(learning_rate, **base)
        self.beta_1, self.beta_2, self.epsilon = float(beta_1), float(beta_2), float(epsilon)
        if not (0 <= self.beta_1 < 1 and 0 <= self.beta_2 < 1):
            raise ShapeError(f"{self.name}: beta_1={beta_1}, beta_2={beta_2}; want 0 <= beta < 1")

    def _update(self, columns: list[list[np.ndarray]], rate: float, decay: float, scale: float) -> None:
        _core.adam_step(
            *columns,
            step=self.iterations + 1,
            rate=rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            eps=self.epsilon,
            decay=decay,
            decoupled=self.decoupled,
            scale=scale,
        )


class AdamW(Adam):
    """Adam with weight decay beside the gradient: w is first multiplied by 1 - rate * weight_decay.

    Source: torch.optim.AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101); weight_decay 0.004 as in Keras.
    """

    decoupled = True

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **base: Any,
    ):
        super().__init__(learning_rate, beta_1, beta_2, epsilon, weight_decay=weight_decay, **base)


class SAM(Optimizer):
    """Sharpness-aware minimisation: each batch is run twice, and the second gradient is taken at w + rho * g / |g|.

    base: the optimizer that takes the step; learning rate, clipping and so on are its own. Running statistics of batch
    norms come from the first run alone.
    Errors: Unsupported with gradient accumulation.
    Source: Foret et al. 2021, arXiv:2010.01412, eq. 2 and 3.

    >>> SAM(SGD(0.1, momentum=0.9), rho=0.05).rate
    0.1
    """

    passes = 2

    def __init__(self, base: Optimizer | str = "sgd", rho: float = 0.05, name: str | None = None):
        self.base = get(base)
        if self.base.gradient_accumulation_steps > 1 or isinstance(self.base, SAM):
            raise Unsupported(f"SAM over {self.base!r}: gradients are not accumulated, and SAM is not stacked")
        self.rho = _at_least("rho", rho, 0.0)
        super().__init__(self.base.learning_rate, name=name)
        self._moved: list[tuple[Param, np.ndarray]] = []

    @property
    def learning_rate(self) -> float | LearningRateSchedule:
        return self.base.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float | LearningRateSchedule) -> None:
        self.base.learning_rate = value

    @property
    def rate(self) -> float:
        return self.base.rate

    def ascend(self, gradients: Gradients) -> None:
        """Move the parameters to where the second gradient is wanted."""
        total = math.sqrt(sum(norm(gradient) ** 2 for _, _, gradient in gradients))
        self._moved = [(param, param.writable().copy()) for _, param, _ in gradients]
        for _, param, gradient in gradients:
            values = param.writable()
            values += gradient * np.float32(self.rho / (total + 1e-12))
            param.changed()

    def apply(self, gradients: Gradients) -> bool:
        """Move back, and let the base take the step along the second gradients."""
        for param, values in self._moved:
            param.writable()[...] = values
            param.changed()
        self._moved = []
        self.iterations += 1
        return self.base.apply(gradients)

    def get_config(self) -> dict[str, Any]:
        base = {"class_name": type(self.base).__name__, "config": self.base.get_config()}
        return {"base": base, "rho": self.rho, "name": self.name}

    def state_dict(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, facts = self.base.state_dict()
        return arrays, {**facts, "kind": f"{self.name}({facts['kind']})", "base": facts}

    def check_state(
        self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], shapes: Mapping[str, Any]
    ) -> None:
        own = f"{self.name}({self.base.name})"
        if facts["kind"] != own:
            raise CheckpointError(f"the checkpoint was written with the optimizer {facts['kind']!r}, not {own!r}")
        self.base.check_state(arrays, facts["base"], shapes)

    def load_state(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        self.base.load_state(arrays, facts["base"])
        self.iterations = self.base.iterations


def norm(array: np.ndarray) -> float:
    """The square root of the sum of squares.

    >>> norm(np.array([3, 4], "f4"))
    5.0
    """
    flat = array.ravel()
    return math.sqrt(float(np.dot(flat, flat)))


_NAMES: dict[str, Callable[[], Optimizer]] = {
    "sgd": SGD,
    "rmsprop": RMSprop,
    "adam": Adam,
    "adamw": AdamW,
    "sam": SAM,
}


def get(optimizer: Any) -> Optimizer:
    """An Optimizer from its name, with its defaults, or itself.

    >>> get("adam").rate
    0.001
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, str) and optimizer.lower() in _NAMES:
        return _NAMES[optimizer.lower()]()
    raise Unsupported(f"optimizer {optimizer!r}; want one of {', '.join(_NAMES)}, or an Optimizer")


def _at_least(what: str, value: Any, least: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DTypeError(f"{what}: got {value!r}, want a number or a schedule") from None
    if not number >= least:
        raise ShapeError(f"{what}: got {value}, want at least {least:g}")
    return number
