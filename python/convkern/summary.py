"""What a model is, in tables: the lecture's memory-and-parameters table, and the plan that a call runs.

Activations count once per memory: a layer that can work in place takes none of its own. That is every elementwise layer
(an activation, a normalization, an addition) whose input nobody else reads, a view (Flatten, Dropout at inference), a
pad that becomes the padding of the convolution behind it, and a concatenation of tensors that only it reads (they are
written side by side). So VGG-16 has 15.2 million values for an image of 224 pixels, with the input, which is also what
its convolutions, pools and dense layers add up to; the 24 million (93 MB) printed in the lecture are a slip.

Multiply-adds are those of convolutions and dense layers, without biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .graph import Graph, Node
from .layers.base import InputLayer, Layer, Shape, lower_named, shown
from .terminal import Columns, size

if TYPE_CHECKING:
    from .model import Model

_OPEN = 224  # stands for sizes that are not known until the model is called
_VALUE_BYTES = 4  # float32


def summary_table(model: Model, input_shape: Any = None, expand_nested: bool = False) -> dict[str, Any]:
    """Every layer's activations, parameters and multiply-adds, and their totals, as plain numbers.

    input_shape: per image (a list of shapes for several inputs); None takes the declared one, with 224 for open sizes.
    Returns {"model": name, "input_shapes": [...], "layers": [row, ...], "totals": {...}}. A row: name, type,
        output_shape (per image), values and bytes (of the activations that take memory of their own), params, formula,
        macs, calls, dense_equivalent (for one
        convolution: the parameters of the dense layer with the same input and output). All per image.

    >>> from convkern.layers import Conv2D, Input
    >>> from convkern.model import Model
    >>> image = Input((227, 227, 3))
    >>> table = summary_table(Model(image, Conv2D(96, 11, strides=4)(image)))
    >>> row = table["layers"][1]
    >>> row["output_shape"], row["params"], row["formula"], f"{row['dense_equivalent']:.3g}"
    ((55, 55, 96), 34944, '11*11*3*96 = 34,848 + 96 biases', '4.49e+10')
    """
    shapes = model._image_shapes(input_shape if input_shape is not None else [_closed(t.shape) for t in model.inputs])
    graph = Graph()
    inputs = [graph.input(shape) for shape in shapes]
    parts: dict[Layer, list[_Part]] = {}
    graph.outputs = _trace(model, graph, inputs, "", expand_nested, parts)
    own = _own_values(graph)
    sources = [layer for layer in model._layers if isinstance(layer, InputLayer)]
    rows = [
        {
            "name": model._names[layer],
            "type": "Input",
            "output_shape": shape,
            "values": math.prod(shape),
            **_no_params(layer),
            "macs": 0,
            "calls": 0,
        }
        for layer, shape in zip(sources, shapes)
    ]
    for layer, uses in parts.items():
        nodes = [node for use in uses for node in use.nodes]
        rows.append(
            {
                "name": uses[0].name,
                "type": type(layer).__name__,
                "output_shape": uses[0].shapes[0] if len(uses[0].shapes) == 1 else uses[0].shapes,
                "values": sum(own[node.output] for node in nodes),
                "params": layer.count_params(),
                "formula": _formula(layer),
                "macs": sum(_macs(graph, node) for node in nodes),
                "calls": len(uses),
                "dense_equivalent": _dense_equivalent(graph, uses),
            }
        )
    for row in rows:
        row["bytes"] = row["values"] * _VALUE_BYTES
    params = model.count_params()
    trainable = sum(math.prod(p.shape) for p in _trainable(model))
    values = sum(row["values"] for row in rows)
    totals = {
        "params": params,
        "trainable_params": trainable,
        "param_bytes": params * _VALUE_BYTES,
        "sgd_bytes": 2 * params * _VALUE_BYTES,  # parameters and gradients
        "adam_bytes": 4 * params * _VALUE_BYTES,  # and two moments
        "activation_values": values,
        "activation_bytes": values * _VALUE_BYTES,
        "backward_bytes": 2 * values * _VALUE_BYTES,  # activations and their gradients
        "macs": sum(row["macs"] for row in rows),
    }
    return {"model": model.name, "input_shapes": list(shapes), "layers": rows, "totals": totals}


def summary(model: Model, input_shape: Any = None, expand_nested: bool = False) -> str:
    """The table as text."""
    facts = summary_table(model, input_shape, expand_nested)
    totals = facts["totals"]
    lines = [
        [
            f"{row['name']} ({row['type']})" + (f" x{row['calls']}" if row["calls"] > 1 else ""),
            shown(row["output_shape"])
            if _is_shape(row["output_shape"])
            else ", ".join(map(shown, row["output_shape"])),
            f"{row['values']:,}" if row["values"] else "",
            size(row["bytes"]) if row["values"] else "",
            f"{row['params']:,}" if row["params"] else "",
            row["formula"],
            f"{row['macs']:,}" if row["macs"] else "",
        ]
        for row in facts["layers"]
    ]
    titles = ["Layer (type)", "Output Shape", "Values", "Memory", "Param #", "= kernel + biases", "Multiply-adds"]
    frozen = totals["params"] - totals["trainable_params"]
    last = [
        f"Parameters      {totals['params']:,} ({totals['trainable_params']:,} trainable, {frozen:,} not) = "
        f"{size(totals['param_bytes'])}; to train by plain SGD {size(totals['sgd_bytes'])} (x2: gradients), "
        f"by Adam {size(totals['adam_bytes'])} (x4: and two moments)",
        f"Activations     {totals['activation_values']:,} values = {size(totals['activation_bytes'])} an image; "
        f"to train {size(totals['backward_bytes'])} (x2: gradients)",
        f"Multiply-adds   {totals['macs']:,} an image ({totals['macs'] / 1e9:.3g} G)",
    ]
    first = next((row for row in facts["layers"] if row.get("dense_equivalent")), None)
    if first is not None:
        dense = first["dense_equivalent"]
        last.append(
            f"Shared weights  {first['name']} has {first['params']:,} parameters; a dense layer with the same "
            f"input and output has {dense:,} ({dense / 1e9:.3g}e9), {dense / first['params']:,.0f} times as many"
        )
    given = ", ".join(shown(shape) for shape in facts["input_shapes"])
    return "\n".join(
        [f'Model "{facts["model"]}" for {given}, float32', "", *_table(titles, lines, left=(0, 1, 5)), "", *last]
    )


class _Part:
    """One call of a layer: the operators it became."""

    def __init__(self, name: str, nodes: list[Node], shapes: list[Shape]):
        self.name, self.nodes, self.shapes = name, nodes, shapes


def _trace(
    model: Model, graph: Graph, inputs: list[int], prefix: str, expand: bool, parts: dict[Layer, list[_Part]]
) -> list[int]:
    """Lower a model as Model.lower does, remembering which layer made which operators."""
    from .model import Model

    values = dict(enumerate(inputs))
    for layer, reads, writes in model._steps:
        name = prefix + model._names[layer]
        args = [values[i] for i in reads]
        if expand and isinstance(layer, Model):
            outputs = _trace(layer, graph, args, f"{name}/", expand, parts)
        else:
            first = len(graph.nodes)
            outputs = lower_named(layer, name, graph, args)
            parts.setdefault(layer, []).append(_Part(name, graph.nodes[first:], [graph.shapes[i] for i in outputs]))
        values.update(zip(writes, outputs))
    return [values[i] for i in model._output_slots]


def _own_values(graph: Graph) -> dict[int, int]:
    """For the output of every operator: how many values it holds in memory of its own."""
    uses = graph.uses()
    readers: dict[int, list[Node]] = {}
    for node in graph.nodes:
        for i in node.inputs:
            readers.setdefault(i, []).append(node)

    def free(i: int) -> bool:  # may be overwritten by its only reader
        return uses[i] == 1 and i not in graph.inputs

    def in_place(node: Node) -> bool:
        shape = graph.shapes[node.output]
        if node.op in ("reshape", "dropout", "identity"):
            return True
        if node.op in ("activation", "batch_norm", "layer_norm", "softmax", "rescale"):
            return free(node.inputs[0])
        if node.op == "binary":
            return any(free(i) and graph.shapes[i] == shape for i in node.inputs)
        if node.op == "concat":
            return all(free(i) for i in node.inputs)
        if node.op == "adaptive_pool":
            return shape == graph.shapes[node.inputs[0]] and free(node.inputs[0])
        if node.op == "pad":
            behind = readers.get(node.output, [])
            return (
                bool(behind) and node.output not in graph.outputs and all(n.op in ("conv", "depthwise") for n in behind)
            )
        return False

    return {node.output: 0 if in_place(node) else math.prod(graph.shapes[node.output]) for node in graph.nodes}


def _macs(graph: Graph, node: Node) -> int:
    """Multiply-adds of one operator, per image."""
    if node.op not in ("conv", "depthwise", "dense"):
        return 0
    kernel = node.params["kernel"].shape
    if node.op == "dense":
        return math.prod(graph.shapes[node.output][:-1]) * math.prod(kernel)
    # Every pixel of the output meets every weight once; of a transposed convolution, every pixel of the input does.
    side = node.inputs[0] if node.attrs.get("transposed") else node.output
    return math.prod(graph.shapes[side][:-1]) * math.prod(kernel)


def _dense_equivalent(graph: Graph, uses: list[_Part]) -> int | None:
    convolutions = [node for use in uses for node in use.nodes if node.op in ("conv", "depthwise")]
    if len(convolutions) != 1 or len(uses) != 1:
        return None
    (node,) = convolutions
    before, after = math.prod(graph.shapes[node.inputs[0]]), math.prod(graph.shapes[node.output])
    return before * after + (after if "bias" in node.params else 0)


def _formula(layer: Layer) -> str:
    """How the number of parameters comes about: 3*3*64*128 = 73,728 + 128 biases."""
    terms = []
    vectors: dict[int, int] = {}
    for name, param in layer.params.items():
        count = math.prod(param.shape)
        if len(param.shape) > 1:
            terms.append(f"{'*'.join(map(str, param.shape))} = {count:,}")
        elif name == "bias":
            terms.append(f"{count:,} biases")
        else:
            vectors[count] = vectors.get(count, 0) + 1
    terms += [f"{times}*{count} = {times * count:,}" for count, times in vectors.items()]
    return " + ".join(terms)


def _no_params(layer: Layer) -> dict[str, Any]:
    return {"params": 0, "formula": "", "dense_equivalent": None}


def _trainable(model: Model) -> Iterable[Any]:
    if not model.trainable:
        return []
    return [p for _, layer in model.param_layers() if layer.trainable for p in layer.params.values() if p.trainable]


def _closed(shape: Sequence[int | None]) -> Shape:
    return tuple(_OPEN if n is None else n for n in shape)


def _is_shape(value: Any) -> bool:
    return not value or not isinstance(value[0], (tuple, list))


def explain(model: Model, shapes: Any = None) -> str:
    """The steps of the plan for these image shapes, as text."""
    plan = model.plan(shapes if shapes is not None else [_closed(t.shape) for t in model.inputs])
    steps = plan.steps()
    lines = [
        [
            str(i),
            step["label"],
            step["op"],
            "x".join(map(str, step["shape_out"])),
            step["kernel"],
            f"{step['macs'] / 1e6:,.1f}" if step["macs"] else "",
            size(step["bytes"]),
            size(step["workspace_bytes"]) if step["workspace_bytes"] else "",
            size(step["packed_bytes"]) if step["packed_bytes"] else "",
            step["why"],
        ]
        for i, step in enumerate(steps)
    ]
    titles = ["", "step", "operator", "output", "kernel", "M macs", "moved", "workspace", "weights", "why this kernel"]
    refused: dict[tuple[str, str], list[str]] = {}
    for i, step in enumerate(steps):
        for kernel, reason in step["refused"]:
            refused.setdefault((kernel, reason), []).append(str(i))
    total: Callable[[str], int] = lambda key: sum(step[key] for step in steps)
    text = [
        f'Model "{model.name}": {len(steps)} steps, {total("macs") / 1e9:.3g} G multiply-adds, '
        f"arena {size(plan.arena_bytes)} an image, packed weights {size(total('packed_bytes'))}",
        "",
        *_table(titles, lines, left=(1, 2, 3, 4, 9)),
    ]
    if refused:
        text += ["", "Kernels that refused:"]
        text += [f"  {kernel}: {reason} (steps {', '.join(numbers)})" for (kernel, reason), numbers in refused.items()]
    return "\n".join(text)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> list[str]:
    """Lines of a table with the columns `left` aligned left, a rule under its head."""
    widths = [max(map(len, column)) for column in zip(titles, *rows)]
    columns = Columns((title, -width if i in left else width) for i, (title, width) in enumerate(zip(titles, widths)))
    return [columns.head(), "-" * (sum(widths) + 2 * (len(widths) - 1)), *(columns.row(*row) for row in rows)]
