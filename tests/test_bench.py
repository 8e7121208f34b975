"""The benchmark: layer lists against the reference models, the timing's bookkeeping, and documents and their tables.

Timings here are of tiny layers; what they say is not tested, only that they are taken, kept and compared as promised.
"""

import itertools
import json
import math
import time

import numpy as np
import pytest

import golden
from convkern.bench import harness, layers, peers, report, shapefile
from convkern.errors import DataError, Unsupported

# shape file -> reference model whose multiply-adds it must add up to (timm's legacy_xception: as in make_golden)
REFERENCES = {
    "alexnet": "tv_alexnet@224",
    "densenet121": "tv_densenet121@224",
    "efficientnet_b0": "tv_efficientnet_b0@224",
    "mobilenet_v2": "tv_mobilenet_v2@224",
    "resnet50": "tv_resnet50@224",
    "resnext50_32x4d": "tv_resnext50_32x4d@224",
    "vgg16": "tv_vgg16@224",
}
# Models that are not in the zoo: multiply-adds of torchvision's inception_v3 (auxiliary head off) and timm's
# legacy_xception at 299 pixels, less their last layer of 2048 x 1000.
OTHERS = {"inception_v3": 5_713_216_096 - 2_048_000, "xception": 8_357_403_496 - 2_048_000}

TINY = shapefile.parse_line("tiny h=6 w=5 c=3 k=8 r=3 stride=2x1 pad=1x0 x2")


def test_every_shape_file_has_a_reference():
    assert shapefile.names() == sorted([*REFERENCES, *OTHERS])


@pytest.mark.parametrize("name", shapefile.names())
def test_shape_files_add_up_to_the_reference_model(name):
    total = sum(layer.macs * layer.count for layer in shapefile.load(name))
    if name in OTHERS:
        assert total == OTHERS[name]
    else:
        facts = golden.load(REFERENCES[name])
        dense = sum(math.prod(shape) for _, shape in facts["tensors"] if len(shape) == 2)
        assert total == facts["conv_linear_macs"] - dense


@pytest.mark.parametrize("name", shapefile.names())
def test_shape_files_name_each_shape_once(name):
    lines = shapefile.load(name)
    assert len({layer.name for layer in lines}) == len(lines)
    assert len({str(layer).split(None, 1)[1].rsplit(None, 1)[0] for layer in lines}) == len(lines)
    assert [shapefile.parse_line(str(layer)) for layer in lines] == lines


@pytest.mark.parametrize("name", [n for n in shapefile.names() if n in REFERENCES])
def test_the_zoo_has_the_same_layers(name):
    from convkern.models import get_model

    def shapes(lines):
        return sorted((str(layer).split(None, 1)[1] for layer in lines), key=str)

    assert shapes(shapefile.from_graph(get_model(name).graph())) == shapes(shapefile.load(name))


def test_a_line_with_all_fields():
    layer = shapefile.parse_line("a h=9 w=8 c=4 k=6 r=3 s=2 stride=2x1 pad=1x0x2x3 dil=1x2 groups=2 x7")
    assert (layer.pad, layer.stride, layer.dil) == (((1, 0), (2, 3)), (2, 1), (1, 2))
    assert (layer.p, layer.q, layer.count) == (4, 11, 7)
    assert layer.kernel_shape == (3, 2, 2, 6)
    assert layer.macs == 4 * 11 * 6 * 3 * 2 * 2
    assert layer.bytes(2) == 4 * (2 * (9 * 8 * 4 + 4 * 11 * 6) + 3 * 2 * 2 * 6)


@pytest.mark.parametrize(
    "line",
    [
        "a h=9 w=8 c=4 k=6",
        "a h=9 w=8 c=4 k=6 r=3 colour=1",
        "a h=9 w=8 c=4 k=6 r=3 h=9",
        "a h=9 w=8 c=4 k=6 r=three",
        "a h=9 w=8 c=4 k=6 r=3 groups=3",
        "a h=2 w=8 c=4 k=6 r=3",
        "a h=9 w=8 c=4 k=6 r=3 stride=0",
        "a h=9 w=8 c=4 k=6 r=3 pad=1x1x1",
    ],
)
def test_a_broken_line_is_named(line, tmp_path):
    file = tmp_path / "layers.txt"
    file.write_text(f"# one good line, one bad\nok h=8 w=8 c=4 k=4 r=1\n{line}\n")
    with pytest.raises(DataError, match=r"layers\.txt:3"):
        shapefile.load(file)


def test_missing_and_empty_shape_files(tmp_path):
    with pytest.raises(DataError, match="resnet50"):
        shapefile.load("resnet51")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="no layers"):
        shapefile.load(tmp_path / "empty.txt")


def test_blocks_alternate_and_their_first_calls_do_not_count():
    calls = []

    def contestant(name, slow_first):
        def call(i):
            if slow_first and (not calls or calls[-1][0] != name):
                time.sleep(0.02)  # a block's first call is slow
            calls.append((name, i))

        return call

    timings = harness.interleave({"a": contestant("a", True), "b": contestant("b", False)}, 0.0, rounds=3, settle=0)
    assert timings["a"].q3 < 0.01
    assert timings["a"].calls == timings["b"].calls == 3 * harness.LEAST_CALLS
    assert [i for name, i in calls if name == "a"] == list(range(1, 2 + 3 * (1 + harness.LEAST_CALLS)))
    turns = [name for name, _ in itertools.groupby(calls, key=lambda call: call[0])]
    assert len(turns) >= 5


def test_a_ratio_is_between_neighbouring_blocks():
    ours = harness.Timing.of([[1.0, 1.0], [10.0, 10.0], [1.0, 1.0]])
    peer = harness.Timing.of([[2.0, 2.0], [20.0, 20.0], [2.0, 2.0]])  # the machine was ten times slower for a round
    assert harness.ratio(peer, ours) == 2.0
    assert (ours.q1, ours.median, ours.q3, ours.best, ours.calls) == (1.0, 1.0, 7.75, 1.0, 6)


def test_rings_exceed_the_cache():
    assert harness.ring_size(harness.cache_bytes()) == 2
    assert harness.ring_size(10 * harness.cache_bytes()) == 2
    assert harness.ring_size(harness.cache_bytes() // 4) == 8
    assert harness.ring_size(4) == 64


@pytest.fixture(scope="module")
def document():
    """A run of two tiny layers beside PyTorch."""
    doc = report.document(1, 0.002, peers.versions(["torch"]))
    for n in (1, 2):
        row = layers.run(TINY, n, 1, ["torch"], seconds=0.002, rounds=2)
        doc["rows"].append(dict(row, model="tiny"))
    peak = harness.Peak(1)
    doc["peak_gflops"] = peak.gflops
    return doc


def test_a_row_says_what_was_computed(document):
    row = document["rows"][1]
    assert (row["model"], row["layer"], row["n"]) == ("tiny", "tiny", 2)
    assert shapefile.parse_line(row["shape"]) == TINY
    assert row["macs"] == TINY.macs == 3 * 3 * 8 * 27
    assert set(row["peers"]) == {"torch.channels_last", "torch.contiguous"}
    assert 0 <= row["error"] < 1e-5
    for timing in (row["ours"], *row["peers"].values()):
        assert 0 < timing["best"] <= timing["q1"] <= timing["median"] <= timing["q3"]
    assert row["gflops"] == pytest.approx(2e-9 * TINY.macs * 2 / row["ours"]["median"])
    assert report.best_peer(row)[1] > 0


def test_documents_survive_json(document, tmp_path):
    report.write(document, tmp_path / "run.json")
    assert report.read(tmp_path / "run.json") == json.loads(json.dumps(document))
    assert {"cpu", "cores", "isa", "numpy"} <= set(document["machine"])
    assert document["peers"]["torch"] and document["date"].endswith("+00:00")
    for text in ("{}", "[1]", "not json", '{"format": "other"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(DataError, match=r"bad\.json"):
            report.read(tmp_path / "bad.json")
    with pytest.raises(DataError, match=r"none\.json"):
        report.read(tmp_path / "none.json")


def test_tables(document):
    columns = report.layer_columns([TINY], ["torch.channels_last", "torch.contiguous"])
    line = report.layer_line(columns, TINY, document["rows"][0], 100.0, list(document["rows"][0]["peers"]))
    assert line.split()[:5] == ["tiny", "6x5", "3>8", "3x3/2x1", "1"]
    text = report.summary(document)
    assert "N=1: 1 layers" in text and "first (C=3)" in text
    markdown = report.markdown([document, document])
    assert markdown.count("| tiny | 1 | 2 |") == 1
    assert f"PyTorch {document['peers']['torch']}" in markdown


def test_comparing_two_runs(document):
    faster = json.loads(json.dumps(document))
    for row in faster["rows"]:
        for key in ("median", "q1", "q3", "best"):
            row["ours"][key] /= 4
        for timing in row["peers"].values():
            timing["ratio"] *= 4
    text, rows = report.compare(document, faster)
    assert [round(row["speedup"], 6) for row in rows] == [4.0, 4.0]
    assert [round(row["normalised"], 6) for row in rows] == [4.0, 4.0]
    assert "geometric mean of the speed-ups 4.000 over 2 rows" in text
    assert {row["verdict"] for row in report.compare(document, document)[1]} == {""}
    other = dict(document, rows=[dict(document["rows"][0], layer="other")])
    with pytest.raises(DataError, match="in common"):
        report.compare(document, other)


def test_kinds_of_layers():
    kinds = {layer.name: report.kind(layer) for layer in shapefile.load("mobilenet_v2")}
    assert kinds["stem"] == "first (C=3)"
    assert kinds["block2.depthwise"] == "depthwise"
    assert kinds["block2.expand"] == "1x1"
    assert report.kind(shapefile.load("resnext50_32x4d")[2]) == "grouped"
    assert report.kind(shapefile.load("alexnet")[1]) == "other"


def test_an_unknown_peer_is_refused():
    with pytest.raises(Unsupported, match="onnxruntime"):
        peers.missing("tensorflow")
    assert peers.missing("torch") == []


@pytest.mark.parametrize("n", [1, 3])
def test_layers_against_asymmetric_padding_and_dilation(n):
    layer = shapefile.parse_line("odd h=9 w=8 c=4 k=6 r=3 s=2 stride=2x1 pad=1x0x2x3 dil=1x2 groups=2")
    row = layers.run(layer, n, 1, ["torch"], seconds=0.001, rounds=1)  # raises if the results differ
    assert row["error"] < 1e-5


@pytest.mark.parametrize("name", ["lenet5", "squeezenet1_1", "mobilenet_v2", "densenet121"])
def test_a_graph_run_by_torch_gives_the_same(name):
    """The peer of whole models computes what we compute (models.run raises where it does not)."""
    import torch

    from convkern.bench.torch_graph import TorchGraph
    from convkern.models import get_model

    shape = (32, 32, 1) if name == "lenet5" else (64, 64, 3)
    model = get_model(name, input_shape=shape)
    x = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    want = model(x)
    for layout in (torch.channels_last, torch.contiguous_format):
        inputs = torch.from_numpy(x.transpose(0, 3, 1, 2)).contiguous(memory_format=layout)
        got = TorchGraph(model.graph(), layout)(inputs).numpy()
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_a_whole_model_in_a_document():
    from convkern.bench import models
    from convkern.models import get_model

    row = models.run("lenet5", get_model("lenet5"), 2, 1, ["torch"], seconds=0.01, rounds=2)
    assert row["layer"] is None and row["macs"] > 0
    doc = report.document(1, 0.01, {"torch": "2"})
    doc.update(rows=[row], peak_gflops=100.0)
    assert "| lenet5 | 2 |" in report.markdown([doc])
    assert "whole models" in report.summary(doc)
    with pytest.raises(Unsupported, match="layers only"):
        models.run("lenet5", get_model("lenet5"), 1, 1, ["onnxruntime"])
