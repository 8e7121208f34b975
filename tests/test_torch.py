"""convkern.torch against torch's own layers: numbers, gradients, memory, tracing, swapping in live models.

Convolutions and poolings are compared on small integers, where float32 is exact whatever the order of the sums: results
and gradients must be equal bit for bit. Batch norm and whole models round, and have bounds of tolerance.py.
"""

from __future__ import annotations

import copy
import gc
import io
import itertools
import json
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import convkern
import convkern.torch as ckt
from convkern import _core
from convkern.bench import torch_resnet
from convkern.bench.torch_resnet import ResNet
from convkern.cli import main
from convkern.errors import ShapeError, Unsupported
from convkern.torch import modules, plans
from tolerance import U, assert_within

ops = torch.ops.convkern


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def integers(*shape: int) -> torch.Tensor:
    return torch.randint(-4, 5, shape).float()


def with_integers(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(integers(*p.shape))
    return module


def torchs(module: nn.Module) -> nn.Module:
    """The same layer of torch's own, on copies of the parameters."""
    return ckt.restore_layers(copy.deepcopy(module))


def outcome(module: nn.Module, x: torch.Tensor, *args: Any) -> dict[str, torch.Tensor]:
    """The result and all gradients, with integers flowing back."""
    x = x.detach().requires_grad_()
    y = module(x, *args)
    first, *others = y if isinstance(y, tuple) else (y,)
    torch.manual_seed(1)
    first.backward(integers(*first.shape))
    results = {"y": first.detach(), "dx": x.grad}
    results.update({f"y{i}": other for i, other in enumerate(others)})
    results.update({f"d{name}": p.grad for name, p in module.named_parameters()})
    results.update(module.named_buffers())
    return results


CONVOLUTIONS = {
    "1d": (lambda: ckt.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 11)),
    "1d same": (lambda: ckt.Conv1d(4, 6, 4, padding="same", dilation=3), (2, 4, 15)),
    "2d": (lambda: ckt.Conv2d(8, 6, 3, padding=1), (2, 8, 7, 9)),
    "2d no bias": (lambda: ckt.Conv2d(8, 6, 3, bias=False), (2, 8, 7, 9)),
    "2d 1x1": (lambda: ckt.Conv2d(16, 32, 1), (2, 16, 7, 9)),
    "2d geometry": (
        lambda: ckt.Conv2d(8, 12, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(1, 3), groups=4),
        (2, 8, 9, 10),
    ),
    "2d depthwise": (lambda: ckt.Conv2d(8, 16, 3, padding=1, groups=8), (2, 8, 7, 9)),
    "2d winograd": (lambda: ckt.Conv2d(32, 32, 3, padding=1), (1, 32, 12, 12)),
    "2d same": (lambda: ckt.Conv2d(4, 6, (4, 3), padding="same"), (2, 4, 7, 9)),
    "2d valid": (lambda: ckt.Conv2d(4, 6, 3, padding="valid"), (2, 4, 7, 9)),
    "2d reflect": (lambda: ckt.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 7, 9)),
    "2d replicate": (lambda: ckt.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), (2, 4, 7, 9)),
    "2d circular": (lambda: ckt.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), (2, 4, 7, 9)),
    "2d one image": (lambda: ckt.Conv2d(4, 6, 3), (4, 7, 9)),
    "3d": (lambda: ckt.Conv3d(4, 6, (2, 3, 3), stride=(1, 2, 1), padding=1), (2, 4, 5, 6, 7)),
    "transposed": (lambda: ckt.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1), (2, 8, 5, 6)),
    "transposed groups": (lambda: ckt.ConvTranspose2d(8, 6, 3, dilation=2, groups=2, bias=False), (2, 8, 5, 6)),
    "linear": (lambda: ckt.Linear(10, 6), (3, 10)),
    "linear 4d": (lambda: ckt.Linear(10, 6, bias=False), (2, 3, 4, 10)),
    "linear 1d": (lambda: ckt.Linear(10, 6), (10,)),
}
POOLINGS = {
    "max": (lambda: ckt.MaxPool2d(3, 2, 1), (2, 5, 9, 8)),
    "max ceil": (lambda: ckt.MaxPool2d((2, 3), (2, 2), dilation=(2, 1), ceil_mode=True), (2, 5, 9, 8)),
    "max indices": (lambda: ckt.MaxPool2d(3, 2, 1, return_indices=True), (2, 5, 9, 8)),
    "max one image": (lambda: ckt.MaxPool2d(2, return_indices=True), (5, 9, 8)),
    "avg": (lambda: ckt.AvgPool2d(2), (2, 5, 9, 8)),
    "avg padded": (lambda: ckt.AvgPool2d(4, 2, 1), (2, 5, 9, 8)),
    "avg ceil": (lambda: ckt.AvgPool2d(2, ceil_mode=True), (2, 5, 9, 8)),
    "avg divisor": (lambda: ckt.AvgPool2d(3, 2, 1, divisor_override=4), (2, 5, 9, 8)),
    "adaptive": (lambda: ckt.AdaptiveAvgPool2d((2, None)), (2, 5, 8, 4)),
    "adaptive one image": (lambda: ckt.AdaptiveAvgPool2d(2), (5, 8, 4)),
}
LAYERS = CONVOLUTIONS | POOLINGS
WINOGRAD = ("2d winograd",)  # rounds even integers


# Numbers


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "gaps"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_torchs(name: str, layout: str) -> None:
    make, shape = LAYERS[name]
    ours = with_integers(make())
    ours.exact = name in WINOGRAD
    theirs = torchs(ours)
    assert isinstance(ours, type(theirs)) and type(theirs).__module__.startswith("torch.nn")
    x = integers(*shape)
    if layout == "channels_last" and len(shape) > 2:
        x = x.transpose(-3, -1).contiguous().transpose(-3, -1)
    elif layout == "gaps":
        x = integers(*(2 * n + 1 for n in shape))[tuple(slice(1, None, 2) for _ in shape)]
        assert x.shape == shape and not x.is_contiguous()
    assert modules.fallback_reason(x, *ours.parameters()) is None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths", UserWarning)
        got, want = outcome(ours, x), outcome(theirs, x)
    assert got.keys() == want.keys()
    for key in want:
        assert torch.equal(got[key], want[key]), key
    with torch.inference_mode():
        again = ours(x)
    assert torch.equal(again[0] if isinstance(again, tuple) else again, want["y"])


def test_winograd_is_on_unless_exact() -> None:
    x, w = torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3)
    geometry = ((1, 1), (1,) * 4, (1, 1), 1, False, (0, 0))
    want = F.conv2d(x.double(), w.double(), padding=1)
    errors = [float((ops.conv(x, w, None, *geometry, exact, True) - want).abs().max()) for exact in (False, True)]
    magnitude = float(F.conv2d(x.abs().double(), w.abs().double(), padding=1).max())
    assert errors[1] < errors[0] < 600 * U * magnitude


def test_output_size() -> None:
    ours = with_integers(ckt.ConvTranspose2d(4, 6, 3, stride=2, padding=1))
    x = integers(2, 4, 5, 6)
    for size in ([9, 11], [10, 12], (2, 6, 10, 11)):
        assert torch.equal(ours(x, size), torchs(ours)(x, size))
    assert torch.equal(ours(x[0], [10, 12]), torchs(ours)(x[0], [10, 12]))
    with pytest.raises(ValueError, match="requested an output size"):
        ours(x, [20, 20])


@pytest.mark.parametrize("options", [{}, dict(momentum=None), dict(affine=False), dict(track_running_stats=False)])
def test_batch_norm(options: dict[str, Any]) -> None:
    ours = ckt.BatchNorm2d(6, **options)
    with torch.no_grad():
        for p in ours.parameters():
            p.normal_()
    theirs = torchs(ours)
    for step in range(3):
        x = 3 * torch.randn(4, 6, 5, 7) + 1
        for training in (True, False):
            ours.train(training), theirs.train(training)
            got, want = outcome(ours, x), outcome(theirs, x)
            for key in want:
                bound = 200 * U * max(1.0, float(want[key].abs().max()))
                assert_within(got[key], want[key], bound, (step, training, key))
            ours.zero_grad(), theirs.zero_grad()
    if options.get("track_running_stats", True):
        assert ours.num_batches_tracked == 3 and ours.running_var.abs().sum() > 0


def test_batch_norm_refuses_what_torch_refuses() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ckt.BatchNorm2d(3)(torch.ones(1, 3, 1, 1))
    with pytest.raises(ValueError, match="4D"):
        ckt.BatchNorm2d(3)(torch.ones(1, 3, 4))
    with pytest.raises(ShapeError, match="got 4 channels, want the 3"):
        ckt.BatchNorm2d(3).eval()(torch.ones(1, 4, 2, 2))


def test_errors_of_shapes() -> None:
    with pytest.raises(ShapeError, match="channels"):
        ckt.Conv2d(3, 4, 3)(torch.ones(1, 5, 8, 8))
    with pytest.raises(ShapeError, match="larger than the padded input"):
        ckt.Conv2d(3, 4, 9)(torch.ones(1, 3, 8, 8))
    with pytest.raises(ShapeError, match="at most half"):
        ckt.MaxPool2d(2, padding=2)(torch.ones(1, 3, 8, 8))
    with pytest.raises(RuntimeError):  # torch's own
        ckt.Conv2d(3, 4, 3)(torch.ones(1, 1, 3, 8, 8))


def test_empty_batch() -> None:
    layer = ckt.Conv2d(3, 4, 3)
    y = layer(torch.ones(0, 3, 8, 8))
    assert y.shape == (0, 4, 6, 6)
    y.sum().backward()
    assert layer.weight.grad is not None and not layer.weight.grad.any()
    layer = ckt.Conv2d(64, 64, 3)  # the gradient of a batch before leaves its numbers in recycled memory
    for n in (1, 0):
        layer.zero_grad()
        layer(torch.ones(n, 64, 8, 8)).sum().backward()
        assert bool(layer.weight.grad.any()) == bool(n)


# Memory


class Spy:
    """In place of a plan."""

    def run(self, inputs: list[np.ndarray], threads: int, channels_first: bool, torch_axes: int) -> list[np.ndarray]:
        self.inputs, self.threads = inputs, threads
        return []


def test_inputs_are_read_in_place() -> None:
    x = torch.randn(2, 3, 4, 5)
    for view in (x, x.to(memory_format=torch.channels_last), x[:, 1:, ::2], x[:1].expand(2, 3, 4, 5), x[0][None]):
        spy = Spy()
        plans.run(spy, [view])  # type: ignore[arg-type]
        (seen,) = spy.inputs
        assert seen.ctypes.data == view.data_ptr() and seen.shape == view.shape
        assert seen.strides == tuple(4 * step for step in view.stride())
        double = _core.Plan()
        i = double.input(plans.spatial(view.shape))
        double.finish([double.binary(i, i, "add")])
        assert torch.equal(plans.run(double, [view])[0], 2 * view)


def test_strides_of_results() -> None:
    last, conv = torch.channels_last, ckt.Conv2d(3, 8, 3)
    contiguous = torch.randn(2, 3, 9, 9)
    for x in (contiguous, contiguous.to(memory_format=last)):
        assert conv(x).is_contiguous(memory_format=last)
    conv.channels_last = False
    y = conv(contiguous)
    assert y.is_contiguous() and y.view(2, -1).shape == (2, 8 * 49)
    assert conv(contiguous.to(memory_format=last)).is_contiguous(memory_format=last)
    odd = torch.randn(4, 9, 3, 9).permute(0, 2, 3, 1)[::2]  # neither, with gaps
    assert_within(conv(odd).detach(), torchs(conv)(odd).detach(), 100 * U)


def test_threads_are_torchs() -> None:
    for threads in (2, 1):
        torch.set_num_threads(threads)
        spy = Spy()
        plans.run(spy, [torch.ones(1, 2, 3, 4)])  # type: ignore[arg-type]
        assert spy.threads == threads


def test_nothing_saved_is_a_copy() -> None:
    """What a forward pass keeps for the backward pass: its inputs, weights, positions of maxima, batch statistics."""
    model = nn.Sequential(
        ckt.Conv2d(3, 8, 3), ckt.BatchNorm2d(8), ckt.MaxPool2d(2), ckt.AvgPool2d(2), ckt.AdaptiveAvgPool2d(2)
    )
    known, saved = {p.data_ptr() for p in model.parameters()}, []
    for layer in model:
        layer.register_forward_hook(lambda m, i, y: known.update((i[0].data_ptr(), y.data_ptr())))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(torch.randn(2, 3, 18, 18, requires_grad=True)).sum().backward()
    others = [t for t in saved if t.data_ptr() not in known]
    assert len(saved) >= 6 and [t.shape for t in others if t.dim() == 1] == [(8,), (8,)]
    assert [(t.dtype, t.shape) for t in others if t.dim() > 1] == [(torch.int64, (2, 8, 8, 8))]


def test_weights_are_followed() -> None:
    """However a weight changes, the next call knows."""
    layer = with_integers(ckt.Conv2d(4, 8, 3))
    x = integers(1, 4, 6, 6)

    def check() -> None:
        with torch.no_grad():
            for _ in range(3):  # packed in passing, then kept, then found
                assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias))

    check()
    with torch.no_grad():
        layer.weight.add_(1)
        check()
        layer.bias.mul_(2)
        check()
    layer.weight.data.neg_()  # no version changes
    check()
    layer.weight.data = integers(8, 4, 3, 3)
    check()
    layer.load_state_dict({"weight": integers(8, 4, 3, 3), "bias": integers(8)})
    check()
    layer.weight = nn.Parameter(integers(8, 4, 3, 3))
    check()
    layer.weight.data.set_(integers(8, 4, 3, 3))
    check()
    layer.to(memory_format=torch.channels_last)
    check()
    layer.weight.data[3].zero_()
    check()
    layer, x = with_integers(ckt.Conv2d(64, 32, 3)), integers(1, 64, 6, 6)  # of which a sample is looked at
    layer.exact = True
    check()
    with torch.no_grad():
        layer.weight[5, 3, 1, 1].add_(1)
    check()
    layer.weight.data.neg_()
    check()


def test_gradients_follow_weights() -> None:
    """The gradient of an input, too, is computed with the weights of the moment."""
    layer = with_integers(ckt.Conv2d(16, 32, 3, bias=False))
    x = integers(1, 16, 6, 6)

    def check() -> None:
        got, want = outcome(layer, x), outcome(torchs(layer), x)
        for _ in range(3):  # packed in passing, then kept, then found
            assert torch.equal(got["dx"], want["dx"]) and torch.equal(got["dweight"], want["dweight"])
            layer.zero_grad()
            got = outcome(layer, x)

    layer.exact = True
    check()
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)  # in place, with whole numbers
    for _ in range(2):
        layer.zero_grad()
        layer(x).sum().backward()
        optimizer.step()
        layer.zero_grad()
        check()
        layer.zero_grad()
    layer.load_state_dict({"weight": integers(32, 16, 3, 3)})
    check()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_weights_in_any_order_of_memory(name: str) -> None:
    make, shape = CONVOLUTIONS[name]
    ours = with_integers(make())
    ours.exact = name in WINOGRAD
    x = integers(*shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths", UserWarning)
        want = outcome(torchs(ours), x)
        values, axes = ours.weight.detach().clone(), range(ours.weight.dim())
        lasts = values.permute(0, *axes[2:], 1).contiguous().permute(0, -1, *axes[1:-1])
        wide = torch.stack([values, values + 1], -1)
        for weight in (lasts, wide[..., 0], values.transpose(0, -1).contiguous().transpose(0, -1)):
            ours.weight = nn.Parameter(weight)
            assert ours.weight.stride() == weight.stride()
            for _ in range(2):  # made, then followed
                got = outcome(ours, x)
                assert all(torch.equal(got[key], want[key]) for key in want)
                ours.zero_grad()
                with torch.no_grad():
                    ours.weight.mul_(-1).mul_(-1)


def test_gradients_lie_as_weights_do() -> None:
    """Or torch would copy them at each step."""
    layer = ckt.Conv2d(4, 8, 3)
    x = torch.randn(1, 4, 8, 8)
    seen: list[Any] = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        layer.to(memory_format=memory_format)
        seen.clear()
        hook = layer.weight.register_hook(lambda grad: seen.append((grad.stride(), grad.data_ptr())))
        layer.zero_grad()
        layer(x).sum().backward()
        assert seen == [(layer.weight.stride(), layer.weight.grad.data_ptr())]
        hook.remove()


def test_copies_between_strides(rng: np.random.Generator) -> None:
    for dtype, shape in itertools.product(("f4", "f8"), [(1, 1, 1), (17, 5, 9), (64, 33, 1), (16, 16, 25)]):
        w = rng.standard_normal(shape).astype(dtype)
        for axes in itertools.permutations(range(3)):
            target = np.empty([shape[axis] for axis in axes], dtype)
            for threads in (1, 2):
                target[:] = 0
                _core.copy_strided(w.transpose(axes), target, threads)
                assert (target == w.transpose(axes)).all()
        target = np.zeros((*shape, 2), dtype)
        _core.copy_strided(w[::-1, :, ::-1], target[..., 0])
        assert (target[..., 0] == w[::-1, :, ::-1]).all() and not target[..., 1].any()
    w = np.zeros((17, 5, 9), "f4")
    read_only = np.empty((17, 5, 9), "f4")
    read_only.flags.writeable = False
    for target in (np.empty((9, 5, 17), "f4"), np.empty((17, 5, 9)), np.empty((17, 5), "f4"), read_only):
        with pytest.raises(ShapeError, match="wanted arrays of one shape"):
            _core.copy_strided(w, target)


def test_batch_norm_is_followed() -> None:
    layer = ckt.BatchNorm2d(8).eval()
    x = torch.randn(1, 8, 5, 5)
    for change in (
        lambda: None,
        lambda: layer.running_mean.add_(1),
        lambda: layer.running_var.mul_(3),
        lambda: layer.weight.data.fill_(2),
        lambda: layer.bias.data.normal_(),
    ):
        change()
        assert_within(layer(x).detach(), torchs(layer)(x).detach(), 100 * U, change)


def test_inference_tensors() -> None:
    """They count no versions: every value is compared."""
    with torch.inference_mode():
        layer = with_integers(ckt.Conv2d(16, 32, 3))
        x = integers(1, 16, 6, 6)
        assert layer.weight.is_inference()
        for change in (lambda: None, lambda: layer.weight[5, 3, 1, 1].add_(1), lambda: layer.bias.add_(1)):
            change()
            assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias))


def test_two_layouts_of_one_memory() -> None:
    w = integers(6, 6)
    x = integers(2, 6)
    for _ in range(2):
        for matrix in (w, w.t()):
            assert torch.equal(ops.conv(x, matrix, None, (), (), (), 1, False, (), True, True), x @ matrix.t())


def test_packed_weights_go_with_their_tensors() -> None:
    ckt.clear()
    model = nn.Sequential(ckt.Conv2d(8, 16, 3), ckt.BatchNorm2d(16), ckt.Conv2d(16, 16, 1)).eval()
    with torch.no_grad():
        model(torch.ones(1, 8, 8, 8))
        assert ckt.packed_bytes() == 0  # kept only for weights that stay
        for size in range(8, 8 + 2 * plans.SHAPES):
            for _ in range(2):
                model(torch.ones(1, 8, size, size))
        assert ckt.packed_bytes() >= 4 * (8 * 16 * 9 + 16 * 16) and len(plans._made) == 3
        assert all(len(made.plans) <= plans.SHAPES for made in plans._made.values())
        kept = ckt.packed_bytes()
        model[0].weight.mul_(2)
        for _ in range(2):
            model(torch.ones(1, 8, 9, 9))
        assert ckt.packed_bytes() == kept  # packed again in the same place
    del model
    gc.collect()
    assert ckt.packed_bytes() == 0 and not plans._made


def test_threads_share_a_model() -> None:
    model = ckt.replace_layers(small_model().eval())
    xs = [torch.randn(2, 3, 16 + i % 3, 16) for i in range(6)]
    with torch.no_grad():
        want = [model(x) for x in xs]
    ckt.clear()
    got: list[Any] = [None] * len(xs)

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                got[i] = model(xs[i])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(xs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(a, b) for a, b in zip(got, want))


# Operators


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def operator_examples(make: Callable[..., torch.Tensor]) -> dict[str, tuple[Any, ...]]:
    """name -> arguments; `make` gives the tensors that may have gradients."""
    plain = ((2, 1), (1, 0, 1, 1), (1, 2), 2, False, (0, 0), True)
    transposed = ((2, 1), (1, 0, 1, 1), (1, 2), 2, True, (1, 0), True)
    window = ((3, 2), (2, 1), (1, 1), (1, 2), True)
    average = ((3, 2), (2, 1), (1, 1), True, False, 0)
    distinct = torch.randperm(2 * 2 * 6 * 5).reshape(2, 2, 6, 5)
    pooled = make(2, 2, 6, 5).detach().copy_(distinct).requires_grad_(make(1).requires_grad)
    y, index = ops.max_pool_with_indices(pooled.detach(), *window, True)
    channel = [make(4) for _ in range(2)]
    mean, var = (make(4).detach().abs() + 0.5 for _ in range(2))
    return {
        "conv": (make(2, 4, 5, 4), make(6, 2, 3, 2), make(6), *plain, True),
        "conv (transposed)": (make(2, 4, 3, 4), make(4, 3, 3, 2), make(6), *transposed, False),
        "conv (linear)": (make(3, 4), make(5, 4), make(5), (), (), (), 1, False, (), True, True),
        "conv_input": (make(2, 6, 3, 3), make(6, 2, 3, 2), (2, 4, 5, 4), *plain),
        "conv_weight": (make(2, 6, 3, 3), make(2, 4, 5, 4), (6, 2, 3, 2), *plain, True),
        "conv_weight (transposed)": (make(2, 6, 6, 5), make(2, 4, 3, 4), (4, 3, 3, 2), *transposed, False),
        "batch_norm": (make(2, 4, 3, 2), *channel, mean, var, 1e-5, True),
        "batch_norm_train": (make(3, 4, 3, 2), *channel, 1e-5, "none", 0.0, 0.0, True),
        "batch_norm_train (relu)": (make(3, 4, 3, 2), *channel, 1e-5, "relu", 0.0, 0.0, False),
        "batch_norm_add_train": (make(3, 4, 3, 2), *channel, make(3, 4, 3, 2), 1e-5, "clamp", -0.3, 0.8, True),
        "max_pool": (pooled, *window, True),
        "max_pool_with_indices": (pooled, *window, False),
        "max_pool_backward": (make(*y.shape), index, (2, 2, 6, 5), *window),
        "avg_pool": (make(2, 2, 6, 5), *average, True),
        "avg_pool_backward": (make(2, 2, 4, 6), (2, 2, 6, 5), *average),
        "adaptive_avg_pool": (make(2, 2, 6, 5), (4, 2), True),
        "adaptive_avg_pool_backward": (make(2, 2, 4, 2), (2, 2, 6, 5), (4, 2)),
    }


def first_output(name: str, arguments: tuple[Any, ...]) -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
    """An operator as a function of its differentiable arguments."""
    op = getattr(ops, name.split()[0])
    places = [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.requires_grad]

    def function(*inputs: torch.Tensor) -> torch.Tensor:
        full = list(arguments)
        for place, value in zip(places, inputs):
            full[place] = value
        y = op(*full)
        return y[0] if isinstance(y, tuple) else y

    return function, tuple(arguments[place] for place in places)


@pytest.mark.parametrize("name", operator_examples(doubles))
def test_gradients(name: str) -> None:
    """In float64, on the reference kernels, against finite differences; twice where it can be derived twice."""
    function, inputs = first_output(name, operator_examples(doubles)[name])
    assert torch.autograd.gradcheck(function, inputs)
    if not name.startswith(("batch_norm_train", "batch_norm_add_train")):
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_what_has_no_derivative_says_so() -> None:
    x = doubles(3, 4, 3, 2)
    y, *_ = ops.batch_norm_train(x, None, None, 1e-5, "none", 0.0, 0.0, True)
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(Unsupported, match="batch_norm_backward has no derivative"):
        dx.sum().backward()
    mean, var = doubles(4), doubles(4)
    y = ops.batch_norm(x, None, None, mean, var.abs() + 1, 1e-5, True)
    with pytest.raises(Unsupported, match="statistics have no gradient"):
        y.sum().backward()
    conv = ckt.Conv2d(2, 3, 1)
    fused = ops.conv_fused(
        torch.ones(1, 2, 3, 3), conv.weight, conv.bias, [], 0.0, None, "relu", 0.0, 0.0, *conv.geometry()
    )
    with pytest.raises(Unsupported, match="conv_fused has no derivative"):
        fused.sum().backward()


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, requires_grad=True)


@pytest.mark.parametrize(
    "name", [*operator_examples(floats), "batch_norm_backward", "activation_backward", "conv_fused"]
)
def test_operators_are_sound(name: str) -> None:
    """Schema, fake results (shapes and strides), autograd registration, and tracing, as torch checks them."""
    examples = operator_examples(floats)
    x, channel = torch.randn(2, 4, 3, 2), torch.rand(4)
    examples["batch_norm_backward"] = (x, 2 * x, channel, channel + 1, channel, channel, 1e-5, "relu", 0.0, 0.0)
    examples["activation_backward"] = (x, 2 * x, "relu6", 0.0, 0.0)
    conv = ckt.Conv2d(4, 6, (2, 1)).requires_grad_(False)
    norm = [torch.rand(6) for _ in range(4)]
    residual = torch.randn(2, 6, 2, 2)
    examples["conv_fused"] = (x, conv.weight, conv.bias, norm, 0.1, residual, "relu", 0.0, 0.0, *conv.geometry())
    op = getattr(ops, name.split()[0]).default
    assert set(torch.library.opcheck(op, examples[name]).values()) == {"SUCCESS"}


class Recorded(TorchDispatchMode):
    """The names of our operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "convkern":
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def test_only_gradients_that_are_wanted() -> None:
    model = nn.Sequential(ckt.Conv2d(3, 4, 3), ckt.Conv2d(4, 4, 3, bias=False), ckt.Conv2d(4, 5, 3))
    model[1].weight.requires_grad_(False)
    with Recorded() as recorded:
        model(torch.randn(1, 3, 9, 9)).sum().backward()
    forward, backward = recorded.names[:3], recorded.names[3:]
    assert forward == ["conv"] * 3
    assert sorted(backward) == ["conv_input"] * 2 + ["conv_weight"] * 2  # none for the input, none for the frozen one
    with Recorded() as recorded, torch.no_grad():
        model(torch.randn(1, 3, 9, 9))
        ckt.MaxPool2d(2)(torch.randn(1, 3, 9, 9))
    assert recorded.names == ["conv"] * 3 + ["max_pool"]


# What torch computes itself


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*LAYERS, "norm"])
def test_half_is_torchs(name: str, dtype: torch.dtype) -> None:
    make, shape = LAYERS.get(name, (lambda: ckt.BatchNorm2d(3), (2, 3, 6, 6)))
    layer, x = with_integers(make()).to(dtype), integers(*shape).to(dtype)
    with warnings.catch_warnings(), Recorded() as recorded, torch.no_grad():
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths", UserWarning)
        got, want = layer(x), torchs(layer)(x)
    got, want = (y[0] if isinstance(y, tuple) else y for y in (got, want))
    assert not recorded.names and got.dtype == want.dtype == dtype and torch.equal(got, want)


def fallbacks(name: str) -> tuple[nn.Module, torch.Tensor]:
    layer, x = ckt.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    if name in ("bfloat16", "float16"):
        dtype = getattr(torch, name)
        return layer.to(dtype), x.to(dtype)
    if name == "meta":
        return layer.to("meta"), x.to("meta")
    if name == "subclass":

        class Image(torch.Tensor):
            pass

        return layer, x.as_subclass(Image)
    return layer, x


@pytest.mark.parametrize("name", ["bfloat16", "float16", "meta", "subclass"])
def test_other_tensors_go_to_torch(name: str) -> None:
    layer, x = fallbacks(name)
    assert modules.fallback_reason(x, layer.weight)
    with Recorded() as recorded:
        y = layer(x)
    want = torchs(layer)(x)
    assert not recorded.names and y.dtype == want.dtype and y.device == want.device and type(y) is type(want)
    assert name == "meta" or torch.equal(y, want)
    with pytest.raises(RuntimeError):  # torch's error for mixed types, not ours
        ckt.Conv2d(3, 4, 3)(torch.randn(1, 3, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("name", [*LAYERS, "norm"])
def test_autocast(name: str) -> None:
    """What autocast changes is torch's; the rest has torch's types."""
    make, shape = LAYERS.get(name, (lambda: ckt.BatchNorm2d(3).eval(), (2, 3, 6, 6)))
    layer, x = with_integers(make()), integers(*shape)
    with warnings.catch_warnings(), torch.autocast("cpu", dtype=torch.bfloat16), Recorded() as recorded:
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths", UserWarning)
        got, want = layer(x), torchs(layer)(x)
    got, want = (y[0].detach() if isinstance(y, tuple) else y.detach() for y in (got, want))
    assert got.dtype == want.dtype == (torch.bfloat16 if name in CONVOLUTIONS else torch.float32)
    assert_within(got.float(), want.float(), 100 * U * float(want.abs().max()))
    assert bool(recorded.names) == (name not in CONVOLUTIONS)


def test_transforms_go_to_torch() -> None:
    layer = ckt.Conv2d(3, 4, 3)
    x, tangent = torch.randn(5, 2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        want = torch.stack([torchs(layer)(one) for one in x])
        assert_within(torch.func.vmap(layer)(x), want, 100 * U)
        _, forward = torch.func.jvp(layer, (x[0],), (tangent,))
        assert_within(forward, F.conv2d(tangent, layer.weight), 100 * U)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x[0], tangent)
        forward = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
        assert_within(forward.detach(), F.conv2d(tangent, layer.weight).detach(), 100 * U)


def test_symbolic_trace() -> None:
    """Proxies are no tensors: the graph has torch's function."""
    graph = torch.fx.symbolic_trace(nn.Sequential(ckt.Conv2d(3, 4, 3)))
    x = torch.randn(1, 3, 8, 8)
    assert graph(x).shape == (1, 4, 6, 6)


# Live models


class Small(nn.Module):
    """One of each, a shared layer, a residual, no batch norm in the head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.down = nn.AvgPool2d(2, ceil_mode=True)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        x = F.relu(self.norm(self.conv(x)) + x)
        x = F.relu(self.conv(x))
        x = F.silu(self.up(self.down(x)))
        return self.head(torch.flatten(self.gap(x), 1))


def lively(model: nn.Module) -> Any:
    """Norms that do something, and no bias at the end that would drown the image."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5), module.bias.normal_()
                module.running_mean.normal_(), module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, nn.Linear):
                module.bias.zero_()
    return model


def small_model() -> Small:
    return lively(Small())


def test_replace_and_restore() -> None:
    model = small_model()
    before, names = {k: v.clone() for k, v in model.state_dict().items()}, [type(m) for m in model.modules()]
    conv, optimizer = model.conv, torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(2, 3, 32, 32)
    want = model.eval()(x)
    assert ckt.replace_layers(model) is model and model.conv is conv and type(conv) is ckt.Conv2d
    kinds = {type(m) for m in model.modules()}
    assert kinds & set(modules.LAYERS) == set() and len(kinds & set(modules.LAYERS.values())) == 7
    assert all(isinstance(m, kind) for m, kind in zip(model.modules(), names))
    assert "convkern.Conv2d(16, 16" in repr(model)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[k], before[k]) for k in before)
    assert_within(model(x).detach(), want.detach(), 1000 * U * float(want.detach().abs().max()))
    model.train()(x).sum().backward()
    optimizer.step()
    trained = model.conv.weight.clone()
    assert not torch.equal(trained, before["conv.weight"])
    assert ckt.restore_layers(model) is model and [type(m) for m in model.modules()] == names
    assert torch.equal(model.conv.weight, trained) and "exact" not in vars(model.conv)
    plain = Small().eval()  # that never was anything else
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(x), plain(x))


def test_only_exact_classes_are_replaced() -> None:
    class Own(nn.Conv2d):
        pass

    model = nn.ModuleList([Own(3, 3, 1), nn.LazyConv2d(3, 1), nn.BatchNorm1d(3), nn.Conv2d(3, 3, 1)])
    ckt.replace_layers(model, exact=True, memory_format=torch.preserve_format)
    assert [type(m) for m in model] == [Own, nn.LazyConv2d, nn.BatchNorm1d, ckt.Conv2d]
    assert model[3].exact and not model[3].channels_last
    with pytest.raises(Unsupported, match="memory_format"):
        ckt.replace_layers(model, memory_format=torch.contiguous_format)


def test_a_model_that_views() -> None:
    """Flattening by view needs NCHW memory, which memory_format=preserve_format keeps."""

    class Views(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = super().forward(x)
            return x.view(x.size(0), -1)

    model = Views(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2, 1)).eval()
    x = torch.randn(2, 3, 12, 12)
    want = model(x).detach()
    with pytest.raises(RuntimeError, match="reshape"):
        ckt.replace_layers(model)(x)
    assert_within(ckt.replace_layers(model, memory_format=torch.preserve_format)(x).detach(), want, 1000 * U)


def test_copies() -> None:
    """deepcopy, pickle, torch.save, state dicts: what comes back computes the same."""
    model = ckt.replace_layers(small_model().eval())
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        want = model(x)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        for other in (
            copy.deepcopy(model),
            pickle.loads(pickle.dumps(model)),
            torch.load(buffer, weights_only=False),
        ):
            assert type(other.conv) is ckt.Conv2d and torch.equal(other(x), want)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        plain = small_model().eval()
        plain.load_state_dict(torch.load(buffer))
        assert_within(plain(x), want, 1000 * U * float(want.abs().max()))
    assert buffer.tell() < 1.3 * sum(p.nbytes for p in model.parameters()) + 20_000  # no packed weights inside


def test_hooks_and_parametrizations() -> None:
    from torch.nn.utils import parametrizations, parametrize, remove_weight_norm, weight_norm

    layers: list[Any] = [nn.Conv2d(4, 8, 3), nn.Linear(6, 5)]
    inputs = [integers(2, 4, 6, 6), integers(2, 6)]
    for layer, x in zip(layers, inputs):
        plain = layer(x).detach()
        hook = ckt.replace_layers(layer).register_forward_hook(lambda m, i, o: 2 * o)
        assert_within(layer(x).detach(), 2 * plain, 1000 * U * float(plain.abs().max()))
        hook.remove()
        ckt.restore_layers(layer)

        parametrizations.weight_norm(layer)
        theirs = copy.deepcopy(layer)
        ckt.replace_layers(layer)
        assert isinstance(layer, ckt.Layer) and not isinstance(theirs, ckt.Layer)
        with torch.no_grad():
            layer.parametrizations.weight.original0.mul_(3)
            theirs.parametrizations.weight.original0.mul_(3)
        got, want = outcome(layer, x), outcome(theirs, x)
        for key in want:
            assert_within(got[key], want[key], 1000 * U * float(want[key].abs().max()), key)
        ckt.restore_layers(layer)
        assert not isinstance(layer, ckt.Layer) and parametrize.is_parametrized(layer)
        ckt.replace_layers(layer)
        parametrize.remove_parametrizations(layer, "weight")
        assert type(layer) in modules.LAYERS.values()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            weight_norm(layer)  # the older one, by a hook
        y, weight, bias = layer(x).detach(), layer.weight.detach(), layer.bias.detach()
        want = F.conv2d(x, weight, bias) if x.dim() == 4 else F.linear(x, weight, bias)
        assert_within(y, want, 1000 * U * float(want.abs().max()))
        remove_weight_norm(layer)


def test_training_takes_the_same_way() -> None:
    """Losses of a few optimizer steps, replaced and not, and with frozen parts."""
    x, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 5, (8,))

    def losses(model: nn.Module) -> list[float]:
        model.train()
        model.up.requires_grad_(False)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
        result = []
        for _ in range(4):
            loss = F.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            result.append(loss.item())
        return result

    model = small_model()
    want = losses(copy.deepcopy(model))
    assert_within(losses(ckt.replace_layers(model)), want, 1e-4)
    assert max(want) - min(want) > 0.01


# Fusion


def resnet() -> ResNet:
    return lively(ResNet((1, 2, 1, 1), num_classes=10, width=8).eval())


def test_fused_model_is_the_model() -> None:
    model = resnet()
    x = torch.randn(2, 3, 64, 64)
    want = model(x).detach()
    fused = ckt.replace_layers(model, fuse=True)
    with Recorded() as recorded, torch.no_grad():
        got = fused(x)
    assert_within(got, want, 1000 * U * float(want.abs().max()))
    assert sorted(set(recorded.names)) == ["adaptive_avg_pool", "conv", "conv_fused", "max_pool"]
    assert recorded.names.count("conv_fused") == 1 + 5 * 3 + 4 and recorded.names.count("conv") == 1  # that is fc
    report = dict(fused.report())
    assert report["layer1.0.conv3"].startswith("fused: layer1.0.conv3 + layer1.0.bn3 + ")
    assert report["layer1.0.downsample.0"] == "fused: layer1.0.downsample.0 + layer1.0.downsample.1"
    assert report["fc"] == report["maxpool"] == "alone"
    assert set(report) == {name for name, module in model.named_modules() if not list(module.children())}

    with torch.no_grad():  # weights and statistics are followed
        model.layer2[0].bn2.running_mean.add_(1)
        model.layer1[0].conv3.weight.data.mul_(-1)
        want = model(x)
        assert_within(fused(x), want, 1000 * U * float(want.abs().max()))
        for module in (model.layer1[0].bn1, model.layer1):  # and hooks are seen
            hook = module.register_forward_hook(lambda m, i, o: o + 1)
            want = model(x)
            assert_within(fused(x), want, 1000 * U * float(want.abs().max()))
            hook.remove()
        for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(ckt.replace_layers(resnet(), fuse=True)))):
            assert other.report() == fused.report() and other(x).shape == (2, 10)
        assert torch.equal(copy.deepcopy(fused)(x), fused(x))
        assert fused(x.double().float().half().float()[:0]).shape == (0, 10)

    fused(x).sum().backward()
    assert model.conv1.weight.grad is not None and list(fused.original.state_dict()) == list(model.state_dict())
    assert fused.train().original.training
    assert ckt.restore_layers(fused) is model and type(model.conv1) is nn.Conv2d


def trained(model: nn.Module, x: torch.Tensor, steps: int = 4) -> dict[str, torch.Tensor]:
    """Losses of some steps, and what they leave behind."""
    labels = torch.arange(len(x)) % 10
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), **{n: v.clone() for n, v in model.named_buffers() if "num" not in n}}


@pytest.mark.parametrize("frozen", [False, True])
def test_fused_model_trains(frozen: bool) -> None:
    """Batch norm, residual and ReLU in one step, each way; with frozen norms step by step."""
    model = resnet().train()
    if frozen:
        for name, module in model.named_modules():
            if name.startswith(("bn1", "layer1")) and isinstance(module, nn.BatchNorm2d):
                module.eval().requires_grad_(False)
    x, before = torch.randn(4, 3, 64, 64), copy.deepcopy(model.state_dict())
    want, torchs = trained(copy.deepcopy(model).double(), x.double()), trained(copy.deepcopy(model), x)
    fused = ckt.replace_layers(model, fuse=True)
    with Recorded() as recorded:
        fused(x).sum().backward()
    fused.zero_grad()
    count = recorded.names.count
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    added = [name for name in norms if name.endswith("bn3")]
    assert count("batch_norm_add_train") == count("activation_backward") == len(added) > 1
    assert count("batch_norm_train") == len(norms) - len(added) and count("batch_norm_backward") == len(norms)
    assert count("batch_norm") == 20 - len(norms) == (5 if frozen else 0)
    model.load_state_dict(before)
    got = trained(fused, x)
    for name, value in want.items():
        ours = got[name if name == "losses" else f"original.{name}"]
        drift = float((torchs[name] - value).abs().max())  # of PyTorch's float32, which a ReLU near zero lets jump
        assert_within(ours, value, 1e-4 * float(value.abs().max()) + 4 * drift, name)
    assert float(want["losses"].max() - want["losses"].min()) > 0.01


def test_fused_programs_follow_modes() -> None:
    """What a module does in training is traced in training."""

    class Drops(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.dropout(super().forward(x), 0.5, self.training)

    model = Drops(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    fused = ckt.replace_layers(model, fuse=True)
    x = torch.randn(2, 3, 9, 9)
    for training in (True, False, True):
        y = fused.train(training)(x)
        assert training == (float((y == 0).float().mean()) > 0.6)
        torch.manual_seed(1)
        want = model(x)
        torch.manual_seed(1)
        assert_within(fused(x).detach(), want.detach(), 100 * U)


def test_what_is_not_fused() -> None:
    class Awkward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read_twice, self.reflect = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
            self.broadcast, self.scaled, self.before = (nn.Conv2d(4, 4, 1) for _ in range(3))
            self.plain, self.linear = nn.BatchNorm2d(4, affine=False), nn.Linear(4, 4)
            self.act = nn.LeakyReLU(0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a = self.read_twice(x)
            a = F.relu(a) + a
            a = F.relu(self.reflect(a))
            a = self.broadcast(a) + a.mean((2, 3), keepdim=True)
            a = torch.add(self.scaled(a), a, alpha=2)
            b = self.before(a)
            a.mul_(2)  # `before` must have read it by now
            return self.act(self.linear(self.plain(b + a)))

    model = Awkward().eval()
    x = torch.randn(2, 4, 5, 4)
    with torch.no_grad():
        want = model(x.clone())
        fused = ckt.replace_layers(model, fuse=True)
        assert_within(fused(x.clone()), want, 1000 * U * float(want.abs().max()))
    report = dict(fused.report())
    assert report["read_twice"] == report["scaled"] == report["before"] == report["plain"] == "alone"
    assert report["reflect"] == "alone: padding_mode='reflect'"
    assert report["linear"] == "fused: linear + act"


def test_activations_fused() -> None:
    acts = (nn.ReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.7), nn.SiLU(), nn.Sigmoid(), nn.Tanh(), nn.Hardswish())
    acts += (nn.Hardsigmoid(), nn.GELU(), nn.GELU("tanh"), nn.ELU(0.5), nn.LeakyReLU(0.2), nn.Softplus(2, 3))
    x = torch.randn(2, 4, 6, 6)
    for act in acts:
        model = nn.Sequential(nn.ConvTranspose2d(4, 8, 2, stride=2), act, nn.Mish()).eval()
        with torch.no_grad():
            want = model(x)
            fused = ckt.replace_layers(model, fuse=True)
            assert_within(fused(x), want, 100 * U * float(want.abs().max()), act)
        assert fused.report() == [("0", "fused: 0 + 1"), ("1", "fused into 0"), ("2", "torch's own")]


def test_fuse_needs_a_trace() -> None:
    class Branches(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(Unsupported, match=r"cannot trace Branches.*replace_layers\(model.backbone, fuse=True\)"):
        ckt.replace_layers(Branches(nn.Conv2d(3, 3, 1)), fuse=True)


# Compilers


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_compile(backend: str) -> None:
    model = ckt.replace_layers(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)))
    x = torch.randn(2, 3, 10, 10)
    want, wanted = copy.deepcopy(model), None
    wanted = want(x)
    wanted.sum().backward()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    y = compiled(x)
    y.sum().backward()
    assert_within(y.detach(), wanted.detach(), 1000 * U)
    assert_within(model[0].weight.grad, want[0].weight.grad, 1000 * U * float(want[0].weight.grad.abs().max()))
    assert_within(model[1].running_var, want[1].running_var, 1000 * U)
    if backend == "aot_eager":
        torch._dynamo.reset()
        model.eval(), want.eval()
        dynamic = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
        with torch.no_grad():
            for n, size in ((2, 10), (3, 13), (5, 17)):
                x = torch.randn(n, 3, size, size)
                assert_within(dynamic(x), want(x), 1000 * U)
    torch._dynamo.reset()


def test_export() -> None:
    model = ckt.replace_layers(small_model().eval())
    x = torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2)},))
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"convkern.conv.default", "convkern.batch_norm.default", "convkern.max_pool_with_indices.default"} <= targets
    x = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert_within(program.module()(x), model(x), 100 * U)
        traced = torch.jit.trace(model, x)
        assert torch.equal(traced(x), model(x))


# Processes

DDP = """
import os, sys, torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
import convkern.torch as ckt
from convkern import _core

def losses(rank, kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(model, nn.Flatten(), nn.Linear(72, 4))
    if kind != "torch":
        model = ckt.replace_layers(model, fuse=kind == "fused")
    model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    torch.manual_seed(1 + rank)
    result = []
    for _ in range(4):
        x, labels = torch.randn(4, 3, 8, 8), torch.randint(0, 4, (4,))
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        result.append(loss.item())
    return result

def work(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    theirs = losses(rank, "torch")
    for kind in ("replaced", "fused"):
        ours = losses(rank, kind)
        assert max(abs(a - b) for a, b in zip(ours, theirs)) < 1e-5, (kind, ours, theirs)
    assert max(theirs) - min(theirs) > 0.01
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
    print("same", flush=True)
    os._exit(0)  # gloo's threads may outlive the group, and then end a process that leaves by itself with an abort
"""


def test_distributed(tmp_path: Any) -> None:
    """Two processes over gloo: the losses of torch's own layers."""
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    run = [sys.executable, str(script)]
    workers = [
        subprocess.Popen([*run, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for worker in workers:
        out, error = worker.communicate(timeout=100)
        assert worker.returncode == 0 and out.decode().strip() == "same", error.decode()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_kernels_before_torch() -> None:
    """The extension is loaded and has used its threads before torch comes."""
    code = """
        import numpy as np
        from convkern import ops
        x, w = np.ones((2, 8, 30, 30), "f4"), np.ones((8, 8, 3, 3), "f4")
        want = ops.conv2d(x, w)
        import torch
        import convkern.torch
        layer = convkern.torch.Conv2d(8, 8, 3, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1)
            torch.nn.functional.conv2d(torch.ones(2, 8, 30, 30), layer.weight)
            print((layer(torch.from_numpy(x)).numpy() == want).all())
    """
    assert run(code) == "True"


def test_without_torch() -> None:
    code = """
        import sys
        sys.modules["torch"] = None
        import convkern
        try:
            convkern.torch
        except ImportError as error:
            print(error)
    """
    assert run(code) == "convkern.torch needs PyTorch: pip install 'convkern[torch]'"


def test_attribute_of_the_package() -> None:
    assert convkern.torch is ckt and "torch" not in convkern.__all__


def test_bench_torch(capsys: pytest.CaptureFixture[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_resnet, "ResNet", partial(ResNet, width=8))
    file = tmp_path / "run.json"
    quick = ["--batch", "1", "2", "--input", "32", "--seconds", "0.01", "--rounds", "2", "--threads", "1"]
    before = torch.get_num_threads()
    assert main(["bench", "torch", "resnet18", *quick, "--batch", "2", "--training", "--json", str(file)]) == 0
    assert all(row["error"] < 1e-3 and row["ratio"] > 0 for row in json.loads(file.read_text())["rows"])
    assert main(["bench", "torch", "resnet18", *quick, "--batch", "2", "--training"]) == 0
    assert "training steps" in capsys.readouterr().out
    assert main(["bench", "torch", *quick, "--json", str(file)]) == 0
    table = capsys.readouterr().out
    assert "replace_layers" in table and "fuse=True" in table and "PyTorch" in table
    doc = json.loads(file.read_text())
    assert doc["format"] == "convkern-bench-torch-1" and [row["n"] for row in doc["rows"]] == [1, 2]
    for row in doc["rows"]:
        assert row["error"] < 1e-3 and row["ratio"] > 0 and row["ratio_fused"] > 0 and row[row["before"]]["median"] > 0
    assert torch.get_num_threads() == before


def test_resnet50_is_torchvisions() -> None:
    """Names and sizes of the published weights."""
    with torch.device("meta"):
        state = ResNet(**torch_resnet.MODELS["resnet18"]).state_dict()
        assert sum(v.numel() for k, v in state.items() if "num_batches" not in k and "running" not in k) == 11_689_512
        assert (
            state["layer2.0.downsample.0.weight"].shape == (128, 64, 1, 1)
            and "layer1.0.downsample.0.weight" not in state
        )
        state = ResNet().state_dict()
    assert sum(v.numel() for k, v in state.items() if "num_batches" not in k and "running" not in k) == 25_557_032
    assert len(state) == 320 and state["layer3.5.conv2.weight"].shape == (256, 256, 3, 3)
    assert state["layer2.0.downsample.0.weight"].shape == (512, 256, 1, 1) and state["fc.bias"].shape == (1000,)
