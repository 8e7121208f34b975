"""Models: how layers are connected, called, cut, shared, described, stored and run from many threads."""

import concurrent.futures
import copy
import gc
import json
import multiprocessing
import pickle
import threading
import weakref

import numpy as np
import pytest

import oracle
import tolerance
from convkern import Input, Model, Sequential, _core, from_json, load_model, set_seed
from convkern.errors import ConvkernError, DTypeError, ModelError, ShapeError, Unsupported, WeightsError
from convkern.layers import (
    Activation,
    Add,
    BatchNormalization,
    Concatenate,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePool2D,
    Layer,
    MaxPool2D,
    ReLU,
    Softmax,
    Subtract,
)


def lecture_convnet():
    """The example of the README, to the letter."""
    image = Input(shape=(28, 28, 1))
    x = Conv2D(32, 5, activation="relu")(image)
    x = MaxPool2D(2, strides=2)(x)
    x = Conv2D(64, 3, activation="relu")(x)
    x = MaxPool2D(2, strides=2)(x)
    x = Flatten()(x)
    x = Dense(256, activation="relu")(x)
    x = Dense(10, activation="softmax")(x)
    return Model(inputs=image, outputs=x)


def lecture_mlp():
    image = Input(shape=(28, 28, 1))
    x = Flatten()(image)
    x = Dense(512, activation="relu")(x)
    x = Dropout(0.2)(x)
    x = Dense(512, activation="relu")(x)
    x = Dropout(0.2)(x)
    return Model(inputs=image, outputs=Dense(10, activation="softmax")(x))


def small():
    """A few layers with a branch and a batch norm."""
    image = Input((6, 7, 3), name="image")
    x = Conv2D(8, 3, padding="same", name="stem")(image)
    y = ReLU()(BatchNormalization()(x))
    y = Add(name="sum")([y, x])
    y = GlobalAveragePool2D()(y)
    return Model(image, Dense(4, name="head")(y), name="small")


def integer_weights(model, rng):
    model.set_weights([oracle.integers(rng, p.shape) for p in model.weights])


@pytest.fixture
def batch(rng):
    return oracle.reals(rng, (5, 6, 7, 3))


# The lecture


@pytest.mark.parametrize("make, count", [(lecture_convnet, 431_754), (lecture_mlp, 669_706)])
def test_lecture(make, count, rng):
    model = make()
    y = model(rng.random((3, 28, 28, 1), np.float32))
    assert y.shape == (3, 10) and y.dtype == np.float32
    tolerance.assert_within(y.sum(1), np.ones(3), tolerance.sum_bound(12, 1.0))
    assert model.count_params() == count
    assert model.input_shape == (28, 28, 1) and model.output_shape == (10,)


def test_against_plain_numpy(rng):
    """The lecture's MLP written out, on integers."""
    model = lecture_mlp()
    integer_weights(model, rng)
    logits = Model(model.input, model.get_layer("dense_1").output)
    x = oracle.integers(rng, (2, 28, 28, 1), limit=1)
    w1, b1, w2, b2, _, _ = model.get_weights()
    hidden = np.maximum(x.reshape(2, -1) @ w1 + b1, 0)
    tolerance.assert_exact(logits(x), np.maximum(hidden.astype("f8") @ w2 + b2, 0))


# Connections


def test_names_do_not_depend_on_what_was_built_before():
    names = [layer.name for layer in lecture_convnet().layers]
    assert names == ["input_layer", "conv2d", "max_pool2d", "conv2d_1", "max_pool2d_1", "flatten", "dense", "dense_1"]
    assert [layer.name for layer in lecture_convnet().layers] == names


def test_names_collide():
    a, b = Dense(2, name="twin"), Dense(2, name="twin")
    x = Input((3,))
    with pytest.raises(ModelError, match="two layers are named 'twin'"):
        Model(x, [a(x), b(x)])
    # Automatic names of models that are put together are numbered anew, inside the new model.
    first, second = lecture_mlp(), lecture_mlp()
    both = Model([first.input, second.input], Concatenate()([first.output, second.output]))
    assert len(both.named_params()) == 12
    assert both.get_layer("dense") is first.get_layer("dense") and both.get_layer("dense_3") is second.get_layer(
        "dense"
    )
    assert second.get_layer("dense").name == "dense"


def test_several_inputs_and_outputs(rng):
    a, b = Input((4,), name="a"), Input((6, 7, 3), name="b")
    difference = Subtract()([Dense(5)(a), Dense(5)(Flatten()(b))])
    model = Model([a, b], [difference, ReLU()(difference)])
    integer_weights(model, rng)
    x, y = oracle.integers(rng, (2, 4)), oracle.integers(rng, (2, 6, 7, 3))
    w1, b1, w2, b2 = model.get_weights()
    want = x @ w1 + b1 - (y.reshape(2, -1) @ w2 + b2)
    for result in (model([x, y]), model((x, y)), model({"b": y, "a": x})):
        assert isinstance(result, list)
        tolerance.assert_exact(result[0], want)
        tolerance.assert_exact(result[1], np.maximum(want, 0))
    assert model.input_shape == [(4,), (6, 7, 3)] and model.output_shape == [(5,), (5,)]
    named = Model({"left": a, "right": b}, {"raw": difference, "cut": ReLU()(difference)})
    result = named({"right": y, "left": x})
    assert list(result) == ["raw", "cut"]
    tolerance.assert_exact(result["raw"], want)
    for wrong, text in (([x], "got 1 inputs, want 2: a, b"), ({"a": x}, "got inputs named a, want a, b")):
        with pytest.raises(ShapeError, match=text):
            model(wrong)
    with pytest.raises(ShapeError, match="different batch sizes"):
        model([x, y[:1]])


def test_outputs_are_arrays_of_their_own(rng):
    """An input handed through, a view, one tensor twice: never memory of the caller, never shared."""
    image = Input((2, 3))
    flat = Flatten()(image)
    model = Model(image, [image, flat, ReLU()(flat), flat])
    x = oracle.integers(rng, (4, 2, 3))
    before = x.copy()
    results = model(x)
    for i, result in enumerate(results):
        for other in [x, *results[:i]]:
            assert not np.shares_memory(result, other)
        result += 1
    tolerance.assert_exact(x, before)
    tolerance.assert_exact(model(x)[0], before)
    tolerance.assert_exact(model(x)[3], before.reshape(4, 6))


def test_shared_layer(rng):
    a, b = Input((4, 4, 2)), Input((4, 4, 2))
    tower = Conv2D(3, 3, padding="same")
    model = Model([a, b], Subtract()([tower(a), tower(b)]))
    assert len(model.weights) == 2 and model.layers.count(tower) == 1
    integer_weights(model, rng)
    x, y = oracle.integers(rng, (2, 4, 4, 2)), oracle.integers(rng, (2, 4, 4, 2))
    tolerance.assert_exact(model([x, x]), np.zeros((2, 4, 4, 3)))
    tolerance.assert_exact(model([x, y]), tower(x) - tower(y))
    with pytest.raises(ModelError, match="called 2 times"):
        _ = tower.output


def test_models_inside_models(rng):
    inner = Sequential([Input((6, 7, 3)), Conv2D(4, 3, activation="relu"), GlobalAveragePool2D()], name="backbone")
    two = Model(inner.input, [inner.output, ReLU()(inner.output)], name="two")
    a, b = Input((6, 7, 3)), Input((6, 7, 3))
    left, right = two(b)
    outer = Model([a, b], Add()([inner(a), left, right]))
    x, y = oracle.reals(rng, (2, 6, 7, 3)), oracle.reals(rng, (2, 6, 7, 3))
    want = inner(x).astype("f8") + 2 * inner(y)
    tolerance.assert_within(outer([x, y]), want, tolerance.sum_bound(3, np.abs(inner(x)) + 2 * np.abs(inner(y))))
    assert list(outer.named_params()) == ["two/conv2d/kernel", "two/conv2d/bias"]
    assert outer.count_params() == inner.count_params() and isinstance(outer.get_layer("two"), Model)
    assert outer.get_layer("backbone").get_layer("conv2d") is inner.layers[0]
    assert {step["label"] for step in outer.plan().steps()} >= {"backbone/conv2d", "two/conv2d"}
    clone = from_json(outer.to_json())
    clone.set_weights(outer.get_weights())
    assert list(clone.named_params()) == list(outer.named_params())
    tolerance.assert_exact(clone([x, y]), outer([x, y]))
    # Still one convolution, in both inner models, called once.
    conv = clone.get_layer("backbone").get_layer("conv2d")
    assert conv is clone.get_layer("two").get_layer("conv2d") and conv.output.shape == (4, 5, 4)


def test_cut_at_any_tensor(batch):
    model = small()
    whole = model(batch)
    everything = Model(model.input, [layer.output for layer in model.layers[1:]])(batch)
    tolerance.assert_exact(everything[-1], whole)
    assert [y.shape[1:] for y in everything] == [layer.output.shape for layer in model.layers[1:]]
    stem = Model(model.input, model.get_layer("stem").output)
    rest = Model(model.get_layer("stem").output, model.output)
    assert rest.input_shape == (6, 7, 8) and stem.output_shape == (6, 7, 8)
    norm = model.get_layer("batch_normalization")  # not folded in rest, so rounded differently
    bound = tolerance.batch_norm_bound(
        np.abs(stem(batch)).max(), *norm.get_weights()[2:], None, None, norm.epsilon
    ).max()
    head = np.abs(model.get_layer("head").get_weights()[0]).sum(0)
    tolerance.assert_within(
        rest(stem(batch)), whole, 4 * bound * head + tolerance.sum_bound(64, np.abs(whole).max() + 1)
    )
    # Cut again, stored, and weights shared with the whole.
    middle = Model(rest.input, rest.get_layer("sum").output)
    assert middle.output_shape == (6, 7, 8)
    clone = pickle.loads(pickle.dumps(rest))
    tolerance.assert_exact(clone(stem(batch)), rest(stem(batch)))
    assert rest.get_layer("head") is model.get_layer("head")
    assert rest.layers[0].shape == (6, 7, 8)


def test_disconnected():
    a, b = Input((3,), name="a"), Input((3,), name="b")
    with pytest.raises(ModelError, match="needs the input 'b' \\(N, 3\\), which is not among the inputs"):
        Model(a, Add()([a, b]))
    with pytest.raises(ModelError, match="given twice"):
        Model([a, a], a)
    with pytest.raises(DTypeError, match="ndarray"):
        Model(a, np.zeros(3))
    with pytest.raises(ModelError, match="got none"):
        Model([], a)


def test_get_layer():
    model = small()
    assert model.get_layer("stem") is model.get_layer(index=1) is model.layers[1]
    with pytest.raises(ModelError, match="no layer 'stam'; there are stem"):
        model.get_layer("stam")
    for wrong in ({}, {"name": "stem", "index": 1}, {"index": 99}):
        with pytest.raises(ModelError):
            model.get_layer(**wrong)


# Sequential


def test_sequential(rng):
    x = oracle.reals(rng, (2, 8, 8, 3))
    model = Sequential([Conv2D(4, 3, input_shape=(8, 8, 3)), ReLU()])
    assert model.output_shape == (6, 6, 4) and [layer.name for layer in model.layers] == ["conv2d", "relu"]
    model.add(Flatten())
    model.add(Dense(5))
    want = model(x)
    assert want.shape == (2, 5)
    top = model.pop()
    assert isinstance(top, Dense) and model(x).shape == (2, 144)
    model.add(top)
    tolerance.assert_exact(model(x), want)
    for error, wrong in ((ModelError, "dense"), (ModelError, Input((3,))), (ShapeError, Conv2D(4, 3))):
        with pytest.raises(error):
            model.add(wrong)
    tolerance.assert_exact(model(x), want)  # a failed add changes nothing


def test_sequential_without_an_input(rng):
    x = oracle.reals(rng, (2, 8, 8, 3))
    model = Sequential([Conv2D(4, 3), Flatten()], name="late")
    for use in (lambda: model.summary(), lambda: model.get_weights(), lambda: model.output_shape, lambda: model.plan()):
        with pytest.raises(ModelError, match="late does not know its input"):
            use()
    thawed = pickle.loads(pickle.dumps(model))
    assert not thawed.built and [type(layer) for layer in thawed.layers] == [Conv2D, Flatten]
    with pytest.raises(ShapeError):
        model(x[:, :2])
    assert model.predict(x).shape == (2, 144) and model.input_shape == (8, 8, 3)  # a failed build leaves it as it was
    by_shape = Sequential([Conv2D(4, 3)])
    by_shape.build((None, None, 3))
    assert by_shape(x).shape == (2, 6, 6, 4) and by_shape(x[:, :5]).shape == (2, 3, 6, 4)
    symbolic = Sequential([Dense(2)])
    assert symbolic(Input((7,))).shape == (2,)
    empty = Sequential()
    with pytest.raises(ModelError, match="no layers"):
        empty(x)
    with pytest.raises(ModelError, match="no layer to take off"):
        empty.pop()
    empty.add(Input((3,)))
    empty.add(Dense(2))
    assert empty.output_shape == (2,)


def test_sequential_of_models(rng):
    backbone = small()
    model = Sequential([backbone, ReLU(), Dense(2)])
    assert model.input_shape == (6, 7, 3) and model.count_params() == backbone.count_params() + 10
    x = oracle.reals(rng, (2, 6, 7, 3))
    for clone in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(clone) is Sequential
        tolerance.assert_exact(clone(x), model(x))
    two = Model(backbone.input, [backbone.output, backbone.output])
    with pytest.raises(ModelError, match="several outputs"):
        Sequential([two])


# Calls


def test_wrong_arrays(batch):
    model = small()
    for wrong, error, text in (
        (batch.astype("f8"), DTypeError, r"input 'image' has elements of float64, want float32: convert with x.astype"),
        ((batch * 9).astype("u1"), DTypeError, "uint8"),
        (batch[0], ShapeError, r"has shape \(6, 7, 3\), want \(N, 6, 7, 3\); add the batch axis"),
        (batch.transpose(0, 3, 1, 2), ShapeError, r"channels go last: x.transpose\(0, 2, 3, 1\)"),
        (batch[:, :5], ShapeError, r"\(5, 5, 7, 3\), want \(N, 6, 7, 3\); build the model for this size"),
        (batch[..., :2], ShapeError, r"want \(N, 6, 7, 3\)"),
        (np.float32(3), ShapeError, "want"),
        ([[1.0]], DTypeError, "want an array"),
        (None, DTypeError, "NoneType"),
        ("x", DTypeError, "str"),
    ):
        with pytest.raises(error, match=text):
            model(wrong)
    with pytest.raises(Unsupported, match="training=True"):
        model(batch, training=True)
    tolerance.assert_exact(model(batch, training=False), model(batch))


def test_any_cpu_array(batch):
    """Read-only, strided, NCHW seen as NHWC, other libraries: the same bits, and the input is not touched."""
    import torch

    model = small()
    want = model(batch)
    frozen = batch.copy()
    frozen.flags.writeable = False
    nchw = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    wide = np.zeros((5, 6, 14, 6), "f4")
    wide[:, :, ::2, :3] = batch
    for x in (frozen, nchw.transpose(0, 2, 3, 1), wide[:, :, ::2, :3], torch.from_numpy(batch), batch[::-1][::-1]):
        tolerance.assert_exact(model(x), want)
    tolerance.assert_exact(frozen, batch)


def test_batch_sizes(batch):
    """The same bits whatever the batch, none at all included."""
    model = small()
    want = model(batch)
    for i in range(5):
        tolerance.assert_exact(model(batch[i : i + 1])[0], want[i])
    tolerance.assert_exact(model(np.tile(batch, (3, 1, 1, 1)))[5:10], want)
    assert model(batch[:0]).shape == (0, 4) and model.predict(batch[:0]).shape == (0, 4)


def test_predict(batch, capsys):
    model = small()
    want = model(batch)
    for size in (1, 2, 5, 100):
        tolerance.assert_exact(model.predict(batch, batch_size=size), want)
    tolerance.assert_exact(model.predict(batch[i : i + 2] for i in (0, 2, 4)), want)
    tolerance.assert_exact(model.predict(batch, 2, verbose=1), want)
    assert "3/3" in capsys.readouterr().err
    several = Model(model.input, [model.output, model.get_layer("stem").output])
    head, stem = several.predict(batch, batch_size=2)
    tolerance.assert_exact(head, want)
    tolerance.assert_exact(stem, several(batch)[1])
    named = Model({"x": model.input}, {"y": model.output})
    tolerance.assert_exact(named.predict({"x": batch}, 3)["y"], want)
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ShapeError, match="batch_size"):
            model.predict(batch, wrong)
    with pytest.raises(ShapeError, match="no batches"):
        model.predict(iter(()))


def test_open_sizes(rng):
    image = Input((None, None, 3))
    model = Model(image, GlobalAveragePool2D()(Conv2D(4, 3, strides=2, padding="same", activation="relu")(image)))
    assert model.input_shape == (None, None, 3)
    for size in ((8, 8), (9, 5), (1, 1)):
        assert model(oracle.reals(rng, (2, *size, 3))).shape == (2, 4)
    with pytest.raises(ShapeError, match=r"want \(N, \?, \?, 3\)"):
        model(np.zeros((1, 8, 8, 4), "f4"))
    with pytest.raises(ShapeError, match="open sizes"):
        model.plan()
    assert model.plan((8, 8, 3)).steps()
    valid = Model(image, Conv2D(4, 3)(image))
    with pytest.raises(ShapeError, match="conv2d"):
        valid(np.zeros((1, 2, 2, 3), "f4"))
    clone = pickle.loads(pickle.dumps(model))
    assert clone.input_shape == (None, None, 3)


# Threads and plans


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_change_no_bit(count, batch, threads):
    model = small()
    want = model(batch, threads=1)
    tolerance.assert_exact(model(batch, threads=count), want)
    tolerance.assert_exact(model.predict(batch, 2, threads=count), want)
    _core.set_num_threads(count)
    tolerance.assert_exact(model(batch), want)


def test_concurrent_calls(rng):
    """One model, many threads, several shapes, first calls included."""
    image = Input((None, None, 3))
    model = Model(image, GlobalAveragePool2D()(Conv2D(16, 3, padding="same", activation="relu")(image)))
    images = [oracle.reals(rng, (1 + i % 3, 6 + i % 5, 9, 3)) for i in range(12)]
    reference = copy.deepcopy(model)
    want = [reference(x) for x in images]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, right in zip(pool.map(model, images), want):
                tolerance.assert_exact(got, right)


def test_plans_are_bounded_and_shared(rng):
    image = Input((None, None, 3))
    model = Model(image, Conv2D(16, 3, padding="same")(image))
    for size in range(3, 23):
        model(np.zeros((1, size, size, 3), "f4"))
    assert len(model._plans) == 8 and len(model._packed) == 1
    assert model.plan((22, 22, 3)) is model.plan((22, 22, 3)) is not model.plan((21, 21, 3))


def test_changed_parameters_change_results(batch):
    model = small()
    cut = Model(model.input, model.get_layer("stem").output)
    before, stem_before = model(batch), cut(batch)
    weights = model.get_weights()
    weights[0] *= 2  # copies
    tolerance.assert_exact(model(batch), before)
    model.set_weights(weights)
    tolerance.assert_exact(cut(batch), 2 * stem_before)  # bias 0; another model, the same parameters
    assert (model(batch) != before).any()
    model.get_layer("stem").set_weights([weights[0] / 2, weights[1]])
    tolerance.assert_exact(model(batch), before)
    model.named_params()["head/bias"].assign(np.ones(4, "f4"))
    tolerance.assert_within(model(batch), before + 1.0, tolerance.sum_bound(2, np.abs(before) + 1))
    with pytest.raises(ValueError, match="read-only"):
        model.named_params()["head/bias"].value[0] = 3


def test_set_weights_changes_all_or_nothing(batch):
    model = small()
    weights, before = model.get_weights(), model(batch)
    for wrong, error, text in (
        (weights[:-1], ShapeError, "small: got 7 arrays, want 8"),
        (
            [w + 1 for w in weights[:-1]] + [weights[-1][:-1]],
            ShapeError,
            r"array 7 \(bias\) has shape \(3,\), want \(4,\)",
        ),
        ([w + 1 for w in weights[:-1]] + [weights[-1].astype("f8")], DTypeError, "float64"),
    ):
        with pytest.raises(error, match=text):
            model.set_weights(wrong)
        tolerance.assert_exact(model(batch), before)


def test_options(batch):
    model = small()
    want = model(batch)
    model.exact, model.memory = True, "lean"
    assert model(batch).shape == want.shape
    clone = from_json(model.to_json())
    assert (clone.exact, clone.memory) == (True, "lean")
    with pytest.raises(Unsupported, match="'normal' or 'lean'"):
        model.memory = "tiny"
    with pytest.raises(Unsupported):
        Model(model.input, model.output, memory="tiny")
    assert Model(model.input, model.output, exact=True).exact


def test_a_forked_child_works(batch):
    model = small()
    want = model(batch)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=lambda: queue.put(model(batch)))
    child.start()
    got = queue.get(timeout=60)
    child.join()
    tolerance.assert_exact(got, want)


def test_models_are_freed():
    model = small()
    model(np.zeros((1, 6, 7, 3), "f4"))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


# Stored


def test_json(batch):
    model = small()
    text = model.to_json(indent=1)
    clone = from_json(text)
    assert clone.to_json(indent=1) == text and json.loads(text)["class_name"] == "Model"
    assert [(a.name, type(a)) for a in clone.layers] == [(a.name, type(a)) for a in model.layers]
    assert list(clone.named_params()) == list(model.named_params()) and clone.name == "small"
    clone.set_weights(model.get_weights())
    tolerance.assert_exact(clone(batch), model(batch))
    for wrong in (
        "",
        "[]",
        "{}",
        "3",
        "[" * 100_000,
        '{"class_name": "Dense"}',
        '{"class_name": "Dense", "format": "1", "config": {"units": 3}}',
        text.replace('"calls"', '"cells"'),
        text.replace('"1"', '"9"', 1),
        text.replace('"Conv2D"', '"Conv9D"'),
        text.replace('"filters": 8', '"filters": -8'),
    ):
        with pytest.raises(ConvkernError):
            from_json(wrong)


def test_json_of_several(rng):
    a, b = Input((3,), name="a"), Input((3,), name="b")
    shared = Dense(2)
    model = Model({"p": a, "q": b}, [shared(a), shared(b), a])
    clone = from_json(model.to_json())
    clone.set_weights(model.get_weights())
    x, y = oracle.reals(rng, (2, 3)), oracle.reals(rng, (2, 3))
    for got, want in zip(clone({"p": x, "q": y}), model({"p": x, "q": y})):
        tolerance.assert_exact(got, want)
    assert len(clone.weights) == 2


class Double(Layer):
    def lower(self, graph, inputs):
        return graph.add("rescale", inputs, {"scale": 2.0, "offset": 0.0})


class Unwritable(Double):
    def __init__(self, thing, **base):
        super().__init__(**base)
        self.thing = thing


def test_own_layers_are_stored(tmp_path, batch):
    image = Input((6, 7, 3))
    model = Model(image, Double()(image))
    for clone in (pickle.loads(pickle.dumps(model)), from_json(model.to_json(), {"Double": Double})):
        tolerance.assert_exact(clone(batch), 2 * batch)
    model.save(tmp_path / "own.ckn")
    tolerance.assert_exact(load_model(tmp_path / "own.ckn", {"Double": Double})(batch), 2 * batch)
    with pytest.raises(Unsupported, match="JSON"):
        Model(image, Unwritable(threading.Lock())(image)).to_json()


def test_pickle_is_small(batch):
    model = small()
    want = model(batch)  # plans and packed weights exist now
    data = pickle.dumps(model)
    assert len(data) < 4 * model.count_params() + 3500
    clone = pickle.loads(data)
    tolerance.assert_exact(clone(batch), want)
    assert clone._plans and len(pickle.dumps(clone)) == len(data)
    assert [p.trainable for p in clone.weights] == [p.trainable for p in model.weights]
    deep = copy.deepcopy(model)
    deep.set_weights([w * 0 for w in deep.get_weights()])
    tolerance.assert_exact(model(batch), want)


def test_save_and_load(tmp_path, batch):
    model = small()
    want = model(batch)
    path = tmp_path / "model.ckn"
    model.save(path)
    assert [f.name for f in tmp_path.iterdir()] == ["model.ckn"]
    clone = load_model(path)
    tolerance.assert_exact(clone(batch), want)
    assert clone.name == "small" and [a.name for a in clone.layers] == [a.name for a in model.layers]
    model.save_weights(tmp_path / "w.safetensors")
    set_seed(3)
    other = small()
    assert (other(batch) != want).any()
    assert other.load_weights(tmp_path / "w.safetensors") == []
    tolerance.assert_exact(other(batch), want)
    other.load_weights(path)  # a saved model is also a weight file
    tolerance.assert_exact(other(batch), want)
    with pytest.raises(WeightsError, match="no architecture"):
        load_model(tmp_path / "w.safetensors")
    with pytest.raises(WeightsError):
        load_model(tmp_path / "missing.ckn")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConvkernError):
        load_model(path)


def test_weights_of_another_model(tmp_path, batch):
    model = small()
    model.save_weights(tmp_path / "w.safetensors")
    image = Input((6, 7, 3))
    other = Model(image, Dense(4, name="head")(GlobalAveragePool2D()(Conv2D(8, 5, name="stem")(image))))
    with pytest.raises(WeightsError, match="stem/kernel"):
        other.load_weights(tmp_path / "w.safetensors")
    skipped = other.load_weights(tmp_path / "w.safetensors", skip_mismatch=True)
    assert any("stem/kernel" in line for line in skipped)
    tolerance.assert_exact(other.get_layer("head").get_weights()[0], model.get_layer("head").get_weights()[0])


def test_explain(batch, capsys):
    model = small()
    model.explain()
    text = capsys.readouterr().out
    assert "stem" in text and "head" in text and "multiply-adds" in text and "why" in text
    lines = []
    model.explain((6, 7, 3), print_fn=lines.append)
    assert len(lines) == 1 and lines[0] + "\n" == text


def test_softmax_stays_a_step():
    x = Input((4,))
    model = Model(x, Activation("softmax")(Softmax()(x)))
    assert [step["op"] for step in model.plan().steps()] == ["softmax", "softmax"]
