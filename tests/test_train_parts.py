"""What training is made of: optimizers, schedules, losses and metrics against PyTorch; callbacks one by one."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convkern import Input, Model, set_seed
from convkern.errors import DataError, DTypeError, ShapeError, Unsupported
from convkern.graph import Graph, Param
from convkern.layers import Dense
from convkern.train import callbacks, losses, metrics, optimizers, schedules
from convkern.train.loop import Trainer
from convkern.train.step import Step

SHAPES = {"a/kernel": (5, 7), "a/bias": (7,), "b/kernel": (3, 3, 2, 4)}


def run_both(ours, theirs, rng, steps=5, rates=None):
    """Five steps of both optimizers on the same random gradients, theirs in float64; the largest difference over what
    rounding explains: some units of the weights in each step, and the formula's own in proportion to the change."""
    values = {name: rng.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()}
    params = {name: Param(name, value) for name, value in values.items()}
    leaves = {name: torch.from_numpy(value.copy()).double().requires_grad_() for name, value in values.items()}
    other = theirs(list(leaves.values()))
    for step in range(steps):
        gradients = {name: rng.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()}
        for name, leaf in leaves.items():
            leaf.grad = torch.from_numpy(gradients[name]).double()
        if rates is not None:
            other.param_groups[0]["lr"] = rates(step)
        other.step()
        assert ours.apply([(name, params[name], gradients[name].copy()) for name in SHAPES])
    worst = 0.0
    for name, leaf in leaves.items():
        want = leaf.detach().numpy()
        allowed = 4 * steps * 2**-24 * np.abs(want).max() + 3e-6 * np.abs(want - values[name]).max()
        worst = max(worst, np.abs(params[name].value - want).max() / allowed)
        assert params[name].version == steps
    assert ours.iterations == steps
    return worst


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (dict(cls="SGD", learning_rate=0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (
            dict(cls="SGD", learning_rate=0.1, momentum=0.9, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        ),
        (
            dict(cls="SGD", learning_rate=0.1, momentum=0.9, nesterov=True),
            lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        ),
        (
            dict(cls="RMSprop", learning_rate=0.01, rho=0.95, weight_decay=0.1),
            lambda p: torch.optim.RMSprop(p, 0.01, alpha=0.95, eps=1e-7, weight_decay=0.1),
        ),
        (
            dict(cls="RMSprop", learning_rate=0.01, momentum=0.5),
            lambda p: torch.optim.RMSprop(p, 0.01, alpha=0.9, eps=1e-7, momentum=0.5),
        ),
        (
            dict(cls="Adam", learning_rate=0.01, weight_decay=0.1),
            lambda p: torch.optim.Adam(p, 0.01, eps=1e-7, weight_decay=0.1),
        ),
        (
            dict(cls="AdamW", learning_rate=0.01, weight_decay=0.1, beta_1=0.8),
            lambda p: torch.optim.AdamW(p, 0.01, betas=(0.8, 0.999), eps=1e-7, weight_decay=0.1),
        ),
    ],
)
def test_optimizers_are_torchs(ours, theirs, rng):
    ours = dict(ours)
    assert run_both(getattr(optimizers, ours.pop("cls"))(**ours), theirs, rng) <= 1


def test_a_schedule_drives_the_optimizer(rng):
    schedule = schedules.StepDecay(0.1, 2, 0.5)
    assert run_both(optimizers.SGD(schedule), lambda p: torch.optim.SGD(p, 0.1), rng, rates=schedule) <= 1


def test_multipliers_and_no_decay(rng):
    optimizer = optimizers.SGD(0.1, weight_decay=0.5, multipliers={"b/*": 0.0, "*": 2.0}, no_decay=["*/bias"])
    params = {name: Param(name, np.ones(shape, "f4")) for name, shape in SHAPES.items()}
    optimizer.apply([(name, param, np.zeros(param.shape, "f4")) for name, param in params.items()])
    assert np.allclose(params["a/kernel"].value, 1 - 0.2 * 0.5)
    assert (params["a/bias"].value == 1).all() and (params["b/kernel"].value == 1).all()


@pytest.mark.parametrize("kind", ["clipvalue", "clipnorm", "global_clipnorm"])
def test_clipping_is_torchs(kind, rng):
    optimizer = optimizers.SGD(1.0, **{kind: 0.7})
    gradients = {name: rng.standard_normal(shape).astype("f4") for name, shape in SHAPES.items()}
    tensors = {name: torch.from_numpy(g.copy()).requires_grad_() for name, g in gradients.items()}
    for tensor in tensors.values():
        tensor.grad = tensor.detach().clone()
    if kind == "clipvalue":
        torch.nn.utils.clip_grad_value_(tensors.values(), 0.7)
    else:
        for group in [tensors.values()] if kind == "global_clipnorm" else [[t] for t in tensors.values()]:
            torch.nn.utils.clip_grad_norm_(group, 0.7)
    params = {name: Param(name, np.zeros(shape, "f4")) for name, shape in SHAPES.items()}
    optimizer.apply([(name, params[name], gradients[name]) for name in SHAPES])
    for name, tensor in tensors.items():
        assert np.allclose(-params[name].value, tensor.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_accumulated_gradients_are_the_mean(rng):
    params = {name: Param(name, np.zeros(shape, "f4")) for name, shape in SHAPES.items()}
    optimizer = optimizers.SGD(1.0, gradient_accumulation_steps=3, global_clipnorm=1e9)
    sums = {name: np.zeros(shape, "f4") for name, shape in SHAPES.items()}
    for number in range(6):
        gradients = {name: rng.integers(-9, 9, shape).astype("f4") for name, shape in SHAPES.items()}
        for name in SHAPES:
            sums[name] += gradients[name]
        changed = optimizer.apply([(name, params[name], gradients[name]) for name in SHAPES])
        assert changed == (number % 3 == 2)
    assert optimizer.iterations == 2
    for name, param in params.items():
        assert np.allclose(param.value, -sums[name] / 3, rtol=1e-6)


def test_sam_takes_its_gradient_uphill():
    """On f(w) = w**2 / 2 the gradient at w + rho is w + rho."""
    param = Param("w", np.array([2.0], "f4"))
    optimizer = optimizers.SAM(optimizers.SGD(0.1), rho=0.5)
    optimizer.ascend([("w", param, param.value.copy())])
    assert np.allclose(param.value, 2.5)
    optimizer.apply([("w", param, param.value.copy())])
    assert np.allclose(param.value, 2 - 0.1 * 2.5)
    optimizer.learning_rate = 0.3
    assert optimizer.base.rate == 0.3 == optimizer.rate


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda: optimizers.SGD(-1), ShapeError),
        (lambda: optimizers.SGD("fast"), DTypeError),
        (lambda: optimizers.SGD(nesterov=True), Unsupported),
        (lambda: optimizers.SGD(clipnorm=1, clipvalue=1), Unsupported),
        (lambda: optimizers.SGD(clipnorm=0), ShapeError),
        (lambda: optimizers.Adam(beta_1=1.0), ShapeError),
        (lambda: optimizers.SAM(optimizers.SGD(gradient_accumulation_steps=2)), Unsupported),
        (lambda: optimizers.get("adamant"), Unsupported),
        (lambda: schedules.CosineDecay(1, 10, warmup_steps=3), Unsupported),
        (lambda: schedules.StepDecay(1, 0), ShapeError),
        (lambda: losses.get("hinge"), Unsupported),
        (lambda: metrics.get("f1"), Unsupported),
        (lambda: losses.CategoricalCrossentropy(label_smoothing=1.0), ShapeError),
    ],
)
def test_wrong_arguments(make, error):
    with pytest.raises(error):
        make()


def torch_rates(make, count):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    schedule = make(optimizer)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    "ours, theirs, count",
    [
        (schedules.StepDecay(1.0, 7, 0.3), lambda o: torch.optim.lr_scheduler.StepLR(o, 7, 0.3), 30),
        (schedules.ExponentialDecay(1.0, 1, 0.9), lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9), 20),
        (
            schedules.CosineDecay(1.0, 20, alpha=0.1),
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, 0.1),
            21,
        ),
        (schedules.OneCycle(1.0, 50), lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1.0, 50), 50),
        (
            schedules.OneCycle(1.0, 40, pct_start=0.2, div_factor=10, final_div_factor=100),
            lambda o: torch.optim.lr_scheduler.OneCycleLR(
                o, 1.0, 40, pct_start=0.2, div_factor=10, final_div_factor=100
            ),
            40,
        ),
        (
            schedules.WarmUp(1.0, 8),
            lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1, (s + 1) / 8)),
            12,
        ),
    ],
    ids=lambda value: getattr(type(value), "__name__", None),
)
def test_schedules_are_torchs(ours, theirs, count):
    assert np.allclose([ours(step) for step in range(count)], torch_rates(theirs, count), rtol=1e-12, atol=1e-15)
    assert type(ours)(**ours.get_config())(3) == ours(3)


# Losses


def loss_and_gradient(loss, outputs, y, weights=None, final=None):
    """A loss of (N, *shape) outputs and its gradient, in float64: the outputs are the kernel of a dense layer on unit
    vectors, so that the kernel's gradient is theirs."""
    n, *shape = outputs.shape
    graph = Graph()
    x = graph.input((n,))
    kernel = Param("kernel", np.ascontiguousarray(outputs.reshape(n, -1)))
    y0 = graph.add("dense", [x], {}, {"kernel": kernel})
    out = graph.add("reshape", [y0], {"shape": tuple(shape)})
    if final is not None:
        out = graph.add(final[0], [out], final[1])
    graph.outputs = [out]
    step = Step(graph, [loss], {"kernel": kernel}, dtype="float64", weighted=weights is not None)
    result = step.run([np.eye(n)], loss.targets(y, [], step.predicted[0]), weights)
    return result.losses[0], result.gradients[0][2].reshape(outputs.shape)


def torch_loss(function, outputs, weights=None):
    z = torch.from_numpy(outputs).double().requires_grad_()
    values = function(z)
    (values if weights is None else values * torch.from_numpy(weights)).mean().backward()
    return values.detach().numpy(), z.grad.numpy()


def check_loss(loss, outputs, y, function, weights=None, final=None):
    got, gradient = loss_and_gradient(loss, outputs, y, weights, final)
    want, want_gradient = torch_loss(function, outputs, weights)
    if weights is not None:
        want = want * weights
    assert np.allclose(got, want, rtol=1e-9, atol=1e-12)
    assert np.allclose(gradient, want_gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("final", [None, ("softmax", {"log": False})])
def test_cross_entropy(rng, smoothing, weighted, final):
    z, y = rng.standard_normal((6, 5)).astype("f4") * 3, rng.integers(0, 5, 6)
    weights = rng.random(6) if weighted else None

    def function(t):
        return F.cross_entropy(t, torch.from_numpy(y), reduction="none", label_smoothing=smoothing)

    sparse = losses.SparseCategoricalCrossentropy(label_smoothing=smoothing)
    check_loss(sparse, z, y, function, weights, final)
    check_loss(sparse, z, y[:, None], function, weights, final)
    dense = losses.CategoricalCrossentropy(label_smoothing=smoothing)
    check_loss(dense, z, np.eye(5, dtype="f4")[y], function, weights, final)


def test_cross_entropy_of_pixels(rng):
    z, y = rng.standard_normal((2, 3, 4, 5)).astype("f4"), rng.integers(0, 5, (2, 3, 4))
    weights = np.array([0.5, 2.0])

    def function(t):
        return F.cross_entropy(t.movedim(-1, 1), torch.from_numpy(y), reduction="none").mean((1, 2))

    check_loss(losses.get("sparse_categorical_crossentropy"), z, y, function)
    check_loss(losses.get("sparse_categorical_crossentropy"), z, y, function, weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_other_losses(rng, weighted):
    z, t = rng.standard_normal((6, 3)).astype("f4"), rng.random((6, 3)).astype("f4")
    weights, target = rng.random(6) if weighted else None, torch.from_numpy(t).double()
    sigmoid = ("activation", {"kind": "sigmoid", "a": 0.0, "b": 0.0})

    def bce(x):
        return F.binary_cross_entropy_with_logits(x, target, reduction="none").mean(1)

    check_loss(losses.get("binary_crossentropy"), z, t, bce, weights)
    check_loss(losses.get("binary_crossentropy"), z, t, bce, weights, sigmoid)
    check_loss(losses.get("mse"), z, t, lambda x: F.mse_loss(x, target, reduction="none").mean(1), weights)
    check_loss(losses.get("mae"), z, t, lambda x: F.l1_loss(x, target, reduction="none").mean(1), weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_distillation(rng, weighted):
    z, teacher, y = rng.standard_normal((4, 5)).astype("f4"), rng.standard_normal((4, 5)), rng.integers(0, 5, 4)
    loss = losses.Distillation(lambda x: teacher.astype("f4"), temperature=3.0, alpha=0.3)
    loss.targets = lambda y, x, shape, targets=loss.targets: targets(y, [None], shape)
    weights = rng.random(4) if weighted else None

    def function(t):
        soft = F.softmax(torch.from_numpy(teacher.astype("f4")).double() / 3, 1)
        kl = F.kl_div(F.log_softmax(t / 3, 1), soft, reduction="none").sum(1)
        return 0.3 * F.cross_entropy(t, torch.from_numpy(y), reduction="none") + 0.7 * 9 * kl

    got, gradient = loss_and_gradient(loss, z, y, weights)
    want, want_gradient = torch_loss(function, z, weights)
    want = want if weights is None else want * weights
    assert np.allclose(got, want, rtol=1e-5, atol=1e-6)  # the teacher's distribution is handed over in float32
    assert np.allclose(gradient, want_gradient, rtol=1e-5, atol=1e-7)


class Quartic(losses.Loss):
    """((y - t)**2)**2: an own loss of several operators, whose seed is no constant."""

    def lower(self, graph, output, targets):
        square = graph.add("loss", (output, targets[0]), {"kind": "squared", "smoothing": 0.0})
        return graph.add("binary", (square, square), {"kind": "mul"})


@pytest.mark.parametrize("weighted", [False, True])
def test_own_loss(rng, weighted):
    z, t = rng.standard_normal((6, 3)).astype("f4"), rng.standard_normal((6, 3)).astype("f4")
    weights = rng.random(6) if weighted else None
    check_loss(Quartic(), z, t, lambda x: ((x - torch.from_numpy(t)) ** 2).mean(1) ** 2, weights)


@pytest.mark.parametrize(
    "name, y, error, text",
    [
        ("sparse_categorical_crossentropy", np.array([0, 5]), DataError, "label 5 .image 1.*0 to 4"),
        ("sparse_categorical_crossentropy", np.array([0, -1]), DataError, "label -1"),
        ("sparse_categorical_crossentropy", np.array([0.0, 1.0]), DTypeError, "float64, want integers"),
        ("sparse_categorical_crossentropy", np.zeros((2, 5), "f4"), DTypeError, "'categorical_crossentropy'"),
        ("categorical_crossentropy", np.array([0, 1]), DTypeError, "'sparse_categorical_crossentropy'"),
        ("categorical_crossentropy", np.zeros((2, 4), "f4"), ShapeError, r"\(2, 4\), want \(N, 5\)"),
        ("binary_crossentropy", np.full((2, 5), 2), DataError, "0 to 1"),
        ("mse", [1, 2], DTypeError, "list"),
    ],
)
def test_wrong_targets(name, y, error, text):
    with pytest.raises(error, match=text):
        losses.get(name).targets(y, [], (5,))


def test_probabilities_without_a_softmax_are_refused():
    graph = Graph()
    graph.outputs = [graph.input((3,))]
    with pytest.raises(Unsupported, match="does not end in a softmax"):
        losses.SparseCategoricalCrossentropy(from_logits=False).logits(graph, graph.outputs[0])


# Metrics


def test_metrics(rng):
    scores, y = rng.random((50, 12)), rng.integers(0, 12, 50)
    top5 = metrics.get("top5")
    accuracy = metrics.get("accuracy")
    for part in (slice(0, 20), slice(20, 50)):
        top5.update(y[part], scores[part])
        accuracy.update(np.eye(12)[y[part]], scores[part])
    ranks = (-scores).argsort(1)
    assert accuracy.result() == (ranks[:, 0] == y).mean()
    assert top5.result() == (ranks[:, :5] == y[:, None]).any(1).mean()
    binary = metrics.get("accuracy", binary=True, from_logits=True)
    binary.update(np.array([1, 0, 1]), np.array([[2.0], [1.0], [-1.0]]))
    assert binary.result() == pytest.approx(1 / 3)
    own = metrics.get(lambda y_true, y_pred: y_pred[:, 0])
    own.update(np.zeros(2), np.array([[1.0], [3.0]]))
    assert own.result() == 2.0


# Callbacks


class Stub:
    """A model as callbacks see it."""

    def __init__(self, rate=1.0):
        self.optimizer = optimizers.SGD(rate)
        self.stop_training = False
        self.history = callbacks.History()
        self.weights = [Param("w", np.zeros(1, "f4"))]


def play(callback, figures, model=None, name="val_loss"):
    """Let a callback see epochs; returns the model after each."""
    model = model or Stub()
    hooks = callbacks.CallbackList([model.history, callback], model, {"epochs": len(figures), "steps": 1})
    hooks.on_train_begin()
    seen = []
    for epoch, value in enumerate(figures):
        hooks.on_epoch_begin(epoch)
        model.weights[0].assign(np.float32([value]))
        hooks.on_epoch_end(epoch, {"loss": value, name: value})
        seen.append((model.stop_training, model.optimizer.rate))
        if model.stop_training:
            break
    hooks.on_train_end()
    return model, seen


def test_early_stopping():
    stop = callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    model, seen = play(stop, [3, 2, 2.5, 2.2, 1])
    assert len(seen) == 4 and stop.stopped_epoch == 3 and model.weights[0].value == 2
    _, seen = play(callbacks.EarlyStopping("val_accuracy", patience=1), [0.1, 0.2, 0.1, 0.5], name="val_accuracy")
    assert len(seen) == 3
    with pytest.raises(Unsupported, match="'val_acc'.*loss, val_loss"):
        play(callbacks.EarlyStopping("val_acc"), [1])


def test_reduce_on_plateau():
    _, seen = play(callbacks.ReduceLROnPlateau(factor=0.5, patience=2, min_lr=0.2), [1, 1, 1, 1, 1, 1, 1])
    assert [rate for _, rate in seen] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.2]
    with pytest.raises(Unsupported, match="schedule"):
        play(callbacks.ReduceLROnPlateau(), [1], Stub(schedules.StepDecay(1, 1)))


def test_learning_rate_scheduler():
    _, seen = play(callbacks.LearningRateScheduler(lambda epoch: 1 / (epoch + 1)), [1, 1])
    assert [rate for _, rate in seen] == [1, 0.5]
    _, seen = play(callbacks.LearningRateScheduler(lambda epoch, rate: rate / 4), [1, 1])
    assert [rate for _, rate in seen] == [0.25, 0.0625]


def test_csv_logger(tmp_path):
    path = tmp_path / "log.csv"
    play(callbacks.CSVLogger(path), [1, 0.5])
    play(callbacks.CSVLogger(path, append=True), [0.25])
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [float(row["val_loss"]) for row in rows] == [1, 0.5, 0.25] and list(rows[0]) == ["epoch", "loss", "val_loss"]


def test_progress_bar_says_what_is_going_on():
    import io

    for bar in (True, False):
        stream = io.StringIO()
        line = callbacks.ProgressBar(bar, stream)
        line.set_params({"epochs": 1, "steps": 2})
        line.on_epoch_begin(0)
        for batch in range(2):
            line.on_train_batch_end(batch, {"loss": 0.5, "accuracy": 0.75, "size": 64})
        line.on_epoch_end(0, {"loss": 0.5, "accuracy": 0.75})
        text = stream.getvalue()
        assert "epoch 1/1" in text and "loss=0.5" in text and "accuracy=0.75" in text and "images/s" in text


def test_curves(tmp_path):
    from PIL import Image

    path = tmp_path / "curves.png"
    play(callbacks.TrainingCurves(path), [1, 0.5, 0.3])
    with Image.open(path) as image:
        assert image.size[0] > 200 and len(np.unique(np.asarray(image.convert("L")))) > 10
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]
    with pytest.raises(DataError, match="folder"):
        play(callbacks.TrainingCurves(tmp_path / "none" / "c.png"), [1])
    with pytest.raises(Unsupported):
        play(callbacks.TrainingCurves(tmp_path / "c.word"), [1])


def test_unknown_hook_and_wrong_callback():
    with pytest.raises(Unsupported, match="on_epoch_end"):
        callbacks.LambdaCallback(on_epoch=print)
    with pytest.raises(Unsupported, match="Callbacks"):
        callbacks.CallbackList([print], Stub(), {})


def test_compile_checks_names():
    set_seed(0)
    x = Input((4,))
    model = Model(x, {"a": Dense(2)(x), "b": Dense(1)(x)})
    with pytest.raises(Exception, match="no output 'c'; there are a, b"):
        model.compile("sgd", {"c": "mse"})
    model.compile("sgd", {"a": "sparse_categorical_crossentropy", "b": "mse"}, {"a": ["accuracy"]})
    assert isinstance(model._trainer, Trainer) and not math.isnan(model.optimizer.rate)
