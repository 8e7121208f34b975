"""LeNet-5 and a small network on scikit-learn's handwritten digits: 1,797 pictures of 8x8 pixels, seconds of training.

python examples/digits.py                            # about 99 %
python examples/digits.py --model lenet5             # the network of 1998, on digits enlarged to 32x32
python examples/digits.py --model lenet5 --torch     # beside the same network in PyTorch
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from sklearn.datasets import load_digits

from convkern import Input, Model, get_model, set_seed
from convkern.layers import BatchNormalization, Conv2D, Dense, Dropout, Flatten, MaxPool2D, ReLU, Resizing
from convkern.train import Adam, OneCycle


def small() -> Model:
    image = Input((8, 8, 1))
    x = image
    for filters in (32, 64):
        x = Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = ReLU()(BatchNormalization(momentum=0.9)(x))
    x = MaxPool2D(2)(x)
    x = Dropout(0.3)(Flatten()(x))
    return Model(image, Dense(10, activation="softmax")(x))


def main(argv: Sequence[str] | None = None) -> float:
    """Train and return the accuracy on the held-out fifth."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=("small", "lenet5"), default="small")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--torch", action="store_true", help="train LeNet-5 and PyTorch's twin in turns")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    set_seed(args.seed)
    digits = load_digits()
    x, y = (digits.images / 16).astype(np.float32)[..., None], digits.target
    order = np.random.default_rng(0).permutation(len(x))
    x, y, count = x[order], y[order], len(x) * 4 // 5
    if args.model == "lenet5" or args.torch:
        x = Resizing(32, 32)(x)
    learn, judge = (x[:count], y[:count]), (x[count:], y[count:])
    if args.torch:
        from beside_torch import train_in_turns

        return train_in_turns("lenet5", (learn, judge), args.epochs, batch_size=32)[-1]["accuracy"]
    model = small() if args.model == "small" else get_model("lenet5")
    steps = args.epochs * -(-count // 32)
    model.compile(Adam(OneCycle(5e-3, steps)), "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(*learn, batch_size=32, epochs=args.epochs, verbose=2)
    _, accuracy = model.evaluate(*judge, verbose=0)
    print(f"{args.model}: {accuracy:.2%} of {len(x) - count} held-out digits")
    return accuracy


if __name__ == "__main__":
    main()
