"""Fusing: convolution (or linear layer), batch norm, residual add and activation in one step.

torch.fx traces the model; chains of such nodes that nothing else reads become one node each. Without gradients a chain
is one operator, whose folded weights are made from the model's own parameters and follow them; in training it is two,
the convolution and batch norm with what follows. A FusedModel has no weights of its own and nothing to undo.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from ..errors import Unsupported
from . import operators
from .modules import NO_ACTIVATION, BatchNorm2d, ConvTranspose2d, Layer, Linear, _Conv, fallback_reason

Activation = tuple[str, float, float]  # as Plan.conv takes it

_ACTIVATION_MODULES: dict[type[nn.Module], Callable[[Any], Activation]] = {
    nn.ReLU: lambda m: ("relu", 0.0, 0.0),
    nn.ReLU6: lambda m: ("relu6", 0.0, 0.0),
    nn.Hardtanh: lambda m: ("clamp", m.min_val, m.max_val),
    nn.SiLU: lambda m: ("silu", 0.0, 0.0),
    nn.Sigmoid: lambda m: ("sigmoid", 0.0, 0.0),
    nn.Tanh: lambda m: ("tanh", 0.0, 0.0),
    nn.Hardswish: lambda m: ("hard_swish", 0.0, 0.0),
    nn.Hardsigmoid: lambda m: ("hard_sigmoid", 0.0, 0.0),
    nn.GELU: lambda m: ("gelu_tanh" if m.approximate == "tanh" else "gelu", 0.0, 0.0),
    nn.ELU: lambda m: ("elu", m.alpha, 0.0),
    nn.LeakyReLU: lambda m: ("leaky_relu", m.negative_slope, 0.0),
    nn.Softplus: lambda m: ("softplus", m.beta, m.threshold),
}
_ACTIVATION_FUNCTIONS: dict[Any, Activation] = {
    function: (name, 0.0, 0.0)
    for name, functions in {
        "relu": (F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"),
        "relu6": (F.relu6,),
        "silu": (F.silu,),
        "sigmoid": (F.sigmoid, torch.sigmoid, "sigmoid", "sigmoid_"),
        "tanh": (F.tanh, torch.tanh, "tanh", "tanh_"),
        "hard_swish": (F.hardswish,),
        "hard_sigmoid": (F.hardsigmoid,),
    }.items()
    for function in functions
}
_CLAMPS = ("none", "relu", "relu6", "clamp")  # what batch norm in training takes along
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}


class FusedStep(nn.Module):
    """A convolution with what follows it: as one operator, in training as two or, where neither serves, one by one.

    It refers to the model's modules without owning them. rest: what follows the convolution, as functions of
    (y, residual).
    """

    def __init__(
        self,
        conv: Layer,
        norm: BatchNorm2d | None,
        activation: Activation | None,
        rest: list[Callable[[Tensor, Tensor | None], Tensor]],
    ):
        super().__init__()
        # Beside nn.Module's registers: these modules belong to the model.
        self.__dict__.update(conv=conv, norm=norm, activation=activation or NO_ACTIVATION, rest=rest)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        conv, norm = self.conv, self.norm
        weight, bias = conv.weight, conv.bias
        statistics = [] if norm is None else [norm.running_mean, norm.running_var, norm.weight, norm.bias]
        if (
            fallback_reason(input, weight, bias, *statistics, residual, casts=True)
            or input.dim() != weight.dim()
            or (norm is not None and input.dim() != 4)
            or (residual is not None and residual.shape != operators.conv_shape(input, weight, *conv.geometry()))
        ):
            return self._one_by_one(input, residual)
        if norm is not None and norm.training:
            y = conv(input)
            if self.activation[0] not in _CLAMPS or y.numel() < 2 * y.shape[1]:
                return self._follow(y, residual)
            return norm.with_batch_statistics(y, residual, self.activation)
        if torch.is_grad_enabled():
            return self._one_by_one(input, residual)
        eps = 0.0 if norm is None else norm.eps
        options = (statistics, eps, residual, *self.activation, *conv.geometry())
        return operators.conv_fused(input, weight, bias, *options)

    def _one_by_one(self, input: Tensor, residual: Tensor | None) -> Tensor:
        return self._follow(self.conv(input), residual)

    def _follow(self, y: Tensor, residual: Tensor | None) -> Tensor:
        for step in self.rest:
            y = step(y, residual)
        return y


class FusedModel(nn.Module):
    """A model that is computed with fused steps.

    `original` is the model. It may be trained, or not, as a whole or in parts; parameters may change at any time. While
    a forward hook is on any of its modules, `original` itself is run. `report()` says what was fused.
    """

    def __init__(self, original: nn.Module):
        super().__init__()
        self.original = original
        self.training = original.training
        self._fuse()

    def _fuse(self) -> None:
        modules = list(self.original.modules())
        self.__dict__.update(_programs={}, _watched=modules)
        modes = [module.training for module in modules]
        self.original.eval()
        try:
            self.__dict__["_report"] = self._program()[1]
        finally:
            for module, training in zip(modules, modes):
                module.training = training

    def _program(self) -> tuple[fx.GraphModule, list[tuple[str, str]]]:
        """What was traced with each module in the mode (training or not) it is in, since functions may depend on it."""
        modes = tuple([module.training for module in self._watched])
        program = self._programs.get(modes)
        if program is None:
            program = self._programs[modes] = fuse(self.original)
        return program

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if any(module._forward_hooks or module._forward_pre_hooks for module in self._watched):
            return self.original(*args, **kwargs)
        return self._program()[0](*args, **kwargs)

    def report(self) -> list[tuple[str, str]]:
        """For each module that computes something: its name, and what became of it.

        >>> from convkern.torch import replace_layers
        >>> model = replace_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()), fuse=True)
        >>> model.report()
        [('0', 'fused: 0 + 1 + 2'), ('1', 'fused into 0'), ('2', 'fused into 0')]
        """
        return list(self._report)

    def __getstate__(self) -> dict[str, Any]:  # copies and pickles are fused anew
        made = ("_programs", "_watched", "_report")
        return {key: value for key, value in self.__dict__.items() if key not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._fuse()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Layer) or super().is_leaf_module(m, module_qualified_name)


def fuse(model: nn.Module) -> tuple[fx.GraphModule, list[tuple[str, str]]]:
    """The program, with fused steps, of a model whose layers are ours, in the modes they are in; and what was fused."""
    try:
        graph = _Tracer().trace(model)
    except Exception as error:
        raise Unsupported(
            f"fuse=True: torch.fx cannot trace {type(model).__name__} ({type(error).__name__}: {error}); fuse parts "
            "without data-dependent control flow, as in model.backbone = replace_layers(model.backbone, fuse=True)"
        ) from error
    modules = dict(model.named_modules(remove_duplicate=False))
    program = fx.GraphModule(model, graph)
    program.training = model.training
    report: dict[str, str] = {}
    for node in list(graph.nodes):
        if node.op == "call_module" and isinstance(modules[node.target], (_Conv, ConvTranspose2d, Linear)):
            chain = _Chain(node, modules)
            if chain.refusal:
                report[node.target] = f"alone: {chain.refusal}"
            elif len(chain.nodes) > 1:
                name = "fused_" + node.target.replace(".", "_")
                program.add_submodule(name, chain.step())
                chain.replace(graph, name)
                names = [str(n.target) if n.op == "call_module" else n.name for n in chain.nodes]
                report.update({name: f"fused into {names[0]}" for name in names[1:] if name in modules})
                report[names[0]] = f"fused: {' + '.join(names)}"
    for node in graph.nodes:
        if node.op == "call_module" and node.target in modules and node.target not in report:
            own = isinstance(modules[node.target], Layer)
            report[node.target] = "alone" if own else "torch's own"
    order = {name: i for i, name in enumerate(modules)}
    graph.lint()
    program.recompile()
    return program, sorted(report.items(), key=lambda item: order.get(item[0], len(order)))


class _Chain:
    """A convolution's node and those after it that one step can compute."""

    def __init__(self, node: fx.Node, modules: dict[str, nn.Module]):
        self.modules = modules
        self.nodes = [node]
        self.norm: BatchNorm2d | None = None
        self.residual: fx.Node | None = None
        self.activation: Activation | None = None
        self.rest: list[Any] = []  # the same, one by one: functions of (y, residual)
        conv: Any = modules[node.target]
        self.refusal = None
        if len(node.args) != 1 or node.kwargs:
            self.refusal = "called with more than its input"
        elif getattr(conv, "padding_mode", "zeros") != "zeros":
            self.refusal = f"padding_mode={conv.padding_mode!r}"
        else:
            for take in (self._take_norm, self._take_add, self._take_activation):
                following = self._following()
                if following is not None and take(following):
                    self.nodes.append(following)

    def _following(self) -> fx.Node | None:
        """The only reader of the chain so far, unless something in between works in place.

        The chain will run where its last node is; what it reads must not have changed by then.
        """
        last = self.nodes[-1]
        if len(last.users) != 1:
            return None
        (user,) = last.users
        node = self.nodes[0].next
        while node is not user:
            if node not in self.nodes and self._in_place(node):
                return None
            node = node.next
        return user

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.modules.get(node.target), "inplace", False))  # type: ignore[arg-type]
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        in_place = node.target in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))
        return (
            in_place
            or bool(node.kwargs.get("inplace", False))
            or "out" in node.kwargs
            or any(a is True for a in node.args)
        )

    def _take_norm(self, node: fx.Node) -> bool:
        norm = self.modules.get(node.target) if node.op == "call_module" else None  # type: ignore[arg-type]
        if not isinstance(norm, BatchNorm2d) or norm.running_mean is None or norm.weight is None or norm.bias is None:
            return False
        self.norm = norm
        self.rest.append(lambda y, residual: norm(y))
        return True

    def _take_add(self, node: fx.Node) -> bool:
        if node.op not in ("call_function", "call_method") or node.target not in _ADDS:
            return False
        if len(node.args) != 2 or node.kwargs:
            return False
        a, b = node.args
        other = b if a is self.nodes[-1] else a
        if not isinstance(other, fx.Node) or a is b:
            return False
        self.residual = other
        self.rest.append(lambda y, residual: y + residual)
        return True

    def _take_activation(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module: Any = self.modules.get(node.target)  # type: ignore[arg-type]
            if type(module) not in _ACTIVATION_MODULES:
                return False
            self.activation = _ACTIVATION_MODULES[type(module)](module)
            self.rest.append(lambda y, residual: module(y))
            return True
        if node.op not in ("call_function", "call_method") or node.target not in _ACTIVATION_FUNCTIONS:
            return False
        if len(node.args) != 1 or set(node.kwargs) - {"inplace"}:
            return False
        self.activation = _ACTIVATION_FUNCTIONS[node.target]
        target = node.target
        function = (lambda y: getattr(y, target)()) if isinstance(target, str) else target
        self.rest.append(lambda y, residual: function(y))
        return True

    def step(self) -> FusedStep:
        conv: Any = self.modules[self.nodes[0].target]  # type: ignore[index]
        return FusedStep(conv, self.norm, self.activation, self.rest)

    def replace(self, graph: fx.Graph, name: str) -> None:
        """One call in place of the nodes."""
        last = self.nodes[-1]
        with graph.inserting_before(last):
            inputs = (self.nodes[0].args[0], *(() if self.residual is None else (self.residual,)))
            call = graph.call_module(name, inputs)
        last.replace_all_uses_with(call)
        for node in reversed(self.nodes):
            graph.erase_node(node)
