"""The benchmark: layer lists against the reference models, the timing's bookkeeping, and documents and their tables.

Timings here are of tiny layers; what they say is not tested, only that they are taken, kept and compared as promised.
"""

import importlib.util
import itertools
import json
import math
import subprocess
import sys
import time

import numpy as np
import pytest

import golden
import graphs
from convkern import _core, cli
from convkern.bench import facts, harness, layers, limit, onnx_graph, peers, plot, report, shapefile
from convkern.compiler import compile
from convkern.errors import ConvkernError, DataError, Unsupported
from convkern.graph import Graph
from convkern.models import get_model

# shape file -> reference model whose multiply-adds it must add up to (timm's legacy_xception: as in make_golden)
REFERENCES = {
    "alexnet": "tv_alexnet@224",
    "densenet121": "tv_densenet121@224",
    "efficientnet_b0": "tv_efficientnet_b0@224",
    "inception_v3": "tv_inception_v3@299",
    "mobilenet_v2": "tv_mobilenet_v2@224",
    "resnet50": "tv_resnet50@224",
    "resnext50_32x4d": "tv_resnext50_32x4d@224",
    "vgg16": "tv_vgg16@224",
}
# Not in the zoo: multiply-adds of timm's legacy_xception at 299 pixels, less its last layer of 2048 x 1000.
OTHERS = {"xception": 8_357_403_496 - 2_048_000}

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
    kinds = [report.kind(layer) for layer in shapefile.load("vgg16")]
    assert kinds == ["first (C=3)", *[report.KINDS[0]] * 7, report.KINDS[1]]
    assert report.kind(shapefile.parse_line("a h=28 w=7 c=64 k=64 r=3")) == "3x3 s1, other"
    assert report.kind(shapefile.parse_line("a h=28 w=28 c=64 k=32 r=3")) == "3x3 s1, other"


def test_what_a_peer_lacks_is_said(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no C++ compiler" in peers.missing("torch.compile")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert peers.missing("openvino") == "openvino and onnx not installed (pip install openvino onnx)"


def test_an_unknown_peer_is_refused():
    with pytest.raises(Unsupported, match="onnxruntime"):
        peers.missing("tensorflow")
    assert peers.missing("torch") == ""


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

    row = models.run("lenet5", get_model("lenet5"), 2, 1, ["torch"], seconds=0.01, rounds=2)
    assert row["layer"] is None and row["macs"] > 0
    doc = report.document(1, 0.01, {"torch": "2"})
    doc.update(rows=[row], peak_gflops=100.0)
    assert "| lenet5 | 2 |" in report.markdown([doc])
    assert "whole models" in report.summary(doc)


def installed(*names):
    """Those of the peers that this environment has; skips without any."""
    found = [name for name in names if not peers.missing(name)]
    return found or pytest.skip(f"none of {', '.join(names)} is installed")


def agrees(graph, names, n=2):
    """The peers compute what we compute, on random images."""
    x = np.random.default_rng(0).standard_normal((n, *graph.shapes[graph.inputs[0]]), np.float32)
    want = compile(graph).run([x], threads=1)[0]
    for runner in peers.model_runners(names, graph, [x], 1):
        got = runner.nhwc(runner.call(0))
        assert got.shape == want.shape, runner.name
        assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max() + 1e-6, runner.name


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("n", [1, 3])
def test_layers_against_the_runtimes(name, n):
    layer = shapefile.parse_line("odd h=9 w=8 c=4 k=6 r=3 s=2 stride=2x1 pad=1x0x2x3 dil=1x2 groups=2")
    row = layers.run(layer, n, 1, installed(name), seconds=0.001, rounds=1)  # raises if the results differ
    assert list(row["peers"]) == [name]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_random_graphs_in_the_runtimes(name):
    names = installed(name)
    for seed in range(60):
        graph = graphs.random_graph(seed)
        graph.outputs = [graph.nodes[-1].output]
        if len(graph.inputs) == 1 and (name, seed) != ("openvino", 46):
            # 46: OpenVINO 2026.4 makes a strided 1x1 convolution of a padded activation one row too large
            agrees(graph, names)


def one_step(op, shape, attrs, **params):
    graph = Graph()
    graph.outputs.append(graph.add(op, (graph.input(shape),), attrs, params))
    return graph


OVERHANG = dict(window=(2, 3), strides=(2, 2), padding=((1, 0), (1, 1)), ceil_mode=True)
STEPS = {
    "conv 1-D": ("conv", (9, 4), dict(strides=(2,), padding=((2, 1),)), (3, 4, 5)),
    "conv 3-D": ("conv", (4, 5, 6, 2), dict(padding=((1, 1), (0, 0), (1, 0))), (3, 2, 2, 2, 3)),
    "dense of a map": ("dense", (3, 4, 5), {}, (5, 7)),
    "max over the edge": ("pool", (6, 7, 3), dict(kind="max", **OVERHANG)),
    "average over the edge": ("pool", (6, 7, 3), dict(kind="avg", count_include_pad=True, **OVERHANG)),
    "average of the inside": ("pool", (6, 7, 3), dict(kind="avg", count_include_pad=False, **OVERHANG)),
    "average with a divisor": ("pool", (6, 7, 3), dict(kind="avg", window=(2, 2), divisor=3)),
    "adaptive": ("adaptive_pool", (6, 8, 3), dict(kind="avg", out=(2, 4))),
    "adaptive, kept": ("adaptive_pool", (6, 8, 3), dict(kind="avg", out=(6, 8))),
    "adaptive, global": ("adaptive_pool", (6, 8, 3), dict(kind="max", out=(1, 1))),
    "global, kept": ("global_pool", (6, 8, 3), dict(kind="max", keepdims=True)),
    "log softmax": ("softmax", (4, 5, 6), dict(log=True)),
    "nearest": ("resize", (4, 5, 3), dict(out=(7, 9), mode="nearest")),
    "nearest-exact": ("resize", (4, 5, 3), dict(out=(7, 9), mode="nearest-exact")),
    "linear": ("resize", (4, 5, 3), dict(out=(7, 3), mode="linear")),
    "linear, corners": ("resize", (4, 5, 3), dict(out=(7, 9), mode="linear", align_corners=True)),
    "cubic": ("resize", (6, 7, 3), dict(out=(8, 9), mode="cubic")),
    "replicate": ("pad", (4, 5, 3), dict(padding=((1, 2), (0, 1), (0, 0)), mode="replicate")),
    "circular": ("pad", (4, 5, 3), dict(padding=((1, 2), (0, 1), (0, 0)), mode="circular")),
    "to a sequence": ("reshape", (4, 5, 3), dict(shape=(10, 6))),
    "transpose": ("transpose", (4, 5, 3), dict(perm=(2, 0, 1))),
    "clamp": ("activation", (4, 5, 3), dict(kind="clamp", a=-0.5, b=0.7)),
    "elu": ("activation", (4, 5, 3), dict(kind="elu", a=0.8)),
    "softplus": ("activation", (4, 5, 3), dict(kind="softplus", a=2.0, b=20.0)),
    "gelu_tanh": ("activation", (4, 5, 3), dict(kind="gelu_tanh")),
    "hard_sigmoid": ("activation", (4, 5, 3), dict(kind="hard_sigmoid")),
    "exp": ("activation", (4, 5, 3), dict(kind="exp")),
}


@pytest.mark.parametrize("what", STEPS)
def test_single_operators_in_the_runtimes(what):
    op, shape, attrs, *kernel = STEPS[what]
    params = dict(kernel=np.random.default_rng(1).standard_normal(kernel[0], np.float32)) if kernel else {}
    names = ["onnxruntime", "openvino"] if what == "average of the inside" else ["torch", "onnxruntime", "openvino"]
    agrees(one_step(op, shape, attrs, **params), installed(*names))


def test_what_onnx_lacks_is_refused():
    installed("onnxruntime")
    for op, attrs in (
        ("adaptive_pool", dict(kind="avg", out=(4, 4))),
        ("lrn", dict(size=2, alpha=1, beta=1, k=1)),
        ("resize", dict(out=(12, 12), scales=(0.5, 0.5))),
    ):
        with pytest.raises(Unsupported):
            onnx_graph.export(one_step(op, (6, 6, 3), attrs), 1)


def test_compiled_by_torch():
    names = installed("torch.compile")
    rng = np.random.default_rng(1)
    graph = Graph()
    x = graph.input((6, 6, 3))
    y = graph.add("conv", (x,), {}, dict(kernel=rng.standard_normal((3, 3, 3, 8), np.float32)))
    norm = dict(mean=rng.random(8, np.float32), var=rng.random(8, np.float32) + 1)
    y = graph.add("activation", (graph.add("batch_norm", (y,), dict(eps=1e-3), norm),), dict(kind="relu"))
    y = graph.add("reshape", (y,), dict(shape=(-1,)))
    graph.outputs.append(graph.add("dense", (y,), {}, dict(kernel=rng.standard_normal((128, 5), np.float32))))
    agrees(graph, names)


def fake_row(model, layer, n, ratio, shape="", **more):
    timing = dict(median=1.0, q1=1.0, q3=1.0, best=1.0, calls=1)
    return dict(
        dict(model=model, layer=layer, n=n, shape=f"{layer} {shape} x1", macs=10**6, gflops=1.0, kernel="conv"),
        ours=timing,
        peers={
            "onnxruntime": dict(timing, median=ratio, ratio=ratio),
            "openvino": dict(timing, median=ratio + 1, ratio=ratio + 1),
        },
        **more,
    )


def test_classes_count_each_shape_once():
    small, large = "h=14 w=14 c=64 k=64 r=3 s=3 pad=1", "h=28 w=28 c=64 k=64 r=3 s=3 pad=1"
    rows = [fake_row("a", "a1", 1, 4.0, small), fake_row("a", "a2", 1, 0.5, large)]
    rows += [fake_row("b", "b1", 1, 4.0, small, same_as="a a1"), fake_row("a", "a1", 8, 1.0, small)]
    rows += [dict(fake_row("m", None, 1, 2.0), shape="8x8x3")]
    found = {(c["n"], c["kind"]): c for c in report.classes(rows)}
    assert list(found) == [
        (1, "all layers"),
        (1, "3x3 s1, C,K >= 64, map >= 28"),
        (1, "3x3 s1, C,K >= 64, map >= 14"),
        (1, "whole models"),
        (8, "all layers"),
        (8, "3x3 s1, C,K >= 64, map >= 14"),
    ]
    every = found[1, "all layers"]
    assert every["geometric_mean"] == pytest.approx(2**0.5)
    assert (every["count"], every["wins"], every["losses"]) == (2, 1, 1)
    assert (every["lowest"], every["lowest_of"]) == (0.5, "a a2")
    assert found[8, "all layers"]["wins"] == 1
    assert found[1, "whole models"]["lowest_of"] == "m"


def test_bench_peers(tmp_path, capsys):
    names = installed("torch", "onnxruntime", "openvino")
    text = "conv h=8 w=8 c=3 k=8 r=3 pad=1\n"
    (tmp_path / "one.txt").write_text(text)
    (tmp_path / "two.txt").write_text(text.replace("conv", "other") + "b h=4 w=4 c=8 k=8 r=1\n")
    file = tmp_path / "run.json"
    argv = ["bench", "peers", "--layers", tmp_path / "one.txt", tmp_path / "two.txt", "--models", "lenet5"]
    argv += ["--batch", 1, 2, "--seconds", 0.002, "--rounds", 2, "--threads", 1, "--peers", ",".join(names)]
    assert cli.main([str(word) for word in [*argv, "--json", file]]) == 0
    out = capsys.readouterr().out
    assert "whole models, 1 threads" in out and "all layers" in out
    doc = report.read(file)
    keys = [(row["model"], row["layer"], row["n"]) for row in doc["rows"]]
    layer_keys = [("one", "conv"), ("two", "other"), ("two", "b"), ("lenet5", None)]
    assert keys == [(*key, n) for key in layer_keys for n in (1, 2)]
    assert doc["rows"][2] == dict(doc["rows"][0], model="two", layer="other", same_as="one conv") | {
        "shape": doc["rows"][2]["shape"]
    }
    assert [c["count"] for c in doc["classes"] if c["kind"] == "all layers"] == [2, 2]
    assert doc["bandwidth"] > 0 and set(doc["peers"]) == set(names)
    assert "| first (C=3) | 1 | 1 |" in report.markdown([doc])


def test_plots(document, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    report.write(dict(document, bandwidth=1e10), tmp_path / "run.json")
    argv = ["bench", "table", str(tmp_path / "run.json"), "--plot"]
    assert cli.main([*argv, str(tmp_path / "run.png")]) == 0
    data = (tmp_path / "run.png").read_bytes()
    assert data.startswith(b"\x89PNG") and len(data) > 10_000
    rows = [dict(fake_row("m", None, 1, 2.0), shape="8x8x3")]
    plot.draw(dict(document, rows=rows), tmp_path / "models.svg")
    assert "convkern" in (tmp_path / "models.svg").read_text()
    for name, words in (("run.txt", ".png"), ("no/folder/run.png", "no such folder")):
        assert cli.main([*argv, str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err


# Facts beside the time of a call


def test_facts_of_a_model(capsys, tmp_path):
    words = ["bench", "facts", "mobilenet_v2", "--facts", "first", "memory", "--peers", "onnxruntime", "--threads", "1"]
    file = tmp_path / "facts.json"
    assert cli.main([*words, "--json", str(file)]) == 0
    text = capsys.readouterr().out
    (row,) = json.loads(file.read_text())["rows"]
    peers = ["onnxruntime"] if importlib.util.find_spec("onnxruntime") else []
    assert list(row["first"]) == list(row["memory"]) == ["convkern", "convkern.lean", *peers]
    assert all(kind in text for kind in row["first"])
    for kind, first in row["first"].items():
        assert 0 < first["second"] < first["first"]
        assert kind == "onnxruntime" or 0 < first["plan"] < first["first"]
    weights = 4 * 3_504_872  # parameters
    for kind, memory in row["memory"].items():
        assert memory["process"] == memory["peak"] + memory["imported"]
        assert memory["peak"] > max(weights, memory["weights"])
        if kind != "onnxruntime":
            assert memory["weights"] > weights and memory["packed"] > weights / 2
            assert memory["peak"] > memory["weights"] + memory["packed"] / 2
    assert row["memory"]["convkern.lean"]["packed"] <= row["memory"]["convkern"]["packed"]


def test_facts_of_batches_and_threads(capsys):
    words = ["bench", "facts", "lenet5", "--facts", "batch", "threads", "--peers", "none", "--threads", "2"]
    assert cli.main([*words, "--seconds", "0.01", "--rounds", "2", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert set(row) == {"model", "batch", "threads"}
    assert row["batch"]["ratio"] > 0 and row["batch"]["8"] > 0 and row["batch"]["32"] > 0
    assert row["threads"]["1"] > 0 and row["threads"]["ratio"] > 0


def test_facts_that_are_none():
    with pytest.raises(Unsupported, match="no fact 'colour'"):
        facts.run("lenet5", ["colour"], 1)
    with pytest.raises(ConvkernError, match="no_such_model"):
        facts.run("no_such_model", ["first"], 1)


# Fewer instructions than the machine has


@pytest.mark.skipif("avx2" not in _core.isas(), reason="a machine without AVX2")
def test_a_limited_process(tmp_path):
    """All see the same: our table, and CPUID, where it can be masked."""
    code = (
        "import json, sys; from convkern import _core; from convkern.bench import limit; "
        "json.dump([_core.isa(), _core.isas(), limit.limited('avx2'), limit.masked()], open(sys.argv[1], 'w'))"
    )
    environment = limit.environment("avx2", tmp_path)
    for key in ("CONVKERN_ISA", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"):
        assert environment[key].lower() == "avx2"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "seen")], env=environment, check=True)
    isa, isas, limited, masked = json.loads((tmp_path / "seen").read_text())
    assert isa == "avx2" and limited
    assert masked == ("avx512" not in isas or "avx512" not in _core.isas())
    assert not limit.limited("avx2")


@pytest.mark.skipif("avx2" not in _core.isas(), reason="a machine without AVX2")
def test_bench_limited_to_avx2(tmp_path):
    (tmp_path / "tiny.txt").write_text(f"{TINY}\n")
    words = ["bench", "peers", "--layers", str(tmp_path / "tiny.txt"), "--peers", "onnxruntime", "--isa", "avx2"]
    file = tmp_path / "run.json"
    assert cli.main([*words, "--seconds", "0.002", "--rounds", "2", "--json", str(file)]) == 0
    doc = report.read(file)
    assert doc["machine"]["isa"] == "avx2"
    assert list(doc["peers"]) in ([], ["onnxruntime"])  # left out where it cannot be limited
    assert doc["rows"][0]["kernel"].startswith("conv_")
