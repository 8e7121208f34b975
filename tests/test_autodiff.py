"""Gradients: every operator and whole networks against PyTorch's autograd, in float64 on the reference kernels; what
freezing leaves out; recomputation, which gives the same bits; ten training steps beside PyTorch in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convkern import Input, Model, set_seed
from convkern import layers as L
from convkern.bench.torch_training import TorchTraining
from convkern.errors import Unsupported
from convkern.graph import Graph
from convkern.models import get_model
from convkern.passes.training import training
from convkern.train import SGD, losses
from convkern.train.autodiff import differentiate
from convkern.train.step import Step, move_statistics


def both_gradients(model, rng, n=3, loss="mse", recompute=0, exact=True):
    """Our gradients and PyTorch's, by parameter, in float64, and the two losses."""
    x = rng.standard_normal((n, *model.input_shape)).astype("f4")
    if loss == "mse":
        y = rng.standard_normal((n, *model.output_shape)).astype("f4")
    else:
        y = rng.integers(0, model.output_shape[-1], n)
    trained = model.trainable_params()
    step = Step(model.graph(), [losses.get(loss)], trained, dtype="float64", recompute=recompute)
    result = step.run([x], losses.get(loss).targets(y, [x], step.predicted[0]))
    peer = TorchTraining(model.graph(), list(trained.values()), dtype=torch.float64)
    out = peer(torch.from_numpy(np.moveaxis(x, -1, 1).copy()).double())
    if loss == "mse":
        target = torch.from_numpy(np.moveaxis(y, -1, 1).copy()).double()
        value = F.mse_loss(out, target)
    else:
        value = F.cross_entropy(out, torch.from_numpy(y))
    value.backward()
    ours = {name: gradient for name, _, gradient in result.gradients}
    theirs = {name: peer.gradient(param) for name, param in trained.items()}
    return ours, theirs, result, float(value.detach()), peer, step


def assert_same_gradients(model, rng, **options):
    ours, theirs, result, value, peer, step = both_gradients(model, rng, **options)
    assert result.losses[0].mean() == pytest.approx(value, rel=1e-9)
    assert set(ours) == set(theirs)
    scale = max(np.abs(g).max() for g in theirs.values())
    for name, want in theirs.items():
        assert np.abs(want).max() >= 0 and np.allclose(ours[name], want, rtol=1e-7, atol=1e-9 * scale), name
    move_statistics(result.statistics)
    for node, *_ in result.statistics:
        for key in ("mean", "var"):
            assert np.allclose(node.params[key].value, peer.value(node.params[key]), rtol=1e-5, atol=1e-6)
    return result, step


# A small network around every layer: something trained before it, so that the gradient passes through it.
AROUND = {
    "conv": lambda x: L.Conv2D(5, 3, strides=2, padding="same")(x),
    "dilated": lambda x: L.Conv2D(4, 3, dilation_rate=2, activation="relu")(x),
    "grouped": lambda x: L.Conv2D(8, 3, groups=2, activation="tanh")(x),
    "depthwise": lambda x: L.DepthwiseConv2D(3, depth_multiplier=2, padding="same", activation="relu6")(x),
    "separable": lambda x: L.SeparableConv2D(6, 3, activation="silu")(x),
    "transposed": lambda x: L.Conv2DTranspose(3, 3, strides=2, activation="leaky_relu")(x),
    "transposed dilated": lambda x: L.Conv2DTranspose(3, 2, dilation_rate=2, padding=1)(x),
    "dense": lambda x: L.Dense(3, activation="gelu")(x),
    "max": lambda x: L.MaxPool2D(3, strides=2, padding=1)(x),
    "average": lambda x: L.AveragePooling2D(3, strides=2)(x),
    "average same": lambda x: L.AveragePooling2D(2, padding="valid")(x),
    "adaptive": lambda x: L.AdaptiveAveragePool2D((3, 2))(x),
    "adaptive max": lambda x: L.AdaptiveMaxPool2D((3, 2))(x),
    "global": lambda x: L.GlobalAveragePool2D()(x),
    "global max": lambda x: L.GlobalMaxPool2D(keepdims=True)(x),
    "batch norm": lambda x: L.BatchNormalization(unbiased=True, momentum=0.9)(x),
    "batch norm relu": lambda x: L.ReLU()(L.BatchNormalization(unbiased=True, momentum=0.9)(x)),
    "batch norm silu": lambda x: L.Activation("silu")(L.BatchNormalization(unbiased=True, momentum=0.9)(x)),
    "batch norm add": lambda x: L.ReLU()(L.Add()([L.BatchNormalization(unbiased=True, momentum=0.9)(x), x])),
    "bare batch norm": lambda x: L.BatchNormalization(scale=False, center=False, unbiased=True, momentum=0.9)(x),
    "layer norm": lambda x: L.LayerNormalization()(x),
    "lrn": lambda x: L.LocalResponseNormalization(3, alpha=0.1)(x),
    "softmax": lambda x: L.Softmax()(x),
    "log softmax": lambda x: L.Activation("log_softmax")(x),
    "flatten": lambda x: L.Dense(3)(L.Flatten()(x)),
    "permute": lambda x: L.Permute((2, 3, 1))(x),
    "pad": lambda x: L.ZeroPadding2D(((1, 2), (0, 1)))(x),
    "crop": lambda x: L.Cropping2D(((1, 0), (1, 2)))(x),
    "upsampling": lambda x: L.UpSampling2D(2)(x),
    "bilinear": lambda x: L.UpSampling2D(2, interpolation="bilinear")(x),
    "rescaling": lambda x: L.Rescaling(3.0, 1.0)(x),
    "rescaling channels": lambda x: L.Rescaling([1.0, 2.0, 3.0, 4.0], 1.0)(x),
    "add": lambda x: L.Add()([x, L.Conv2D(4, 1)(x)]),
    "subtract": lambda x: L.Subtract()([x, L.Conv2D(4, 1)(x)]),
    "multiply": lambda x: L.Multiply()([x, L.Conv2D(4, 1)(L.GlobalAveragePool2D(keepdims=True)(x))]),
    "multiply itself": lambda x: L.Multiply()([x, x]),
    "add itself": lambda x: L.Add()([x, x]),
    "broadcast add": lambda x: L.Add()([x, L.GlobalAveragePool2D(keepdims=True)(x)]),
    "maximum": lambda x: L.Maximum()([x, L.Conv2D(4, 1)(x)]),
    "average of": lambda x: L.Average()([x, L.Conv2D(4, 1)(x)]),
    "concatenate": lambda x: L.Concatenate()([x, L.Conv2D(3, 3, padding="same")(x), x]),
    "concatenate rows": lambda x: L.Concatenate(axis=1)([x, L.ReLU()(x)]),
    "dense block": lambda x: L.Concatenate()(
        [x, L.Conv2D(2, 1)(x), L.Conv2D(2, 1)(L.Concatenate()([x, L.Conv2D(2, 3, padding="same")(x)]))]
    ),
    "elu": lambda x: L.ELU()(x),
    "hard swish": lambda x: L.Activation("hard_swish")(x),
    "softplus": lambda x: L.Activation("softplus")(x),
    "exp": lambda x: L.Activation("exp")(x),
}


@pytest.mark.parametrize("name", AROUND)
def test_every_layer(name, rng):
    set_seed(1)
    image = Input((6, 7, 3))
    x = L.Conv2D(4, 3, padding="same", bias_initializer="random_normal")(image)
    model = Model(image, AROUND[name](x))
    assert_same_gradients(model, rng)


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank, rng):
    image = Input((9, 2) if rank == 1 else (4, 5, 6, 2))
    conv, pool = (L.Conv1D, L.MaxPool1D) if rank == 1 else (L.Conv3D, L.MaxPool3D)
    x = pool(2)(conv(3, 3, activation="relu", padding="same")(image))
    assert_same_gradients(Model(image, L.Dense(2)(L.Flatten()(x))), rng)


def test_a_layer_used_twice(rng):
    image = Input((5, 5, 3))
    conv = L.Conv2D(3, 3, padding="same", activation="relu")
    assert_same_gradients(Model(image, conv(conv(image))), rng)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "squeezenet1_1", "efficientnet_b0"])
def test_networks(name, rng):
    set_seed(2)
    model = without_dropout(get_model(name, classes=7, input_shape=(32, 32, 3)))
    assert_same_gradients(model, rng, n=4, loss="sparse_categorical_crossentropy")


def without_dropout(model):
    for layer in model.layers:
        if isinstance(layer, L.Dropout):
            layer.rate = 0.0
    return model


# What is computed, and when


def backward_ops(model, recompute=0):
    step = Step(model.graph(), [losses.get("mse")], model.trainable_params(), recompute=recompute)
    return [node.op for node in step.graph.nodes], step


def test_trained_weights_are_packed_into_one_buffer(rng):
    """No layer keeps packed copies of weights that change with every step: they would outweigh the weights."""
    image = Input((8, 8, 16))
    model = Model(image, L.Conv2D(16, 3)(L.Conv2D(32, 3, padding="same")(image)))
    _, step = backward_ops(model)
    step.run([rng.standard_normal((2, 8, 8, 16)).astype("f4")], [np.zeros((2, 6, 6, 16), "f4")])
    assert sum(row["packed_bytes"] for row in step.plan.steps()) > 0
    assert [live.packed.packed_bytes for live in step.live] == [0] * 4


def test_only_what_is_needed_is_computed():
    image = Input((8, 8, 3))
    x = L.Conv2D(4, 3)(image)
    x = L.Conv2D(4, 3)(x)
    model = Model(image, L.Dense(2)(L.Flatten()(x)))
    ops, _ = backward_ops(model)
    assert ops.count("kernel_gradient") == 3 and ops.count("input_gradient") == 2  # none of the image
    model.get_layer("conv2d").trainable = False
    ops, _ = backward_ops(model)
    assert ops.count("kernel_gradient") == 2 and ops.count("input_gradient") == 1
    model.get_layer("conv2d_1").trainable = False
    ops, _ = backward_ops(model)
    assert ops.count("kernel_gradient") == 1 and ops.count("input_gradient") == 0
    model.get_layer("conv2d").trainable = True  # the gradient has to pass through the frozen one
    ops, _ = backward_ops(model)
    assert ops.count("kernel_gradient") == 2 and ops.count("input_gradient") == 2


def test_frozen_parts_run_as_at_inference(rng):
    """A frozen backbone is folded and fused, and its norms use and keep their statistics."""
    backbone = get_model("resnet18", include_top=False, pooling="avg", input_shape=(32, 32, 3))
    image = Input((32, 32, 3))
    model = Model(image, L.Dense(3)(backbone(image)))
    backbone.trainable = False
    result, step = assert_same_gradients(model, rng)
    assert not result.statistics and len(result.gradients) == 2
    ops = [node.op for node in step.graph.nodes]
    assert "batch_norm" not in ops and "batch_norm_train" not in ops and "activation" not in ops
    x = rng.standard_normal((4, 32, 32, 3)).astype("f4")
    features = backbone(x)
    kernel, bias = model.layers[-1].get_weights()
    out = Step(model.graph(), [losses.get("mse")], model.trainable_params()).run([x], [np.zeros((4, 3), "f4")])
    assert np.allclose(out.outputs[0], features @ kernel + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels, activation, fused", [(6, "tanh", False), (16, "tanh", True), (6, "relu", True)])
def test_a_tanh_of_few_channels_is_a_step_of_its_own(channels, activation, fused):
    """In a convolution it would be computed for a few values at a time."""
    image = Input((8, 8, 1))
    model = Model(image, L.Dense(2)(L.Flatten()(L.Conv2D(channels, 3, activation=activation)(image))))
    graph = training(model.graph(), list(model.trainable_params().values()))
    assert ("activation" not in [node.op for node in graph.nodes]) == fused


def test_frozen_norm_under_trained_layers(rng):
    """A frozen norm between trained convolutions: its statistics stay, the gradient passes through it."""
    image = Input((8, 8, 3))
    norm = L.BatchNormalization(moving_variance_initializer=lambda shape, rng: rng.random(shape, "f4") + 0.5)
    x = L.ReLU()(norm(L.Conv2D(4, 3)(image)))
    model = Model(image, L.Conv2D(2, 3)(x))
    norm.trainable = False
    result, _ = assert_same_gradients(model, rng)
    assert len(result.gradients) == 4 and not result.statistics


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_recomputation_saves_memory_and_keeps_the_bits(name, rng):
    model = get_model(name, classes=5, input_shape=(32, 32, 3))
    x, y = rng.standard_normal((2, 32, 32, 3)).astype("f4"), np.array([[0], [3]], "f4")
    loss, trained = losses.get("sparse_categorical_crossentropy"), model.trainable_params()
    results, bytes_ = [], []
    for parts in (0, 4):
        step = Step(model.graph(), [loss], trained, recompute=parts)
        results.append(step.run([x], [y]))
        bytes_.append(step.plan.arena_bytes)
    assert bytes_[1] < 0.55 * bytes_[0]
    for (name, _, a), (_, _, b) in zip(results[0].gradients, results[1].gradients):
        assert np.array_equal(a, b), name


def test_gradients_of_inputs(rng):
    """wanted_inputs: what a saliency map asks for."""
    graph = Graph()
    x, t = graph.input((5,)), graph.input((5,))
    y = graph.add("activation", [x], {"kind": "tanh"})
    graph.outputs = [graph.add("loss", (y, t), {"kind": "squared", "smoothing": 0.0})]
    made = differentiate(training(graph, []), graph.outputs, [], wanted_inputs=[x])
    assert set(made.inputs) == {x} and made.graph.outputs[-1] == made.inputs[x]


def test_an_operator_without_gradient_says_so():
    graph = Graph()
    x = graph.input((4,))
    graph.outputs = [graph.add("identity", [x])]
    graph.nodes[0] = graph.nodes[0].replace(op="mystery", name="layer")
    with pytest.raises(Unsupported, match="layer: the operator 'mystery' has no gradient"):
        differentiate(graph, graph.outputs, [], wanted_inputs=[x])


def test_dropout_drops_in_both_passes():
    """Masks follow from the seed and the step; the gradient has the mask of the forward pass."""
    image = Input((1000,))
    x = L.Dropout(0.25)(L.Rescaling(1.0, 0.0)(image))
    dense = L.Dense(1, kernel_initializer="ones", use_bias=False)
    model = Model(image, [x, dense(x)])
    step = Step(model.graph(), [None, losses.get("mse")], model.trainable_params(), seed=5)
    ones, zero = np.ones((2, 1000), "f4"), np.zeros((2, 1), "f4")
    first, again, other = (step.run([ones], [zero], step=number) for number in (1, 1, 2))
    mask = first.outputs[0]
    assert set(np.unique(mask)) == {0, np.float32(1 / 0.75)} and 0.2 < (mask == 0).mean() < 0.3
    assert not np.array_equal(mask[0], mask[1])
    assert np.array_equal(mask, again.outputs[0]) and not np.array_equal(mask, other.outputs[0])
    want = (first.outputs[1] * mask).sum(0)  # d/dw of the mean over 2 images of (mask . w)**2
    assert np.allclose(first.gradients[0][2][:, 0], want, rtol=1e-5)


# Ten training steps. The rounding errors of a step change the weights of the next: two float32 trainings part, and at
# usual learning rates (random weights, eight images, 1e-3) PyTorch's own float32 is 1e-2 away from its float64 after
# ten: the ReLU networks, whose slopes jump; EfficientNet, all smooth, stays within 1e-6. So the yardstick is measured
# beside the steps: how far PyTorch in float32 has drifted by now, in loss or running statistics, from PyTorch in
# float64. Ours may have drifted four times as far (Winograd's kernels err so much more than direct sums), and for the
# first three steps, at rates where PyTorch's own drift allows it, the losses agree within 1e-4.
RATES = {"resnet18": 1e-5, "vgg11_bn": 1e-4, "densenet121": 1e-5, "efficientnet_b0": 1e-3}


def with_ten_classes(name):
    set_seed(3)
    options = dict(stochastic_depth_prob=0.0) if name.startswith("efficientnet") else {}
    if name != "vgg11_bn":
        return without_dropout(get_model(name, classes=10, input_shape=(64, 64, 3), **options))
    image = Input((64, 64, 3))  # without its hundred million dense weights: ten steps of them in float64 take a minute
    features = get_model(name, include_top=False, pooling="avg", input_shape=(64, 64, 3))(image)
    return Model(image, L.Dense(10)(features))


@pytest.mark.parametrize("name", RATES)
def test_ten_steps_beside_torch(name, rng):
    """Same weights, same data, SGD: the same losses and running statistics, in float32."""
    model, rate, steps = with_ten_classes(name), RATES[name], 10
    model.compile(optimizer=SGD(rate), loss="sparse_categorical_crossentropy")
    x, y = rng.standard_normal((steps, 8, 64, 64, 3)).astype("f4"), rng.integers(0, 10, (steps, 8))
    trained = list(model.trainable_params().values())
    single, double = (TorchTraining(model.graph(), trained, dtype=dtype) for dtype in (torch.float32, torch.float64))
    kept = {node.params["mean"]: node.params["var"] for node in model.graph().nodes if node.op == "batch_norm"}
    assert len(kept) > 7

    def torch_step(peer, images, labels):
        value = F.cross_entropy(peer(torch.from_numpy(images).to(peer.dtype).movedim(-1, 1)), torch.from_numpy(labels))
        for weight, gradient in zip(peer.parameters, torch.autograd.grad(value, peer.parameters)):
            weight.data -= rate * gradient
        return float(value.detach())

    def away(value_of, loss, exact_loss):
        """The largest relative deviation from float64: of the loss, and of each mean (in deviations) and variance."""
        found = [abs(loss / exact_loss - 1)]
        for mean, var in kept.items():
            exact = double.value(var)
            found.append(np.abs((value_of(mean) - double.value(mean)) / np.sqrt(exact)).max())
            found.append(np.abs(value_of(var) / exact - 1).max())
        return max(found)

    drift = 1e-4 / 4  # what is asked of the first steps, where PyTorch's own drift may be nothing by luck
    for step in range(steps):
        ours = model.train_on_batch(x[step], y[step])
        theirs, exact = torch_step(single, x[step], y[step]), torch_step(double, x[step], y[step])
        drift = max(drift, away(single.value, theirs, exact))
        assert away(lambda param: param.value, ours, exact) <= 4 * drift, (step, drift)
        if step < 3:
            assert ours == pytest.approx(theirs, rel=1e-4), step
    assert drift < 0.02  # else the test would show nothing


def test_steps_of_the_whole_vgg_beside_torch(rng):
    """With its dense layers of a hundred million weights."""
    set_seed(3)
    model = without_dropout(get_model("vgg11_bn", classes=10, input_shape=(64, 64, 3)))
    model.compile(optimizer=SGD(1e-4), loss="sparse_categorical_crossentropy")
    x, y = rng.standard_normal((3, 8, 64, 64, 3)).astype("f4"), rng.integers(0, 10, (3, 8))
    peer = TorchTraining(model.graph(), list(model.trainable_params().values()))
    optimizer = torch.optim.SGD(peer.parameters, 1e-4)
    for images, labels in zip(x, y):
        loss = model.train_on_batch(images, labels)
        optimizer.zero_grad()
        value = F.cross_entropy(peer(torch.from_numpy(images).movedim(-1, 1)), torch.from_numpy(labels))
        value.backward()
        optimizer.step()
        assert loss == pytest.approx(float(value.detach()), rel=1e-4)
