"""Keras-style layers, channels last: arguments, defaults and weight shapes as in Keras; padding also in pixels, as in
torch.

>>> from convkern.layers import Conv2D, Input, MaxPool2D
>>> MaxPool2D(2)(Conv2D(32, 5, activation="relu")(Input((28, 28, 1)))).shape
(12, 12, 32)
"""

from .base import Input, InputLayer, Layer, Tensor
from .conv import (
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Conv3D,
    Conv3DTranspose,
    DepthwiseConv1D,
    DepthwiseConv2D,
    SeparableConv1D,
    SeparableConv2D,
)
from .core import ELU, Activation, Dense, Dropout, LeakyReLU, ReLU, Rescaling, Softmax, StochasticDepth
from .merge import Add, Average, Concatenate, Maximum, Minimum, Multiply, Subtract
from .norm import BatchNormalization, LayerNormalization, LocalResponseNormalization
from .pool import (
    AdaptiveAveragePool1D,
    AdaptiveAveragePool2D,
    AdaptiveAveragePool3D,
    AdaptiveMaxPool1D,
    AdaptiveMaxPool2D,
    AdaptiveMaxPool3D,
    AveragePool1D,
    AveragePool2D,
    AveragePool3D,
    GlobalAveragePool1D,
    GlobalAveragePool2D,
    GlobalAveragePool3D,
    GlobalMaxPool1D,
    GlobalMaxPool2D,
    GlobalMaxPool3D,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
)
from .reshape import (
    Cropping1D,
    Cropping2D,
    Cropping3D,
    Flatten,
    Permute,
    Reshape,
    Resizing,
    UpSampling1D,
    UpSampling2D,
    UpSampling3D,
    ZeroPadding1D,
    ZeroPadding2D,
    ZeroPadding3D,
)

# The other names of the same classes, in Keras and in torch.
Convolution1D, Convolution2D, Convolution3D = Conv1D, Conv2D, Conv3D
Convolution1DTranspose, Convolution2DTranspose, Convolution3DTranspose = (
    Conv1DTranspose,
    Conv2DTranspose,
    Conv3DTranspose,
)
SeparableConvolution1D, SeparableConvolution2D = SeparableConv1D, SeparableConv2D
MaxPooling1D, MaxPooling2D, MaxPooling3D = MaxPool1D, MaxPool2D, MaxPool3D
AveragePooling1D, AveragePooling2D, AveragePooling3D = AveragePool1D, AveragePool2D, AveragePool3D
AvgPool1D, AvgPool2D, AvgPool3D = AveragePool1D, AveragePool2D, AveragePool3D
GlobalAveragePooling1D, GlobalAveragePooling2D, GlobalAveragePooling3D = (
    GlobalAveragePool1D,
    GlobalAveragePool2D,
    GlobalAveragePool3D,
)
GlobalAvgPool1D, GlobalAvgPool2D, GlobalAvgPool3D = GlobalAveragePool1D, GlobalAveragePool2D, GlobalAveragePool3D
GlobalMaxPooling1D, GlobalMaxPooling2D, GlobalMaxPooling3D = GlobalMaxPool1D, GlobalMaxPool2D, GlobalMaxPool3D
AdaptiveAveragePooling1D, AdaptiveAveragePooling2D, AdaptiveAveragePooling3D = (
    AdaptiveAveragePool1D,
    AdaptiveAveragePool2D,
    AdaptiveAveragePool3D,
)
AdaptiveAvgPool1D, AdaptiveAvgPool2D, AdaptiveAvgPool3D = (
    AdaptiveAveragePool1D,
    AdaptiveAveragePool2D,
    AdaptiveAveragePool3D,
)
AdaptiveMaxPooling1D, AdaptiveMaxPooling2D, AdaptiveMaxPooling3D = (
    AdaptiveMaxPool1D,
    AdaptiveMaxPool2D,
    AdaptiveMaxPool3D,
)
