"""Weight files: named tensors in and out, and their way to a model's parameters.

read_state_dict(path)          .pth / .pt, .safetensors, .npz -> {name: array}; executes nothing, needs no torch
write_safetensors(path, ...)   whole or not at all
load_state_dict(model, ...)    torch's names and layouts -> the model's parameters
state_dict(model)              and back
"""

from .files import read_state_dict, write_safetensors
from .names import load_state_dict, state_dict

__all__ = ["load_state_dict", "read_state_dict", "state_dict", "write_safetensors"]
