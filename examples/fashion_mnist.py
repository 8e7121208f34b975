"""The lecture's convolutional network on Fashion-MNIST: 60,000 small grey pictures of clothes in ten classes.

    python examples/fashion_mnist.py                              # Adam, 5 epochs: about 90 %
    python examples/fashion_mnist.py --augment --epochs 15        # flips, dropout, a one-cycle schedule: 92.3 %
    python examples/fashion_mnist.py --augment --epochs 15 --model normed --batch-size 128   # a deeper network: 93.1 %
    python examples/fashion_mnist.py --model lenet5               # the network of 1998
    python examples/fashion_mnist.py --torch                      # the same network in PyTorch, in turns with ours

--data is the folder of the four IDX files (Debian: dataset-fashion-mnist). Needs NumPy; --curves needs matplotlib.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from convkern import Input, Model, get_model, set_seed
from convkern.data import ImageDataGenerator, load_mnist
from convkern.layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU
from convkern.train import Adam, AdamW, BackupAndRestore, Callback, OneCycle, TrainingCurves

CLASSES = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def convnet(dropout: float = 0.0) -> Model:
    image = Input(shape=(28, 28, 1))
    x = Conv2D(32, 5, activation="relu")(image)
    x = MaxPool2D(2, strides=2)(x)
    x = Conv2D(64, 3, activation="relu")(x)
    x = MaxPool2D(2, strides=2)(x)
    x = Flatten()(x)
    x = Dense(256, activation="relu")(x)
    x = Dropout(dropout)(x)
    x = Dense(10, activation="softmax")(x)
    return Model(inputs=image, outputs=x)


def normed() -> Model:
    """Not the lecture's network: three convolutions instead of two, each with a batch norm, and dropout between."""
    image = x = Input(shape=(28, 28, 1))
    for filters, rate in ((32, 0.1), (64, 0.1), (128, 0.3)):
        x = Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = MaxPool2D(2)(ReLU()(BatchNormalization(momentum=0.9)(x)))
        x = Dropout(rate)(x)
    x = Dense(256, activation="relu")(Flatten()(x))
    return Model(image, Dense(10, activation="softmax")(Dropout(0.3)(x)))


def load(folder: str, limit: int | None, validate: bool) -> tuple[Any, Any]:
    """Images as float32 in 0..1 of shape (N,28,28,1), and labels: to learn from and to judge by.

    validate: judge by the last twelfth of the training images (5,000) and leave the test images alone.
    """
    parts = []
    for images, labels in load_mnist(folder):
        images, labels = images[:limit], labels[:limit]
        parts.append((images.reshape(-1, 28, 28, 1).astype(np.float32) / 255, labels))
    if validate:
        (x, y), kept = parts[0], len(parts[0][0]) * 11 // 12
        return (x[:kept], y[:kept]), (x[kept:], y[kept:])
    return parts[0], parts[1]


def train(
    name: str,
    data: tuple[Any, Any],
    epochs: int,
    batch_size: int,
    augment: bool,
    curves: str | None = None,
    backup: str | None = None,
) -> tuple[Model, dict[str, list[float]]]:
    (x_train, y_train), validation = data
    if name == "convnet":
        model = convnet(0.4 if augment else 0.0)
    else:
        model = normed() if name == "normed" else get_model(name, input_shape=(28, 28, 1))
    callbacks: list[Callback] = [TrainingCurves(curves)] if curves else []
    callbacks += [BackupAndRestore(backup)] if backup else []
    common = dict(epochs=epochs, validation_data=validation, callbacks=callbacks)
    if augment:
        steps = -(-len(x_train) // batch_size)
        optimizer = Adam(OneCycle(2e-3, epochs * steps))
        if name == "normed":
            no_decay = ("*/bias", "*/gamma", "*/beta")
            optimizer = AdamW(OneCycle(3e-3, epochs * steps), weight_decay=0.01, no_decay=no_decay)
        generator = ImageDataGenerator(horizontal_flip=True)
        batches = generator.flow(x_train, y_train, batch_size=batch_size, seed=0)
        model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(batches, **common)
    else:
        model.compile(Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
        history = model.fit(x_train, y_train, batch_size=batch_size, **common)
    return model, history.history


def main(argv: Sequence[str] | None = None) -> float:
    """Train and return the accuracy on the images to judge by."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist", help="folder of the IDX files")
    parser.add_argument("--model", choices=("convnet", "lenet5", "normed"), default="convnet")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--limit", type=int, help="use only so many images of each part")
    parser.add_argument("--augment", action="store_true", help="flips, dropout and a one-cycle schedule")
    parser.add_argument("--curves", metavar="PNG", help="draw loss and accuracy over the epochs")
    parser.add_argument("--backup", metavar="FILE", help="a run that was broken off goes on from here")
    parser.add_argument("--validate", action="store_true", help="judge by 5,000 training images, not the test images")
    parser.add_argument("--torch", action="store_true", help="train PyTorch's twin in turns")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    set_seed(args.seed)
    data = load(args.data, args.limit, args.validate)
    if args.torch:
        if args.model == "normed":
            parser.error("--torch has twins of convnet and lenet5 only")
        from beside_torch import train_in_turns

        return train_in_turns(args.model, data, args.epochs, args.batch_size)[-1]["accuracy"]
    model, history = train(args.model, data, args.epochs, args.batch_size, args.augment, args.curves, args.backup)
    print(f"accuracy on {len(data[1][1]):,} images: {history['val_accuracy'][-1]:.2%}")
    wrong = (model.predict(data[1][0], batch_size=256).argmax(1) != data[1][1]).nonzero()[0][:5]
    print("mistakes: " + ", ".join(f"number {i} ({CLASSES[data[1][1][i]]})" for i in wrong))
    return history["val_accuracy"][-1]


if __name__ == "__main__":
    main()
