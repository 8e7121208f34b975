"""Rewrites of a graph before it is compiled: pure functions Graph -> Graph, run in the order of `ALL`.

Each keeps the outputs of the graph up to rounding (the tests check this after every pass); none changes a parameter.
"""

from __future__ import annotations

from collections.abc import Callable

from ..graph import Graph
from .concat_in_place import concat_in_place
from .drop_dead import drop_dead
from .drop_identities import drop_identities
from .fold_batch_norm import fold_batch_norm
from .fold_pad import fold_pad
from .fuse_activation import fuse_activation
from .fuse_residual import fuse_residual
from .share_concats import share_concats

Pass = Callable[[Graph], Graph]

ALL: tuple[Pass, ...] = (
    drop_identities,
    drop_dead,  # a branch that nobody reads must not stop a fusion
    fold_pad,
    fold_batch_norm,
    fuse_residual,  # before activations: y = act(conv + bias + residual)
    fuse_activation,
    share_concats,
    drop_dead,  # pads and concats that lost their readers
    concat_in_place,
)


def run(graph: Graph, passes: tuple[Pass, ...] = ALL) -> Graph:
    """The graph after all passes."""
    for step in passes:
        graph = step(graph)
    return graph
