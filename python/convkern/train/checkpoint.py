"""Checkpoints: everything a training needs to go on bit for bit, in one file.

The file is a model file (safetensors: the model's tensors under their names, the architecture as JSON in the
metadata) with two things more: tensors below "convkern.training/" (the optimizer's slots, arrays of callbacks) and, as
JSON in the metadata, counters, the learning rate, the place in the epoch, sums of its metrics, the seed, and the states
of callbacks and data. It is written whole or not at all, and checked before anything changes.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from ..errors import CheckpointError, Unsupported, WeightsError
from ..weights import read_state_dict, state_dict, write_safetensors
from ..weights.names import TRAINING, load_state_dict, mismatches

_KEY = "convkern.training"
_FORMAT = 1


def save(model: Any, trainer: Any, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint. Raises WeightsError if it cannot be written (the old file is then as it was)."""
    arrays, optimizer = trainer.optimizer.state_dict()
    tensors = {**state_dict(model), **{f"{TRAINING}optimizer/{key}": array for key, array in arrays.items()}}
    states = []
    for number, callback in enumerate(trainer.callbacks.callbacks if trainer.callbacks is not None else ()):
        states.append([type(callback).__name__, callback.get_state()])
        for i, array in enumerate(callback.get_arrays()):
            tensors[f"{TRAINING}callback/{number}/{i}"] = array
    facts = {
        "format": _FORMAT,
        "optimizer": optimizer,
        "config": _plain(trainer.optimizer.get_config()),
        "seed": trainer.seed,
        "batches": trainer.batches,
        "started": trainer.started,
        "place": list(trainer.place),
        "totals": trainer.totals,
        "metrics": [[name, metric.state] for _, name, metric in trainer.metrics],
        "callbacks": states,
        "data": None if trainer.source is None else trainer.source.get_state(),
    }
    metadata = {_KEY: json.dumps(facts)}
    try:
        metadata["convkern"] = model.to_json()
    except Unsupported:
        pass  # layers that JSON has no form for: the file continues a training, but load_model cannot read it
    write_safetensors(path, tensors, metadata)


def read(model: Any, trainer: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint, checked: it belongs to this model, this optimizer and these metrics. Nothing is changed.

    Raises CheckpointError (WeightsError for a broken file) with what came and what was wanted.
    """
    from ..model import metadata_of

    name = os.fspath(path)
    tensors = read_state_dict(path)
    text = metadata_of(path).get(_KEY)
    if text is None:
        raise CheckpointError(f"{name}: holds weights but no training; load_weights or load_model read it")
    try:
        facts = json.loads(text)
        if facts["format"] != _FORMAT:
            raise CheckpointError(f"{name}: a checkpoint of format {facts['format']!r}, this version reads {_FORMAT}")
        wrong = mismatches(model, tensors)
        if wrong:
            lines = [f"{key}: {problem}" for key, problem in wrong.items()]
            raise CheckpointError(f"{name}: a checkpoint of another model:\n  " + "\n  ".join(lines[:10]))
        prefix = f"{TRAINING}optimizer/"
        slots = {key.removeprefix(prefix): array for key, array in tensors.items() if key.startswith(prefix)}
        shapes = {key: param.shape for key, param in model.named_params().items()}
        trainer.optimizer.check_state(slots, facts["optimizer"], shapes)
        names = [metric for metric, _ in facts["metrics"]]
        own = [metric for _, metric, _ in trainer.metrics]
        if names != own and facts["place"][1]:
            raise CheckpointError(f"{name}: written within an epoch, with the metrics {names}; this run has {own}")
    except CheckpointError as error:
        raise CheckpointError(str(error) if name in str(error) else f"{name}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise WeightsError(f"{name}: a broken checkpoint ({type(error).__name__}: {error})") from None
    return {**facts, "tensors": tensors, "slots": slots}


def restore(model: Any, trainer: Any, state: dict[str, Any]) -> None:
    """Put a model and its training where the checkpoint was written."""
    load_state_dict(model, state["tensors"])
    trainer.optimizer.load_state(state["slots"], state["optimizer"])
    trainer.seed, trainer.batches, trainer.started = state["seed"], state["batches"], state["started"]
    trainer.place = (int(state["place"][0]), int(state["place"][1]))
    trainer.totals = [float(state["totals"][0]), int(state["totals"][1])]
    for (_, _, metric), (_, values) in zip(trainer.metrics, state["metrics"]):
        metric.state = values
    waiting = list(enumerate(state["callbacks"]))
    for callback in trainer.callbacks.callbacks:
        for entry in waiting:
            number, (kind, values) = entry
            if kind == type(callback).__name__:
                arrays: list[np.ndarray] = []
                while f"{TRAINING}callback/{number}/{len(arrays)}" in state["tensors"]:
                    arrays.append(np.array(state["tensors"][f"{TRAINING}callback/{number}/{len(arrays)}"]))
                if values is not None:
                    callback.set_state(values)
                callback.set_arrays(arrays)
                waiting.remove(entry)
                break
    if state["data"] is not None and trainer.source is not None:
        trainer.source.set_state(state["data"])
    trainer.forget()


def _plain(value: Any) -> Any:
    """What JSON can hold of an optimizer's arguments; other things as their text."""
    if isinstance(value, dict):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)
