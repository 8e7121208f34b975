"""Functions on arrays, with the names, arguments, defaults and results of torch.nn.functional.

Arrays: NumPy, or any CPU object with `__dlpack__` or `__array_interface__` (PyTorch CPU tensors), read without a copy,
read-only or strided as they come; results are new ndarrays. float32 computes in float32; float64 runs on the reference
kernels, for checks; any other element type is a DTypeError. Axes are (N,C,H,W), or (C,H,W) without a batch, as in
PyTorch; `layout="NHWC"` takes and gives (N,H,W,C). Weights are (K,C/G,R,S) in both. NHWC memory seen as (N,C,H,W)
(PyTorch's channels_last) is read in place, and the result is laid out in the same way.

Sizes are in pixels. `threads` limits one call (0 = convkern.set_num_threads). All functions raise ShapeError or
DTypeError, with the values, for what PyTorch refuses, and Unsupported for what is not served here.

A call builds a plan of one step and runs it; for whole networks use convkern.layers, which keep their plan and packed
weights.
"""

from . import grad
from .convolution import conv1d, conv2d, conv3d, conv_transpose1d, conv_transpose2d, conv_transpose3d, linear
from .elementwise import (
    add,
    div,
    dropout,
    elu,
    gelu,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    maximum,
    minimum,
    mul,
    relu,
    relu6,
    sigmoid,
    silu,
    softplus,
    sub,
    tanh,
)
from .movement import cat, concat, flatten, interpolate, pad
from .normalization import batch_norm, layer_norm, local_response_norm, log_softmax, softmax
from .pooling import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
)

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "add", "avg_pool1d", "avg_pool2d", "avg_pool3d", "batch_norm", "cat", "concat", "conv1d",
    "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "div", "dropout", "elu",
    "flatten", "gelu", "grad", "hardsigmoid", "hardswish", "hardtanh", "interpolate", "layer_norm", "leaky_relu",
    "linear", "local_response_norm", "log_softmax", "max_pool1d", "max_pool2d", "max_pool3d", "maximum", "minimum",
    "mul", "pad", "relu", "relu6", "sigmoid", "silu", "softmax", "softplus", "sub", "tanh",
]  # fmt: skip
