"""Measured choices: tables read and written, what a plan does with one, `convkern tune`, and broken tables."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tolerance
from convkern import Input, Model, _core, cli, tuning
from convkern.bench import harness, shapefile
from convkern.errors import DataError
from convkern.layers import Conv2D, Dense, Flatten
from convkern.tuning import measure


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own; the tables in use come back afterwards."""
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        patch.delenv("CONVKERN_TUNE", raising=False)
        tuning.reload()
        yield
    tuning.reload()


def model() -> Model:
    image = Input((12, 12, 8))
    return Model(image, Dense(5)(Flatten()(Conv2D(24, 3, activation="relu")(image))))


def first_step(m: Model) -> dict[str, Any]:
    return m.plan().steps()[0]


def table(path: Path, **rows: Any) -> Path:
    path.write_text(json.dumps({"convkern tune": 1, "cpu": "any", "rows": rows}))
    return path


def test_a_row_goes_before_the_cost_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = model()
    before = first_step(m)
    assert before["kernel"] == "conv_direct" and before["tuned_us"] == 0 and before["cost_us"] > 0
    x = np.random.default_rng(0).integers(-4, 5, (3, 12, 12, 8)).astype(np.float32)
    want = m(x)
    path = tmp_path / "tune.json"
    tuning.write(path, {before["key"]: ("conv_im2col", 12.5)})
    monkeypatch.setenv("CONVKERN_TUNE", str(path))
    tuning.reload()
    m = Model.from_config(m.get_config())
    step = first_step(m)
    assert step["kernel"] == "conv_im2col" and step["tuned_us"] == 12.5
    assert "tuned: measured faster than conv_direct" in step["why"]
    # A row for a kernel that refuses, or for another problem, changes nothing.
    tuning.write(path, {before["key"]: ("conv_depthwise", 1.0), "other": ("conv_im2col", 1.0)})
    tuning.reload()
    step = first_step(Model.from_config(m.get_config()))
    assert step["kernel"] == "conv_direct" and step["tuned_us"] == 0
    monkeypatch.setenv("CONVKERN_TUNE", "off")
    tuning.reload()
    assert first_step(Model.from_config(m.get_config()))["kernel"] == "conv_direct"
    assert want.shape == (3, 5)


def test_the_batch_does_not_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key has no N: one image gives its bits in every batch, whatever the table says."""
    m = model()
    path = tmp_path / "tune.json"
    tuning.write(path, {first_step(m)["key"]: ("conv_im2col", 3.0)})
    monkeypatch.setenv("CONVKERN_TUNE", str(path))
    tuning.reload()
    m = Model.from_config(m.get_config())
    x = np.random.default_rng(1).standard_normal((9, 12, 12, 8)).astype(np.float32)
    y = m(x, threads=2)
    assert first_step(m)["kernel"] == "conv_im2col"
    for i in (0, 8):
        tolerance.assert_exact(m(x[i : i + 1], threads=1), y[i : i + 1])


def test_keys_tell_problems_apart() -> None:
    def key(bf16: bool = False, **changes: Any) -> str:
        plan = _core.Plan(bf16=bf16)
        options: dict[str, Any] = dict(stride=(1, 1, 1), pad_lo=(0, 0, 0), groups=1) | changes
        w = np.ones((1, 3, 3, 8 // options["groups"], 8), np.float32)
        plan.conv(plan.input((1, 9, 9, 8)), _core.Parameter(w), **options)
        return plan.steps()[0]["key"]

    keys = [
        key(),
        key(stride=(1, 2, 2)),
        key(pad_lo=(0, 1, 1)),
        key(groups=2),
        key(dilation=(1, 2, 2)),
        key(transposed=True),
    ]
    keys += [key(bf16=True)] if _core.bf16() else []
    assert len(set(keys)) == len(keys)
    assert key(act="relu") == key() and _core.isa() in key()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100000, "not JSON"),
        ("[1]", "not a tuning table"),
        ('{"convkern tune": 2, "cpu": "x", "rows": {}}', "format 1"),
        ('{"convkern tune": 1, "cpu": "x", "rows": []}', "has a 'cpu' and 'rows'"),
        ('{"convkern tune": 1, "rows": {}}', "has a 'cpu' and 'rows'"),
        ('{"convkern tune": 1, "cpu": "x", "rows": {"a": 1}}', "the row 'a' is 1"),
        ('{"convkern tune": 1, "cpu": "x", "rows": {"a": {"kernel": "conv_direct", "us": NaN}}}', "the row 'a'"),
        ('{"convkern tune": 1, "cpu": "x", "rows": {"a": {"kernel": "conv_direct", "us": -1}}}', "the row 'a'"),
        ('{"convkern tune": 1, "cpu": "x", "rows": {"a": {"kernel": "conv_direct", "us": true}}}', "the row 'a'"),
        ('{"convkern tune": 1, "cpu": "x", "rows": {"a": {"kernel": 3, "us": 1}}}', "the row 'a'"),
    ],
)
def test_broken_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        tuning.read(path)
    assert str(path) in str(error.value)
    # A plan says so, too, each time, until the table is mended.
    monkeypatch.setenv("CONVKERN_TUNE", str(path))
    with pytest.raises(DataError):
        tuning.reload()
    for _ in range(2):
        with pytest.raises(DataError, match=message):
            model().plan()
    table(path)
    model().plan()


def test_missing_binary_and_oversized_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="cannot read"):
        tuning.read(tmp_path / "nowhere.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read"):
        tuning.read(tmp_path / "binary")
    monkeypatch.setattr(tuning, "MOST_BYTES", 10)
    with pytest.raises(DataError, match="at most 10"):
        tuning.read(table(tmp_path / "large"))


def test_unknown_kernels_are_ignored(tmp_path: Path) -> None:
    rows = dict(a={"kernel": "conv_of_tomorrow", "us": 1}, b={"kernel": "conv_direct", "us": 2})
    with pytest.warns(UserWarning, match="conv_of_tomorrow"):
        assert tuning.read(table(tmp_path / "t.json", **rows)) == {"b": ("conv_direct", 2.0)}


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "tune.json"
    tuning.write(path, {"a": ("conv_direct", 1.0)}, threads=2)
    assert json.loads(path.read_text())["threads"] == 2
    monkeypatch.setattr(tuning.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DataError, match="disk full"):
        tuning.write(path, {"b": ("conv_direct", 2.0)})
    assert tuning.read(path) == {"a": ("conv_direct", 1.0)}
    assert [p.name for p in path.parent.iterdir()] == ["tune.json"]


def test_choices() -> None:
    layer = shapefile.parse_line("a h=1 w=1 c=1 k=1 r=1")
    both = measure.Choice(layer, "", "x", {"x": (2.0, 8.0), "y": (1.0, 8.0)})
    assert both.best == "y" and both.gain("y") == pytest.approx(2**0.5) and both.us == 1e6
    noise = measure.Choice(layer, "", "x", {"x": (1.0, 8.0), "y": (0.97, 7.9)})
    assert noise.best == "x"
    torn = measure.Choice(layer, "", "x", {"x": (1.0, 8.0), "y": (0.5, 17.0)})  # a gain at one, a larger loss at eight
    assert torn.best == "x"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = tmp_path / "layers.txt"
    shapes.write_text(
        "a h=6 w=6 c=32 k=32 r=3 pad=1\nagain h=6 w=6 c=32 k=32 r=3 pad=1\nb h=5 w=5 c=8 k=8 r=3 groups=8\n"
    )
    options = ["--seconds", "0.002", "--rounds", "1", "--json", str(tmp_path / "out.json")]
    assert cli.main(["tune", "--layers", str(shapes), *options]) == 0
    text = capsys.readouterr().out
    facts = json.loads((tmp_path / "out.json").read_text())
    assert tuning.user_file().is_file() and str(tuning.user_file()) in text and facts["file"] == str(tuning.user_file())
    assert str(tmp_path / "cache") in facts["file"]
    rows = facts["rows"]
    assert len(rows) == 2
    assert {"conv_winograd", "conv_direct", "conv_im2col"} <= set(rows[0]["seconds"])
    assert all(len(times) == 2 and min(times) > 0 for times in rows[0]["seconds"].values())
    # The next process reads it; so does this one after reload().
    assert set(tuning.active()) == {row["problem"] for row in rows}
    # A model's layers, dense ones too, are added to the table.
    m = model()
    m.save(tmp_path / "small.ckn")
    assert cli.main(["tune", str(tmp_path / "small.ckn"), *options]) == 0
    assert len(tuning.active()) == 4
    tuning.reload()
    step = first_step(Model.from_config(m.get_config()))
    assert step["tuned_us"] > 0
    assert cli.main(["tune"]) == 2
    assert "name models" in capsys.readouterr().err


def test_explain_shows_predicted_and_tuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    m = model()
    m.save(tmp_path / "small.ckn")
    tuning.write(tuning.user_file(), {first_step(m)["key"]: ("conv_direct", 1500.0)})
    tuning.reload()
    assert cli.main(["explain", str(tmp_path / "small.ckn"), "--repeat", "1"]) == 0
    text = capsys.readouterr().out
    assert "predicted" in text and "1.5 ms" in text.replace("1.50 ms", "1.5 ms")


def test_shipped_tables_are_sound() -> None:
    for entry in (Path(tuning.__file__).parent).glob("*.json"):
        assert tuning.read(entry)
    assert harness.cpu_name()
