"""Facts about the reference models, and the generated weights under which they hold.

data/golden/*.json.gz: per model of torchvision (tv) or timm, and input size: names and shapes of the state dict's
tensors, parameter count, multiply-adds of convolutions and dense layers, and the logits (first 16, mean, standard
deviation, argmax) of one generated image, computed by that library in float64 under the weights of `fill` with the
file's gain.

Under a gain of 1 some deep networks amplify rounding (one ulp of the image moves EfficientNet-B2's logits by 1e-3, and
float32 in torch misses B3's by 4e-3): they have a smaller one. densenet264 is torchvision's DenseNet class with the
paper's numbers.
"""

import gzip
import json
import math
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "data" / "golden"


def names() -> list[str]:
    """`tv_resnet50@224` and so on, sorted."""
    return sorted(file.name.removesuffix(".json.gz") for file in FOLDER.glob("*.json.gz"))


def load(name: str) -> dict:
    """The facts of a model, without its auxiliary classifier, which only training reads."""
    with gzip.open(FOLDER / f"{name}.json.gz", "rt") as file:
        facts = json.load(file)
    tensors, facts["tensors"] = facts["tensors"], []
    for key, shape in tensors:
        if not key.startswith("AuxLogits."):
            facts["tensors"].append([key, shape])
        elif key.endswith((".weight", ".bias")):
            facts["params"] -= math.prod(shape)
    return facts


def state_dict(facts: dict) -> dict[str, np.ndarray]:
    """The generated weights of a reference model."""
    return {name: fill(name, tuple(shape), facts["gain"]) for name, shape in facts["tensors"]}


def fill(name: str, shape: tuple[int, ...], gain: float = 1.0) -> np.ndarray:
    """The value of the tensor `name`: the same for the same name and shape, in any library.

    A weight of two or more dimensions is He-normal over its fan-in, times `gain`; a norm's weight and a running
    variance lie in [0.5, 1.5); biases and running means are 0.1 * normal. Shapes are those of a state dict
    (convolutions K, C/groups, R, S).
    Source: PCG64 seeded with the CRC-32 of the tensor's name, so nothing has to be stored.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if len(shape) >= 2:
        fan_in = int(np.prod(shape[1:]))
        return (rng.standard_normal(shape) * np.sqrt(2.0 / fan_in) * gain).astype(np.float32)
    if name.endswith("weight"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    return (0.1 * rng.standard_normal(shape)).astype(np.float32)


def image(size: int, seed: int = 0) -> np.ndarray:
    """The input: one image of normal numbers, (1,H,W,3); drawn in torch's order, channels first."""
    x = np.random.default_rng(seed).standard_normal((1, 3, size, size)).astype(np.float32)
    return x.transpose(0, 2, 3, 1)
