"""`device=` on every function of convkern.ops: where it runs."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def placed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a keyword `device`: "cuda:0" copies arrays of the CPU there first; None runs where they are."""

    @functools.wraps(function)
    def on(*args: Any, device: str | None = None, **options: Any) -> Any:
        if device is None or device == "cpu":
            return function(*args, **options)
        from ..device import is_array, to_device

        def moved(value: Any) -> Any:
            if isinstance(value, (list, tuple)) and any(map(is_array, value)):
                return [moved(item) for item in value]
            return to_device(value, device) if is_array(value) else value

        return function(*map(moved, args), **{name: moved(value) for name, value in options.items()})

    signature = inspect.signature(function)
    extra = inspect.Parameter("device", inspect.Parameter.KEYWORD_ONLY, default=None, annotation="str | None")
    on.__signature__ = signature.replace(parameters=[*signature.parameters.values(), extra])  # type: ignore[attr-defined]
    return on
