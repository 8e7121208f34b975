"""Between the tensors of a file and the parameters of a model: torch's names and layouts there, Keras' here.

    layer                file (torch)              model
    Conv1D/2D/3D         weight (K, C/G, R, S)     kernel (R, S, C/G, K)
    Conv2DTranspose      weight (C, K/G, R, S)     kernel (R, S, K/G, C)
    DepthwiseConv2D      weight (C*m, 1, R, S)     kernel (R, S, C, m)
    Dense                weight (out, in)          kernel (in, out); behind a Flatten `in` is C,H,W there, H,W,C here
    BatchNormalization   weight, bias, running_mean, running_var, num_batches_tracked
                                                   gamma, beta, moving_mean, moving_variance, nothing (written as 0)

A layer's tensors are called `layer.torch_name` + "." + these names. Layers without a torch_name keep the model's own
names and layouts ("conv2d/kernel"), so that any model can be written and read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import WeightsError

if TYPE_CHECKING:
    from ..graph import Param, Shape
    from ..layers.base import Layer
    from ..model import Model

TORCH_NAMES = {
    "kernel": "weight",
    "depthwise_kernel": "depthwise.weight",
    "pointwise_kernel": "pointwise.weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
TRAINING = "convkern.training/"  # tensors of a checkpoint that are no parameters
COUNTER = "num_batches_tracked"  # torch's; means nothing to inference


class Slot(NamedTuple):
    """A parameter and how it stands in a file.

    layout: "same", "conv", "depthwise" or "dense"; flat: the (H, W, C) that a Flatten before a dense layer flattened.
    """

    param: Param
    layout: str
    flat: tuple[Any, ...] | None = None

    @property
    def shape(self) -> Shape:
        """In the file."""
        shape = self.param.shape
        if self.layout == "conv":
            return (shape[-1], shape[-2], *shape[:-2])
        if self.layout == "depthwise":
            return (shape[-2] * shape[-1], 1, *shape[:-2])
        return shape[::-1] if self.layout == "dense" else shape

    def write(self) -> np.ndarray:
        """The parameter's values as the file has them."""
        value = self.param.value
        if self.layout in ("conv", "depthwise"):
            last = value.ndim - 1
            first = (last, last - 1) if self.layout == "conv" else (last - 1, last)
            value = value.transpose(*first, *range(last - 1))
        elif self.flat:
            value = value.reshape(*self.flat, -1).transpose(3, 2, 0, 1)
        elif self.layout == "dense":
            value = value.T
        return value.reshape(self.shape)

    def read(self, array: np.ndarray) -> None:
        """Fill the parameter from a file's array of the right shape."""
        spatial = range(2, array.ndim)
        if self.layout == "conv":
            array = array.transpose(*spatial, 1, 0)
        elif self.layout == "depthwise":
            array = array.reshape(*self.param.shape[-2:], *array.shape[2:]).transpose(*spatial, 0, 1)
        elif self.flat:
            array = array.reshape(-1, self.flat[2], *self.flat[:2]).transpose(2, 3, 1, 0)
        elif self.layout == "dense":
            array = array.T
        # A copy in any case: of a mapped file that could be overwritten, of floats that are wider or narrower.
        self.param.assign(np.array(array, self.param.dtype, order="C").reshape(self.param.shape), copy=False)


def state_dict(model: Model) -> dict[str, np.ndarray]:
    """All parameters of a model under the names and in the layouts of its reference's checkpoints.

    >>> from convkern import Input, Model
    >>> from convkern.layers import BatchNormalization, Conv2D
    >>> image = Input((8, 8, 3))
    >>> x = Conv2D(4, 3, use_bias=False, torch_name="conv1")(image)
    >>> model = Model(image, BatchNormalization(torch_name="bn1")(x))
    >>> for name, array in state_dict(model).items():
    ...     print(name, array.shape)
    conv1.weight (4, 3, 3, 3)
    bn1.weight (4,)
    bn1.bias (4,)
    bn1.running_mean (4,)
    bn1.running_var (4,)
    bn1.num_batches_tracked ()
    """
    tensors = {}
    for name, slot in slots(model).items():
        tensors[name] = slot.write()
        if slot.param.name == "moving_variance" and name.endswith(".running_var"):
            tensors[name.removesuffix("running_var") + COUNTER] = np.zeros((), np.int64)
    return tensors


def load_state_dict(model: Model, tensors: Mapping[str, np.ndarray], skip_mismatch: bool = False) -> list[str]:
    """Fill a model's parameters from named tensors, as `read_state_dict` gives them.

    On an error nothing has changed. Floats of another width are converted to the parameter's float32. A prefix
    "module." on every name (torch's DataParallel) is dropped, as are batch norm's counters.

    skip_mismatch: load what fits and leave the rest of the model as it is.
    Returns: what was skipped, one line each; empty unless skip_mismatch.
    Raises: WeightsError listing the missing, extra and misshapen tensors, with both shapes.

    >>> from convkern import Input, Model
    >>> from convkern.layers import Dense
    >>> x = Input((2,))
    >>> model = Model(x, Dense(1, torch_name="fc")(x))
    >>> load_state_dict(model, {"fc.weight": np.array([[1, 2]], "f4"), "fc.bias": np.array([3], "f4")})
    []
    >>> model(np.array([[10, 20]], "f4"))
    array([[53.]], dtype=float32)
    >>> load_state_dict(model, {"fc.weight": np.zeros((1, 3), "f4"), "fc.bias": np.zeros(1, "f4")})
    Traceback (most recent call last):
    convkern.errors.WeightsError: 1 tensors do not fit a model of 2:
      fc.weight: shape (1, 3), want (1, 2)
    """
    tensors = _bare(tensors)
    wanted, problems = slots(model), mismatches(model, tensors)
    lines = [f"{name}: {problem}" for name, problem in problems.items()]
    if lines and not skip_mismatch:
        shown = lines[:20] + ([f"... and {len(lines) - 20} more"] if len(lines) > 20 else [])
        raise WeightsError(f"{len(lines)} tensors do not fit a model of {len(wanted)}:\n  " + "\n  ".join(shown))
    for name, slot in wanted.items():
        if name not in problems:
            slot.read(tensors[name])
    return lines


def mismatches(model: Model, tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """What keeps named tensors from filling a model: a sentence for each that is missing, extra or misshapen."""
    wanted, tensors = slots(model), _bare(tensors)
    problems = {}
    for name, slot in wanted.items():
        if name not in tensors:
            problems[name] = f"missing, want shape {slot.shape}"
        elif tensors[name].shape != slot.shape:
            problems[name] = f"shape {tensors[name].shape}, want {slot.shape}"
        elif tensors[name].dtype.kind != "f":
            problems[name] = f"elements of type {tensors[name].dtype}, want {slot.param.dtype}"
    for name, tensor in tensors.items():
        if name not in wanted and name.rpartition(".")[2] != COUNTER and not name.startswith(TRAINING):
            problems[name] = f"not in the model, shape {tensor.shape}"
    return problems


def _bare(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Without the prefix that torch's DataParallel puts before every name."""
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def slots(model: Model) -> dict[str, Slot]:
    """Every parameter of a model under its name in a file; WeightsError if two would share one."""
    found: dict[str, Slot] = {}
    for path, layer in model.param_layers():
        for key, param in layer.params.items():
            if layer.torch_name is None:
                name, slot = f"{path}/{key}", Slot(param, "same")
            else:
                name, slot = f"{layer.torch_name}.{TORCH_NAMES.get(key, key)}", Slot(param, *_layout(layer, key))
            if name in found:
                raise WeightsError(
                    f"two parameters would be called {name!r} in a file: their layers share a torch_name"
                )
            found[name] = slot
    return found


def _layout(layer: Layer, key: str) -> tuple[str, tuple[Any, ...] | None]:
    from ..layers import Dense, DepthwiseConv1D, DepthwiseConv2D

    if not key.endswith("kernel"):
        return "same", None
    if isinstance(layer, Dense):
        return "dense", layer.flatten_shape
    depthwise = key == "depthwise_kernel" or isinstance(layer, (DepthwiseConv1D, DepthwiseConv2D))
    return ("depthwise" if depthwise else "conv"), None
