"""The command line: what it prints, its JSON, its errors and exit codes, and how it stops."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from convkern import _core, cli, verify
from convkern.models import list_models

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run(capsys):
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*argv):
        code = cli.main([str(a) for a in argv])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


@pytest.fixture
def photos(tmp_path):
    """A folder with a colour, a grey, a palette and a transparent picture, one that lies on its side, and a text."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    colour = Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8))
    colour.save(folder / "colour.png")
    colour.convert("L").save(folder / "grey.jpg")
    colour.convert("P").save(folder / "palette.gif")
    colour.convert("RGBA").save(folder / "deeper" / "alpha.webp", lossless=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    colour.save(folder / "side.jpg", exif=exif)
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture
def weights(tmp_path):
    """Random weights of a small ImageNet model in a file."""
    from convkern.models import get_model

    path = tmp_path / "squeezenet.safetensors"
    get_model("squeezenet1_1").save_weights(path)
    return path


def test_info(run):
    code, out, _ = run("info")
    assert code == 0 and _core.version() in out and "conv_ref" in out
    code, out, _ = run("info", "--json")
    facts = json.loads(out)
    assert facts["isa"] == _core.isa() and facts["isas"] == _core.isas() and facts["devices"] == ["cpu"]
    assert facts["peak_gflops"] > 0 and facts["threads"] == _core.num_threads()
    assert {row["name"] for row in facts["kernels"]} == {row["name"] for row in _core.kernels()}
    assert facts["machine"]["cores"] >= 1


def test_models(run):
    code, out, _ = run("models", "vgg1[16]")
    assert code == 0 and [line.split() for line in out.splitlines()[1:]] == [
        ["vgg11", "224x224x3"],
        ["vgg16", "224x224x3"],
    ]
    code, out, _ = run("models", "--json")
    assert [row["name"] for row in json.loads(out)] == list_models()
    assert run("models", "no-such-*")[0] == 2


def test_summary(run):
    code, out, _ = run("summary", "vgg16", "--input", 224)
    assert code == 0 and "138,357,544" in out and "3*3*64*128 = 73,728 + 128 biases" in out and "15,470,264,320" in out
    code, out, _ = run("summary", "alexnet_lecture", "--json")
    table = json.loads(out)
    assert table["totals"]["params"] == 62_378_344
    assert next(row for row in table["layers"] if row["name"] == "conv1")["params"] == 34_944
    code, out, _ = run("summary", "resnet50", "--input", "64x96", "--json")
    assert json.loads(out)["layers"][0]["output_shape"] == [64, 96, 3]


def test_summary_of_a_saved_model(run, tmp_path):
    from convkern import Input, Model
    from convkern.layers import Dense

    image = Input((3,))
    Model(image, Dense(2)(image), name="mine").save(tmp_path / "mine.ckn")
    code, out, _ = run("summary", tmp_path / "mine.ckn")
    assert code == 0 and "mine" in out and "3*2 = 6 + 2 biases" in out


def test_a_saved_model_with_open_sizes(run, tmp_path):
    from convkern import Input, Model
    from convkern.layers import Conv2D

    image = Input((None, None, 2))
    Model(image, Conv2D(4, 3)(image)).save(tmp_path / "open.ckn")
    for size, rows in ((None, 224), ("20x30", 20)):
        options = [] if size is None else ["--input", size]
        code, out, _ = run("summary", tmp_path / "open.ckn", *options, "--json")
        assert code == 0 and json.loads(out)["layers"][0]["output_shape"][0] == rows
    code, out, _ = run("explain", tmp_path / "open.ckn", "--input", 16, "--json")
    assert code == 0 and json.loads(out)["steps"][0]["shape_out"] == [1, 14, 14, 4]


def test_the_page_on_the_lecture_shows_what_the_code_says():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = tables.PAGE.read_text("utf-8")
    assert tables.render(text) == text, "run: python docs/tables.py"


def test_explain(run):
    code, out, _ = run("explain", "squeezenet1_1", "--input", 64, "--repeat", 1)
    assert code == 0 and "conv_" in out and "slowest steps" in out
    code, out, _ = run("explain", "squeezenet1_1", "--input", 64, "--batch", 2, "--repeat", 1, "--json")
    facts = json.loads(out)
    assert facts["arena_bytes"] > 0 and facts["batch"] == 2
    for step in facts["steps"]:
        assert step["kernel"] and step["seconds"] >= 0
    assert facts["seconds"] == pytest.approx(sum(step["seconds"] for step in facts["steps"]))


def test_classify(run, photos, weights):
    code, out, err = run("classify", photos, "--model", "squeezenet1_1", "--weights", weights, "--top", 3)
    assert code == 0 and not err
    for name in ("colour.png", "grey.jpg", "palette.gif", "alpha.webp", "side.jpg"):
        assert name in out
    assert "notes.txt" not in out
    assert "kernels: conv_" in out and len(re.findall(r"\d\.\d%", out)) == 15


def test_classify_as_json(run, photos, weights):
    options = ["--model", "squeezenet1_1", "--weights", weights, "--json"]
    code, out, _ = run("classify", photos / "colour.png", photos / "grey.jpg", *options)
    facts = json.loads(out)
    assert code == 0 and [Path(row["file"]).name for row in facts["images"]] == ["colour.png", "grey.jpg"]
    for row in facts["images"]:
        probabilities = [c["probability"] for c in row["classes"]]
        assert row["seconds"] > 0 and len(probabilities) == 5 and probabilities == sorted(probabilities, reverse=True)
    assert sum(facts["kernels"].values()) > 10


def test_a_bad_photo_does_not_stop_the_others(run, photos, weights):
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    code, out, err = run("classify", photos, "--model", "squeezenet1_1", "--weights", weights, "--top", 1)
    assert code == 2 and err.startswith("convkern: ") and "broken.png" in err and err.count("\n") == 1
    assert "colour.png" in out and "side.jpg" in out


def test_the_demo_recognises_what_is_on_the_photos(run):
    code, out, _ = run("demo", "--json")
    assert code == 0
    found = {Path(row["file"]).stem: row["classes"][0] for row in json.loads(out)["images"]}
    expected = {"chelsea": ("Egyptian cat", 0.38), "coffee": ("espresso", 0.78), "motorcycle_left": ("moped", 0.31)}
    for name, (label, probability) in expected.items():
        assert found[name]["label"] == label
        assert found[name]["probability"] == pytest.approx(probability, abs=0.02)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["summary", "resnet51"], ["resnet51", "resnet50"]),
        (["summary", "vgg16", "--input", "8"], ["pool4", "larger than the input"]),
        (["classify", "no/such/photo.png"], ["photo.png"]),
        (["bench", "no_such_shapes"], ["no_such_shapes"]),
        (["bench", "alexnet", "--filter", "nothing"], ["nothing"]),
        (["bench", "alexnet", "--peers", "tensorflow"], ["tensorflow"]),
        (["bench", "compare", "a.json", "b.json"], ["a.json"]),
        (["models", "--json", "no/such/folder/file.json"], ["no/such/folder"]),
    ],
)
def test_errors_are_one_line_and_exit_code_2(run, argv, words, weights):
    if argv[0] == "classify":
        argv += ["--model", "squeezenet1_1", "--weights", weights]
    code, _, err = run(*argv)
    assert code == 2 and err.startswith("convkern: ") and err.count("\n") == 1
    assert all(word in err for word in words)


@pytest.mark.parametrize(
    "argv", [[], ["dance"], ["summary"], ["info", "--threads", "0"], ["summary", "vgg16", "--input", "1x2x3x4"]]
)
def test_wrong_arguments_exit_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: convkern" in capsys.readouterr().err


@pytest.fixture
def shapes(tmp_path):
    file = tmp_path / "tiny.txt"
    file.write_text("# two layers\na h=8 w=8 c=3 k=8 r=3 pad=1 x2\nb h=4 w=4 c=8 k=8 r=1\n")
    return file


QUICK = ["--seconds", "0.002", "--rounds", "2", "--threads", "1"]


def test_bench_layers(run, shapes, tmp_path):
    file = tmp_path / "run.json"
    code, out, err = run("bench", shapes, "--batch", 1, 2, *QUICK, "--json", file)
    assert code == 0 and not err
    assert [line.split()[0] for line in out.splitlines()[3:7]] == ["a", "a", "b", "b"]
    assert "torch.nhwc" in out and "geometric mean" in out
    rows = json.loads(file.read_text())["rows"]
    assert [(row["model"], row["layer"], row["n"]) for row in rows] == [("tiny", l, n) for l in "ab" for n in (1, 2)]
    code, out, _ = run("bench", "compare", file, file)
    assert code == 0 and "geometric mean of the speed-ups 1.000 over 4 rows" in out
    table = run("bench", "table", file)[1]
    assert table.startswith("| layers of |") and "Measured: convkern" in table


def test_bench_without_peers_and_with_a_kernel(run, shapes):
    code, out, _ = run("bench", shapes, *QUICK, "--peers", "none", "--kernel", "conv_ref", "--filter", "b", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["peers"] == {} and facts["rows"][0]["peers"] == {}
    assert [(row["layer"], row["kernel"]) for row in facts["rows"]] == [("b", "conv_ref")]


def test_a_missing_peer_is_said(run, shapes, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else found(name))
    code, _, err = run("bench", shapes, *QUICK, "--peers", "openvino", "--filter", "b")
    assert code == 0 and "openvino" in err and "pip install" in err


def test_bench_layers_of_any_model(run):
    code, out, _ = run("bench", "lenet5", *QUICK, "--json")
    assert code == 0 and [row["layer"] for row in json.loads(out)["rows"]] == ["conv1", "conv2"]


def test_bench_whole_models(run):
    code, out, _ = run("bench", "lenet5", "--model", "--batch", 1, 2, *QUICK)
    assert code == 0 and len(re.findall(r"^lenet5 ", out, re.MULTILINE)) == 2 and "torch.nchw" in out


def test_bench_writes_into_a_page(run, shapes, tmp_path):
    run("bench", shapes, *QUICK, "--peers", "none", "--json", tmp_path / "run.json")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- bench:begin (how) -->\nold\n<!-- bench:end -->\nafter\n")
    assert run("bench", "table", tmp_path / "run.json", "--into", page)[0] == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- bench:begin (how) -->\n| layers of |") and text.endswith(
        "<!-- bench:end -->\nafter\n"
    )
    assert "old" not in text
    (tmp_path / "other.md").write_text("no marks")
    assert run("bench", "table", tmp_path / "run.json", "--into", tmp_path / "other.md")[0] == 2


def test_verify(run):
    before = _core.isa()
    code, out, _ = run("verify", "--count", 60)
    assert code == 0 and "all agree with the reference" in out and "conv_ref" in out
    assert _core.isa() == before
    code, out, _ = run("verify", "--count", 20, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["failures"] == [] and list(facts["checks"]) == _core.isas()


def test_verify_finds_a_wrong_kernel(run, monkeypatch):
    right = verify.Case.run

    def wrong(self, dtype, *options):
        plan, (y,) = right(self, dtype, *options)
        if dtype == "float32" and self.family == "conv":
            y = y.copy()
            y.flat[0] += 1
        return plan, [y]

    monkeypatch.setattr(verify.Case, "run", wrong)
    code, out, _ = run("verify", "--count", 4)
    assert code == 1 and "FAILED" in out and "1 of" in out and "failed" in out.splitlines()[-1]


def test_every_operator_is_verified():
    families = {case.family for case in verify.problems(60)}
    assert families == {row["family"] for row in _core.kernels()}


def environment():
    """For a process of its own: the package that these tests import, wherever that is."""
    places = [str(Path(cli.__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(places))


def test_python_m_convkern():
    command = [sys.executable, "-m", "convkern", "models", "lenet5"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=60)
    assert done.returncode == 0 and "lenet5" in done.stdout


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m convkern summary densenet201 | head -1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment(), timeout=60)
    assert "Traceback" not in done.stderr and done.stdout.count("\n") == 1


def test_ctrl_c_stops_between_steps_and_keeps_what_was_measured(tmp_path):
    file = tmp_path / "run.json"
    command = [sys.executable, "-m", "convkern", "bench", "resnet50", "--peers", "none", "--json", str(file)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        lines = []
        for line in process.stdout:  # until the first layer is printed
            lines.append(line)
            if line.startswith("conv1 "):
                break
        process.send_signal(signal.SIGINT)
        started = time.perf_counter()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err.strip() == "convkern: stopped"
    assert time.perf_counter() - started < 20
    assert "geometric mean" in out
    assert json.loads(file.read_text())["rows"][0]["layer"] == "conv1"


def test_augment_writes_a_contact_sheet(run, photos, tmp_path):
    from PIL import Image

    options = ["--count", 5, "--columns", 3, "--size", "40x60"]
    code, out, err = run("augment", photos / "colour.png", "--out", tmp_path / "sheet.png", *options)
    assert code == 0 and not err and "1 photo, 5 transforms of each" in out
    with Image.open(tmp_path / "sheet.png") as image, Image.open(photos / "colour.png") as photo:
        pixels = np.asarray(image)
        assert (pixels[8:48, 8:68] == np.asarray(photo)).all()  # the original comes first
    assert pixels.shape[1] == 3 * 68 + 8 and (pixels[8:48, 76:136] != pixels[8:48, 8:68]).any()
    code, out, _ = run("augment", photos / "colour.png", "--out", tmp_path / "again.png", *options, "--json")
    transforms = json.loads(out)["images"][0]["transforms"]
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "sheet.png").read_bytes()
    assert len(transforms) == 5 and all(abs(p["theta"]) <= 40 for p in transforms)


def test_augment_of_a_folder_with_every_option(run, photos, tmp_path):
    every = (
        "--rotation 5 --width-shift 0.1 --height-shift 0.1 --shear 3 --zoom 0.1 --no-flip --vertical-flip --fill wrap",
        "--brightness 0.5 1.5 --channel-shift 20 --crop 0.5 1 --rand-augment 2 9 --seed 3 --images 2 --cval 3",
        "--count 2 --size 32 --json",
    )
    code, out, _ = run("augment", photos, "--out", tmp_path / "sheet.png", *" ".join(every).split())
    facts = json.loads(out)
    assert code == 0 and [Path(row["file"]).name for row in facts["images"]] == ["colour.png", "alpha.webp"]
    drawn = facts["images"][0]["transforms"][0]
    assert not drawn["flip_horizontal"] and len(drawn["rand_augment"]) == 2 and 0.5 <= drawn["brightness"] <= 1.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "sheet.jpg"], ".png"),
        (["--out", "no/such/folder/sheet.png"], "cannot be written"),
        (["--out", "sheet.png", "--zoom", "2"], "zoom_range"),
        (["--out", "sheet.png", "--fill", "mirror"], "fill_mode"),
        (["--out", "sheet.png", "--seed", "-1"], "seed"),
    ],
)
def test_augment_complains(run, photos, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("augment", photos / "colour.png", *options)
    assert code == 2 and words in err and err.count("\n") == 1 and not (tmp_path / "sheet.png").exists()


def test_bench_augment(run):
    code, out, _ = run("bench", "augment", "--size", 16, "--seconds", "0.01", "--rounds", 2, "--json")
    facts = json.loads(out)
    assert code == 0 and [row["source"] for row in facts["rows"]] == ["arrays", "files"]
    assert all(row["ours"] > 0 and row["keras"] > 0 and row["ratio"] > 0 for row in facts["rows"])
    code, out, _ = run("bench", "augment", "--size", 16, "--seconds", "0.01", "--rounds", 2)
    assert code == 0 and "as Keras" in out


def test_precision_compares_with_float32(run, photos, weights):
    if not _core.bf16():
        code, _, err = run("precision", photos, "--model", "squeezenet1_1", "--weights", weights)
        assert code == 2 and "AVX512_BF16" in err
        return
    code, out, _ = run("precision", photos, "--model", "squeezenet1_1", "--weights", weights, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["bf16"] == _core.bf16() and len(facts["images"]) == len(facts["files"]) == 5
    assert 0 < facts["rms"] <= facts["max"] and 0.99 < facts["cosine"] < 1
    assert all(row["max"] > 0 for row in facts["images"])
    assert set(facts["speed"]) == {"1", "8"} and all(row["ratio"] > 0 for row in facts["speed"].values())
    assert 0 <= facts["top1_agree"] <= 5


def test_explain_in_bfloat16(run):
    if not _core.bf16():
        assert run("explain", "squeezenet1_1", "--precision", "bf16")[0] == 2
        return
    code, out, _ = run("explain", "resnext50_32x4d", "--input", 64, "--precision", "bf16", "--repeat", 1)
    assert code == 0 and "reads it, writes it" in out and "grouped: stays float32" in out
