"""Transfer: a trained network's features, a linear classifier on them, and fine-tuning the whole on one's own images.

`finetune` is the recipe of docs/training.md as one function (and `convkern finetune` as a command):

    1. split every class's images into those to learn from and those to judge by
    2. run the trained network, without its classifier, once over all images: their features
    3. train a linear classifier on the features: seconds
    4. put it on the network and train on, on augmented images and with smoothed labels: the classifier and the deepest
       third of the network's convolutions, these at 0.3 times the classifier's learning rate. What lies before them
       knows edges and textures from a million images and stays, and so do all batch norms: a small folder would spoil
       their statistics
    5. go half of the way: the mean of the weights before and after step 4 overfits less (Wortsman et al. 2022,
       arXiv:2109.01903)
    6. judge by the images that were held out; a classifier on colour histograms says what colours alone would do
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, ModelError, ShapeError
from ..weights import write_safetensors


def extract_features(
    model: Any,
    x: Any,
    y: Any = None,
    path: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    verbose: int = 1,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Run a network over images once, and keep what comes out.

    model: for instance get_model(..., include_top=False, pooling="avg"). x, y: arrays, or x alone: one epoch of batches
    (x, y) that knows its length (`image_dataset_from_directory`). path: a .safetensors file for "features" and
    "labels", which `convkern.weights.read_state_dict` reads; written whole or not at all. verbose: 1 shows a progress
    bar (tqdm).
    Returns features (N, ...) float32 and the labels, if there were any.
    Errors: as a call of the model; DataError for no images; WeightsError if the file cannot be written.

    >>> from convkern.models import get_model
    >>> backbone = get_model("squeezenet1_1", include_top=False, pooling="avg", input_shape=(64, 64, 3))
    >>> extract_features(backbone, np.zeros((3, 64, 64, 3), "f4"), verbose=0)[0].shape
    (3, 512)
    """
    if len(model.outputs) != 1:
        raise ModelError(f"extract_features: {model.name} has {len(model.outputs)} outputs, want one")
    batches: Iterable[Any]
    if isinstance(x, np.ndarray):
        if y is not None and len(y) != len(x):
            raise ShapeError(f"extract_features: got {len(x)} images and {len(y)} labels")
        starts = range(0, len(x), batch_size)
        batches = ((x[i : i + batch_size], None if y is None else y[i : i + batch_size]) for i in starts)
        count = len(starts)
    else:
        count = len(x)
        batches = (x[i] for i in range(count))
    if verbose:
        from ..model import progress

        batches = progress(count, batches)
    features, labels = [], []
    for batch in batches:
        images, label = batch if isinstance(batch, tuple) else (batch, None)
        features.append(model(images))
        if label is not None:
            labels.append(np.asarray(label))
    if not features:
        raise DataError("extract_features: got no images")
    made, known = np.concatenate(features), np.concatenate(labels) if labels else None
    if path is not None:
        write_safetensors(path, {"features": made} if known is None else {"features": made, "labels": known})
    return made, known


def linear_head(
    features: np.ndarray, labels: np.ndarray, classes: int, epochs: int = 100, weight_decay: float = 1e-3, seed: int = 0
) -> Any:
    """A linear classifier of features (logits), trained by Adam in batches of 32.

    Features are standardised for the training; the scale is folded into the classifier that is returned, a model of one
    Dense layer for features as they are.

    >>> x = np.float32([[0, 5], [1, 5], [0, 5], [1, 5]] * 8)
    >>> head = linear_head(x, x[:, 0].astype(int), 2)
    >>> head(np.float32([[0, 5], [1, 5]])).argmax(1).tolist()
    [0, 1]
    """
    from .. import Input, Model
    from ..layers import Dense
    from . import AdamW, CosineDecay

    mean, deviation = features.mean(0), features.std(0) + 1e-6 + 1e-3 * features.std()
    inputs = Input(features.shape[1:])
    head = Model(inputs, Dense(classes, kernel_initializer="zeros", name="head")(inputs))
    steps = epochs * -(-len(features) // 32)
    head.compile(
        AdamW(CosineDecay(3e-3, steps), weight_decay=weight_decay), "sparse_categorical_crossentropy", seed=seed
    )
    head.fit((features - mean) / deviation, labels, batch_size=32, epochs=epochs, verbose=0)
    kernel, bias = head.layers[-1].get_weights()
    kernel = kernel / deviation[:, None]
    head.layers[-1].set_weights([kernel, bias - mean @ kernel])
    return head


def deepest_layers(model: Any, share: float) -> list[Any]:
    """A network's layers from the first of the last `share` of its convolutions on (layers with a kernel count).

    model: one whose layers stand in their order, as those of the zoo. share: above 0, at most 1.
    Returns at least one layer with a kernel.

    >>> from convkern.models import get_model
    >>> [layer.name for layer in deepest_layers(get_model("lenet5"), 0.4) if layer.weights]
    ['fc2', 'fc3']
    """
    layers = list(model.layers)
    kernels = [i for i, layer in enumerate(layers) if any(len(param.shape) > 1 for param in layer.weights)]
    count = min(len(kernels), max(1, round(share * len(kernels))))
    return layers[kernels[-count] :] if kernels else layers


@dataclass
class Split:
    """Images to learn from and images to judge by, as indices."""

    training: np.ndarray
    held_out: np.ndarray


def stratified_split(labels: np.ndarray, classes: list[str], share: float, seed: int) -> Split:
    """The same share of every class is held out, at least one image, and at least one is left.

    Raises DataError for a class of fewer than two images, with its name.
    """
    if not 0 < share < 1:
        raise ShapeError(f"the share to hold out is {share}, want more than 0 and less than 1")
    rng = np.random.default_rng(seed)
    training, held_out = [], []
    for label, name in enumerate(classes):
        own = np.flatnonzero(labels == label)
        if len(own) < 2:
            raise DataError(f"the class {name!r} has {len(own)} image: want at least 2, one of them to judge by")
        own = rng.permutation(own)
        count = min(max(1, round(share * len(own))), len(own) - 1)
        held_out.append(own[:count])
        training.append(own[count:])
    return Split(np.sort(np.concatenate(training)), np.sort(np.concatenate(held_out)))


def colour_histograms(images: np.ndarray, bins: int = 8) -> np.ndarray:
    """The share of an image's pixels in each of bins**3 cells of its colours (0..255): what a classifier that sees
    neither shape nor texture has to go by.

    >>> colour_histograms(np.zeros((1, 4, 4, 3), "f4"), bins=2).tolist()
    [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    cells = np.clip((images * (bins / 256)).astype(np.int64), 0, bins - 1)
    index = (cells[..., 0] * bins + cells[..., 1]) * bins + cells[..., 2]
    flat = index.reshape(len(images), -1)
    return np.stack([np.bincount(row, minlength=bins**3) for row in flat]).astype(np.float32) / flat.shape[1]


def finetune(
    folder: str | os.PathLike[str],
    model: str = "tf_efficientnet_lite0",
    weights: Any = "imagenet",
    out: str | os.PathLike[str] | None = None,
    *,
    classes: list[str] | None = None,
    epochs: int = 30,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    label_smoothing: float = 0.1,
    deepest: float = 1 / 3,
    way: float = 0.5,
    hold_out: float = 0.25,
    size: int | None = None,
    crop: bool = False,
    seed: int = 0,
    verbose: int = 1,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Fit a published network to a folder of images, one folder inside it for each class; the recipe of this module.

    model, weights: as get_model. out: a folder for model.ckn (a model that takes pixels of 0..255 and gives
    probabilities), confusion.png, curves.png and report.json; nothing is written without it. epochs: of step 4; 0 stops
    after the linear classifier. learning_rate: of the classifier in step 4; the network's is 0.3 times it.
    label_smoothing: in step 4. deepest: the share of the network's convolutions that step 4 trains, counted from its
    output; 1 = all. way: how far the weights go from those before step 4 (0) to those after it (1). hold_out: share of
    each class to judge by.
    size: height and width in pixels; None = that of the published weights. crop: cut the centre out of images that are
        not square, instead of squeezing them: for photos of scenes, not for things that fill the picture.
    Returns the report: accuracies on the held-out images ("baseline", "linear", "finetuned"), the confusion matrix,
    recall by class, and "model".
    Errors: DataError for empty folders, broken images and classes of one image; WeightsError, Unsupported as get_model.
    """
    from .. import Input, Model, set_seed
    from ..data import FileBatches, ImageDataGenerator
    from ..data.directory import list_classes
    from ..layers import BatchNormalization, Dense, Dropout, Rescaling, Softmax, StochasticDepth
    from ..models import get_model, model_info
    from . import AdamW, CosineDecay, SparseCategoricalCrossentropy, TrainingCurves
    from .curves import check, confusion_matrix, plot_confusion

    for what, share in (("way", way), ("deepest", deepest)):
        if not 0 < share <= 1:
            raise ShapeError(f"{what}={share}, want more than 0 and at most 1")
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        for name in ("confusion.png", "curves.png"):
            check(Path(out) / name)
    set_seed(seed)
    info = model_info(model)
    side = size or info.size
    backbone = get_model(
        model, weights=weights, include_top=False, pooling="avg", input_shape=(side, side, info.channels)
    )
    files = list_classes(folder, classes)
    names = list(files.classes)
    split = stratified_split(files.labels, names, hold_out, seed)

    def batches(indices: np.ndarray, generator: Any, shuffle: bool) -> Any:
        return FileBatches(
            generator,
            files.take(indices),
            size=(side, side),
            class_mode="sparse",
            color_mode="rgb",
            interpolation=info.interpolation,
            keep_aspect_ratio=crop,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            endless=False,
        )

    plain = ImageDataGenerator()
    learn, judge = (batches(part, plain, False) for part in (split.training, split.held_out))
    say(f"{len(split.training)} images to learn from, {len(split.held_out)} to judge by, {len(names)} classes")

    image = Input((side, side, info.channels), name="image")
    mean, std = np.asarray(info.mean), np.asarray(info.std)
    normalised = Rescaling((1 / (255 * std)).tolist(), (-mean / std).tolist(), name="normalise")(image)
    features = backbone(normalised)
    backbone.trainable = False
    extractor = Model(image, features, name="features")
    x_learn, y_learn = extract_features(extractor, learn, verbose=verbose)
    x_judge, y_judge = extract_features(extractor, judge, verbose=verbose)
    assert y_learn is not None and y_judge is not None

    def accuracy(scores: np.ndarray) -> float:
        return float((scores.argmax(1) == y_judge).mean())

    colours = [np.concatenate([colour_histograms(b[i][0]) for i in range(len(b))]) for b in (learn, judge)]
    report: dict[str, Any] = dict(model_name=model, classes=names, training=len(y_learn), held_out=len(y_judge))
    report["baseline"] = accuracy(linear_head(colours[0], y_learn, len(names))(colours[1]))
    say(f"colour histograms, linear classifier: {report['baseline']:.1%} of the held-out images")
    head = linear_head(x_learn, y_learn, len(names), seed=seed)
    scores = head(x_judge)
    report["linear"] = accuracy(scores)
    say(f"features, linear classifier: {report['linear']:.1%}")

    dense = Dense(len(names), name="head")
    tuned = Model(image, Softmax(name="probabilities")(dense(Dropout(0.2)(features))), name=f"{model}_tuned")
    dense.set_weights(head.layers[-1].get_weights())
    if epochs:
        backbone.trainable = True
        trained = deepest_layers(backbone, deepest)
        for layer in backbone.layers:
            layer.trainable = layer in trained and not isinstance(layer, (BatchNormalization, StochasticDepth))
        augmented = ImageDataGenerator(
            horizontal_flip=True, rotation_range=15, zoom_range=0.15, width_shift_range=0.1, height_shift_range=0.1
        )
        examples = batches(split.training, augmented, True)
        steps = epochs * len(examples)
        schedule = CosineDecay(0.0, steps, warmup_target=learning_rate, warmup_steps=max(1, steps // 10))
        optimizer = AdamW(schedule, weight_decay=1e-4, multipliers={f"{backbone.name}/*": 0.3}, global_clipnorm=5.0)
        loss = SparseCategoricalCrossentropy(label_smoothing=label_smoothing)
        tuned.compile(optimizer, loss, metrics=["accuracy"], seed=seed)
        start = [param.value.copy() for param in tuned.weights]
        callbacks = [] if out is None else [TrainingCurves(Path(out) / "curves.png")]
        tuned.fit(examples, epochs=epochs, validation_data=judge, callbacks=callbacks, verbose=1 if verbose else 0)
        for param, value in zip(tuned.weights, start):
            param.assign(value + np.float32(way) * (param.value - value))
        scores = np.concatenate([tuned(judge[i][0]) for i in range(len(judge))])
        report["finetuned"] = accuracy(scores)
        say(f"fine-tuned: {report['finetuned']:.1%}")
    matrix = confusion_matrix(y_judge, scores.argmax(1), len(names))
    report["confusion"] = matrix.tolist()
    report["recall"] = {name: float(row[i] / row.sum()) for i, (name, row) in enumerate(zip(names, matrix))}
    if out is not None:
        tuned.save(Path(out) / "model.ckn")
        plot_confusion(matrix, names, Path(out) / "confusion.png")
        (Path(out) / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        say(f"wrote model.ckn, report.json and pictures to {os.fspath(out)}")
    return {**report, "model": tuned}
