"""Models: layers connected from inputs to outputs, callable on arrays.

A Model is read off from the records that layer calls leave: everything between the given inputs and outputs, in the
order it was called. Calling it on arrays looks up (or compiles) the plan for their image shape and runs that: one call
into C++, without the GIL. Plans are kept for the last few shapes; packed weights belong to the model and are shared by
its plans; when a parameter changes the plans go, and its own packed form.

A Model is a Layer: it can be called on symbolic tensors, alone or inside other models, and shares its weights with
them.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import FLOAT32, as_ndarray
from .errors import DTypeError, ModelError, ShapeError, Unsupported
from .graph import Graph, Param
from .layers.base import (
    Call,
    InputLayer,
    Layer,
    OpenShape,
    Shape,
    Tensor,
    check_inference,
    checked_shape,
    layer_class,
    lower_named,
    shown,
    snake_case,
)

if TYPE_CHECKING:
    from .compiler import CompiledPlan
    from .train.callbacks import History
    from .train.loop import Trainer
    from .train.optimizers import Optimizer

PLANS = 8  # compiled plans that a model keeps, one for each image shape
_FORMAT = "1"  # of saved architectures
_KEY = "convkern"  # under which a saved model's file holds its architecture


class Model(Layer):
    """Layers from inputs to outputs, as one callable.

    Arguments: inputs, outputs: symbolic tensors: one, a list, or a dictionary; calls take and give arrays in the same
        arrangement. Any tensor may be an output (to see inside a network) and any may be an input (to run the rest of
        one).
        exact: no algorithm that changes the rounding beyond the order of sums (no Winograd). memory: "normal", or
        "lean" for no enlarged copies of weights. precision: "float32", or "bf16": convolutions and dense layers may
        round what they multiply to bfloat16 (sums stay float32, and so do the arrays of a call), on CPUs that have it.
    Shapes: arrays are float32 with the batch axis first, (N, H, W, C) for images; any strides, so x.transpose(0, 2, 3,
        1) of NCHW data is fine; N may be 0 and may change from call to call.
    Errors: ModelError if an output needs an input that is not given or names collide; ShapeError, DTypeError for arrays
        that do not fit.
    Source: keras.Model.

    >>> from convkern.layers import Conv2D, Dense, Flatten, Input
    >>> image = Input((8, 8, 1))
    >>> x = Conv2D(4, 3, activation="relu")(image)
    >>> model = Model(inputs=image, outputs=Dense(10, activation="softmax")(Flatten()(x)))
    >>> model(np.ones((5, 8, 8, 1), "f4")).shape
    (5, 10)
    >>> Model(model.input, model.get_layer("conv2d").output)(np.ones((5, 8, 8, 1), "f4")).shape
    (5, 6, 6, 4)
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        *,
        exact: bool = False,
        memory: str = "normal",
        precision: str = "float32",
        **base: Any,
    ):
        super().__init__(name=name, **base)
        self._prepare(exact, memory, precision)
        self._assemble(inputs, outputs)

    def _prepare(self, exact: bool, memory: str, precision: str) -> None:
        self._lock = threading.RLock()
        self._plans: OrderedDict[Any, CompiledPlan] = OrderedDict()
        self._packed: dict[Any, Any] = {}
        self._versions: list[int] = []
        self._device: str | None = None
        self._precision = "float32"
        self.exact = exact
        self.memory = memory
        self.precision = precision
        self._trainer: Trainer | None = None
        self.history: History | None = None  # of the last fit
        self.stop_training = False  # a callback sets it to end the training

    def _assemble(self, inputs: Any, outputs: Any) -> None:
        """Read the network between the tensors off from the recorded calls."""
        self.inputs, self._input_layout = _flatten(inputs, "inputs")
        self.outputs, self._output_layout = _flatten(outputs, "outputs")
        if len(set(self.inputs)) != len(self.inputs):
            raise ModelError(f"{self.name}: a tensor is given twice among the inputs")
        calls = self._calls_between()
        self.min_inputs = self.max_inputs = len(self.inputs)
        self._input_shapes = [tensor.shape for tensor in self.inputs]
        # A model that starts inside another one has input layers of its own.
        sources = [t.layer if isinstance(t.layer, InputLayer) else _source(t) for t in self.inputs]
        self._layers: list[Layer] = list(dict.fromkeys([*sources, *(call.layer for call in calls)]))
        slot = {tensor: i for i, tensor in enumerate(self.inputs)}
        self._steps: list[tuple[Layer, list[int], list[int]]] = []
        for call in calls:
            for tensor in call.outputs:
                slot.setdefault(tensor, len(slot))
            self._steps.append((call.layer, [slot[t] for t in call.inputs], [slot[t] for t in call.outputs]))
        self._output_slots = [slot[t] for t in self.outputs]
        self._names = self._name_layers()
        self._unique_params = list(dict.fromkeys(p for _, layer in self.param_layers() for p in layer.params.values()))
        self._plans.clear()
        self._packed.clear()
        self.built = True

    def _calls_between(self) -> list[Call]:
        given, found = set(self.inputs), set()
        pending = list(self.outputs)
        while pending:
            tensor = pending.pop()
            if tensor in given or tensor.call in found:
                continue
            if isinstance(tensor.layer, InputLayer):
                raise ModelError(
                    f"{self.name}: an output needs the input {tensor.name!r} {shown(tensor.shape)}, "
                    f"which is not among the inputs"
                )
            found.add(tensor.call)
            pending.extend(tensor.call.inputs)
        return sorted(found, key=lambda call: call.order)

    def _name_layers(self) -> dict[Layer, str]:
        """Names that are unique here: given ones stay, automatic ones are numbered by class where they are taken."""
        names: dict[Layer, str] = {}
        taken: dict[str, Layer] = {}
        automatic = []
        for layer in self._layers:
            base = snake_case(type(layer).__name__)
            if not layer.named or (layer.name in taken and re.fullmatch(rf"{base}(_\d+)?", layer.name)):
                automatic.append(layer)
            elif layer.name in taken:
                raise ModelError(
                    f"{self.name}: two layers are named {layer.name!r}: {taken[layer.name]!r} and {layer!r}"
                )
            else:
                names[layer] = layer.name
                taken[layer.name] = layer
        for layer in automatic:
            base = snake_case(type(layer).__name__)
            name, count = base, 0
            while name in taken:
                count += 1
                name = f"{base}_{count}"
            names[layer], taken[name] = name, layer
            if not layer.named:  # its first model names it for good
                layer.name, layer.named = name, True
        return names

    # Calls.

    def __call__(self, inputs: Any, training: bool | None = None, *, threads: int = 0) -> Any:
        """Apply the model to arrays (giving new arrays) or to symbolic tensors (giving symbolic tensors).

        threads: how many this call may use; 0 takes what set_num_threads or CONVKERN_NUM_THREADS say. The result does
            not depend on it.
        training: only False or None.
        """
        given = self._arranged(inputs)
        check_inference(training)
        if any(isinstance(x, Tensor) for x in given):
            return self.connect(given)
        arrays = self._checked(given)
        plan = self._plan(tuple(a.shape[1:] for a in arrays))
        return self.pack_outputs(plan.run(arrays, threads=threads))

    def predict(self, x: Any, batch_size: int = 32, verbose: int = 0, *, threads: int = 0) -> Any:
        """Apply the model to many images, batch_size at a time; the result is the same as from one call, in less
        memory.

        x: array(s) as for a call, or an iterator of batches of any size. verbose: 1 shows a progress bar (needs tqdm).
        Errors: as a call; ShapeError for a batch_size below 1; Unsupported if the bar is asked for without tqdm.
        Source: keras.Model.predict.

        >>> from convkern.layers import Dense, Input
        >>> image = Input((3,))
        >>> Model(image, Dense(2)(image)).predict(np.zeros((100, 3), "f4"), batch_size=16).shape
        (100, 2)
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise ShapeError(f"batch_size: got {batch_size!r}, want an integer of at least 1")
        batches: Iterable[Any]
        count: int | None = None
        if isinstance(x, Iterator):
            batches = x
        else:
            arrays = self._checked(self._arranged(x))
            starts = range(0, max(len(arrays[0]), 1), batch_size)
            batches = (_arrange([a[i : i + batch_size] for a in arrays], self._input_layout) for i in starts)
            count = len(starts)
        if verbose:
            batches = progress(count, batches)
        parts = [self._flat_outputs(self(batch, threads=threads)) for batch in batches]
        if not parts:
            raise ShapeError(f"{self.name}: predict got no batches")
        join: Any = np.concatenate
        if self._device is not None:
            from .device import concatenate as join
        return self.pack_outputs([column[0] if len(column) == 1 else join(column) for column in zip(*parts)])

    # Training; see docs/training.md.

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        metrics: Any = None,
        loss_weights: Any = None,
        *,
        check_finite: bool = True,
        recompute: int | bool = 0,
        seed: int | None = None,
    ) -> None:
        """Choose how the model is trained. Parameters stay as they are.

        optimizer: a name ("sgd", "rmsprop", "adam", "adamw", "sam") or an Optimizer (convkern.train.optimizers).
        loss: a name ("sparse_categorical_crossentropy", "categorical_crossentropy", "binary_crossentropy", "mse",
            "mae") or a Loss (convkern.train.losses); for several outputs a list or a dictionary by output. A final
            softmax (sigmoid) layer is fused into a cross-entropy; other outputs are taken as logits.
        metrics: names ("accuracy", "top5", ...), Metrics or functions of (y_true, y_pred); likewise.
        loss_weights: a factor for each loss in their sum.
        check_finite: end the training with NotFinite, before parameters change, when a loss is NaN or infinite.
        recompute: cut the network into so many parts, and compute what is inside a part again in the backward pass
            instead of keeping it: less memory, a third more time; True chooses a number.
        seed: of shuffling and dropout; None takes that of set_seed.
        Errors: Unsupported for unknown names; ModelError for losses that do not fit the outputs.
        Source: keras.Model.compile.

        >>> from convkern.layers import Dense, Input
        >>> image = Input((2,))
        >>> model = Model(image, Dense(2, activation="softmax")(image))
        >>> model.compile("adam", "sparse_categorical_crossentropy", ["accuracy"])
        >>> x = np.float32([[0, 1], [1, 0]] * 32)
        >>> history = model.fit(x, np.array([0, 1] * 32), epochs=2, verbose=0)
        >>> sorted(history.history)
        ['accuracy', 'learning_rate', 'loss']
        """
        from .train.loop import Trainer

        if not self.built:
            raise ModelError(f"{self.name} does not know its input yet: begin with an Input, or call build(shape)")
        if loss is None:
            raise Unsupported("compile: loss=None; want a name or a Loss")
        self._trainer = Trainer(self, optimizer, loss, metrics, loss_weights, check_finite, recompute, seed)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that compile set; its learning_rate may be set at any time."""
        from .train.loop import of

        return of(self).optimizer

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
        *,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for a number of epochs.

        x, y: arrays (N, ...) of inputs and targets; or x alone: anything that gives batches (x, y) or (x, y,
            sample_weight), as those of convkern.data.
        batch_size: 32 for arrays. verbose: 0 nothing, 1 a progress bar (tqdm), 2 a line for each epoch, "auto".
        validation_data: arrays (x, y) or (x, y, sample_weight), or what gives batches; validation_split: the share at
            the end of the arrays that is kept for it. class_weight: {label: factor}; sample_weight: (N,).
        steps_per_epoch: batches of an epoch (needed for generators).
        resume: a file of ModelCheckpoint: the training goes on where it was written, with the same bits as if it had
            not been broken off. epochs counts from the beginning of the first run.
        Returns the History: `.history["loss"]` and so on, one number for each epoch.
        Errors: ModelError before compile; ShapeError, DTypeError, DataError for data that does not fit; NotFinite,
            naming step and layer, if the loss is not finite; CheckpointError for a file of another training. Ctrl-C
            leaves the model as the last step made it.
        Source: keras.Model.fit.
        """
        from .train import loop

        return loop.fit(
            self,
            x,
            y,
            batch_size,
            epochs,
            verbose,
            callbacks,
            validation_split,
            validation_data,
            shuffle,
            class_weight,
            sample_weight,
            initial_epoch,
            steps_per_epoch,
            validation_steps,
            validation_batch_size,
            validation_freq,
            resume,
        )

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        return_dict: bool = False,
    ) -> Any:
        """The loss, or [loss, metrics...], or a dictionary of them, at inference. Arguments and errors as `fit`.

        Source: keras.Model.evaluate.
        """
        from .train import loop

        return loop.evaluate(self, x, y, batch_size, verbose, sample_weight, steps, return_dict)

    def train_on_batch(
        self, x: Any, y: Any, sample_weight: Any = None, class_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """One step of the optimizer; the batch's loss and metrics before it, as `evaluate` gives them.

        Source: keras.Model.train_on_batch.
        """
        from .train import loop

        return loop.one_batch(self, x, y, sample_weight, class_weight, return_dict, True)

    def test_on_batch(self, x: Any, y: Any, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """The loss and metrics of one batch at inference.

        Source: keras.Model.test_on_batch.
        """
        from .train import loop

        return loop.one_batch(self, x, y, sample_weight, None, return_dict, False)

    def save_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write the model and the whole state of its training, for `fit(resume=path)`; load_model reads the model.

        Errors: WeightsError if it cannot be written; the old file is then as it was.
        """
        from .train import checkpoint
        from .train.loop import of

        checkpoint.save(self, of(self), path)

    def _flat_outputs(self, result: Any) -> list[np.ndarray]:
        if self._output_layout is None:
            return [result]
        return list(result.values()) if isinstance(result, dict) else result

    def pack_outputs(self, outputs: list[Any]) -> Any:
        return _arrange(outputs, self._output_layout)

    def _arranged(self, inputs: Any) -> list[Any]:
        """The arguments of a call in the order of self.inputs."""
        if isinstance(inputs, Mapping):
            names = self._input_names()
            if set(inputs) != set(names):
                raise ShapeError(
                    f"{self.name}: got inputs named {', '.join(map(str, inputs))}, want {', '.join(names)}"
                )
            return [inputs[name] for name in names]
        given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if len(given) != len(self.inputs):
            names = self._input_names()
            raise ShapeError(f"{self.name}: got {len(given)} inputs, want {len(names)}: {', '.join(names)}")
        return given

    def _input_names(self) -> list[str]:
        return self._input_layout if isinstance(self._input_layout, list) else [t.name for t in self.inputs]

    def _checked(self, given: Sequence[Any]) -> list[Any]:
        """The inputs of a call as float32 arrays of the right shapes, none copied; on a device, as its arrays."""
        arrays = [self._checked_one(x, shape, i) for i, (x, shape) in enumerate(zip(given, self._input_shapes))]
        if len(arrays) > 1 and any(len(a) != len(arrays[0]) for a in arrays):
            shapes = ", ".join(str(a.shape) for a in arrays)
            raise ShapeError(f"{self.name}: the inputs have different batch sizes: {shapes}")
        return arrays

    def _checked_one(self, x: Any, shape: OpenShape, index: int) -> Any:
        array: Any
        if self._device is not None:
            from . import device as devices

            wanted = devices.PRECISIONS[self._precision][1]
            array = devices.place(x, f"{self.name}: input {index}", devices.number(self._device), wanted)
        elif isinstance(x, np.ndarray):
            array = as_ndarray(x, f"{self.name}: input {index}")
        else:
            from .device import on_device

            if on_device(x):
                raise Unsupported(
                    f"{self.name}: input {index} is on {getattr(x, 'device', 'a CUDA device')}, the model on the CPU: "
                    f'move the model with .to("cuda:0"), or the array'
                )
            array = as_ndarray(x, f"{self.name}: input {index}")
        if self._device is None and array.dtype != FLOAT32:
            raise DTypeError(
                f"{self.name}: input {self.inputs[index].name!r} has elements of {array.dtype}, want float32: "
                f"convert with x.astype('float32')"
            )
        if array.shape[1:] != shape or array.ndim == 0:
            fits = array.ndim == len(shape) + 1 and all(n is None or n == got for n, got in zip(shape, array.shape[1:]))
            if not fits or 0 in array.shape[1:]:
                raise ShapeError(
                    f"{self.name}: input {self.inputs[index].name!r} has shape {array.shape}, "
                    f"want {shown(shape)}{_hint(array.shape, shape)}"
                )
        return array if array.flags.aligned else array.copy()

    # Plans.

    def to(self, device: str, precision: str = "float32") -> Model:
        """Run on another device from now on; returns the model itself.

        device: "cpu", or "cuda:0", "cuda:1" ...: calls then take and give arrays of that device (PyTorch, CuPy, JAX, or
            convkern.device.to_device(x)), and return when the work is queued on the current stream.
        precision: what the device computes in: "float32" (strict), "tf32", "fp32x3" (float32 arrays), "float16",
            "bfloat16" (arrays of that type). Parameters stay float32 on the CPU and are rounded when a plan packs them.
            The CPU has "float32" and "bf16" (float32 arrays).
        Errors: Unsupported without CUDA kernels or for another name, DeviceError if the device is not there.
        Source: torch.nn.Module.to. A pickled or saved model comes back on the CPU.

        >>> from convkern.layers import Dense, Input
        >>> image = Input((3,))
        >>> Model(image, Dense(2)(image)).to("cpu").device
        'cpu'
        """
        from . import device as devices

        if devices.number(device) is None:
            where = None
        else:
            where = f"cuda:{devices.index_of(device)}"
        self._precision = self._checked_precision(precision, where)
        self._device = where
        return self

    @property
    def device(self) -> str:
        """Where calls run: "cpu" or "cuda:0" ..."""
        return self._device or "cpu"

    @property
    def precision(self) -> str:
        """What calls compute in: on the CPU "float32", or "bf16" for products in bfloat16 (docs/precision.md); on other
        devices see `to`. May be set at any time. A call raises Unsupported where the CPU has no bfloat16.
        """
        return self._precision

    @precision.setter
    def precision(self, value: str) -> None:
        self._precision = self._checked_precision(value, self._device)

    @staticmethod
    def _checked_precision(value: str, device: str | None) -> str:
        from .compiler import CPU_PRECISIONS

        if device is not None:
            from . import device as devices

            return devices.check_precision(value)
        if value not in CPU_PRECISIONS:
            raise Unsupported(f"precision={value!r} on the CPU; want one of {', '.join(CPU_PRECISIONS)}")
        return value

    @property
    def exact(self) -> bool:
        """Whether algorithms that change the rounding beyond the order of sums are left out; may be set at any time."""
        return self._exact

    @exact.setter
    def exact(self, value: bool) -> None:
        self._exact = bool(value)

    @property
    def memory(self) -> str:
        """ "normal", or "lean" for no enlarged copies of weights; may be set at any time."""
        return self._memory

    @memory.setter
    def memory(self, value: str) -> None:
        if value not in ("normal", "lean"):
            raise Unsupported(f"memory={value!r}; want 'normal' or 'lean'")
        self._memory = value

    def plan(self, shapes: Any = None) -> CompiledPlan:
        """The compiled plan for inputs of these per-image shapes: one shape, a list of them, or None for the declared
        ones.

        >>> from convkern.layers import Dense, Input
        >>> image = Input((3,))
        >>> [step["op"] for step in Model(image, Dense(2)(image)).plan().steps()]
        ['conv']
        """
        return self._plan(self._image_shapes(shapes))

    def _plan(self, shapes: tuple[Shape, ...]) -> CompiledPlan:
        key = (shapes, self._exact, self._memory, self._device, self._precision)
        versions = [p.version for p in self._unique_params]
        with self._lock:
            if versions != self._versions:
                self._plans.clear()  # compile() repacks what changed, and only that
                self._versions = versions
            plan = self._plans.get(key)
            if plan is None:
                from .compiler import compile

                plan = compile(
                    self.graph(shapes),
                    exact=self._exact,
                    lean=self._memory == "lean",
                    device=self._device,
                    precision=self._precision,
                    parameters=self._packed,
                )
                self._plans[key] = plan
                if len(self._plans) > PLANS:
                    self._plans.popitem(last=False)
            else:
                self._plans.move_to_end(key)
            return plan

    def _image_shapes(self, shapes: Any) -> tuple[Shape, ...]:
        """Per-image shapes of all inputs, none of them open."""
        if shapes is None:
            shapes = [t.shape for t in self.inputs]
        elif len(shapes) == 0 or not isinstance(shapes[0], (list, tuple)):
            shapes = [shapes]
        if len(shapes) != len(self.inputs):
            raise ShapeError(f"{self.name}: got {len(shapes)} shapes, want {len(self.inputs)}")
        result = []
        for shape, tensor in zip(shapes, self.inputs):
            given, want = checked_shape("shape", shape), tensor.shape
            sizes = tuple(n for n in given if n is not None)
            if len(sizes) != len(given):
                raise ShapeError(
                    f"{self.name}: the input {tensor.name!r} {shown(given)} has open sizes: pass the shape of an image"
                )
            if len(sizes) != len(want) or any(w is not None and w != n for w, n in zip(want, sizes)):
                raise ShapeError(f"{self.name}: input {tensor.name!r}: got the shape {sizes}, want {want}")
            result.append(sizes)
        return tuple(result)

    def graph(self, shapes: Any = None) -> Graph:
        """The model as plain operators, before any pass, for inputs of these per-image shapes (None: the declared
        ones).
        """
        graph = Graph()
        inputs = [graph.input(shape) for shape in self._image_shapes(shapes)]
        graph.outputs = self.lower(graph, inputs)
        return graph

    def lower(self, graph: Graph, inputs: list[int]) -> list[int]:
        values = dict(enumerate(inputs))
        for layer, reads, writes in self._steps:
            values.update(zip(writes, lower_named(layer, self._names[layer], graph, [values[i] for i in reads])))
        return [values[i] for i in self._output_slots]

    def explain(self, shapes: Any = None, print_fn: Callable[[str], Any] = print) -> None:
        """Print what a call runs: every step with its kernel, why that one, its multiply-adds, workspace and bytes.

        shapes: per image, as for `plan`.
        """
        from .summary import explain

        print_fn(explain(self, shapes))

    # Layers and parameters.

    @property
    def trainable(self) -> bool:
        """Whether training changes the parameters of the layers that are trainable themselves; setting it sets theirs,
        too, so that single layers can be freed again afterwards.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = bool(value)
        for layer in self._inner_layers():
            layer.trainable = value

    def _inner_layers(self) -> list[Layer]:
        return self._layers

    def trainable_params(self) -> dict[str, Param]:
        """The parameters that training changes, by "layer/parameter": those of trainable layers (inside of trainable
        models) that are not statistics.

        >>> from convkern.layers import Dense, Input
        >>> image = Input((3,))
        >>> model = Model(image, Dense(2)(Dense(4)(image)))
        >>> model.get_layer("dense").trainable = False
        >>> list(model.trainable_params())
        ['dense_1/kernel', 'dense_1/bias']
        """
        free = {id(p) for layer in _trainable_layers(self) for p in layer.params.values() if p.trainable}
        return {name: param for name, param in self.named_params().items() if id(param) in free}

    @property
    def layers(self) -> list[Layer]:
        """All layers, inputs first, in the order in which they were called."""
        return list(self._layers)

    @property
    def input(self) -> Any:
        """The symbolic input, or inputs in the arrangement they were given."""
        return _arrange(self.inputs, self._input_layout)

    @property
    def output(self) -> Any:
        """The symbolic output, or outputs in the arrangement they were given."""
        return _arrange(self.outputs, self._output_layout)

    @property
    def input_shape(self) -> Any:
        """Per image, None for open sizes; for several inputs in their arrangement."""
        return _arrange([t.shape for t in self.inputs], self._input_layout)

    @property
    def output_shape(self) -> Any:
        """Per image, None for open sizes; for several outputs in their arrangement."""
        return _arrange([t.shape for t in self.outputs], self._output_layout)

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """One layer, by its name or by its place in `layers`.

        Errors: ModelError, with similar names, if there is none.
        Source: keras.Model.get_layer.
        """
        if (name is None) == (index is None):
            raise ModelError(f"get_layer: got name={name!r} and index={index!r}, want one of them")
        if index is not None:
            if not -len(self.layers) <= index < len(self.layers):
                raise ModelError(f"{self.name} has {len(self.layers)} layers; there is no number {index}")
            return self.layers[index]
        for layer, known in self._names.items():
            if known == name:
                return layer
        import difflib

        names = list(self._names.values())
        close = difflib.get_close_matches(str(name), names, n=5, cutoff=0.3) or names[:5]
        more = " ..." if len(names) > len(close) else ""
        raise ModelError(f"{self.name} has no layer {name!r}; there are {', '.join(close)}{more}")

    def param_layers(self) -> list[tuple[str, Layer]]:
        """The layers that own parameters, each once, with their names ("backbone/conv1" inside a model that is used as
        a layer).
        """
        found: dict[Layer, str] = {}
        for layer in self._layers:
            name = self._names[layer]
            inner = layer.param_layers() if isinstance(layer, Model) else [("", layer)] if layer.params else []
            for path, owner in inner:
                found.setdefault(owner, f"{name}/{path}" if path else name)
        return [(name, layer) for layer, name in found.items()]

    def named_params(self) -> dict[str, Param]:
        """All parameters, each once, by "layer/parameter".

        >>> from convkern.layers import Dense, Input
        >>> image = Input((3,))
        >>> list(Model(image, Dense(2)(image)).named_params())
        ['dense/kernel', 'dense/bias']
        """
        return {f"{name}/{key}": param for name, layer in self.param_layers() for key, param in layer.params.items()}

    @property
    def weights(self) -> list[Param]:
        """All parameters, each once, layer by layer, in Keras' order."""
        return list(self._unique_params)

    # Weights in files.

    def save_weights(self, path: str | os.PathLike[str]) -> None:
        """Write all parameters to a .safetensors file, under torch's names and in torch's layouts where layers have
        such names.

        The file is written whole or not at all. Errors: WeightsError if it cannot be written.
        """
        from .weights import state_dict, write_safetensors

        write_safetensors(path, state_dict(self))

    def load_weights(self, path: str | os.PathLike[str], skip_mismatch: bool = False) -> list[str]:
        """Read all parameters from a .pth, .pt, .safetensors or .npz file (no torch needed, nothing in it is executed).

        Returns what was skipped, one line for each tensor; empty unless skip_mismatch.

        Errors: WeightsError for a broken file, or for missing, extra or misshapen tensors unless skip_mismatch=True.
        """
        from .weights import load_state_dict, read_state_dict

        return load_state_dict(self, read_state_dict(path), skip_mismatch=skip_mismatch)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the architecture and the parameters to one file, which `load_model` reads.

        It is a .safetensors file (call it .ckn or as you like) with the architecture as JSON in its metadata; written
        whole or not at all.
        Errors: WeightsError if it cannot be written.
        """
        from .weights import state_dict, write_safetensors

        write_safetensors(path, state_dict(self), metadata={_KEY: self.to_json()})

    # Architecture as text.

    def get_config(self, seen: dict[Layer, int] | None = None) -> dict[str, Any]:
        seen = {} if seen is None else seen
        layers = self._layers
        number = {layer: i for i, layer in enumerate(layers)}
        return {
            "name": self.name,
            "layers": [_described(layer, self._names[layer], seen) for layer in layers],
            "calls": [[number[layer], list(reads)] for layer, reads, _ in self._steps],
            "inputs": self._input_layout,
            "outputs": self._output_layout,
            "input_count": len(self.inputs),
            "output_slots": list(self._output_slots),
            **self._options(),
        }

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if self._exact:
            options["exact"] = True
        if self._memory != "normal":
            options["memory"] = self._memory
        if self._precision != "float32":
            options["precision"] = self._precision
        if not self.trainable:
            options["trainable"] = False
        return options

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: Mapping[str, type[Layer]] | None = None,
        known: list[Layer] | None = None,
    ) -> Any:
        """A new model of the same architecture, with fresh parameters."""
        config, known = dict(config), [] if known is None else known
        layers = [_made(entry, custom_objects, known) for entry in config.pop("layers")]
        tensors: list[Tensor] = [layer.tensor for layer in layers[: config.pop("input_count")]]  # type: ignore[attr-defined]
        inputs, outputs = config.pop("inputs"), config.pop("outputs")
        count = len(tensors)
        for number, reads in config.pop("calls"):
            tensors.extend(_applied(layers[number], [tensors[i] for i in reads]))
        slots = config.pop("output_slots")
        return cls(_arrange(tensors[:count], inputs), _arrange([tensors[i] for i in slots], outputs), **config)

    def to_json(self, **options: Any) -> str:
        """The architecture, without parameters, as JSON text; options go to json.dumps (indent=1).

        Errors: Unsupported if a layer holds something that JSON has no form for.
        """
        try:
            return json.dumps({"format": _FORMAT, **_described(self, self.name, {})}, **options)
        except (TypeError, ValueError) as error:
            raise Unsupported(f"{self.name}: its architecture cannot be written as JSON: {error}") from None

    def __reduce__(self) -> Any:
        values = [(p.value, p.trainable) for p in (self._unique_params if self.built else [])]
        return _restore_model, (type(self), self.get_config(), _own_classes(self), values)

    # Description.

    def summary(
        self, print_fn: Callable[[str], Any] | None = None, input_shape: Any = None, expand_nested: bool = False
    ) -> None:
        """Print every layer with its output shape, activation memory, parameters and multiply-adds, and their totals.

        print_fn: called once with the whole text; None prints. input_shape: per image, for models with open sizes.
        expand_nested: also the layers of models that are used as layers.
        """
        from .summary import summary

        (print_fn or print)(summary(self, input_shape, expand_nested))

    def summary_table(self, input_shape: Any = None, expand_nested: bool = False) -> dict[str, Any]:
        """What `summary` prints, as numbers: {"model", "layers": [...], "totals": {...}}; see convkern.summary."""
        from .summary import summary_table

        return summary_table(self, input_shape, expand_nested)


_ASSEMBLED = ("inputs", "outputs", "_layers", "_names", "_steps", "_unique_params")


class Sequential(Model):
    """A stack of layers, each reading the one before.

    Arguments: layers: a list, which may start with an Input (or whose first layer has input_shape=); without one the
        model is connected when it is first called. add and pop change the stack at any time.
    Errors: ModelError for things that are no layers, and where an input is needed but not known yet.
    Source: keras.Sequential.

    >>> from convkern.layers import Conv2D, Flatten, Input, Dense
    >>> model = Sequential([Input((28, 28, 1)), Conv2D(32, 5, activation="relu"), Flatten()])
    >>> model.add(Dense(10))
    >>> model(np.zeros((2, 28, 28, 1), "f4")).shape
    (2, 10)
    """

    min_inputs = max_inputs = 1

    def __init__(
        self,
        layers: Iterable[Layer | Tensor] | None = None,
        name: str | None = None,
        *,
        exact: bool = False,
        memory: str = "normal",
        precision: str = "float32",
        **base: Any,
    ):
        Layer.__init__(self, name=name, **base)
        self._prepare(exact, memory, precision)
        self._stack: list[Layer] = []
        self._chain: list[Tensor] = []  # the input and the result of every layer, once the input is known
        for layer in layers or ():
            self.add(layer)

    def add(self, layer: Layer | Tensor) -> None:
        """Put a layer on top (an Input only at the bottom). If it does not fit, the model stays as it was."""
        if isinstance(layer, Tensor) and isinstance(layer.layer, InputLayer):
            layer = layer.layer
        if isinstance(layer, InputLayer):
            if self._stack or self._chain:
                raise ModelError(f"{self.name}: an input must come first")
            self._chain = [layer.tensor]
            return
        if not isinstance(layer, Layer):
            raise ModelError(f"{self.name}: got {type(layer).__name__}, want a layer")
        chain = self._chain
        if not self._stack and not chain:
            shape = layer.declared_input_shape
            if shape is None and isinstance(layer, Model) and layer.built and len(layer.inputs) == 1:
                shape = layer.inputs[0].shape
            if shape is not None:
                chain = [InputLayer(shape).tensor]
        if chain:
            chain = [*chain, _one(_applied(layer, [chain[-1]]), layer)]
            self._assemble(chain[0], chain[-1])
        self._stack, self._chain = [*self._stack, layer], chain

    def pop(self) -> Layer:
        """Take the top layer off and return it."""
        if not self._stack:
            raise ModelError(f"{self.name}: there is no layer to take off")
        layer = self._stack.pop()
        if self._chain:
            call = self._chain.pop().call
            layer._calls = [other for other in layer._calls if other is not call]
            self.built = False
            if self._stack:
                self._assemble(self._chain[0], self._chain[-1])
        return layer

    def build(self, input_shape: Any) -> None:
        """Connect the layers for images of this shape, without the batch axis."""
        if self.built:
            return
        if not self._stack:
            raise ModelError(f"{self.name} has no layers yet")
        layers, self._stack, self._chain = (
            self._stack,
            [],
            [InputLayer(checked_shape("input_shape", input_shape)).tensor],
        )
        try:
            for layer in layers:
                self.add(layer)
        except Exception:
            self._stack, self._chain, self.built = layers, [], False
            raise

    def _arranged(self, inputs: Any) -> list[Any]:
        if not self.built:
            x = inputs[0] if isinstance(inputs, (list, tuple)) and len(inputs) == 1 else inputs
            self.build(x.shape if isinstance(x, Tensor) else as_ndarray(x, f"{self.name}: input").shape[1:])
        return super()._arranged(inputs)

    def __getattr__(self, name: str) -> Any:
        # Reached only for what does not exist: before the layers are connected, everything that _assemble sets.
        if name in _ASSEMBLED:
            raise ModelError(
                f"{self.name} does not know its input yet: begin with an Input, call build(shape), or call it on data"
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _inner_layers(self) -> list[Layer]:
        return self._stack

    @property
    def layers(self) -> list[Layer]:
        """The stack, without the input (as in Keras)."""
        return list(self._stack)

    def get_config(self, seen: dict[Layer, int] | None = None) -> dict[str, Any]:
        seen = {} if seen is None else seen
        names = self._names if self.built else {layer: layer.name for layer in self._stack}
        unique = list(dict.fromkeys(self._stack))
        return {
            "name": self.name,
            "input": _described(self._chain[0].layer, self._chain[0].name, seen) if self._chain else None,
            "layers": [_described(layer, names[layer], seen) for layer in unique],
            "stack": [unique.index(layer) for layer in self._stack],
            **self._options(),
        }

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: Mapping[str, type[Layer]] | None = None,
        known: list[Layer] | None = None,
    ) -> Any:
        config, known = dict(config), [] if known is None else known
        source, stack = config.pop("input"), config.pop("stack")
        start = [_made(source, custom_objects, known)] if source else []
        layers = [_made(entry, custom_objects, known) for entry in config.pop("layers")]
        return cls([*start, *(layers[i] for i in stack)], **config)


def load_model(path: str | os.PathLike[str], custom_objects: Mapping[str, type[Layer]] | None = None) -> Any:
    """Read a model that Model.save wrote: its architecture and its parameters.

    custom_objects: own layer classes by name (also found if the module that defines them is imported). Nothing in the
        file is executed.
    Errors: WeightsError for a broken file or one without an architecture; ModelError for an unknown layer class.
    Source: keras.models.load_model.

    >>> import os, tempfile
    >>> from convkern.layers import Dense, Input
    >>> path = os.path.join(tempfile.mkdtemp(), "model.ckn")
    >>> image = Input((3,))
    >>> Model(image, Dense(2)(image)).save(path)
    >>> load_model(path).output_shape
    (2,)
    """
    from .errors import WeightsError
    from .weights import load_state_dict, read_state_dict

    tensors = read_state_dict(path)
    text = metadata_of(path).get(_KEY)
    if text is None:
        raise WeightsError(
            f"{os.fspath(path)}: holds tensors but no architecture: build the model and call its load_weights"
        )
    model = from_json(text, custom_objects)
    load_state_dict(model, tensors)
    return model


def metadata_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """The texts that a .safetensors file holds beside its tensors; {} for other files."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}  # another format of weights, which read_state_dict knows


def from_json(text: str, custom_objects: Mapping[str, type[Layer]] | None = None) -> Any:
    """A model from the text of Model.to_json, with fresh parameters.

    Errors: ModelError for text that is no architecture, or an unknown layer class (see custom_objects of load_model).
    Source: keras.models.model_from_json.

    >>> from convkern.layers import Dense, Input
    >>> image = Input((3,))
    >>> from_json(Model(image, Dense(2)(image)).to_json()).count_params()
    8
    """
    try:
        entry = json.loads(text)
        if not isinstance(entry, dict) or "class_name" not in entry:
            raise ModelError("the text is JSON, but not a model's architecture")
        if entry.get("format") != _FORMAT:
            raise ModelError(f"an architecture of format {entry.get('format')!r}; this version reads {_FORMAT!r}")
        model = _made(entry, custom_objects, [])
    except (KeyError, IndexError, TypeError, AttributeError, RecursionError, json.JSONDecodeError) as error:
        raise ModelError(f"not a model's architecture: {type(error).__name__}: {error}") from None
    if not isinstance(model, Model):
        raise ModelError(f"the text describes a {type(model).__name__}, not a model")
    return model


def _described(layer: Layer, name: str, seen: dict[Layer, int]) -> dict[str, Any]:
    """A layer as JSON; one that was described before (models share it) as its number in order of appearance."""
    if layer in seen:
        return {"same_as": seen[layer]}
    seen[layer] = len(seen)
    config = layer.get_config(seen) if isinstance(layer, Model) else layer.get_config()
    return {"class_name": type(layer).__name__, "config": {**config, "name": name}}


def _made(entry: Mapping[str, Any], custom_objects: Mapping[str, type[Layer]] | None, known: list[Layer]) -> Any:
    """The layer that `_described` wrote; `known` holds the layers so far, in order of appearance."""
    if "same_as" in entry:
        return known[entry["same_as"]]
    cls = layer_class(entry["class_name"], custom_objects)
    place = len(known)
    known.append(cls.__new__(cls))  # keeps the place; nothing refers to a model from inside itself
    if issubclass(cls, Model):
        known[place] = cls.from_config(entry["config"], custom_objects, known)
    else:
        known[place] = cls.from_config(entry["config"])
    return known[place]


def _own_classes(model: Model) -> dict[str, type[Layer]]:
    """Layer classes that are not the package's: pickled by reference, so that reading a pickle imports them."""
    found: dict[str, type[Layer]] = {}
    for layer in [model, *model.layers]:
        if not type(layer).__module__.startswith("convkern."):
            found[type(layer).__name__] = type(layer)
        if isinstance(layer, Model) and layer is not model:
            found.update(_own_classes(layer))
    return found


def _restore_model(
    cls: type[Model],
    config: dict[str, Any],
    custom_objects: dict[str, type[Layer]],
    values: list[tuple[np.ndarray, bool]],
) -> Model:
    model = cls.from_config(config, custom_objects)
    for param, (value, trainable) in zip(model._unique_params if values else [], values):
        param.assign(value, copy=False)
        param.trainable = trainable
    return model


def _trainable_layers(model: Model) -> Iterator[Layer]:
    """The layers whose parameters may change: neither they nor a model around them are frozen."""
    for layer in model._inner_layers() if model.trainable else ():
        if isinstance(layer, Model):
            yield from _trainable_layers(layer)
        elif layer.trainable:
            yield layer


def _source(tensor: Tensor) -> InputLayer:
    """An input layer with the shape of a tensor that another layer made."""
    layer = InputLayer(tensor.shape)
    layer.tensor._sizes = tensor._sizes
    return layer


def _applied(layer: Layer, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What a layer makes of tensors: once only, so that models cut out of each other still share their tensors."""
    for call in layer._calls:
        if call.inputs == tuple(inputs):
            return call.outputs
    layer.connect(inputs)
    return layer._calls[-1].outputs


def _one(outputs: Sequence[Tensor], layer: Layer) -> Tensor:
    if len(outputs) != 1:
        raise ModelError(f"{layer.name} has several outputs; a layer of a Sequential has one")
    return outputs[0]


def _flatten(structure: Any, what: str) -> tuple[list[Tensor], Any]:
    """Tensors in order, and how they were arranged: None (one), "list", or the keys of a dictionary."""
    layout: Any = None
    if isinstance(structure, Mapping):
        layout, tensors = [str(key) for key in structure], list(structure.values())
    elif isinstance(structure, (list, tuple)):
        layout, tensors = "list", list(structure)
    else:
        tensors = [structure]
    if not tensors:
        raise ModelError(f"{what}: got none")
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise DTypeError(f"{what}: got {type(tensor).__name__}, want symbolic tensors (from Input or a layer call)")
    return tensors, layout


def _arrange(values: Sequence[Any], layout: Any) -> Any:
    if layout is None:
        return values[0]
    return list(values) if layout == "list" else dict(zip(layout, values))


def _hint(got: Shape, want: OpenShape) -> str:
    """What probably went wrong, where it is a classic."""
    if got == want:
        return "; add the batch axis: x[None]"
    if len(got) == len(want) + 1 > 2 and (got[2:] + got[1:2]) == want:
        axes = ", ".join(map(str, [0, *range(2, len(got)), 1]))
        return f"; channels go last: x.transpose({axes}) (no copy is made)"
    if len(got) == len(want) + 1 and got[-1] == want[-1]:
        return "; build the model for this size, or with Input sizes of None"
    return ""


def progress(count: int | None, batches: Iterable[Any] | None = None) -> Any:
    """A progress bar over batches, or one that is updated by hand."""
    try:
        from tqdm import tqdm
    except ImportError:
        raise Unsupported("verbose=1 draws its progress bar with tqdm: pip install 'convkern[train]'") from None
    return tqdm(batches, total=count, unit="batch")
