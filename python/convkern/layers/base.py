"""What every layer is: a named thing with parameters that is called on symbolic tensors and lowers itself to operators.

A call `y = layer(x)` on a symbolic tensor does three things: it builds the layer (creates its parameters) the first
time, infers the shape of y by lowering the layer into a scratch graph (so that graph.infer_shape stays the only place
with size formulas), and records who made y from what. A Model is later read off from those records.

A layer writes down three things: its arguments (kept under their own names, which is all that `get_config` needs),
`build`, which adds parameters, and `lower`, which adds operators to a graph:

    class Scale(Layer):
        def __init__(self, factor, **base):
            super().__init__(**base)
            self.factor = factor

        def lower(self, graph, inputs):
            return graph.add("rescale", inputs, {"scale": self.factor, "offset": 0.0})
"""

from __future__ import annotations

import inspect
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import initializers
from ..arrays import as_ndarray
from ..errors import ConvkernError, DTypeError, ModelError, ShapeError, Unsupported
from ..graph import MAX_RANK, Graph, Param

if TYPE_CHECKING:
    from ..model import Model

Shape = tuple[int, ...]
OpenShape = tuple["int | None", ...]  # None: any size, known only when the model is called

# Two sizes that stand for None while shapes are inferred: where the results differ, the result is open too.
_PROBES = (512, 1024)

_EAGER = 8  # shapes for which a layer that is called on arrays keeps its model

_order = itertools.count()  # calls are numbered, so that sorting by number is a topological order


class Tensor:
    """The symbolic result of a layer call: a shape without the batch axis, and where it comes from.

    `+`, `-` and `*` between tensors stand for the layers Add, Subtract and Multiply.

    >>> from convkern.layers import Conv2D, Input
    >>> image = Input((28, 28, 1))
    >>> Conv2D(32, 5)(image)
    <Tensor (24, 24, 32) from conv2d>
    """

    __slots__ = ("_sizes", "call", "index")

    def __init__(self, sizes: Sequence[Shape]):
        self._sizes = tuple(sizes)  # one shape, or one for each probe
        self.call: Call
        self.index = 0

    @property
    def shape(self) -> OpenShape:
        if len(set(self._sizes)) == 1:
            return self._sizes[0]
        return tuple(a if a == b else None for a, b in zip(*self._sizes))

    @property
    def layer(self) -> Layer:
        return self.call.layer

    @property
    def name(self) -> str:
        return self.layer.name

    def __add__(self, other: Tensor) -> Tensor:
        return self._merge("Add", other)

    def __sub__(self, other: Tensor) -> Tensor:
        return self._merge("Subtract", other)

    def __mul__(self, other: Tensor) -> Tensor:
        return self._merge("Multiply", other)

    def _merge(self, kind: str, other: Tensor) -> Tensor:
        if not isinstance(other, Tensor):
            return NotImplemented
        from . import merge

        return getattr(merge, kind)()([self, other])

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise DTypeError(f"{self!r} is symbolic: it has no values; call a Model on arrays to get them")

    def __repr__(self) -> str:
        return f"<Tensor {self.shape} from {self.name}>"


class Call:
    """One use of a layer: what it read and what it made."""

    __slots__ = ("inputs", "layer", "order", "outputs")

    def __init__(self, layer: Layer, inputs: Sequence[Tensor], outputs: Sequence[Tensor]):
        self.layer = layer
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.order = next(_order)
        for index, tensor in enumerate(outputs):
            tensor.call, tensor.index = self, index


# Every layer class by name, for from_json; the package's own names cannot be taken over.
_classes: dict[str, type[Layer]] = {}


def layer_class(name: str, custom_objects: Mapping[str, type[Layer]] | None = None) -> type[Layer]:
    """The class that a saved architecture names. Nothing is imported on its behalf."""
    cls = (custom_objects or {}).get(name) or _classes.get(name)
    if cls is None:
        raise ModelError(
            f"no layer class {name!r}; pass it in custom_objects={{{name!r}: ...}} or import the module that defines it"
        )
    return cls


class Layer:
    """The base of all layers.

    name: unique within a model; without one a model numbers its layers by class (conv2d, conv2d_1, ...).
    trainable: whether training may change the parameters.
    torch_name: the prefix of this layer's tensors in weight files ("layer1.0.conv1").
    input_shape: without the batch axis; lets a Sequential model know its input.
    dtype: None or "float32"; models compute in float32.

    A layer can also be called on arrays, with the batch axis first: it is run as a model of one layer.

    >>> from convkern.layers import ReLU
    >>> ReLU()(np.array([[-1, 2]], "f4"))
    array([[0., 2.]], dtype=float32)
    """

    rank: int | None = None  # spatial dimensions of the input, where only one number is right
    max_inputs: int | None = 1  # None: any number
    min_inputs: int = 1

    def __init__(
        self,
        name: str | None = None,
        trainable: bool = True,
        torch_name: str | None = None,
        input_shape: Sequence[int | None] | None = None,
        dtype: Any = None,
        **keras: Any,
    ):
        for key, value in keras.items():
            if not re.fullmatch(r"(kernel|bias|activity|beta|gamma|depthwise|pointwise)_(regularizer|constraint)", key):
                raise TypeError(f"{type(self).__name__} got an unexpected argument {key!r}")
            if value is not None:
                raise Unsupported(f"{type(self).__name__}: {key}={value!r}; there are no regularizers and constraints")
        if dtype is not None and str(dtype) != "float32" and dtype is not np.float32:
            raise DTypeError(f"{type(self).__name__}: dtype={dtype!r}; models compute in float32")
        if name is not None and (not isinstance(name, str) or not name or "/" in name):
            raise ModelError(f"{type(self).__name__}: name={name!r}, want a string without '/'")
        self.name: str = name or snake_case(type(self).__name__)
        self.named = name is not None  # False: a model may still number it
        self._trainable = bool(trainable)
        self.torch_name = torch_name
        self.declared_input_shape = None if input_shape is None else checked_shape("input_shape", input_shape)
        self.params: dict[str, Param] = {}
        self.built = False
        self._calls: list[Call] = []
        self._eager: dict[tuple[Shape, ...], Model] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = _classes.get(cls.__name__)
        if own is None or not own.__module__.startswith("convkern."):
            _classes[cls.__name__] = cls

    @property
    def trainable(self) -> bool:
        """Whether training changes the parameters; may be set at any time. Of a model it sets that of all its layers.
        A batch norm that is not trainable uses its kept statistics.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)

    # What a layer class writes down.

    def build(self, input_shape: Any) -> None:
        """Create the parameters for an input of this shape (a list of shapes where the layer reads several tensors)."""

    def lower(self, graph: Graph, inputs: list[int]) -> Any:
        """Add this layer's operators to a graph and return the id of its output."""
        raise NotImplementedError(f"{type(self).__name__} does not define lower(graph, inputs)")

    # Calls.

    def __call__(self, inputs: Any, training: bool | None = None) -> Any:
        """On symbolic tensors: a symbolic tensor. On arrays (batch axis first): arrays."""
        check_inference(training)
        given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if any(isinstance(x, Tensor) for x in given):
            return self.connect(given)
        return self._run(given)

    def connect(self, inputs: Sequence[Tensor], record: bool = True) -> Any:
        """Build the layer if it is new and make the symbolic result of applying it."""
        for x in inputs:
            if not isinstance(x, Tensor):
                raise DTypeError(f"{self.name}: got symbolic tensors mixed with {type(x).__name__}")
        least, most = self.min_inputs, self.max_inputs
        if len(inputs) < least or (most is not None and len(inputs) > most):
            want = str(least) if least == most else f"at least {least}" if most is None else f"{least} to {most}"
            raise ShapeError(f"{self.name}: got {len(inputs)} inputs, want {want}")
        variants = max((x._sizes for x in inputs), key=len)
        with errors_of(self, self.name):
            if self.rank is not None and len(inputs[0].shape) != self.rank + 1:
                want = ("(N, L, C)", "(N, H, W, C)", "(N, D, H, W, C)")[self.rank - 1]
                raise ShapeError(f"got an input of shape {shown(inputs[0].shape)}, want {want}")
            if not self.built:
                shapes = [x.shape for x in inputs]
                self.build(shapes[0] if self.max_inputs == 1 else shapes)
                self.built = True
        results = [self._infer([x._sizes[i % len(x._sizes)] for x in inputs]) for i in range(len(variants))]
        outputs = [Tensor(sizes) for sizes in zip(*results)]
        call = Call(self, inputs, outputs)
        if record:
            self._calls.append(call)
        return self.pack_outputs(outputs)

    def pack_outputs(self, outputs: list[Any]) -> Any:
        """The outputs as the caller sees them."""
        return outputs[0]

    def _infer(self, shapes: Sequence[Shape]) -> list[Shape]:
        graph = Graph()
        outputs = lower_named(self, self.name, graph, [graph.input(shape) for shape in shapes])
        return [graph.shapes[i] for i in outputs]

    def _run(self, given: list[Any]) -> Any:
        """Apply the layer to arrays, through a model of this one layer."""
        from ..model import Model

        given = [as_ndarray(x, self.name) for x in given]
        shapes = tuple(x.shape[1:] for x in given)
        model = self._eager.get(shapes)
        if model is None:
            symbols, named = [Input(shape) for shape in shapes], self.named
            model = Model(symbols, self.connect(symbols, record=False))
            self.named = named  # this is not the model that names the layer
            if len(self._eager) == _EAGER:
                self._eager.clear()
            self._eager[shapes] = model
        return model(given)

    def _only_call(self, what: str) -> Call:
        if len(self._calls) != 1:
            raise ModelError(
                f"{self.name} has no single {what}: it was called {len(self._calls)} times; keep the tensors instead"
            )
        return self._calls[0]

    @property
    def output(self) -> Any:
        """The symbolic tensor that this layer made (for cutting a model there); ModelError unless it was called exactly
        once.
        """
        return self.pack_outputs(list(self._only_call("output").outputs))

    @property
    def input(self) -> Any:
        """The symbolic tensor (or list of them) that this layer reads."""
        inputs = self._only_call("input").inputs
        return inputs[0] if len(inputs) == 1 else list(inputs)

    # Parameters.

    def add_param(self, name: str, shape: Sequence[int], initializer: Any = "zeros", trainable: bool = True) -> Param:
        """Create a parameter; its values are drawn when they are first read."""
        shape, fill, stream = tuple(shape), initializers.get(initializer), initializers.next_stream()
        param = Param(name, lambda: fill(shape, stream()), trainable, shape=shape)
        self.params[name] = param
        return param

    @property
    def weights(self) -> list[Param]:
        """The parameters, in Keras' order."""
        return list(self.params.values())

    def get_weights(self) -> list[np.ndarray]:
        """Copies of the parameters' values, in Keras' order (kernel, bias; gamma, beta, moving mean, moving
        variance).
        """
        return [param.value.copy() for param in self.weights]

    def set_weights(self, weights: Iterable[Any]) -> None:
        """Replace all parameters by arrays in the order of `get_weights`.

        Errors: ShapeError with what came and what was wanted; DTypeError for another type than float32. Either all
            change or none.
        """
        params, arrays = self.weights, [np.asarray(w) for w in weights]
        if len(arrays) != len(params):
            raise ShapeError(f"{self.name}: got {len(arrays)} arrays, want {len(params)}")
        for i, (param, array) in enumerate(zip(params, arrays)):
            if array.shape != param.shape:
                raise ShapeError(f"{self.name}: array {i} ({param.name}) has shape {array.shape}, want {param.shape}")
            if not np.can_cast(array.dtype, param.dtype, "safe"):
                raise DTypeError(
                    f"{self.name}: array {i} ({param.name}) is {array.dtype}, want {param.dtype}: convert it"
                )
        for param, array in zip(params, arrays):
            param.assign(array)

    def count_params(self) -> int:
        """How many numbers the parameters hold."""
        return sum(math.prod(param.shape) for param in self.weights)

    # Description.

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this layer again, as JSON types: read from the attributes of the same names."""
        config: dict[str, Any] = {"name": self.name}
        for key, parameter in inspect.signature(type(self).__init__).parameters.items():
            if key not in _BASE and parameter.kind is not parameter.VAR_KEYWORD:
                value = getattr(self, key)
                config[key] = initializers.serialize(value) if key.endswith("_initializer") else plain(value)
        if not self.trainable:
            config["trainable"] = False
        if self.torch_name is not None:
            config["torch_name"] = self.torch_name
        if self.declared_input_shape is not None:
            config["input_shape"] = list(self.declared_input_shape)
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """A new layer with the same arguments and fresh parameters."""
        return cls(**config)

    def __reduce__(self) -> Any:
        # Arguments and values only: what a layer was connected to belongs to models, which pickle themselves.
        return _restore, (
            type(self),
            self.get_config(),
            {key: (p.value, p.trainable) for key, p in self.params.items()},
            self.built,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


_BASE = frozenset(inspect.signature(Layer.__init__).parameters)  # the arguments that every layer has


def _restore(
    cls: type[Layer], config: dict[str, Any], params: dict[str, tuple[np.ndarray, bool]], built: bool
) -> Layer:
    layer = cls.from_config(config)
    layer.params = {key: Param(key, value, trainable) for key, (value, trainable) in params.items()}
    layer.built = built
    return layer


class InputLayer(Layer):
    """The layer behind `Input`: it has nothing to compute."""

    def __init__(self, shape: Sequence[int | None], **base: Any):
        super().__init__(**base)
        self.shape: OpenShape = checked_shape("shape", shape)
        sizes = [tuple(probe if n is None else n for n in self.shape) for probe in _PROBES]
        self.tensor = Tensor(sizes if None in self.shape else sizes[:1])
        self._calls.append(Call(self, (), (self.tensor,)))
        self.built = True

    def lower(self, graph: Graph, inputs: list[int]) -> int:
        raise ModelError(f"{self.name} is an input: it cannot be applied to something")


def Input(shape: Sequence[int | None], batch_size: None = None, dtype: Any = None, name: str | None = None) -> Tensor:
    """The start of a network: a symbolic tensor.

    shape: per image, without the batch axis: (F,) features, (L, C) sequences, (H, W, C) images, (D, H, W, C) volumes;
        None for sizes that may differ from call to call (the channels must be known where a layer has weights for
        them).
    batch_size: must be None: a model takes any batch size. dtype: None or "float32".

    Errors: ShapeError for sizes below 1, Unsupported for more than four dimensions.
    Source: keras.Input.

    >>> Input((28, 28, 1)).shape
    (28, 28, 1)
    """
    if batch_size is not None:
        raise Unsupported(f"Input: batch_size={batch_size}; the batch size of a model is free")
    return InputLayer(shape, name=name, dtype=dtype).tensor


class errors_of:
    """Puts the layer's name in front of errors raised inside."""

    def __init__(self, layer: Layer, name: str):
        self.layer, self.name = layer, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, ConvkernError):
            raise type(error)(f"{self.name} ({type(self.layer).__name__}): {error}") from None


def lower_named(layer: Layer, name: str, graph: Graph, inputs: list[int]) -> list[int]:
    """Lower a layer and put its name on the operators it added."""
    first = len(graph.nodes)
    with errors_of(layer, name):
        result = layer.lower(graph, inputs)
    for i in range(first, len(graph.nodes)):
        node = graph.nodes[i]
        graph.nodes[i] = node.replace(name=f"{name}/{node.name}" if node.name else name)
    return list(result) if isinstance(result, (list, tuple)) else [result]


def check_inference(training: bool | None) -> None:
    if training:
        raise Unsupported("training=True: models are run for inference only")


def checked_shape(what: str, shape: Any) -> OpenShape:
    """A per-image shape: one to four sizes of at least 1, None for an open one."""
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Iterable):
        raise ShapeError(f"{what}: got {shape!r}, want a tuple of sizes without the batch axis, as (224, 224, 3)")
    sizes = tuple(shape)
    for size in sizes:
        if size is not None and (isinstance(size, bool) or not isinstance(size, (int, np.integer))):
            raise DTypeError(f"{what}: got {sizes!r}, want integers or None")
        if size is not None and size < 1:
            raise ShapeError(f"{what}: got {sizes}, want every size to be at least 1")
    if not 1 <= len(sizes) <= MAX_RANK:
        raise Unsupported(f"{what}: got {len(sizes)} dimensions {sizes}, want 1 to {MAX_RANK} without the batch axis")
    return tuple(None if size is None else int(size) for size in sizes)


def known(shape: OpenShape, axis: int, what: str) -> int:
    """A size that a layer needs to create its parameters."""
    size = shape[axis]
    if size is None:
        raise ShapeError(f"the {what} of the input {shown(shape)} must be known")
    return size


def shown(shape: OpenShape) -> str:
    """A shape with its batch axis, for people: (N, 28, 28, 1).

    >>> shown((28, None, 1))
    '(N, 28, ?, 1)'
    """
    return f"({', '.join(['N', *('?' if n is None else str(n) for n in shape)])})"


def snake_case(name: str) -> str:
    """
    >>> snake_case("DepthwiseConv2D"), snake_case("LeakyReLU")
    ('depthwise_conv2d', 'leaky_relu')
    """
    return re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name).lower()


def plain(value: Any) -> Any:
    """Tuples as lists and NumPy numbers as Python's, all the way down: what JSON would give back."""
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value
