"""The lecture's table of memory and parameters, recomputed: what its rows say, and where it slips.

The lecture counts, for VGG-16, the input, every convolution, every pool and the three dense layers. Those rows add up
to 15.2 million values (61 MB); the 24 million (93 MB) printed beneath them are a slip. Its 43.7e9 parameters of a dense
layer in place of AlexNet's first convolution are those of an input of 224 pixels; at 227 there are 44.9e9.
"""

import json

import pytest

from convkern import Input, Model, Sequential, get_model
from convkern.errors import ShapeError
from convkern.layers import (
    Add,
    BatchNormalization,
    Concatenate,
    Conv1D,
    Conv2D,
    Conv2DTranspose,
    Dense,
    Flatten,
    MaxPool2D,
    ReLU,
    ZeroPadding2D,
)
from convkern.summary import summary


def rows(table):
    return {row["name"]: row for row in table["layers"]}


def test_vgg16():
    table = get_model("vgg16").summary_table()
    totals = table["totals"]
    assert totals["params"] == totals["trainable_params"] == 138_357_544
    assert totals["param_bytes"] == 4 * 138_357_544  # 552 MB
    assert totals["sgd_bytes"] == 2 * totals["param_bytes"] and totals["adam_bytes"] == 4 * totals["param_bytes"]
    assert totals["macs"] == 15_470_264_320
    # The lecture's memory column, row by row.
    blocks = [(224, 64, 2), (112, 128, 2), (56, 256, 3), (28, 512, 3), (14, 512, 3)]
    want = [224 * 224 * 3]
    for size, channels, convolutions in blocks:
        want += [size * size * channels] * convolutions + [(size // 2) ** 2 * channels]
    want += [4096, 4096, 1000]
    assert [row["values"] for row in table["layers"] if row["values"]] == want
    assert totals["activation_values"] == sum(want) == 15_237_608
    assert totals["activation_bytes"] == 4 * sum(want) and totals["backward_bytes"] == 8 * sum(want)
    second = rows(table)["features_5"]
    assert second["formula"] == "3*3*64*128 = 73,728 + 128 biases" and second["params"] == 73_856
    assert second["output_shape"] == (112, 112, 128)
    assert second["macs"] == 112 * 112 * 128 * 3 * 3 * 64
    assert max(row["params"] for row in table["layers"]) == 7 * 7 * 512 * 4096 + 4096  # the first dense layer


def test_alexnet_of_the_lecture():
    table = get_model("alexnet_lecture").summary_table()
    shapes = [row["output_shape"] for row in table["layers"] if len(row["output_shape"]) == 3]
    assert shapes == [
        (227, 227, 3), (55, 55, 96), (27, 27, 96), (27, 27, 256), (13, 13, 256),
        (13, 13, 384), (13, 13, 384), (13, 13, 256), (6, 6, 256),
    ]  # fmt: skip
    first = rows(table)["conv1"]
    assert first["params"] == 34_944 and first["formula"] == "11*11*3*96 = 34,848 + 96 biases"
    assert first["dense_equivalent"] == 227 * 227 * 3 * 55 * 55 * 96 + 55 * 55 * 96
    assert f"{first['dense_equivalent']:.3g}" == "4.49e+10"
    text = summary(get_model("alexnet_lecture"))
    assert "44,892,355,200 (44.9e9)" in text and "1,284,694 times" in text


@pytest.mark.parametrize(
    "name, macs, trainable",
    [("resnet50", 4_089_184_256, 25_557_032), ("alexnet", 714_188_480, 61_100_840)],
)
def test_others(name, macs, trainable):
    totals = get_model(name).summary_table()["totals"]
    assert totals["macs"] == macs and totals["trainable_params"] == trainable


def test_describing_needs_no_values():
    """138 million numbers are not drawn for a table."""
    model = get_model("vgg16")
    model.summary_table()
    assert all(param._value is None for param in model.weights)


def test_memory_is_counted_once():
    image = Input((8, 8, 4))
    x = ReLU(name="act")(BatchNormalization(name="norm")(Conv2D(4, 3, padding="same", name="conv")(image)))
    y = Add(name="add")([Conv2D(4, 3, padding="same", name="second")(x), x])
    y = Concatenate(name="cat")([Conv2D(2, 1, name="left")(y), Conv2D(2, 1, name="right")(y)])
    y = Flatten(name="flat")(ZeroPadding2D(name="pad")(y))
    table = rows(Model(image, Dense(3, name="dense")(y)).summary_table())
    full = 8 * 8 * 4
    want = dict(conv=full, norm=0, act=0, second=full, add=0, left=full // 2, right=full // 2, cat=0, pad=400, flat=0)
    assert {name: table[name]["values"] for name in want} == want
    assert table["input_layer"]["values"] == full and table["dense"]["values"] == 3
    assert table["norm"]["formula"] == "4*4 = 16"
    # DenseNet: the norm of a tensor that others read too needs memory of its own; so does a pad before a pool.
    image = Input((8, 8, 4))
    x = Conv2D(4, 1)(image)
    y = Concatenate(name="cat")([x, ReLU(name="act")(BatchNormalization(name="norm")(x))])
    table = rows(Model(image, MaxPool2D(2)(ZeroPadding2D(name="pad")(y))).summary_table())
    assert (table["norm"]["values"], table["act"]["values"], table["cat"]["values"]) == (full, 0, 2 * full)
    assert table["pad"]["values"] == 10 * 10 * 8
    # In front of a convolution the pad becomes its padding.
    table = rows(Model(image, Conv2D(2, 3)(ZeroPadding2D(name="pad")(image))).summary_table())
    assert table["pad"]["values"] == 0 and table["conv2d"]["values"] == 8 * 8 * 2


def test_multiply_adds():
    def macs(layer, shape):
        x = Input(shape)
        return Model(x, layer(x)).summary_table()["totals"]["macs"]

    assert macs(Conv2D(8, 3, groups=2), (10, 10, 4)) == 8 * 8 * 8 * 3 * 3 * 2
    assert macs(Conv1D(8, 3, strides=2), (11, 4)) == 5 * 8 * 3 * 4
    assert macs(Conv2DTranspose(8, 3, strides=2), (5, 5, 4)) == 5 * 5 * 4 * 3 * 3 * 8
    assert macs(Dense(7), (10, 4)) == 10 * 4 * 7


def test_shared_and_nested():
    tower = Sequential([Input((8, 8, 3)), Conv2D(4, 3, name="conv"), ReLU()], name="tower")
    a, b = Input((8, 8, 3), name="a"), Input((8, 8, 3), name="b")
    model = Model([a, b], Add()([tower(a), tower(b)]))
    table = model.summary_table()
    row = rows(table)["tower"]
    assert row["calls"] == 2 and row["values"] == 2 * 6 * 6 * 4 and row["params"] == 112
    assert table["totals"]["params"] == 112 and row["macs"] == 2 * 6 * 6 * 4 * 27
    opened = model.summary_table(expand_nested=True)
    assert rows(opened)["tower/conv"]["params"] == 112 and opened["totals"] == table["totals"]
    assert "tower (Sequential) x2" in summary(model) and "tower/conv (Conv2D) x2" in summary(model, expand_nested=True)
    several = Model(a, [tower(a), tower.layers[0](a)], name="several")
    text = summary(Model(a, several(a)))
    assert "(N, 6, 6, 4), (N, 6, 6, 4)" in text


def test_open_sizes():
    image = Input((None, None, 3))
    model = Model(image, Conv2D(4, 3)(image))
    assert model.summary_table()["input_shapes"] == [(224, 224, 3)]
    assert model.summary_table((10, 12, 3))["layers"][1]["output_shape"] == (8, 10, 4)
    with pytest.raises(ShapeError, match="want"):
        model.summary_table((10, 12, 4))


def test_text_and_json(capsys):
    model = Sequential(
        [Input((28, 28, 1)), Conv2D(32, 5, name="conv"), Flatten(), Dense(10, name="head", trainable=False)]
    )
    model.summary()
    text = capsys.readouterr().out
    for part in (
        "Layer (type)",
        "Output Shape",
        "Param #",
        "conv (Conv2D)",
        "(N, 24, 24, 32)",
        "5*5*1*32 = 800 + 32 biases",
    ):
        assert part in text
    assert "185,162 (832 trainable, 184,330 not)" in text
    lines = []
    model.summary(print_fn=lines.append)
    assert len(lines) == 1 and lines[0] + "\n" == text
    table = json.loads(json.dumps(model.summary_table()))
    assert table["totals"]["params"] == model.count_params() == 185_162
