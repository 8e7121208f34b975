"""The command line: `convkern COMMAND ...`, also `python -m convkern`.

Each command is a function of the parsed arguments that prints text, hands the same facts to `--json`, and returns an
exit code: 0 = fine, 1 = a check failed, 2 = an error of ours, told in one line (a wrong argument, file or shape), 130 =
stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .errors import ConvkernError, DataError, Unsupported
from .terminal import Columns, bar, emit, seconds, size, table

# Commands


def info(args: argparse.Namespace) -> int:
    """What is installed here: version, instruction set, threads, measured peak, devices, kernels."""
    from . import _core, models
    from .bench import harness

    threads = args.threads or _core.num_threads()
    machine = harness.machine()
    kernels: dict[tuple[str, str], list[str]] = {}
    for row in _core.kernels():
        kernels.setdefault((row["family"], row["name"]), []).append(row["isa"])
    facts: dict[str, Any] = dict(
        version=_core.version(),
        isa=_core.isa(),
        isas=_core.isas(),
        threads=threads,
        machine=machine,
        peak_gflops=_core.peak_gflops(threads, 0.2),
        devices=["cpu"],
        models=len(models.list_models()),
        kernels=[dict(family=family, name=name, isas=isas) for (family, name), isas in kernels.items()],
    )
    if _json(args, facts):
        return 0
    print(f"convkern {facts['version']}, Python {machine['python']}, numpy {machine['numpy']}, {machine['system']}")
    print(f"processor   {machine['cpu']}, {machine['cores']} cores, last cache {machine['last_cache_bytes'] >> 20} MiB")
    print(f"ISA         {facts['isa']} (of {', '.join(facts['isas'])}; CONVKERN_ISA lowers it)")
    print(f"threads     {threads} (CONVKERN_NUM_THREADS)")
    print(f"peak        {facts['peak_gflops']:.0f} GFLOP/s, float32 multiply-adds, measured just now")
    print(f"devices     {', '.join(facts['devices'])}")
    print(f"models      {facts['models']} (convkern models)\n")
    rows = [[name, family, " ".join(isas)] for (family, name), isas in kernels.items()]
    print(table(["kernel", "family", "compiled for"], rows, left=3))
    return 0


def models(args: argparse.Namespace) -> int:
    """The names that get_model accepts, with their input sizes."""
    from .models import list_models, model_info

    facts = [dict(name=name, input_shape=model_info(name).input_shape) for name in list_models(args.pattern)]
    if not facts:
        raise Unsupported(f"no model matches {args.pattern!r}")
    if not _json(args, facts):
        print(table(["model", "input"], [[row["name"], "x".join(map(str, row["input_shape"]))] for row in facts]))
    return 0


def summary(args: argparse.Namespace) -> int:
    """Every layer's activations, parameters and multiply-adds, with totals in values and bytes."""
    model, shapes = _model(args.model, args.input)
    if not _json(args, lambda: model.summary_table(shapes)):
        model.summary(print_fn=print, input_shape=shapes)
    return 0


def explain(args: argparse.Namespace) -> int:
    """The plan of a model: steps, kernels, why they were chosen, workspace, bytes and time."""
    import numpy as np

    model, shapes = _model(args.model, args.input)
    model.precision = args.precision
    inputs = [np.zeros((args.batch, *shape), np.float32) for shape in shapes]
    plan = model.plan(shapes)
    steps = plan.steps()
    times = plan.profile(inputs, threads=args.threads, repeat=args.repeat)
    for step, step_time in zip(steps, times):
        step["seconds"] = step_time
    facts = dict(model=args.model, batch=args.batch, steps=steps, arena_bytes=plan.arena_bytes, seconds=sum(times))
    if _json(args, facts):
        return 0
    model.explain(shapes)
    rows = [
        [
            i,
            step["label"],
            step["kernel"],
            seconds(step["seconds"]),
            f"{step['seconds'] / facts['seconds']:.1%}",
            seconds(step["cost_us"] * 1e-6) if step["cost_us"] else "",
            seconds(step["tuned_us"] * 1e-6) if step["tuned_us"] else "",
        ]
        for i, step in sorted(enumerate(steps), key=lambda item: -item[1]["seconds"])[:10]
    ]
    print(f"\n{seconds(facts['seconds'])} for {args.batch} images, best of {args.repeat} runs; the slowest steps:")
    print(table(["", "step", "kernel", "time", "share", "predicted", "tuned"], rows, left=3))
    print("predicted: by the cost model, an image and core; tuned: measured for one image, of the table in use")
    return 0


def classify(args: argparse.Namespace) -> int:
    """The likeliest classes of photos."""
    return _classify(args, list(_images(args.paths)))


def demo(args: argparse.Namespace) -> int:
    """Classify three photos that come with scikit-image."""
    code = _classify(args, _demo_photos())
    if not code and args.json is None:
        print("\nyour own photos: convkern classify PATH...; how it ran: convkern explain tf_efficientnet_lite0")
    return code


def _demo_photos() -> list[Path]:
    import importlib.util

    spec = importlib.util.find_spec("skimage")  # found, not imported: the files are all that is needed
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "the demo's photos come with scikit-image, which is not installed: pip install 'convkern[demo]'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "data"
    return [folder / name for name in ("chelsea.png", "coffee.png", "motorcycle_left.png")]


def _classify(args: argparse.Namespace, files: Sequence[Path]) -> int:
    from . import _core
    from .models import decode_predictions, get_model, load_input

    threads = args.threads or _core.num_threads()
    model = get_model(args.model, weights=args.weights, precision=args.precision)
    kernels: Counter[str] = Counter()
    facts: list[dict[str, Any]] = []
    failed = 0
    for file in files:
        try:
            x = load_input(file, args.model)
        except (ConvkernError, OSError) as error:
            failed += 1
            _complain(str(error) if str(file) in str(error) else f"{file}: {error}")
            continue
        if not kernels:
            model(x, threads=threads)  # makes the plan: the times below are of the network alone
            kernels.update(step["kernel"] for step in model.plan(x.shape[1:]).steps())
        times = []
        for _ in range(5):
            start = time.perf_counter()
            y = model(x, threads=threads)
            times.append(time.perf_counter() - start)
        elapsed = sorted(times)[2]
        classes = [dict(label=label, probability=p) for _, label, p in decode_predictions(y, top=args.top)[0]]
        facts.append(dict(file=str(file), seconds=elapsed, classes=classes))
        if args.json != "-":
            _print_classes(facts[-1])
    if facts and not _json(
        args, dict(model=args.model, threads=threads, isa=_core.isa(), kernels=kernels, images=facts)
    ):
        per_image = sorted(row["seconds"] for row in facts)[len(facts) // 2]
        ran = ", ".join(f"{name} x{count}" for name, count in kernels.most_common())
        print(f"\n{args.model} on {_core.isa()}, {threads} threads: {seconds(per_image)} an image; kernels: {ran}")
    return 2 if failed else 0


def _print_classes(image: dict[str, Any]) -> None:
    emit(f"{Path(image['file']).name}  ({seconds(image['seconds'])})", "bold")
    width = max(len(row["label"]) for row in image["classes"])
    for rank, row in enumerate(image["classes"]):
        line = f"  {row['label']:<{width}}  {row['probability']:6.1%}  {bar(row['probability'])}"
        emit(line, "" if rank else "green")


def augment(args: argparse.Namespace) -> int:
    """A contact sheet of photos and of what random transforms make of them."""
    from .atomic import write_file
    from .data import ImageDataGenerator, sheet
    from .data.images import need_pillow

    need_pillow()
    from PIL import Image

    if Path(args.out).suffix.lower() != ".png":
        raise Unsupported(f"--out {args.out}: want a name that ends in .png")
    generator = ImageDataGenerator(
        rotation_range=args.rotation,
        width_shift_range=args.width_shift,
        height_shift_range=args.height_shift,
        shear_range=args.shear,
        zoom_range=args.zoom,
        horizontal_flip=args.flip,
        vertical_flip=args.vertical_flip,
        brightness_range=args.brightness,
        channel_shift_range=args.channel_shift,
        random_resized_crop=args.crop,
        rand_augment=args.rand_augment,
        fill_mode=args.fill,
        cval=args.cval,
    )
    height, width = _image_shape(args.size, 3)[:2]
    files = list(_images(args.paths))[: args.images]
    tiles: list[Any] = []
    labels: list[str] = []
    facts: list[dict[str, Any]] = []
    for index, file in enumerate(files):
        original, made = sheet.augmented(generator, file, args.count, (height, width), args.seed, index)
        tiles += [original, *(image for image, _ in made)]
        labels += [f"original\n{file.name}", *(sheet.describe(parameters) for _, parameters in made)]
        facts.append(dict(file=str(file), transforms=[parameters for _, parameters in made]))
    columns = args.columns or (min(6, args.count + 1) if len(files) == 1 else args.count + 1)
    picture = Image.fromarray(sheet.contact_sheet(tiles, labels, columns))
    write_file(args.out, lambda out: picture.save(out, "PNG"))
    if not _json(args, dict(out=args.out, size=picture.size, images=facts)):
        print(f"{args.out}: {len(files)} photo{'s'[: len(files) != 1]}, {args.count} transforms of each")
    return 0


def bench(args: argparse.Namespace) -> int:
    """Time convolution layers or whole models beside the peers."""
    against = _peers(args.peers, args.isa)
    _bench(args, against, layers=() if args.whole else args.targets, models=args.targets if args.whole else ())
    return 0


def bench_peers(args: argparse.Namespace) -> int:
    """Time layers and whole models beside PyTorch, ONNX Runtime and OpenVINO, interleaved in one run."""
    from .bench import plot
    from .bench.models import MODELS
    from .bench.peers import PEERS

    if args.plot is not None:
        plot.check(args.plot)  # now, not after an hour
    neither = args.layers is None and args.models is None
    layers = ["all"] if args.layers == [] or neither else args.layers or []
    models = MODELS if args.models == [] or neither else args.models or []
    doc = _bench(args, _peers(args.peers or ",".join(PEERS), args.isa), layers, models)
    if args.plot is not None:
        plot.draw(doc, args.plot)
    return 0


def bench_backward(args: argparse.Namespace) -> int:
    """Time the gradients of convolution layers, of their input and of their weights, beside PyTorch."""
    from . import _core
    from .bench import backward, harness, peers, report, shapefile

    threads = args.threads or _core.num_threads()
    against = [] if args.peers == "none" or peers.missing("torch") else ["torch"]
    doc = report.document(threads, args.seconds, peers.versions(against))
    peak, quiet = harness.Peak(threads), args.json == "-"
    names = [name for target in args.targets for name in (shapefile.names() if target == "all" else [target])]
    timed: dict[Any, dict[str, Any]] = {}  # by shape, batch and gradient
    if not quiet:
        print(backward.COLUMNS.head())
    try:
        for target in dict.fromkeys(names):
            for layer in _layers_of(target, args):
                if not any(fnmatch.fnmatch(layer.name, pattern) for pattern in args.filter or ["*"]):
                    continue
                for n, gradient in itertools.product(args.batch, args.gradients):
                    key = (replace(layer, name="", count=1), n, gradient)
                    if key in timed:
                        row = dict(timed[key], layer=layer.name, shape=str(layer), same_as=timed[key]["model"])
                    else:
                        row = backward.run(
                            layer, gradient, n, threads, bool(against), args.seconds, args.rounds, args.exact
                        )
                        peak.measure()
                    row["model"] = Path(target).stem
                    timed.setdefault(key, row)
                    doc["rows"].append(row)
                    if not quiet:
                        print(backward.line(row), flush=True)
    finally:  # what was measured before Ctrl-C or an error is kept
        doc["peak_gflops"], doc["means"] = peak.gflops, backward.means(doc["rows"])
        if doc["rows"] and not _json(args, doc):
            print(f"\n{backward.summary(doc['rows'])}")
    return 0


def _bench(
    args: argparse.Namespace, against: Sequence[str], layers: Sequence[str], models: Sequence[str]
) -> dict[str, Any]:
    """Run, print and hand to --json the rows of these shape files and whole models."""
    from . import _core
    from .bench import harness, peers, report

    threads = args.threads or _core.num_threads()
    doc = report.document(threads, args.seconds, peers.versions(against))
    doc["exact"] = args.exact
    peak, bandwidth = harness.Peak(threads), harness.bandwidth(threads)
    quiet = args.json == "-"
    try:
        for run, targets in ((_bench_layers, layers), (_bench_models, models)):
            for row in run(args, targets, against, threads, peak, quiet):
                doc["rows"].append(row)
    finally:  # what was measured before Ctrl-C or an error is kept
        doc["peak_gflops"] = peak.gflops
        doc["bandwidth"] = max(bandwidth, harness.bandwidth(threads))
        doc["classes"] = report.classes(doc["rows"])
        if doc["rows"]:
            _json(args, doc)
            if not quiet:
                print(f"\n{report.summary(doc)}")
    return doc


def _bench_layers(
    args: argparse.Namespace, targets: Sequence[str], against: Sequence[str], threads: int, peak: Any, quiet: bool
) -> Iterator[dict[str, Any]]:
    from .bench import layers, report, shapefile

    names = list(
        dict.fromkeys(name for target in targets for name in (shapefile.names() if target == "all" else [target]))
    )
    timed: dict[Any, dict[str, Any]] = {}  # by shape and batch
    for target in names:
        shapes = [
            s
            for s in _layers_of(target, args)
            if any(fnmatch.fnmatch(s.name, pattern) for pattern in args.filter or ["*"])
        ]
        if not shapes:
            raise DataError(f"no layer of {target} matches {' '.join(args.filter)}")
        columns = None
        for layer in shapes:
            for n in args.batch:
                same = timed.get((replace(layer, name="", count=1), n))
                if same is None:
                    row = layers.run(layer, n, threads, against, args.seconds, args.rounds, args.kernel, args.exact)
                    timed[replace(layer, name="", count=1), n] = row
                    peak.measure()
                else:
                    row = dict(same, layer=layer.name, shape=str(layer), same_as=f"{same['model']} {same['layer']}")
                row["model"] = Path(target).stem
                if not quiet:
                    if columns is None:
                        columns = report.layer_columns(shapes, list(row["peers"]))
                        print(f"\n{row['model']}: convolution + bias + ReLU, {threads} threads, ms\n{columns.head()}")
                    print(report.layer_line(columns, layer, row, peak.gflops, list(row["peers"])), flush=True)
                yield row


def _layers_of(target: str, args: argparse.Namespace) -> list[Any]:
    """The layers of a shape file or, for any other name, of the model of that name."""
    from .bench import shapefile
    from .models import list_models

    if target in shapefile.names() or target not in list_models():
        return shapefile.load(target)
    return shapefile.from_graph(_model(target, args.input)[0].graph())


def _bench_models(
    args: argparse.Namespace, targets: Sequence[str], against: Sequence[str], threads: int, peak: Any, quiet: bool
) -> Iterator[dict[str, Any]]:
    from .bench import models as whole
    from .bench import report

    columns = None
    for target in targets:
        model, _ = _model(target, args.input)
        model.exact, model.precision = args.exact, args.precision
        for n in args.batch:
            row = whole.run(target, model, n, threads, against, args.seconds, args.rounds)
            peak.measure()
            if not quiet:
                if columns is None:
                    columns = report.model_columns(targets, list(row["peers"]))
                    print(f"\nwhole models, {threads} threads, ms\n{columns.head()}")
                print(report.model_line(columns, row, peak.gflops, list(row["peers"])), flush=True)
            yield row


def _peers(wanted: str | None, isa: str | None = None) -> list[str]:
    """The installed ones of the peers asked for; without a wish PyTorch, if it is there."""
    from .bench import limit, peers

    if wanted is None:
        return [] if peers.missing("torch") else ["torch"]
    found = []
    for peer in filter(None, wanted.split(",")):
        if peer == "none":
            continue
        lacking = peers.missing(peer)
        if not lacking and isa is not None and peer in limit.NEED_MASK and not limit.masked():
            lacking = f"it cannot be limited to {isa} here (needs Linux, a CPU that lets CPUID be masked, a C compiler)"
        if lacking:
            _complain(f"peer {peer} left out: {lacking}")
        else:
            found.append(peer)
    return found


def bench_augment(args: argparse.Namespace) -> int:
    """Images a second of the lecture's augmentation settings, beside Keras' way with SciPy."""
    from .bench import augment, harness

    facts: dict[str, Any] = dict(machine=harness.machine(), size=args.size, workers=args.workers)
    facts["rows"] = augment.run(args.size, args.workers, args.seconds, args.rounds)
    if _json(args, facts):
        return 0
    rows = [
        [row["source"], f"{row['ours']:.0f}"]
        + (["-", "-"] if row["ratio"] is None else [f"{row['keras']:.0f}", f"{row['ratio']:.2f}"])
        for row in facts["rows"]
    ]
    print(f"{args.size}x{args.size}x3, {args.workers} threads, images a second")
    print(table(["source", "convkern", "as Keras (SciPy)", "ratio"], rows))
    return 0


def bench_training(args: argparse.Namespace) -> int:
    """Time training steps of whole networks beside PyTorch, and measure their peak memory."""
    from . import _core
    from .bench import harness, training

    threads = args.threads or _core.num_threads()
    against = bool(_peers(args.peers))
    rows = []
    for name in args.models:
        for n in args.batch:
            row = training.run(name, n, threads, against, args.seconds, args.rounds)
            if args.memory:
                kinds = ["convkern", *row["peers"]]
                row["peak_bytes"] = {kind: training.peak_memory(name, n, threads, kind) for kind in kinds}
            rows.append(row)
            if args.json != "-":
                best = min(row["peers"], key=lambda kind: row["peers"][kind]["median"], default=None)
                text = f"{name}, N={n}: {seconds(row['ours']['median'])} a step"
                if best is not None:
                    theirs = row["peers"][best]
                    text += f"; {best} {seconds(theirs['median'])}, {theirs['ratio']:.2f} times ours"
                if args.memory:
                    text += "; peak " + ", ".join(f"{kind} {size(b)}" for kind, b in row["peak_bytes"].items())
                print(text, flush=True)
    _json(args, dict(threads=threads, machine=harness.machine(), rows=rows))
    return 0


def bench_facts(args: argparse.Namespace) -> int:
    """Measure the first call, peak memory, how time grows with the batch, and what more threads gain."""
    from . import _core
    from .bench import facts, harness, peers

    threads = args.threads or _core.num_threads()
    against = [peer for peer in _peers(args.peers or ",".join(facts.PEERS)) if peer in facts.PEERS]
    rows = []
    try:
        for name in args.models:
            rows.append(facts.run(name, args.facts, threads, against, args.seconds, args.rounds))
    finally:  # what was measured before Ctrl-C or an error is kept
        doc = dict(threads=threads, machine=harness.machine(), peers=peers.versions(against), rows=rows)
        if rows and not _json(args, doc):
            print(facts.text(rows, threads))
    return 0


def finetune(args: argparse.Namespace) -> int:
    """Fit a published network to a folder of images, one folder inside it for each class."""
    from . import _core
    from .train.transfer import finetune as run

    if args.threads:
        _core.set_num_threads(args.threads)
    report = run(
        args.folder,
        args.model,
        args.weights,
        args.out,
        classes=args.classes,
        epochs=args.epochs,
        batch_size=args.batch,
        learning_rate=args.rate,
        deepest=args.deepest,
        hold_out=args.hold_out,
        size=args.size,
        crop=args.crop,
        seed=args.seed,
        verbose=0 if args.json == "-" else 1,
        say=(lambda text: None) if args.json == "-" else print,
    )
    facts = {key: value for key, value in report.items() if key != "model"}
    if not _json(args, facts):
        rows = [
            [name, f"{recall:.0%}", *row] for (name, recall), row in zip(report["recall"].items(), report["confusion"])
        ]
        print(table(["true class", "found", *(f"as {name}" for name in report["classes"])], rows))
    return 0


def bench_torch(args: argparse.Namespace) -> int:
    """Time ResNets in PyTorch, eager, before and after convkern.torch.replace_layers."""
    from . import _core
    from .bench import report

    try:
        from .bench import torch_resnet
    except ImportError as error:
        raise ImportError("bench torch needs PyTorch: pip install 'convkern[torch]'") from error
    threads = args.threads or _core.num_threads()
    doc = report.document(threads, args.seconds, {"torch": torch_resnet.torch.__version__})
    doc["format"] = "convkern-bench-torch-1"  # its rows are not those of the other benchmarks
    names = ("contiguous", "channels_last", "after", "fused")
    size = args.input[0] if args.input else 224
    for model, n in ((model, n) for model in args.models for n in args.batch):
        row = torch_resnet.run(model, n, threads, args.seconds, args.rounds, size, args.training)
        doc["rows"].append(row)
    if not _json(args, doc):
        cells = [
            [row["model"], row["n"], *(f"{row[name]['median'] * 1e3:.1f}" for name in names)]
            + [row["ratio"], row["ratio_fused"]]
            for row in doc["rows"]
        ]
        titles = [
            "model",
            "N",
            "torch, contiguous",
            "torch, channels_last",
            "replace_layers",
            "fuse=True",
            "ratio",
            "fused",
        ]
        what = "training steps" if args.training else "inference"
        print(f"ResNets in PyTorch, eager, {what}, {threads} threads, ms; ratios to the better of torch's two\n")
        print(table(titles, [[f"{cell:.2f}" if isinstance(cell, float) else cell for cell in line] for line in cells]))
        print(report.describe(doc))
    return 0


def bench_compare(args: argparse.Namespace) -> int:
    """Compare two runs, for instance of two commits, row by row."""
    from .bench import report

    text, rows = report.compare(report.read(args.old), report.read(args.new))
    if not _json(args, rows):
        print(text)
    return 0


def bench_table(args: argparse.Namespace) -> int:
    """Print runs as Markdown tables, as in the README."""
    from .bench import plot, report

    docs = [report.read(file) for file in args.files]
    if args.plot is not None:
        if len(docs) != 1:
            raise Unsupported(f"--plot draws one run, got {len(docs)} files")
        plot.draw(docs[0], args.plot)
    if _json(args, docs):
        return 0
    text = report.markdown(docs)
    if args.into is None:
        print(text)
    else:
        report.write_between_marks(args.into, text)
    return 0


def tune(args: argparse.Namespace) -> int:
    """Measure every kernel on the layers of models here, and keep what beats the cost model in a table for this CPU."""
    from . import _core, tuning
    from .bench import shapefile
    from .tuning import measure

    threads = args.threads or _core.num_threads()
    bf16 = args.precision == "bf16"
    layers = [layer for file in args.layers or () for layer in shapefile.load(file)]
    for name in args.models:
        model, shapes = _model(name, args.input)
        layers += measure.problems(model.plan(shapes).graph)
    if not layers:
        raise Unsupported("tune: name models, or files of layers with --layers")
    path = Path(args.output) if args.output else tuning.user_file()
    rows = tuning.read(path) if path.is_file() else {}
    facts: list[dict[str, Any]] = []
    for layer in measure.distinct(layers):
        choice = measure.measure(layer, threads, bf16=bf16, seconds=args.seconds, rounds=args.rounds)
        rows[choice.key] = (choice.best, choice.us)
        facts.append(
            dict(
                layer=str(layer),
                problem=choice.key,
                model=choice.model,
                best=choice.best,
                gain=choice.gain(choice.best),
                seconds=dict(choice.seconds),
            )
        )
        if args.json != "-":
            _print_choice(choice, first=len(facts) == 1)
    tuning.write(path, rows, isa=_core.isa(), threads=threads, version=_core.version())
    changed = sum(row["best"] != row["model"] for row in facts)
    if not _json(args, dict(file=str(path), batches=measure.BATCHES, rows=facts)):
        found = f"{changed} of {len(facts)} layers have a kernel more than {measure.MARGIN - 1:.0%} faster"
        print(f"\n{found} than the cost model's choice; written to {path}")
        if args.output:
            print(f"plans read it with CONVKERN_TUNE={path}")
    return 0


def _print_choice(choice: Any, first: bool) -> None:
    columns = Columns(
        [
            ("layer", -44),
            ("cost model", -15),
            ("us, N=1, 8", 17),
            ("measured best", -15),
            ("us, N=1, 8", 17),
            ("gain", 5),
        ]
    )
    if first:
        print(columns.head())

    def us(kernel: str) -> str:
        return ", ".join(f"{1e6 * s:.0f}" for s in choice.seconds[kernel])

    layer, best = choice.layer, choice.best
    text = f"{layer.h}x{layer.w}x{layer.c} to {layer.k}, {layer.r}x{layer.s}/{layer.stride[0]}"
    text += f" g{layer.groups}" if layer.groups > 1 else ""
    other = (best, us(best), f"{choice.gain(best):.2f}") if best != choice.model else ("", "", "")
    print(columns.row(f"{text} {layer.name[:20]}", choice.model, us(choice.model), *other), flush=True)


def precision(args: argparse.Namespace) -> int:
    """What bfloat16 does to a model: agreement with float32 on photos, error of the logits, speed."""
    from . import _core
    from . import precision as check
    from .models import get_model, load_input

    threads = args.threads or _core.num_threads()
    full, rounded = (get_model(args.model, weights=args.weights, precision=name) for name in ("float32", "bf16"))
    files = list(_images(args.paths)) or _demo_photos()
    inputs = [load_input(file, args.model) for file in files]
    facts = check.compare(full, rounded, inputs, threads=threads)
    facts = dict(
        model=args.model, isa=_core.isa(), bf16=_core.bf16(), threads=threads, files=list(map(str, files)), **facts
    )
    if _json(args, facts):
        return 0
    rows = [
        [
            Path(file).name,
            row["top1"],
            row["top1_bf16"],
            f"{row['max']:.3g}",
            f"{row['rms']:.3g}",
            f"{row['cosine']:.6f}",
        ]
        for file, row in zip(facts["files"], facts["images"])
    ]
    print(table(["photo", "float32", "bf16", "max error", "RMS error", "cosine"], rows, left=3))
    same = (
        f"the same top-1 class on {facts['top1_agree']} of {len(rows)} photos, the same top-5 on {facts['top5_agree']}"
    )
    print(f"\n{args.model}, bfloat16 by {facts['bf16']}: {same}")
    print(f"logits of RMS {facts['logits_rms']:.3g} differ by RMS {facts['rms']:.3g}, at most {facts['max']:.3g}")
    for n, times in facts["speed"].items():
        each = ", ".join(f"{name} {seconds(times[name])}" for name in ("float32", "bf16"))
        print(f"{n} images: {each}: {times['ratio']:.2f} times as fast")
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check every kernel on every instruction set against the reference kernels."""
    from . import verify as check

    start = time.perf_counter()
    tty = sys.stderr.isatty()

    def progress(isa: str, done: int, count: int) -> None:
        if tty:
            print(f"\r{isa}: {done} of {count}", end="\033[K", file=sys.stderr, flush=True)

    result = check.run(args.count, args.seed, progress)
    if tty:
        print("\r", end="\033[K", file=sys.stderr)
    result["seconds"] = time.perf_counter() - start
    if not _json(args, result):
        names = list(dict.fromkeys(kernel for kernels in result["checks"].values() for kernel in kernels))
        lines = [[name, *(kernels.get(name, 0) for kernels in result["checks"].values())] for name in names]
        print(table(["checks of", *result["checks"]], lines))
        for failure in result["failures"][:20]:
            emit(f"FAILED {failure}", "red")
        total = sum(sum(kernels.values()) for kernels in result["checks"].values())
        verdict = f"{len(result['failures'])} failed" if result["failures"] else "all agree with the reference"
        print(f"{result['problems']} problems, {total} checks in {result['seconds']:.1f} s: {verdict}")
    return 1 if result["failures"] else 0


# What commands share


def _model(name: str, size: tuple[int, ...] | None) -> tuple[Any, list[tuple[int, ...]]]:
    """A model by its name, with random weights, or from a file of Model.save; and the shapes of its inputs.

    size: as given by --input; it takes the place of the published size, or of open sizes in a file (224 without it).
    """
    from .model import load_model
    from .models import get_model, list_models, model_info

    if name in list_models() or not os.path.isfile(name):
        model = get_model(name, input_shape=_image_shape(size, model_info(name).channels) if size else None)
        return model, [model.input_shape]
    model = load_model(name)
    return model, [
        shape if size is None else _image_shape(size, shape[-1])
        for shape in (tuple(n or 224 for n in tensor.shape) for tensor in model.inputs)
    ]


def _image_shape(size: tuple[int, ...], channels: int) -> Any:
    return {1: (*size, *size, channels), 2: (*size, channels)}.get(len(size), size)


def _images(paths: Sequence[str]) -> Iterator[Path]:
    """The files named, and the images inside the folders named."""
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _IMAGES and p.is_file())
            if not found:
                raise DataError(f"{path}: no images in this folder (looked for {' '.join(sorted(_IMAGES))})")
            yield from found
        else:
            yield path


_IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def _json(args: argparse.Namespace, facts: Any) -> bool:
    """Hand the facts of a command to --json; True if they went to standard output, in place of text."""
    if args.json is None:
        return False
    text = json.dumps(facts() if callable(facts) else facts, indent=1, default=_plain)
    if args.json == "-":
        print(text)
        return True
    try:
        Path(args.json).write_text(text + "\n", "utf-8")
    except OSError as error:
        raise DataError(f"--json: {error}") from None
    return False


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} in the facts of a command")


def _complain(text: str) -> None:
    print(f"convkern: {text}", file=sys.stderr)


# Arguments


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _count(text: str) -> int:
    """An integer of at least 0."""
    return 0 if text.strip() == "0" else _positive(text)


def _sizes(text: str) -> tuple[int, ...]:
    """224, 224x320 or 224x320x3."""
    sizes = tuple(_positive(part) for part in text.split("x"))
    if len(sizes) > 3:
        raise argparse.ArgumentTypeError(f"{text}: want SIZE, HxW or HxWxC")
    return sizes


def parser() -> argparse.ArgumentParser:
    """The argument parser of all commands."""
    top = argparse.ArgumentParser(prog="convkern", description="Fast convolutional networks on the CPU.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], threads: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        command.set_defaults(run=run)
        command.add_argument(
            "--json",
            nargs="?",
            const="-",
            metavar="FILE",
            help="the same facts as JSON, to FILE or in place of the text",
        )
        if threads:
            command.add_argument(
                "--threads",
                type=_positive,
                default=0,
                metavar="N",
                help="number of threads (default: CONVKERN_NUM_THREADS)",
            )
        return command

    def of_model(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "model", metavar="MODEL", help="a name of `convkern models`, or a file written by Model.save"
        )
        command.add_argument(
            "--input", type=_sizes, metavar="SIZE", help="input size: SIZE, HxW or HxWxC (default: as published)"
        )

    def of_precision(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--precision",
            choices=("float32", "bf16"),
            default="float32",
            help="bf16: products in bfloat16, if the CPU has them",
        )

    def of_photos(command: argparse.ArgumentParser) -> None:
        command.add_argument("--model", default="tf_efficientnet_lite0", metavar="NAME")
        command.add_argument(
            "--weights",
            default="imagenet",
            metavar="FILE",
            help="a weight file (default: those of an installed package)",
        )
        command.add_argument("--top", type=_positive, default=5, metavar="N", help="classes to print for each photo")

    add("info", info)
    add("models", models, threads=False).add_argument(
        "pattern", nargs="?", default="*", help="a shell pattern, as 'resnet*'"
    )
    of_model(add("summary", summary, threads=False))

    command = add("classify", classify)
    command.add_argument("paths", nargs="+", metavar="PATH", help="photos, or folders of them")
    of_photos(command)
    of_precision(command)
    command = add("demo", demo)
    of_photos(command)
    of_precision(command)

    command = add("finetune", finetune)
    command.add_argument("folder", metavar="FOLDER", help="holds a folder of images for each class")
    command.add_argument("--model", default="tf_efficientnet_lite0", metavar="NAME")
    command.add_argument(
        "--weights", default="imagenet", metavar="FILE", help="a weight file (default: those of an installed package)"
    )
    command.add_argument("--out", metavar="FOLDER", help="where model.ckn, report.json, confusion.png, curves.png go")
    command.add_argument(
        "--classes", nargs="+", metavar="NAME", help="the folders to use, in this order (default: all)"
    )
    command.add_argument(
        "--epochs", type=_count, default=30, metavar="N", help="of fine-tuning (default 30); 0: the classifier alone"
    )
    command.add_argument("--batch", type=_positive, default=16, metavar="N", help="images in a step (default 16)")
    command.add_argument("--rate", type=float, default=1e-3, help="learning rate of the classifier (default 0.001)")
    command.add_argument(
        "--deepest", type=float, default=1 / 3, metavar="SHARE", help="of the convolutions is trained on (default 1/3)"
    )
    command.add_argument("--hold-out", type=float, default=0.25, metavar="SHARE", help="of each class, to judge by")
    command.add_argument("--size", type=_positive, metavar="N", help="pixels a side (default: as published)")
    command.add_argument("--crop", action="store_true", help="cut the centre out instead of squeezing images")
    command.add_argument("--seed", type=int, default=0)

    command = add("augment", augment, threads=False)
    command.add_argument("paths", nargs="+", metavar="PATH", help="photos, or folders of them")
    command.add_argument("--out", required=True, metavar="FILE", help="the contact sheet, a PNG")
    command.add_argument(
        "--count", type=_positive, default=11, metavar="N", help="transforms of each photo (default 11)"
    )
    command.add_argument("--images", type=_positive, default=6, metavar="N", help="photos at most (default 6)")
    command.add_argument("--columns", type=_positive, metavar="N", help="images in a row")
    command.add_argument("--size", type=_sizes, default=(160,), metavar="SIZE", help="of each image (default 160)")
    command.add_argument("--seed", type=int, default=0)
    for name, default, text in (
        ("rotation", 40.0, "degrees either way"),
        ("width-shift", 0.2, "share of the width, or pixels from 1 on"),
        ("height-shift", 0.2, "share of the height, or pixels from 1 on"),
        ("shear", 0.2, "degrees either way"),
        ("zoom", 0.2, "share either way"),
        ("channel-shift", 0.0, "added to all values, either way"),
        ("cval", 0.0, "what --fill constant shows"),
    ):
        command.add_argument(
            f"--{name}", type=float, default=default, metavar="X", help=f"{text} (default {default:g})"
        )
    command.add_argument("--flip", action=argparse.BooleanOptionalAction, default=True, help="mirror every other image")
    command.add_argument("--vertical-flip", action="store_true", help="turn every other image upside down")
    command.add_argument("--brightness", type=float, nargs=2, metavar=("LEAST", "MOST"), help="factors, as 0.6 1.4")
    command.add_argument("--crop", type=float, nargs=2, metavar=("LEAST", "MOST"), help="shares of the area, as 0.08 1")
    command.add_argument(
        "--rand-augment", type=int, nargs=2, metavar=("COUNT", "MAGNITUDE"), help="operations and strength, as 2 9"
    )
    command.add_argument("--fill", default="nearest", metavar="MODE", help="nearest, reflect, wrap or constant")

    command = add("explain", explain)
    of_model(command)
    of_precision(command)
    command.add_argument("--batch", type=_positive, default=1, metavar="N", help="images in the timed run")
    command.add_argument(
        "--repeat", type=_positive, default=5, metavar="N", help="timed runs, of which the best counts"
    )

    def of_bench(command: argparse.ArgumentParser, default: str) -> None:
        command.add_argument("--batch", type=_positive, nargs="+", default=[1], metavar="N")
        command.add_argument(
            "--peers", metavar="P,P", help=f"torch,torch.compile,onnxruntime,openvino or none (default: {default})"
        )
        command.add_argument(
            "--filter", nargs="+", metavar="PATTERN", help="only layers whose names match, as 'layer1.*'"
        )
        command.add_argument("--input", type=_sizes, metavar="SIZE", help="input size of models")
        command.add_argument("--exact", action="store_true", help="no algorithm that changes the rounding (Winograd)")
        of_precision(command)
        command.add_argument(
            "--seconds", type=float, default=0.2, help="counted time for each problem and contestant (default 0.2)"
        )
        command.add_argument(
            "--rounds", type=_positive, default=7, help="alternations between the contestants (default 7)"
        )

    def of_isa(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--isa",
            choices=("avx2",),
            help="all contestants on fewer instructions than this machine has (bench/limit.py)",
        )

    command = add("bench", bench)
    of_isa(command)
    command.add_argument(
        "targets", nargs="*", default=["resnet50"], metavar="WHAT", help="shape files, models, or 'all' shape files"
    )
    command.add_argument("--model", dest="whole", action="store_true", help="time whole models instead of layers")
    command.add_argument("--kernel", default="", metavar="NAME", help="force a kernel of `convkern info`")
    of_bench(command, "torch if installed")

    command = add("bench peers", bench_peers)
    command.set_defaults(kernel="")
    of_isa(command)
    command.add_argument(
        "--layers", nargs="*", metavar="WHAT", help="shape files, models, or 'all' shape files (the default)"
    )
    command.add_argument("--models", nargs="*", metavar="NAME", help="whole models (default: nine of them)")
    command.add_argument("--plot", metavar="FILE", help="draw rooflines and bars, as PNG, SVG or PDF")
    of_bench(command, "all that are installed")

    command = add("bench augment", bench_augment, threads=False)
    command.add_argument("--size", type=_positive, default=224, metavar="N", help="pixels a side (default 224)")
    command.add_argument("--workers", type=_positive, default=2, metavar="N", help="threads of each (default 2)")
    command.add_argument("--seconds", type=float, default=2.0, help="counted time for each contestant (default 2)")
    command.add_argument("--rounds", type=_positive, default=7, help="alternations between the two (default 7)")

    command = add("bench torch", bench_torch)
    command.add_argument("models", nargs="*", default=["resnet50"], metavar="MODEL", help="resnet18, resnet50")
    command.add_argument("--training", action="store_true", help="training steps (default: inference)")
    command.add_argument("--batch", type=_positive, nargs="+", default=[1, 8], metavar="N")
    command.add_argument("--input", type=_sizes, metavar="SIZE", help="height and width of the images (default: 224)")
    command.add_argument("--seconds", type=float, default=2.0, help="counted time for each contestant (default 2)")
    command.add_argument("--rounds", type=_positive, default=7, help="alternations between the contestants (default 7)")

    command = add("bench backward", bench_backward)
    command.add_argument(
        "targets", nargs="*", default=["resnet50"], metavar="WHAT", help="shape files, models, or 'all' shape files"
    )
    command.add_argument(
        "--gradients", nargs="+", choices=("data", "weight"), default=["data", "weight"], help="default: both"
    )
    of_bench(command, "torch if installed")

    command = add("bench training", bench_training)
    command.add_argument("models", nargs="*", default=["vgg16", "resnet50", "mobilenet_v2"], metavar="NAME")
    command.add_argument("--batch", type=_positive, nargs="+", default=[8], metavar="N")
    command.add_argument("--peers", metavar="P", help="torch or none (default: torch if installed)")
    command.add_argument("--memory", action="store_true", help="peak memory too, in a process for each contestant")
    command.add_argument("--seconds", type=float, default=2.0, help="counted time for each contestant (default 2)")
    command.add_argument("--rounds", type=_positive, default=5, help="alternations between them (default 5)")

    command = add("bench facts", bench_facts)
    command.add_argument("models", nargs="*", default=["resnet50", "vgg16"], metavar="NAME")
    facts = ("first", "memory", "batch", "threads")
    command.add_argument("--facts", nargs="+", choices=facts, default=facts, help="default: all")
    command.add_argument(
        "--peers", metavar="P,P", help="torch,onnxruntime,openvino or none (default: all that are installed)"
    )
    command.add_argument("--seconds", type=float, default=2.0, help="counted time for each batch size (default 2)")
    command.add_argument("--rounds", type=_positive, default=7, help="alternations between them (default 7)")

    command = add("bench compare", bench_compare, threads=False)
    command.add_argument("old")
    command.add_argument("new")
    command = add("bench table", bench_table, threads=False)
    command.add_argument("files", nargs="+")
    command.add_argument("--plot", metavar="FILE", help="draw the run, as PNG, SVG or PDF")
    command.add_argument(
        "--into", metavar="FILE", help="replace what stands between <!-- bench:begin --> and :end --> there"
    )

    command = add("tune", tune)
    command.add_argument("models", nargs="*", metavar="MODEL", help="models whose layers to measure")
    command.add_argument("--input", type=_sizes, metavar="SIZE", help="input size of the models")
    command.add_argument(
        "--layers", nargs="+", metavar="FILE", help="shape files, or names of those of `convkern bench`"
    )
    command.add_argument(
        "--output", metavar="FILE", help="the table to write or extend (default: the user's, which plans read)"
    )
    command.add_argument(
        "--seconds", type=float, default=0.05, help="counted time for each kernel and batch (default 0.05)"
    )
    command.add_argument("--rounds", type=_positive, default=5, help="alternations between the kernels (default 5)")
    of_precision(command)

    command = add("precision", precision)
    command.add_argument("paths", nargs="*", metavar="PATH", help="photos, or folders of them (default: the demo's)")
    of_photos(command)

    command = add("verify", verify, threads=False)
    command.add_argument("--count", type=_positive, default=400, help="problems (default 400)")
    command.add_argument("--seed", type=int, default=0)
    return top


BENCHES = (["augment"], ["backward"], ["compare"], ["facts"], ["peers"], ["table"], ["torch"], ["training"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["bench"] and words[1:2] in BENCHES:
        words[:2] = [" ".join(words[:2])]
    args = parser().parse_args(words)
    try:
        if getattr(args, "isa", None) is not None:
            from .bench import limit

            if not limit.limited(args.isa):
                return limit.run(words, args.isa)
        return args.run(args)
    except ConvkernError as error:
        _complain(f"error: {error}")
        return 2
    except ImportError as error:
        if error.__cause__ is None:  # not one that says which package to install
            raise
        _complain(f"error: {error}")
        return 2
    except KeyboardInterrupt:  # arrives between two calls of the compiled module
        _complain("stopped")
        return 130
    except BrokenPipeError:  # `convkern info | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
