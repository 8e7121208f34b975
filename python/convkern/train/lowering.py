"""From the graph of a training step to a plan: the compiler's lowering, and the operators that only training has.

Parameters that are trained are read where they lie: a `_core.Parameter` looks at the very memory that the optimizer
changes, and is touched after each step, so that the plan packs it again when it next runs. All else (a frozen
backbone's folded weights) is lowered as at inference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from .. import _core
from ..compiler import Lowering, ParameterCache, act_arguments, convolution, four, pad_arguments, pooling
from ..graph import Graph, Node, Param

_LOSSES = {"sparse": "softmax_sparse", "dense": "softmax_dense"}  # the compiled module's names where they differ

Relay = Callable[[np.ndarray], np.ndarray]


class Live:
    """A parameter whose values may change between runs, as a plan reads it.

    relay: from the parameter's layout to the plan's. The plan reads the parameter's own memory where the two differ in
    shape only; else (a transposed convolution's kernel) it reads a copy, which `touch` brings up to date.
    """

    def __init__(self, param: Param, relay: Relay, dtype: np.dtype):
        values = param.writable()
        laid = relay(values)
        self.param, self.relay = param, relay
        self.moved = not (laid.flags.c_contiguous and np.shares_memory(laid, values))
        self.array = np.ascontiguousarray(laid, dtype)
        self.shared = np.shares_memory(self.array, values)
        self.packed = _core.Parameter(self.array, trainable=True)  # packed into memory that all layers share

    def touch(self) -> None:
        """The parameter has changed."""
        if not self.shared:
            self.array[...] = self.relay(self.param.value)
        self.packed.touch()

    def back(self, gradient: np.ndarray) -> np.ndarray:
        """A gradient as the plan gives it, in the layout of the parameter."""
        if not self.moved:
            return gradient.reshape(self.param.shape)
        places = self.relay(np.arange(gradient.size).reshape(self.param.shape))
        result = np.empty(gradient.size, gradient.dtype)
        result[places.ravel()] = gradient.ravel()
        return result.reshape(self.param.shape)


class TrainingLowering(Lowering):
    """The steps of a training plan.

    trained: the parameters that are read where they lie. seed: of the dropout layers that have none of their own.
    After it, `live` holds what has to be touched, and `step` whether the plan wants the number of the step (a total of
    one number) as its last input.
    """

    def __init__(
        self,
        graph: Graph,
        dtype: str,
        exact: bool,
        lean: bool,
        cache: ParameterCache,
        trained: Collection[Param],
        seed: int = 0,
    ):
        self.trained = {id(param) for param in trained}
        self.seed = seed
        self.live: dict[tuple[int, str], Live] = {}
        self.step: int | None = None
        super().__init__(graph, dtype, exact, lean, cache)

    def make_plan(self, dtype: str, exact: bool, lean: bool, **kind: bool) -> _core.Plan:
        return _core.Plan(dtype, exact, lean, strips=False, training=True)

    def read_live(self, param: Param, layout: str = "vector", relay: Relay = lambda w: w) -> Live:
        key = (id(param), layout)
        if key not in self.live:
            self.live[key] = Live(param, relay, self.dtype)
        return self.live[key]

    # Parameters: those that are trained are read when the plan runs.

    def parameter(self, node: Node, layout: str, relay: Relay) -> _core.Parameter:
        kernel = node.params["kernel"]
        if isinstance(kernel, Param) and id(kernel) in self.trained:
            return self.read_live(kernel, layout, relay).packed
        return super().parameter(node, layout, relay)

    def vector_of(self, node: Node, key: str) -> Any:
        param = node.params.get(key)
        if isinstance(param, Param) and id(param) in self.trained:
            return self.read_live(param).packed
        return self.vector(param)

    def living(self, node: Node, key: str) -> Any:
        """A vector that the plan's step takes as a Parameter only."""
        param = node.params.get(key)
        if param is None:
            return None
        if isinstance(param, Param):
            return self.read_live(param).packed
        return _core.Parameter(np.ascontiguousarray(param, self.dtype))

    # The forward pass.

    def batch_norm_train(self, node: Node) -> tuple[int, ...]:
        residual = self.ids[node.inputs[1]] if node.attrs.get("residual", False) else -1
        return self.plan.batch_norm_train(
            self.x(node),
            self.living(node, "gamma"),
            self.living(node, "beta"),
            node.attrs["eps"],
            residual=residual,
            **act_arguments(node),
            label=node.name,
        )

    def dropout(self, node: Node) -> int:
        attrs = node.attrs
        own = attrs.get("seed")
        words = (self.seed if own is None else own, attrs["stream"])
        seed = int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0])
        if self.step is None:
            self.step = self.plan.total_input((1, 1, 1, 1))
        return self.plan.dropout(
            self.x(node), self.step, rate=attrs["rate"], seed=seed, per_image=attrs["per_image"], label=node.name
        )

    def loss(self, node: Node) -> tuple[int, ...]:
        x, target, *weight = (self.ids[tensor] for tensor in node.inputs)
        attrs = node.attrs
        return self.plan.loss(
            x,
            target,
            _LOSSES.get(attrs["kind"], attrs["kind"]),
            weight[0] if weight else -1,
            smoothing=attrs.get("smoothing", 0.0),
            mean=attrs.get("mean", True),
            scale=attrs.get("scale", 1.0),
            label=node.name,
        )

    # The backward pass: `of` is the forward operator. See autodiff.py.

    def input_gradient(self, node: Node) -> int:
        shape = self.graph.shapes[node.output]
        layout, relay, geometry = convolution(node, shape)
        geometry.pop("output_padding", None)
        add = self.ids[node.inputs[1]] if len(node.inputs) > 1 else -1
        weight = self.parameter(node, layout, relay)
        return self.plan.conv_backward_data(
            self.x(node), weight, four(shape), **geometry, add=add, label=f"{node.name} dx"
        )

    def kernel_gradient(self, node: Node) -> int:
        x, dy = (self.ids[tensor] for tensor in node.inputs)
        layout, relay, geometry = convolution(node, self.shape(node))
        geometry.pop("output_padding", None)
        kernel = self.read_live(node.params["kernel"], layout, relay)  # type: ignore[arg-type]
        window = tuple(kernel.array.shape[:3])
        return self.plan.conv_backward_weight(x, dy, kernel=window, **geometry, label=f"{node.name} dw")

    def bias_gradient(self, node: Node) -> int:
        channels = self.shape(node)[-1]
        return self.plan.sum(self.x(node), shape=(1, 1, 1, channels), label=f"{node.name} db")

    def batch_norm_gradient(self, node: Node) -> tuple[int, ...]:
        dy, x, mean, var = (self.ids[tensor] for tensor in node.inputs)
        gamma, beta = self.living(node, "gamma"), self.living(node, "beta")
        return self.plan.batch_norm_backward(
            dy, x, mean, var, gamma, beta, node.attrs["eps"], **act_arguments(node), label=f"{node.name} dx"
        )

    def layer_norm_gradient(self, node: Node) -> tuple[int, ...]:
        dy, x = (self.ids[tensor] for tensor in node.inputs)
        gamma = self.living(node, "gamma")
        return self.plan.layer_norm_backward(dy, x, gamma, node.attrs["eps"], label=f"{node.name} dx")

    def scale_gradient(self, node: Node) -> int:
        channels = self.shape(node)[-1:]
        scale = np.broadcast_to(np.asarray(node.attrs["scale"], np.float64), channels)
        shift = np.zeros(channels, np.float64)
        return self.plan.scale_shift(self.x(node), self.vector(scale), self.vector(shift), label=f"{node.name} dx")

    def lrn_gradient(self, node: Node) -> int:
        (dy, x), a = (self.ids[tensor] for tensor in node.inputs), node.attrs
        return self.plan.lrn_backward(dy, x, a["size"], a["alpha"], a["beta"], a["k"], label=f"{node.name} dx")

    def softmax_gradient(self, node: Node) -> int:
        dy, y = (self.ids[tensor] for tensor in node.inputs)
        return self.plan.softmax_backward(dy, y, bool(node.attrs.get("log", False)), label=f"{node.name} dx")

    def activation_gradient(self, node: Node) -> int:
        (dy, saved), a = (self.ids[tensor] for tensor in node.inputs), node.attrs
        return self.plan.activation_backward(dy, saved, a["kind"], a["a"], a["b"], label=f"{node.name} dx")

    def pool_gradient(self, node: Node) -> int:
        dy, *index = (self.ids[tensor] for tensor in node.inputs)
        attrs, shape = node.attrs, four(self.graph.shapes[node.output])
        label = f"{node.name} dx"
        if attrs["of"] != "pool":
            return self.plan.adaptive_pool_backward(dy, shape, attrs["kind"], index[0] if index else -1, label=label)
        if index:
            return self.plan.max_pool_backward(dy, index[0], shape, **pooling(node), label=label)
        return self.plan.avg_pool_backward(
            dy,
            shape,
            **pooling(node),
            count_include_pad=bool(attrs.get("count_include_pad", True)),
            divisor=attrs.get("divisor") or 0,
            label=label,
        )

    def binary_gradient(self, node: Node) -> tuple[int, ...]:
        dy, a, b = (self.ids[tensor] for tensor in node.inputs)
        need_a, need_b = node.attrs["wants"]
        return self.plan.binary_backward(dy, a, b, node.attrs["kind"], need_a, need_b, label=f"{node.name} dx")

    def reduce(self, node: Node) -> int:
        shape = four(self.graph.shapes[node.output])
        return self.plan.sum(self.x(node), shape=shape, total=False, label=f"{node.name} dx")

    def channel_slice(self, node: Node) -> int:
        return self.plan.channel_slice(self.x(node), node.attrs["first"], node.attrs["count"])

    def pad_gradient(self, node: Node) -> int:
        shape = self.graph.shapes[node.output]
        lo, hi = pad_arguments(node, len(shape))
        mode = node.attrs.get("mode", "constant")
        return self.plan.pad_backward(self.x(node), four(shape), lo, hi, mode, label=f"{node.name} dx")

    def resize_gradient(self, node: Node) -> int:
        a, shape = node.attrs, four(self.graph.shapes[node.output])
        scales = tuple(a.get("scales") or ())
        return self.plan.resize_backward(
            self.x(node),
            shape,
            a.get("mode", "nearest"),
            bool(a.get("align_corners", False)),
            (0.0,) * (3 - len(scales)) + scales,
            label=f"{node.name} dx",
        )
