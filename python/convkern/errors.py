"""The package's own errors: one base class, and each class is also the built-in a caller would expect.

Every message says what came and what was wanted, with values.
"""


class ConvkernError(Exception):
    """Base of all errors raised on purpose by convkern."""


class ShapeError(ConvkernError, ValueError):
    """Sizes that do not fit together, are negative or overflow."""


class DTypeError(ConvkernError, TypeError):
    """An element type (or a kind of object) that is not accepted; nothing is converted silently."""


class Unsupported(ConvkernError, NotImplementedError):
    """A valid request that no kernel or layer here serves; the message lists the reasons."""


class DeviceError(ConvkernError, RuntimeError):
    """A device that is not there, or that failed: what CUDA says about it."""


class ModelError(ConvkernError, ValueError):
    """Layers that do not form a model: an input that is missing, a name used twice, a layer that is not there."""


class WeightsError(ConvkernError, ValueError):
    """A weight file or a set of tensors that is broken, hostile, or does not belong to the model."""


class DataError(ConvkernError, ValueError):
    """An image, data set or label that cannot be read or is out of range."""


class NotFinite(ConvkernError, FloatingPointError):
    """A loss became NaN or infinite in training; the message names the step and the first layer that made it so."""


class CheckpointError(ConvkernError, ValueError):
    """A checkpoint that is broken or was written by another model or another optimizer; nothing was changed."""
