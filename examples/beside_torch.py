"""A small network of the zoo and its twin in PyTorch, trained in turns: the same first weights, images, optimizer,
batch size and number of threads. The other examples use it for their --torch.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from convkern import get_model, get_num_threads
from convkern.train import Adam
from convkern.weights import state_dict


class ConvNet(nn.Module):
    """The lecture's, as get_model("convnet")."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 5), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(1600, 256), nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class LeNet5(nn.Module):
    """LeCun et al. 1998, as get_model("lenet5"): 28 pixels are padded to 32."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=(32 - side) // 2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.avg_pool2d(torch.tanh(self.conv1(x)), 2)
        x = F.avg_pool2d(torch.tanh(self.conv2(x)), 2)
        return self.fc3(torch.tanh(self.fc2(torch.tanh(self.fc1(x.flatten(1))))))


def twin_of(name: str, model: Any) -> nn.Module:
    """PyTorch's "convnet" or "lenet5" with the model's weights."""
    twin = ConvNet() if name == "convnet" else LeNet5(model.input_shape[0])
    twin.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state_dict(model).items()})
    return twin


def train_in_turns(name: str, data: tuple[Any, Any], epochs: int, batch_size: int) -> list[dict[str, float]]:
    """Epochs of "convnet" or "lenet5" with Adam 1e-3; after each the accuracies on the test images, and the seconds."""
    torch.set_num_threads(get_num_threads())
    (x_train, y_train), (x_test, y_test) = data
    model = get_model(name, input_shape=x_train.shape[1:])
    model.compile(Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
    twin = twin_of(name, model)
    optimizer = torch.optim.Adam(twin.parameters(), 1e-3, eps=1e-7)
    xt, yt = torch.from_numpy(x_train).movedim(-1, 1).contiguous(), torch.from_numpy(y_train.astype(np.int64))
    xv, yv = torch.from_numpy(x_test).movedim(-1, 1).contiguous(), torch.from_numpy(y_test.astype(np.int64))

    def torch_epoch() -> None:
        for part in torch.randperm(len(xt)).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(twin(xt[part]), yt[part]).backward()
            optimizer.step()

    rows = []
    for epoch in range(epochs):
        start = time.perf_counter()
        model.fit(x_train, y_train, batch_size=batch_size, epochs=1, verbose=0)
        seconds = time.perf_counter() - start
        start = time.perf_counter()
        torch_epoch()
        torch_seconds = time.perf_counter() - start
        accuracy = model.evaluate(x_test, y_test, batch_size=256, verbose=0)[1]
        with torch.no_grad():
            peer = float((twin(xv).argmax(1) == yv).float().mean())
        rows.append(dict(epoch=epoch + 1, accuracy=accuracy, torch=peer, seconds=seconds, torch_seconds=torch_seconds))
        print(
            f"epoch {epoch + 1}: convkern {accuracy:.2%} in {seconds:.2f} s, PyTorch {peer:.2%} in {torch_seconds:.2f} "
            f"s: {torch_seconds / seconds:.2f} times as fast",
            flush=True,
        )
    return rows
