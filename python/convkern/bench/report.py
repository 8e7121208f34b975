"""A run of the benchmark as a document (the JSON of `convkern bench --json`), and the tables drawn from documents.

    {"format": "convkern-bench-1", "version": ..., "commit": ..., "date": ..., "machine": {...}, "threads": 2,
     "seconds": 0.2, "exact": false, "peers": {"torch": "2.13.0"}, "peak_gflops": 234.0, "bandwidth": 2.8e10,
     "rows": [...], "classes": [...]}

A row is a layer or, with layer None, a whole model. Times are seconds, the bandwidth is in bytes a second; a ratio is
the peer's time over ours, so above 1 we are faster. A shape that several networks have is timed once: its other rows
are copies and say `same_as`. A class is a kind of layer, or all whole models, at one batch size: geometric mean of the
ratios to the best peer (each distinct shape once, whatever its multiplicity), the lowest, wins and losses.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..terminal import Columns, table
from . import harness
from .shapefile import ConvShape, parse_line

FORMAT = "convkern-bench-1"

TITLES = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}

Row = dict[str, Any]
Document = dict[str, Any]


def document(threads: int, seconds: float, peers: Mapping[str, str]) -> Document:
    """An empty document with the facts of this machine and this build."""
    from .. import _core

    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return dict(
        format=FORMAT,
        version=_core.version(),
        commit=harness.commit(),
        date=now,
        machine=harness.machine(),
        threads=threads,
        seconds=seconds,
        peers=dict(peers),
        peak_gflops=0.0,
        rows=[],
        classes=[],
    )


def write(doc: Document, path: str | os.PathLike[str]) -> None:
    Path(path).write_text(json.dumps(doc, indent=1) + "\n", "utf-8")


def read(path: str | os.PathLike[str]) -> Document:
    """Read a document; DataError if the file is not one."""
    try:
        doc = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: {error}") from None
    if not isinstance(doc, dict) or doc.get("format") != FORMAT:
        raise DataError(f"{path}: not a file written by convkern bench --json (want format {FORMAT!r})")
    return doc


def best_peer(row: Row) -> tuple[str, float] | None:
    """The fastest peer of a row and the ratio of its time to ours; None without peers."""
    if not row["peers"]:
        return None
    name = min(row["peers"], key=lambda peer: row["peers"][peer]["median"])
    return name, row["peers"][name]["ratio"]


def geometric_mean(values: Iterable[float]) -> float:
    """
    >>> geometric_mean([1.0, 4.0])
    2.0
    """
    values = list(values)
    return math.exp(math.fsum(map(math.log, values)) / len(values))


KINDS = (
    "3x3 s1, C,K >= 64, map >= 28",
    "3x3 s1, C,K >= 64, map >= 14",
    "3x3 s1, other",
    "first (C=3)",
    "1x1",
    "grouped",
    "depthwise",
    "1x1 map",
    "other",
)


def kind(layer: ConvShape) -> str:
    """The one of KINDS a layer belongs to in the summary of a run.

    >>> kind(parse_line("a h=14 w=14 c=64 k=64 r=3 pad=1"))
    '3x3 s1, C,K >= 64, map >= 14'
    """
    if layer.groups > 1:
        return "depthwise" if layer.groups == layer.c else "grouped"
    if layer.h == layer.w == 1:
        return "1x1 map"
    if layer.c <= 4:
        return "first (C=3)"
    if layer.r == layer.s == 1:
        return "1x1"
    if (layer.r, layer.s, *layer.stride) != (3, 3, 1, 1):
        return "other"
    smallest = min(layer.h, layer.w)
    if min(layer.c, layer.k) < 64 or smallest < 14:
        return "3x3 s1, other"
    return f"3x3 s1, C,K >= 64, map >= {28 if smallest >= 28 else 14}"


def classes(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Geometric mean, lowest, wins and losses of the ratios to the best peer, for each batch and kind of layer."""
    groups: dict[tuple[int, str], dict[str, tuple[float, str]]] = defaultdict(dict)
    for row in rows:
        best = best_peer(row)
        if best is None:
            continue
        if row["layer"] is None:
            members = {"whole models": f"{row['model']} {row['shape']}"}
        else:
            shape = row["shape"].split(None, 1)[1].rsplit(None, 1)[0]  # without its name and multiplicity
            members = {"all layers": shape, kind(parse_line(row["shape"])): shape}
        for name, what in members.items():
            groups[row["n"], name].setdefault(what, (best[1], _title(row)))
    order = ("all layers", *KINDS, "whole models")
    return [
        dict(
            n=n,
            kind=name,
            count=len(found),
            geometric_mean=geometric_mean(ratio for ratio, _ in found.values()),
            lowest=min(found.values())[0],
            lowest_of=min(found.values())[1],
            wins=sum(ratio >= 1 for ratio, _ in found.values()),
            losses=sum(ratio < 1 for ratio, _ in found.values()),
        )
        for (n, name), found in sorted(groups.items(), key=lambda item: (item[0][0], order.index(item[0][1])))
    ]


def _title(row: Row) -> str:
    return row["model"] if row["layer"] is None else f"{row['model']} {row['layer']}"


def layer_columns(layers: Sequence[ConvShape], peers: Sequence[str]) -> Columns:
    """The table of a run over layers, one line a layer and batch."""
    name = max([5, *(len(layer.name) for layer in layers)])
    spec = [("layer", -name), ("map", 7), ("C>K", 9), ("RxS/st", -6), ("N", 2), ("MMAC", 6), ("ms", 8), ("+-", 4)]
    spec += [("GF/s", 6), ("peak", 5)]
    return Columns([*spec, ("kernel", -16), *((_short(peer), 10) for peer in peers), ("ratio", 5)])


def layer_line(columns: Columns, layer: ConvShape, row: Row, peak: float, peers: Sequence[str]) -> str:
    ours = row["ours"]
    stride = "x".join(map(str, layer.stride)) if layer.stride[0] != layer.stride[1] else str(layer.stride[0])
    groups = f"g{layer.groups}" if layer.groups > 1 else ""
    best = best_peer(row)
    return columns.row(
        layer.name,
        f"{layer.h}x{layer.w}",
        f"{layer.c}>{layer.k}",
        f"{layer.r}x{layer.s}/{stride}{groups}",
        row["n"],
        f"{layer.macs * row['n'] / 1e6:,.0f}" if layer.macs * row["n"] >= 1e7 else f"{layer.macs * row['n'] / 1e6:.2f}",
        f"{ours['median'] * 1e3:.3f}",
        spread(ours),
        f"{row['gflops']:.1f}",
        f"{row['gflops'] / peak:.0%}",
        row["kernel"],
        *(f"{row['peers'][peer]['median'] * 1e3:.3f}" for peer in peers),
        f"{best[1]:.2f}" if best else "",
    )


def model_columns(names: Sequence[str], peers: Sequence[str]) -> Columns:
    """The table of a run over whole models."""
    name = max([5, *map(len, names)])
    spec = [("model", -name), ("input", 11), ("N", 2), ("GMAC", 6), ("ms", 8), ("+-", 4), ("GF/s", 6), ("peak", 5)]
    return Columns([*spec, *((_short(peer), 10) for peer in peers), ("ratio", 5)])


def model_line(columns: Columns, row: Row, peak: float, peers: Sequence[str]) -> str:
    ours, best = row["ours"], best_peer(row)
    return columns.row(
        row["model"],
        row["shape"],
        row["n"],
        f"{row['macs'] * row['n'] / 1e9:.2f}",
        f"{ours['median'] * 1e3:.2f}",
        spread(ours),
        f"{row['gflops']:.1f}",
        f"{row['gflops'] / peak:.0%}",
        *(f"{row['peers'][peer]['median'] * 1e3:.2f}" for peer in peers),
        f"{best[1]:.2f}" if best else "",
    )


def _short(peer: str) -> str:
    return peer.replace("channels_last", "nhwc").replace("contiguous", "nchw")


def spread(timing: Mapping[str, float]) -> str:
    """Half the distance between the quartiles, in per cent of the median."""
    return f"{(timing['q3'] - timing['q1']) / 2 / timing['median']:.0%}"


def summary(doc: Document) -> str:
    """Geometric means, wins and losses of a run, by batch and kind of layer, and where it lost."""
    layers = [row for row in doc["rows"] if row["layer"] is not None]
    where = f"float32 FMA, {doc['machine']['isa']}, {doc['threads']} threads, measured in this run"
    lines = [f"peak {doc['peak_gflops']:.0f} GFLOP/s ({where})"]
    for n in sorted({row["n"] for row in layers}):
        rows = [row for row in layers if row["n"] == n]
        rate = geometric_mean(row["gflops"] for row in rows)
        share = rate / doc["peak_gflops"]
        lines.append(f"N={n}: {len(rows)} layers, geometric mean {rate:.1f} GFLOP/s ({share:.0%} of the peak)")
    titles = ["best peer's time / ours", "N", "count", "geo mean", "lowest", "wins", "losses", "lowest of"]
    cells = [[*_class_cells(c), c["wins"], c["losses"], c["lowest_of"]] for c in classes(doc["rows"])]
    if cells:
        lines.append(table(titles, cells))
    lost = [(best[1], best[0], row) for row in doc["rows"] if (best := best_peer(row)) and best[1] < 1]
    lost = [item for item in lost if "same_as" not in item[2]]
    if lost:
        lost.sort(key=lambda item: item[0])
        lines.append(f"slower than the best peer: {len(lost)}, the worst")
        lines += [f"  {ratio:.2f}  N={row['n']}  {_title(row)} ({peer})" for ratio, peer, row in lost[:_WORST]]
    return "\n".join(lines)


_WORST = 10  # rows named in a summary


def _class_cells(c: Mapping[str, Any]) -> list[Any]:
    return [c["kind"], c["n"], c["count"], f"{c['geometric_mean']:.2f}", f"{c['lowest']:.2f}"]


def compare(old: Document, new: Document) -> tuple[str, list[dict[str, Any]]]:
    """Two runs, row by row: the speed-up from old to new as (text, rows).

    A speed-up counts as a change when the quartiles do not overlap. Where both runs timed a same peer, the second
    figure divides out how the machine itself differed between the runs.
    """
    olds = {_key(row): row for row in old["rows"]}
    rows = []
    for row in new["rows"]:
        before = olds.get(_key(row))
        if before is None:
            continue
        a, b = before["ours"], row["ours"]
        common = [peer for peer in row["peers"] if peer in before["peers"]]
        gains = [row["peers"][peer]["ratio"] / before["peers"][peer]["ratio"] for peer in common]
        verdict = "faster" if b["q3"] < a["q1"] else "slower" if b["q1"] > a["q3"] else ""
        rows.append(
            dict(
                zip(("model", "layer", "n"), _key(row)),
                old=a["median"],
                new=b["median"],
                speedup=a["median"] / b["median"],
                normalised=geometric_mean(gains) if gains else None,
                verdict=verdict,
                kernels=[before.get("kernel"), row.get("kernel")],
            )
        )
    if not rows:
        raise DataError("the two files have no layer and batch in common")
    titles = ["layer", "N", "old ms", "new ms", "speed-up", "by peers", "verdict", "kernel"]
    lines = [
        [
            f"{r['model']} {r['layer'] or '(whole model)'}",
            r["n"],
            f"{r['old'] * 1e3:.3f}",
            f"{r['new'] * 1e3:.3f}",
            f"{r['speedup']:.2f}",
            "" if r["normalised"] is None else f"{r['normalised']:.2f}",
            r["verdict"],
            "" if r["kernels"][0] == r["kernels"][1] else f"{r['kernels'][0]} -> {r['kernels'][1]}",
        ]
        for r in rows
    ]
    counts = {verdict: sum(r["verdict"] == verdict for r in rows) for verdict in ("faster", "slower")}
    head = f"old: {describe(old)}\nnew: {describe(new)}\n"
    foot = f"geometric mean of the speed-ups {geometric_mean(r['speedup'] for r in rows):.3f} over {len(rows)} rows"
    foot += f"; {counts['faster']} faster, {counts['slower']} slower beyond the spread"
    return f"{head}{table(titles, lines)}\n{foot}", rows


def _key(row: Row) -> tuple[str, str | None, int]:
    return row["model"], row["layer"], row["n"]


def describe(doc: Document) -> str:
    """One line: what ran where and when."""
    machine = doc["machine"]
    peers = "".join(f", {TITLES[peer]} {version}" for peer, version in doc["peers"].items() if peer in TITLES)
    commit = f" ({doc['commit']})" if doc["commit"] else ""
    cores = f"{machine['cpu']}, {machine['isa']}, {doc['threads']} threads"
    return f"convkern {doc['version']}{commit}{peers}; {cores}; {doc['date'][:10]}"


def markdown(docs: Sequence[Document]) -> str:
    """The README's tables: layers by network, whole models, and how they were measured."""
    layers: dict[tuple[str, int], list[Row]] = defaultdict(list)
    models: list[Row] = []
    for doc in docs:
        for row in doc["rows"]:
            row = dict(row, share=row["gflops"] / doc["peak_gflops"])
            if row["layer"] is None:
                models.append(row)
            else:
                layers[row["model"], row["n"]].append(row)
    parts = []
    if layers:
        parts.append(
            "| layers of | N | layers | share of the FMA peak | best peer's time / ours | lowest | faster / slower |\n"
            "|---|---|---|---|---|---|---|\n"
            + "\n".join(_markdown_layers(name, n, rows) for (name, n), rows in layers.items())
        )
    found = [c for c in classes(row for doc in docs for row in doc["rows"]) if c["kind"] != "whole models"]
    if found:
        parts.append(
            "| kind of layer | N | layers | best peer's time / ours | lowest | faster / slower |\n"
            "|---|---|---|---|---|---|\n"
            + "\n".join(_markdown_row([*_class_cells(c), f"{c['wins']} / {c['losses']}"]) for c in found)
        )
    if models:
        parts.append(
            "| model | N | ours, ms | best peer, ms | which | its time / ours |\n|---|---|---|---|---|---|\n"
            + "\n".join(_markdown_model(row) for row in models)
        )
    parts.append("\n".join(f"Measured: {line}." for line in dict.fromkeys(map(describe, docs))))
    return "\n\n".join(parts)


def write_between_marks(path: str | os.PathLike[str], text: str) -> None:
    """Replace what stands between the lines <!-- bench:begin ... --> and <!-- bench:end --> of a file."""
    file = Path(path)
    old = file.read_text("utf-8")
    begin, end = re.search(r"<!-- bench:begin.*-->\n", old), old.find("<!-- bench:end -->")
    if begin is None or end < begin.end():
        raise DataError(f"{path}: no lines <!-- bench:begin --> and <!-- bench:end --> in it")
    file.write_text(f"{old[: begin.end()]}{text}\n{old[end:]}", "utf-8")


def _markdown_layers(name: str, n: int, rows: Sequence[Row]) -> str:
    share = geometric_mean(row["share"] for row in rows)
    ratios = [best[1] for row in rows if (best := best_peer(row))]
    cells = [name, n, len(rows), f"{share:.0%}"]
    if ratios:
        wins = sum(r >= 1 for r in ratios)
        cells += [f"{geometric_mean(ratios):.2f}", f"{min(ratios):.2f}", f"{wins} / {len(ratios) - wins}"]
    else:
        cells += ["", "", ""]
    return _markdown_row(cells)


def _markdown_model(row: Row) -> str:
    best = best_peer(row)
    cells = [row["model"], row["n"], f"{row['ours']['median'] * 1e3:.1f}"]
    cells += [f"{row['peers'][best[0]]['median'] * 1e3:.1f}", best[0], f"**{best[1]:.2f}**"] if best else ["", "", ""]
    return _markdown_row(cells)


def _markdown_row(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
