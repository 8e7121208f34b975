"""Training as a whole: fit on real digits, the data it takes, checkpoints that continue bit for bit (also after
kill -9), and what bad input gets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from convkern import Input, Model, Sequential, load_model, set_seed
from convkern import layers as L
from convkern.data import ImageDataGenerator
from convkern.errors import (
    CheckpointError,
    DataError,
    DTypeError,
    ModelError,
    NotFinite,
    ShapeError,
    Unsupported,
    WeightsError,
)
from convkern.models import get_model
from convkern.train import (
    SAM,
    SGD,
    Adam,
    AdamW,
    BackupAndRestore,
    CSVLogger,
    EarlyStopping,
    ModelCheckpoint,
    OneCycle,
    ReduceLROnPlateau,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    x, y = (data.images / 16).astype("f4")[..., None], data.target
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return x[:1437], y[:1437], x[1437:], y[1437:]


def small(softmax=True, dropout=0.2, norm=True):
    set_seed(0)
    image = Input((8, 8, 1))
    x = L.Conv2D(16, 3, padding="same", activation="relu")(image)
    x = L.Conv2D(16, 3, padding="same")(x)
    if norm:
        x = L.BatchNormalization()(x)
    x = L.MaxPool2D(2)(L.ReLU()(x))
    x = L.Dropout(dropout)(L.Flatten()(x))
    return Model(image, L.Dense(10, activation="softmax" if softmax else None)(x))


def compiled(optimizer=None, **options):
    model = small(**options)
    model.compile(optimizer or Adam(3e-3), "sparse_categorical_crossentropy", ["accuracy"], seed=3)
    return model


def weights(model):
    return [param.value.copy() for param in model.weights]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b))


def test_digits(digits):
    x, y, x_test, y_test = digits
    model = compiled(Adam(OneCycle(1e-2, 10 * 23)))
    history = model.fit(x, y, batch_size=64, epochs=10, validation_data=(x_test, y_test), verbose=0)
    assert history.history["val_accuracy"][-1] >= 0.98
    assert history.history["loss"][-1] < 0.2 * history.history["loss"][0]
    loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
    assert accuracy == history.history["val_accuracy"][-1] == (model.predict(x_test).argmax(1) == y_test).mean()
    p = model.predict(x_test)[np.arange(len(y_test)), y_test]
    assert loss == pytest.approx(-np.log(p).mean(), rel=1e-3)


@pytest.mark.parametrize(
    "optimizer", [SGD(0.05, momentum=0.9, nesterov=True), AdamW(3e-3), SAM(SGD(0.1, momentum=0.9))]
)
def test_optimizers_learn(digits, optimizer):
    x, y, x_test, y_test = digits
    model = compiled(optimizer, norm=False)
    model.fit(x, y, batch_size=64, epochs=3, verbose=0)
    assert model.evaluate(x_test, y_test, verbose=0)[1] > 0.9


def test_a_run_repeats_bit_for_bit_with_any_number_of_threads(digits, threads):
    from convkern import set_num_threads

    results = []
    for count in (1, 2, 2):
        set_num_threads(count)
        model = compiled()
        model.fit(digits[0][:300], digits[1][:300], batch_size=32, epochs=2, verbose=0)
        results.append(weights(model))
    assert same(results[0], results[1]) and same(results[1], results[2])


def test_train_and_test_on_batch(digits):
    x, y = digits[0][:64], digits[1][:64]
    model = compiled(SGD(0.1), dropout=0.0, norm=False)
    before = model.test_on_batch(x, y, return_dict=True)
    assert before == model.test_on_batch(x, y, return_dict=True)
    first = model.train_on_batch(x, y)
    assert first[0] == pytest.approx(before["loss"], rel=1e-5)
    assert model.test_on_batch(x, y)[0] < before["loss"]


def test_logits_and_softmax_train_alike(digits):
    """A final softmax is fused into the loss."""
    results = []
    for softmax in (True, False):
        model = compiled(softmax=softmax)
        model.fit(digits[0][:256], digits[1][:256], epochs=1, verbose=0)
        results.append(weights(model))
    assert same(*results)


def test_accumulation_equals_a_larger_batch(digits):
    x, y = digits[0][:128], digits[1][:128]
    results = []
    for size, steps in ((64, 1), (16, 4)):
        model = compiled(SGD(0.1, gradient_accumulation_steps=steps), dropout=0.0, norm=False)
        model.fit(x, y, batch_size=size, epochs=1, shuffle=False, verbose=0)
        assert model.optimizer.iterations == 2
        results.append(weights(model))
    for a, b in zip(*results):
        assert np.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_weights_of_samples_and_classes(digits):
    """A weight of zero leaves an image out; a class weight is a sample weight."""
    x, y = digits[0][:64], digits[1][:64]
    keep = (y != 3).astype("f4")
    results = []
    for options in (dict(sample_weight=keep), dict(class_weight={3: 0.0})):
        model = compiled(SGD(0.5), dropout=0.0, norm=False)
        model.fit(x, y, batch_size=64, epochs=2, verbose=0, **options)
        results.append(weights(model))
    assert same(*results)
    model = compiled(SGD(0.5 * keep.mean()), dropout=0.0, norm=False)
    for _ in range(2):
        model.train_on_batch(x[keep > 0], y[keep > 0])
    for a, b in zip(results[0], weights(model)):
        assert np.allclose(a, b, rtol=1e-3, atol=1e-5)


def test_frozen_layers_stay(digits):
    model = compiled()
    model.trainable = False
    model.layers[-1].trainable = True
    model._trainable = True
    before = weights(model)
    model.fit(digits[0][:256], digits[1][:256], epochs=1, verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, weights(model))]
    assert changed == [False] * 8 + [True, True]


def test_frozen_and_freed_without_compiling_again(digits):
    model = compiled()
    conv = model.get_layer("conv2d")
    conv.trainable = False
    first = conv.get_weights()
    model.train_on_batch(digits[0][:32], digits[1][:32])
    assert same(first, conv.get_weights())
    conv.trainable = True
    model.train_on_batch(digits[0][:32], digits[1][:32])
    assert not same(first, conv.get_weights())
    model.set_weights([np.zeros_like(w) for w in weights(model)])  # other arrays: the compiled step must not miss them
    assert model.test_on_batch(digits[0][:32], digits[1][:32])[0] == pytest.approx(np.log(10), rel=1e-5)
    assert model.train_on_batch(digits[0][:32], digits[1][:32])[0] == pytest.approx(np.log(10), rel=1e-5)


def test_several_outputs_and_inputs(rng):
    set_seed(0)
    a, b = Input((6,), name="a"), Input((4,), name="b")
    x = L.Dense(16, activation="tanh")(L.Concatenate()([a, b]))
    model = Model({"a": a, "b": b}, {"kind": L.Dense(3)(x), "size": L.Dense(1)(x)})
    model.compile(
        Adam(0.02),
        {"kind": "sparse_categorical_crossentropy", "size": "mse"},
        {"kind": ["accuracy"]},
        loss_weights={"kind": 1.0, "size": 0.5},
    )
    inputs = {"a": rng.standard_normal((200, 6)).astype("f4"), "b": rng.standard_normal((200, 4)).astype("f4")}
    y = {"kind": inputs["a"][:, :3].argmax(1), "size": inputs["b"].sum(1, dtype="f4")[:, None]}
    history = model.fit(inputs, y, epochs=30, verbose=0).history
    assert history["loss"][-1] < 0.3 * history["loss"][0] and history["kind_accuracy"][-1] > 0.9


def test_generators_and_augmented_batches(digits):
    x, y, x_test, y_test = digits

    def forever():
        while True:
            for i in range(0, 1400, 100):
                yield x[i : i + 100], y[i : i + 100]

    model = compiled()
    model.fit(forever(), steps_per_epoch=14, epochs=2, verbose=0)
    assert model.optimizer.iterations == 28 and model.evaluate(x_test, y_test, verbose=0)[1] > 0.8
    with pytest.raises(Unsupported, match="steps_per_epoch"):
        model.fit(forever())
    flow = ImageDataGenerator(width_shift_range=0.1).flow(x, y, batch_size=64, seed=1)
    history = compiled().fit(flow, epochs=3, validation_data=(x_test, y_test), verbose=0).history
    assert len(history["loss"]) == 3 and history["val_accuracy"][-1] > 0.8


def test_validation_split_is_the_end(digits):
    x, y = digits[0][:200], digits[1][:200]
    model = compiled()
    history = model.fit(x, y, epochs=1, validation_split=0.25, verbose=0).history
    assert history["val_accuracy"][0] == model.evaluate(x[150:], y[150:], verbose=0)[1]


def test_lines_of_progress(digits, capsys):
    compiled().fit(digits[0][:64], digits[1][:64], epochs=2, verbose=2)
    out = capsys.readouterr().out
    assert "epoch 2/2: loss=" in out and "accuracy=" in out and "images/s" in out


# Checkpoints


def callbacks_of(folder):
    return [
        ModelCheckpoint(folder / "last.ckn", save_freq=5),
        EarlyStopping("loss", patience=5, restore_best_weights=True),
        ReduceLROnPlateau("loss", patience=1, min_delta=10.0),
        CSVLogger(folder / "log.csv"),
    ]


@pytest.mark.parametrize("source", ["arrays", "flow"])
@pytest.mark.parametrize("stop", [7, 13])
def test_resuming_gives_the_same_bits(digits, tmp_path, source, stop):
    """Stopped within an epoch by an exception, continued in a new model from the last checkpoint."""
    x, y, x_test, y_test = digits
    x, y = x[:320], y[:320]

    def data():
        if source == "arrays":
            return dict(x=x, y=y, batch_size=32)
        return dict(x=ImageDataGenerator(width_shift_range=0.1).flow(x, y, batch_size=32, seed=1))

    class Stop(Exception):
        pass

    from convkern.train import LambdaCallback

    def bomb(batch, logs):
        if model.optimizer.iterations == stop:
            raise Stop

    results = []
    for broken in (False, True):
        folder = tmp_path / str(broken)
        folder.mkdir()
        model = compiled(SGD(0.1, momentum=0.9))
        options = dict(epochs=3, validation_data=(x_test, y_test), verbose=0)
        if broken:
            with pytest.raises(Stop):
                model.fit(
                    **data(), callbacks=[*callbacks_of(folder), LambdaCallback(on_train_batch_end=bomb)], **options
                )
            model = compiled(SGD(0.5, momentum=0.9))  # other weights and another rate: both come from the file
            for param in model.weights:
                param.assign(param.value + 1)
            history = model.fit(**data(), callbacks=callbacks_of(folder), resume=folder / "last.ckn", **options)
        else:
            history = model.fit(**data(), callbacks=callbacks_of(folder), **options)
        results.append((weights(model), history.history, (folder / "log.csv").read_text(), model.optimizer.state))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] and results[0][2] == results[1][2]
    momenta = [[state["momentum"][name] for name in sorted(state["momentum"])] for *_, state in results]
    assert same(*momenta)


PROGRAM = """
import os, signal, sys
import numpy as np
sys.path.insert(0, {tests!r})
from test_training import compiled
from convkern.train import Adam, BackupAndRestore, OneCycle
{prelude}
rng = np.random.default_rng(0)
x, y = rng.random((640, 8, 8, 1), "f4"), rng.integers(0, 10, 640)
model = compiled(Adam(OneCycle(1e-2, 120)))
model.fit(x, y, batch_size=32, epochs=6, verbose=0,
          callbacks=[BackupAndRestore({backup!r}, save_freq=3, delete_checkpoint=False)])
np.savez({out!r}, *[p.value for p in model.weights])
"""


def start(folder, prelude=""):
    folder.mkdir(exist_ok=True)
    text = PROGRAM.format(
        tests=str(ROOT / "tests"),
        backup=str(folder / "backup.ckn"),
        out=str(folder / "weights.npz"),
        prelude=prelude,
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", text], env=environment)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The final weights of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert start(folder).wait() == 0
    with np.load(folder / "weights.npz") as file:
        return dict(file)


def assert_ends_as(folder, unbroken):
    assert start(folder).wait() == 0
    with np.load(folder / "weights.npz") as file:
        assert len(file.files) == 10 and all(np.array_equal(file[key], unbroken[key]) for key in unbroken)


def test_killed_at_any_moment(tmp_path, unbroken):
    """kill -9, three times, at moments that have nothing to do with the steps; then run to the end."""
    folder, kills = tmp_path / "killed", 0
    for pause in (0.02, 0.05, 0.11):
        process = start(folder)
        end, before = time.time() + 60, _time_of(folder / "backup.ckn")
        while _time_of(folder / "backup.ckn") == before and process.poll() is None and time.time() < end:
            time.sleep(0.005)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    assert_ends_as(folder, unbroken)


KILLED_IN_A_WRITE = """
import safetensors.numpy
writes, whole_file, rename = [], safetensors.numpy.save_file, os.replace
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def save_file(tensors, path, metadata):
    writes.append(path)
    whole_file(tensors, path, metadata=metadata)
    if len(writes) == 4 and {moment!r} == "half written":
        os.truncate(path, os.path.getsize(path) // 2)
        die()
def replace(source, target):
    if len(writes) == 4 and {moment!r} == "before the name":
        die()
    rename(source, target)
    if len(writes) == 4:
        die()
safetensors.numpy.save_file, os.replace = save_file, replace
"""


def test_killed_while_a_checkpoint_is_written(tmp_path, unbroken):
    """At the worst moments: half of the file written, all but its name, and with its name."""
    for moment in ("half written", "before the name", "after it"):
        process = start(tmp_path, KILLED_IN_A_WRITE.format(moment=moment))
        assert process.wait() == -signal.SIGKILL
        load_model(tmp_path / "backup.ckn")  # whole
    left = [path for path in tmp_path.iterdir() if path.name != "backup.ckn"]
    assert len(left) == 2 and all(path.suffix == ".tmp" for path in left)  # of the first two kills
    assert_ends_as(tmp_path, unbroken)


def _time_of(path):
    return path.stat().st_mtime_ns if path.exists() else 0


def test_a_checkpoint_is_a_model_file(digits, tmp_path):
    x, y = digits[0][:64], digits[1][:64]
    model = compiled()
    path = tmp_path / "run" / "{epoch:02d}-{accuracy:.2f}.ckn"
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[ModelCheckpoint(path)]).history
    names = sorted(p.name for p in (tmp_path / "run").iterdir())
    assert names == [f"{i + 1:02d}-{value:.2f}.ckn" for i, value in enumerate(history["accuracy"])]
    assert np.array_equal(load_model(tmp_path / "run" / names[-1])(x), model(x))
    other = small()
    other.load_weights(tmp_path / "run" / names[-1])
    assert np.array_equal(other(x), model(x))


def test_best_only(digits, tmp_path):
    best = ModelCheckpoint(tmp_path / "best.ckn", monitor="accuracy", save_best_only=True, initial_value_threshold=2.0)
    compiled().fit(digits[0][:64], digits[1][:64], epochs=1, verbose=0, callbacks=best)
    assert not (tmp_path / "best.ckn").exists()


def test_a_foreign_checkpoint_changes_nothing(digits, tmp_path):
    x, y = digits[0][:64], digits[1][:64]
    path = tmp_path / "a.ckn"
    compiled(Adam(1e-3)).fit(x, y, epochs=1, verbose=0, callbacks=ModelCheckpoint(path))
    for model, error, text in [
        (compiled(Adam(1e-3), norm=False), CheckpointError, "another model"),
        (compiled(SGD(1e-3, momentum=0.9)), CheckpointError, "'adam', not 'sgd'"),
    ]:
        before = weights(model)
        with pytest.raises(error, match=text):
            model.fit(x, y, epochs=2, verbose=0, resume=path)
        assert same(before, weights(model)) and model.optimizer.iterations == 0
    model = compiled()
    model.save_weights(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="no training"):
        model.fit(x, y, verbose=0, resume=tmp_path / "w.safetensors")
    (tmp_path / "broken.ckn").write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError):
        model.fit(x, y, verbose=0, resume=tmp_path / "broken.ckn")
    with pytest.raises(WeightsError, match="cannot be read"):
        model.fit(x, y, verbose=0, resume=tmp_path / "none.ckn")


def test_a_failing_run_overwrites_nothing(digits, tmp_path):
    """The checkpoint of an earlier run survives runs with NaNs, with wrong labels and with another model."""
    x, y = digits[0][:64], digits[1][:64]
    path = tmp_path / "kept.ckn"
    compiled().fit(x, y, epochs=1, verbose=0, callbacks=ModelCheckpoint(path))
    before = path.read_bytes()
    bad = x.copy()
    bad[40] = np.nan
    for model, images, labels, resume, error in [
        (compiled(), bad, y, None, NotFinite),
        (compiled(), x, y + 5, None, DataError),
        (compiled(norm=False), x, y, path, CheckpointError),
    ]:
        with pytest.raises(error):
            callback = ModelCheckpoint(path, save_freq=100)
            model.fit(images, labels, batch_size=64, epochs=2, verbose=0, callbacks=callback, resume=resume)
        assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["kept.ckn"]


def test_backup_is_removed_in_the_end(digits, tmp_path):
    path = tmp_path / "backup.ckn"
    compiled().fit(digits[0][:64], digits[1][:64], epochs=1, verbose=0, callbacks=BackupAndRestore(path))
    assert list(tmp_path.iterdir()) == []


# Bad input


def test_a_loss_that_is_not_finite_ends_the_training(digits):
    x, y = digits[0][:64].copy(), digits[1][:64]
    model = compiled(SGD(1e30), norm=False)
    with pytest.raises(
        NotFinite, match=r"step [234] .*the parameter 'conv2d.*/kernel'|first layer whose output.*'conv2d"
    ):
        model.fit(x, y, epochs=5, verbose=0)
    model = compiled(norm=False, dropout=0.0)
    model.fit(x, y, epochs=1, verbose=0)
    model.get_layer("conv2d_1").params["bias"].assign(np.full(16, 3e38, "f4"))
    model.get_layer("dense").params["kernel"].assign(np.full(model.get_layer("dense").params["kernel"].shape, 10, "f4"))
    before = weights(model)
    with pytest.raises(NotFinite, match=r"step 3 \(epoch 1, batch 1\).*the first layer .* is 'dense'.*check_finite"):
        model.fit(x, y, epochs=1, verbose=0)
    assert same(before, weights(model))
    x[5, 0, 0, 0] = np.nan
    with pytest.raises(NotFinite, match="the input .*image 5"):
        compiled().train_on_batch(x, y)
    careless = small()
    careless.compile("sgd", "sparse_categorical_crossentropy", check_finite=False)
    assert np.isnan(careless.train_on_batch(x, y))


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        (dict(y=np.full(64, 10)), DataError, "label 10 .*0 to 9 for 10 classes"),
        (dict(y=np.zeros(63, int)), ShapeError, "64 images and 63 targets"),
        (dict(y=None), ShapeError, "no targets"),
        (dict(x=np.zeros((64, 8, 8, 3), "f4")), ShapeError, "want .*8, 8, 1"),
        (dict(x=np.zeros((64, 1, 8, 8), "f4")), ShapeError, "channels go last"),
        (dict(x=np.zeros((64, 8, 8, 1))), DTypeError, "float64, want float32"),
        (dict(x=np.zeros((0, 8, 8, 1), "f4"), y=np.zeros(0, int)), DataError, "no images"),
        (dict(batch_size=0), ShapeError, "batch_size"),
        (dict(validation_split=0.999), ShapeError, "leaves 0"),
        (dict(sample_weight=np.ones(3)), ShapeError, "sample_weight"),
        (dict(sample_weight=-np.ones(64)), DataError, "negative"),
        (dict(verbose=7), Unsupported, "verbose"),
        (dict(callbacks=[print]), Unsupported, "Callbacks"),
        (dict(x=iter([]), y=None, steps_per_epoch=2, batch_size=None), DataError, "no batch|ended"),
    ],
)
def test_bad_arguments(digits, arguments, error, text):
    model = compiled()
    before = weights(model)
    given = dict(x=digits[0][:64], y=digits[1][:64], verbose=0)
    with pytest.raises(error, match=text):
        model.fit(**{**given, **arguments})
    assert same(before, weights(model))


def test_before_compile():
    model = small()
    with pytest.raises(ModelError, match="compile"):
        model.fit(np.zeros((1, 8, 8, 1), "f4"), np.zeros(1, int))
    with pytest.raises(ModelError, match="compile"):
        model.optimizer
    with pytest.raises(ModelError, match="build"):
        Sequential([L.Dense(3)]).compile("sgd", "mse")
    model.trainable = False
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ModelError, match="nothing is trainable"):
        model.train_on_batch(np.zeros((1, 8, 8, 1), "f4"), np.zeros(1, int))


# Stochastic depth


def rates_of(name, **options):
    model = get_model(name, classes=3, input_shape=(32, 32, 3), **options)
    return model, [layer.rate for layer in model.layers if isinstance(layer, L.StochasticDepth)]


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_lite0", "tf_efficientnet_lite0"])
def test_stochastic_depth_has_torchvisions_rates(name):
    """0.2 * block / 16; the blocks without a shortcut (0, 1, 3, 5, 8, 11, 15) have none."""
    _, rates = rates_of(name)
    assert rates == pytest.approx([0.2 * block / 16 for block in (2, 4, 6, 7, 9, 10, 12, 13, 14)])
    _, halved = rates_of(name, stochastic_depth_prob=0.1)
    assert halved == pytest.approx([rate / 2 for rate in rates]) and rates_of(name, stochastic_depth_prob=0)[1] == []


def test_stochastic_depth_drops_in_fit_and_not_in_predict(rng):
    """Branches that are dropped with certainty, nearly: fit sees a network without them, predict the whole network."""
    x, y = rng.standard_normal((8, 32, 32, 3)).astype("f4"), np.arange(8) % 3

    def trained(prob, frozen=False):
        set_seed(0)
        model, _ = rates_of("tf_efficientnet_lite0", stochastic_depth_prob=prob)
        for layer in model.layers:
            if isinstance(layer, L.Dropout) and not layer.per_image:
                layer.rate = 0.0
            layer.trainable = isinstance(layer, L.Dense) or (isinstance(layer, L.StochasticDepth) and not frozen)
        model.compile(SGD(0.0), "sparse_categorical_crossentropy", seed=4)
        return model.predict(x), [model.train_on_batch(x, y) for _ in range(2)], model.test_on_batch(x, y)

    without, first, loss = trained(0.0)
    assert first == pytest.approx([loss, loss], rel=1e-5)
    outputs, dropped, same_loss = trained(0.9)
    assert np.array_equal(outputs, without) and same_loss == loss
    assert abs(dropped[0] - loss) > 1e-3 * loss and dropped[0] != dropped[1]  # other images in every step
    assert trained(0.9)[1] == dropped  # from the seed
    assert trained(0.9, frozen=True)[1] == pytest.approx([loss, loss], rel=1e-5)
