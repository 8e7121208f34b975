"""A convkern graph trained by PyTorch, operator by operator: the reference for training steps, and their peer.

As torch_graph.py, with the parameters as leaves that require gradients, batch norms that use and move the statistics of
the batch, and dropout that drops.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..graph import Graph, Node, Param
from .torch_graph import _MAKERS, Maker, Op, TorchGraph


class TorchTraining(TorchGraph):
    """Calls a graph in training mode; `leaves` are its trained parameters, `kept` the statistics of its norms.

    trained: the parameters that require gradients. `gradient` and `value` give a parameter's arrays in our layout.
    """

    def __init__(
        self,
        graph: Graph,
        trained: Collection[Param],
        memory_format: torch.memory_format = torch.contiguous_format,
        dtype: torch.dtype = torch.float32,
    ):
        self.leaves: dict[Param, Any] = {}
        self.kept: dict[Param, Any] = {}
        self.dtype = dtype
        self._trained = {id(param) for param in trained}
        super().__init__(graph, memory_format)

    def _tensor(self, array: np.ndarray, param: Any) -> Any:
        if param in self.leaves:  # a layer that is used twice
            return self.leaves[param]
        tensor = super()._tensor(array, param).to(self.dtype)
        if id(param) in self._trained:
            self.leaves[param] = tensor.requires_grad_()
        elif isinstance(param, Param):
            self.kept[param] = tensor
        return tensor

    def gradient(self, param: Param) -> np.ndarray:
        return _ours(self.leaves[param].grad.numpy(), param)

    def value(self, param: Param) -> np.ndarray:
        """The present values of a trained parameter, or of a kept statistic."""
        tensor = self.leaves[param] if param in self.leaves else self.kept[param]
        return _ours(tensor.detach().numpy(), param)

    @property
    def parameters(self) -> list[Any]:
        return list(self.leaves.values())


def _ours(array: np.ndarray, param: Param) -> np.ndarray:
    """From PyTorch's layout of a kernel to ours."""
    if param.name.endswith("kernel"):
        array = array.T if array.ndim == 2 else np.moveaxis(array, (0, 1), (-1, -2))
    return np.ascontiguousarray(array).reshape(param.shape)


def _batch_norm(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    if node.attrs.get("frozen", False):
        return _MAKERS["batch_norm"](graph, node, tensor, free)
    p = {key: tensor(param.value, param) for key, param in node.params.items() if isinstance(param, Param)}
    mean, var, momentum, eps = p["mean"], p["var"], 1 - node.attrs["momentum"], node.attrs["eps"]
    return lambda x: F.batch_norm(x, mean, var, p.get("gamma"), p.get("beta"), True, momentum, eps)


def _dropout(graph: Graph, node: Node, tensor: Maker, free: bool) -> Op:
    rate = node.attrs["rate"]
    if not node.attrs["per_image"]:
        return lambda x: F.dropout(x, rate, True)
    return lambda x: x * F.dropout(x.new_ones(len(x), *[1] * (x.ndim - 1)), rate, True)


TorchTraining.makers = {**_MAKERS, "batch_norm": _batch_norm, "dropout": _dropout}
