"""Architectures: one file per family, each a block, a table and explicit tensor names; `registry` builds them."""

from ..data import load_image
from . import (  # each registers its names
    alexnet,
    densenet,
    efficientnet,
    inception,
    lecture,
    mobilenet,
    resnet,
    squeezenet,
    vgg,
)
from .imagenet import decode_predictions, load_input, preprocess_input
from .registry import get_model, list_models, model_info, register

__all__ = [
    "decode_predictions",
    "get_model",
    "list_models",
    "load_image",
    "load_input",
    "model_info",
    "preprocess_input",
    "register",
]
