"""Learning rates that depend on the number of the optimizer's step.

A schedule is a function of the step (an integer from 0) that keeps nothing, so that a resumed run needs no state of it.
Give one to an optimizer as its learning_rate. Units: all lengths are in optimizer steps (one a batch, unless gradients
are accumulated): multiply epochs by the steps of an epoch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from ..errors import ShapeError, Unsupported


class LearningRateSchedule:
    """Base: `schedule(step)` is the learning rate of that step; `get_config` gives the arguments back.

    >>> class Halving(LearningRateSchedule):
    ...     def __call__(self, step):
    ...         return 0.5**step
    >>> Halving()(3)
    0.125
    """

    def __call__(self, step: int) -> float:
        raise NotImplementedError(f"{type(self).__name__} does not define __call__(step)")

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this schedule again."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.get_config().items())})"


class StepDecay(LearningRateSchedule):
    """The learning rate times gamma after every `step_size` steps.

    Source: torch.optim.lr_scheduler.StepLR.

    >>> [StepDecay(1.0, 2, 0.1)(step) for step in range(4)]
    [1.0, 1.0, 0.1, 0.1]
    """

    def __init__(self, initial_learning_rate: float, step_size: int, gamma: float = 0.1):
        self.initial_learning_rate = float(initial_learning_rate)
        self.step_size = _length("step_size", step_size)
        self.gamma = float(gamma)

    def __call__(self, step: int) -> float:
        return self.initial_learning_rate * self.gamma ** (step // self.step_size)


class ExponentialDecay(LearningRateSchedule):
    """initial_learning_rate * decay_rate ** (step / decay_steps); staircase=True rounds the exponent down.

    Source: keras.optimizers.schedules.ExponentialDecay.

    >>> ExponentialDecay(1.0, 10, 0.25)(5)
    0.5
    """

    def __init__(self, initial_learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool = False):
        self.initial_learning_rate = float(initial_learning_rate)
        self.decay_steps = _length("decay_steps", decay_steps)
        self.decay_rate = float(decay_rate)
        self.staircase = bool(staircase)

    def __call__(self, step: int) -> float:
        exponent = step // self.decay_steps if self.staircase else step / self.decay_steps
        return self.initial_learning_rate * self.decay_rate**exponent


class PiecewiseConstantDecay(LearningRateSchedule):
    """values[i] up to and including step boundaries[i], the last value after that.

    Source: keras.optimizers.schedules.PiecewiseConstantDecay.

    >>> [PiecewiseConstantDecay([2, 4], [1.0, 0.5, 0.1])(step) for step in range(6)]
    [1.0, 1.0, 1.0, 0.5, 0.5, 0.1]
    """

    def __init__(self, boundaries: Sequence[int], values: Sequence[float]):
        self.boundaries, self.values = [int(b) for b in boundaries], [float(v) for v in values]
        if len(self.values) != len(self.boundaries) + 1 or sorted(self.boundaries) != self.boundaries:
            raise ShapeError(
                f"PiecewiseConstantDecay: got boundaries {list(boundaries)} and {len(self.values)} values, want rising "
                f"boundaries and one value more than there are boundaries"
            )

    def __call__(self, step: int) -> float:
        return self.values[sum(step > boundary for boundary in self.boundaries)]


class CosineDecay(LearningRateSchedule):
    """Half a cosine from initial_learning_rate down to alpha times it in `decay_steps`, and constant afterwards.

    With warmup_steps the rate first rises in a straight line from initial_learning_rate to warmup_target, and the
    cosine begins there.
    Source: keras.optimizers.schedules.CosineDecay; Loshchilov and Hutter 2017, "SGDR".

    >>> schedule = CosineDecay(0.0, 100, warmup_target=1.0, warmup_steps=10)
    >>> [round(schedule(step), 6) for step in (0, 5, 10, 60, 110)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        alpha: float = 0.0,
        warmup_target: float | None = None,
        warmup_steps: int = 0,
    ):
        self.initial_learning_rate = float(initial_learning_rate)
        self.decay_steps = _length("decay_steps", decay_steps)
        self.alpha = float(alpha)
        self.warmup_target = None if warmup_target is None else float(warmup_target)
        self.warmup_steps = _length("warmup_steps", warmup_steps, 0)
        if self.warmup_steps and self.warmup_target is None:
            raise Unsupported(f"CosineDecay: warmup_steps={warmup_steps} needs a warmup_target to rise to")

    def __call__(self, step: int) -> float:
        top = self.initial_learning_rate if self.warmup_target is None else self.warmup_target
        if step < self.warmup_steps:
            share = step / self.warmup_steps
            return self.initial_learning_rate + share * (top - self.initial_learning_rate)
        share = min(step - self.warmup_steps, self.decay_steps) / self.decay_steps
        return top * ((1 - self.alpha) * 0.5 * (1 + math.cos(math.pi * share)) + self.alpha)


class WarmUp(LearningRateSchedule):
    """Another schedule (or a number), reached in a straight line from 0 during the first `warmup_steps` steps.

    Step 0 takes the share 1 / warmup_steps: no step is without effect.

    >>> [WarmUp(1.0, 4)(step) for step in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    def __init__(self, schedule: LearningRateSchedule | float, warmup_steps: int):
        self.schedule = schedule if callable(schedule) else float(schedule)
        self.warmup_steps = _length("warmup_steps", warmup_steps)

    def __call__(self, step: int) -> float:
        rate = self.schedule(step) if callable(self.schedule) else self.schedule
        return rate * min(1.0, (step + 1) / self.warmup_steps)


class OneCycle(LearningRateSchedule):
    """Up to max_learning_rate and down to almost nothing in `total_steps`, both along half a cosine.

    pct_start: the share of the steps that rise. div_factor: the first rate is max_learning_rate / div_factor;
    final_div_factor: the last is the first / final_div_factor. After total_steps the rate stays there.
    Source: torch.optim.lr_scheduler.OneCycleLR; Smith and Topin 2018, arXiv:1708.07120.

    >>> schedule = OneCycle(1.0, 101)
    >>> [round(schedule(step), 4) for step in (0, 29, 100)]
    [0.04, 0.9998, 0.0]
    """

    def __init__(
        self,
        max_learning_rate: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ):
        self.max_learning_rate = float(max_learning_rate)
        self.total_steps = _length("total_steps", total_steps)
        self.pct_start = float(pct_start)
        self.div_factor = float(div_factor)
        self.final_div_factor = float(final_div_factor)
        if not 0 < self.pct_start < 1:
            raise ShapeError(f"OneCycle: pct_start={pct_start}, want a share between 0 and 1")

    def __call__(self, step: int) -> float:
        first = self.max_learning_rate / self.div_factor
        peak, end = self.pct_start * self.total_steps - 1, self.total_steps - 1
        if step <= peak:
            return _cosine(first, self.max_learning_rate, step / peak)
        share = (min(step, end) - peak) / (end - peak) if end > peak else 1.0
        return _cosine(self.max_learning_rate, first / self.final_div_factor, share)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def _length(what: str, value: int, least: int = 1) -> int:
    if int(value) != value or value < least:
        raise ShapeError(f"{what}: got {value}, want an integer of at least {least}")
    return int(value)
