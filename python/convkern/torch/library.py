"""How a function becomes an operator of `torch.ops.convkern`, and how operators are called.

    @operator("double(Tensor input, bool channels_last) -> Tensor", fake=_double_fake)
    def double(input, channels_last): ...             # the kernel, for CPU tensors

    @double.derivative(saves=("input",))
    def double_gradients(ctx, grad): ...              # the gradients of the first arguments; those left out are None

torch.compile and torch.export see one node with the shapes of `fake`. In `ctx` a derivative finds `saved_tensors` (what
`saves` and `saves_results` name), `options` (the arguments that are no tensors), `shape` (the first argument's) and
`needs_input_grad`. Only an operator's first result has a gradient.

Where nothing but numbers can come of a call (no trace, no mode) it leaves out torch's dispatcher, which would cost as
much as a kernel on a small image: with a gradient it is an autograd function in Python, without one just the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import Unsupported

LIBRARY = torch.library.Library("convkern", "DEF")

Kernel = Callable[..., Any]


class Operator:
    """One of torch.ops.convkern, to be called with positional arguments."""

    def __init__(self, schema: str, kernel: Kernel, fake: Kernel):
        self.name = schema.split("(")[0]
        self.kernel, self.__doc__ = kernel, kernel.__doc__
        LIBRARY.define(schema)
        LIBRARY.impl(self.name, kernel, "CPU")
        self.overload = getattr(torch.ops.convkern, self.name).default
        self.arguments = [argument.name for argument in self.overload._schema.arguments]
        self.options = [i for i, a in enumerate(self.overload._schema.arguments) if "Tensor" not in str(a.type)]
        self.gradients: Kernel = self._refuse
        self.saved: list[int] = []
        self.saved_results: Sequence[int] = ()
        name = f"convkern::{self.name}"
        torch.library.register_fake(name, fake, lib=LIBRARY)
        torch.library.register_autograd(name, self._backward, setup_context=self._setup, lib=LIBRARY)
        methods = dict(forward=staticmethod(self._forward), backward=staticmethod(self._backward))
        self.function: Any = type(f"convkern_{self.name}", (torch.autograd.Function,), methods)

    def __call__(self, *arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _observed():
            return self.overload(*arguments)
        if torch.is_grad_enabled():
            for argument in arguments:
                if isinstance(argument, Tensor) and argument.requires_grad:
                    return self.function.apply(*arguments)
        return self.kernel(*arguments)

    def derivative(self, saves: Sequence[str] = (), saves_results: Sequence[int] = ()) -> Callable[[Kernel], Kernel]:
        """A decorator for the function of (ctx, gradient of the result) that gives the gradients of the arguments."""

        def decorate(gradients: Kernel) -> Kernel:
            self.gradients, self.saved_results = gradients, saves_results
            self.saved = [self.arguments.index(name) for name in saves]
            return gradients

        return decorate

    def _forward(self, ctx: Any, *arguments: Any) -> Any:
        output = self.kernel(*arguments)
        self._setup(ctx, arguments, output)
        return output

    def _setup(self, ctx: Any, inputs: Sequence[Any], output: Any) -> None:
        results = output if isinstance(output, tuple) else (output,)
        ctx.options, ctx.shape = [inputs[i] for i in self.options], inputs[0].shape
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results[1:])
        ctx.save_for_backward(*[inputs[i] for i in self.saved], *[results[i] for i in self.saved_results])

    def _backward(self, ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        gradients = () if grad is None else self.gradients(ctx, grad)
        return *gradients, *(None,) * (len(self.arguments) - len(gradients))

    def _refuse(self, ctx: Any, grad: Tensor) -> Any:
        raise Unsupported(f"convkern::{self.name} has no derivative of its own; torch's layers have (restore_layers)")


def operator(schema: str, fake: Kernel) -> Callable[[Kernel], Operator]:
    """A decorator that defines an operator: its schema, and its result without data."""
    return lambda kernel: Operator(schema, kernel, fake)


def _observed() -> bool:
    c = torch._C
    return bool(
        c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or c._get_tracing_state()
        or c._autograd._profiler_enabled()
    )
