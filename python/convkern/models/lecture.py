"""The networks of the lecture: a multilayer perceptron, a small convnet, LeNet-5 and the original AlexNet.

All but the last take grey images, scaled to 0..1, and give ten classes. Their tensors are called conv1, fc1 and so on.

    mlp               784-512-512-10: Keras' classic for MNIST (examples/mnist_mlp), 669,706 parameters
    convnet           5x5x32, pool, 3x3x64, pool, 256, 10
    lenet5            LeCun et al. 1998, "Gradient-based learning applied to document recognition", fig. 2: 32x32 input
                      (28x28 is padded to it), tanh, average pools; every feature map of C3 reads all of S2's, as in
                      today's versions: 61,706 parameters
    alexnet_lecture   Krizhevsky et al. 2012, sec. 3.5, without its split over two GPUs: 227x227 input, 96 first
                      filters; lrn=True adds the response normalisation of sec. 3.3, which has no parameters
"""

from __future__ import annotations

from ..layers import AveragePooling2D, Dropout, Flatten, LocalResponseNormalization, MaxPool2D
from .blocks import Tensor, conv, dense
from .registry import register

GREY = dict(size=28, resize=28, channels=1, mean=(0.0,), std=(1.0,), classes=10)


def mlp_head(x: Tensor, classes: int) -> Tensor:
    return dense(x, classes, "fc3")


@register("mlp", head=mlp_head, head_names=("fc3",), **GREY)
def mlp(x: Tensor, units: int = 512, dropout: float = 0.2) -> Tensor:
    """Image -> the second hidden layer."""
    flattened = x.shape
    x = Flatten(name="flatten")(x)
    x = Dropout(dropout)(dense(x, units, "fc1", "relu", flattened))
    return Dropout(dropout)(dense(x, units, "fc2", "relu"))


def convnet_head(x: Tensor, classes: int) -> Tensor:
    flattened = x.shape
    x = dense(Flatten(name="flatten")(x), 256, "fc1", "relu", flattened)
    return dense(x, classes, "fc2")


@register("convnet", head=convnet_head, head_names=("fc1", "fc2"), **GREY)
def convnet(x: Tensor) -> Tensor:
    """Image -> 5x5x64 at 28 pixels."""
    x = conv(x, 32, 5, "conv1", padding=0, activation="relu")
    x = MaxPool2D(2, strides=2, name="pool1")(x)
    x = conv(x, 64, 3, "conv2", padding=0, activation="relu")
    return MaxPool2D(2, strides=2, name="pool2")(x)


def lenet5_head(x: Tensor, classes: int) -> Tensor:
    flattened = x.shape
    x = dense(Flatten(name="flatten")(x), 120, "fc1", "tanh", flattened)  # C5, a 5x5 convolution over a 5x5 map
    x = dense(x, 84, "fc2", "tanh")
    return dense(x, classes, "fc3")


@register("lenet5", head=lenet5_head, head_names=("fc1", "fc2", "fc3"), **{**GREY, "size": 32, "resize": 32})
def lenet5(x: Tensor) -> Tensor:
    """Image -> 5x5x16 at 32 (or 28) pixels."""
    x = conv(x, 6, 5, "conv1", padding=2 if x.shape[0] == 28 else 0, activation="tanh")
    x = AveragePooling2D(2, strides=2, name="pool1")(x)
    x = conv(x, 16, 5, "conv2", padding=0, activation="tanh")
    return AveragePooling2D(2, strides=2, name="pool2")(x)


def alexnet_head(x: Tensor, classes: int) -> Tensor:
    flattened = x.shape
    x = Flatten(name="flatten")(x)
    x = Dropout(0.5)(dense(x, 4096, "fc6", "relu", flattened))
    x = Dropout(0.5)(dense(x, 4096, "fc7", "relu"))
    return dense(x, classes, "fc8")


@register("alexnet_lecture", head=alexnet_head, head_names=("fc6", "fc7", "fc8"), size=227, resize=259)
def alexnet_lecture(x: Tensor, lrn: bool = False) -> Tensor:
    """Image -> 6x6x256 at 227 pixels: 55x55x96, pool 27x27x96, 27x27x256, pool 13x13x256, 384, 384, 256, pool."""

    def normalised(x: Tensor, name: str) -> Tensor:
        # The paper's alpha = 1e-4 multiplies a sum over 5 channels, the layer's a mean.
        return LocalResponseNormalization(size=5, alpha=5e-4, beta=0.75, k=2.0, name=name)(x) if lrn else x

    x = normalised(conv(x, 96, 11, "conv1", stride=4, padding=0, activation="relu"), "norm1")
    x = MaxPool2D(3, strides=2, name="pool1")(x)
    x = normalised(conv(x, 256, 5, "conv2", activation="relu"), "norm2")
    x = MaxPool2D(3, strides=2, name="pool2")(x)
    x = conv(x, 384, 3, "conv3", activation="relu")
    x = conv(x, 384, 3, "conv4", activation="relu")
    x = conv(x, 256, 3, "conv5", activation="relu")
    return MaxPool2D(3, strides=2, name="pool5")(x)
