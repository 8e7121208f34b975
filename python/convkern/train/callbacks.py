"""Callbacks: what happens around epochs and batches of `fit`. Each is a class with Keras' hooks.

logs are dictionaries of numbers: on a batch the means of the epoch so far, at the end of an epoch its loss and metrics
("val_..." for the validation data) and "learning_rate". A callback whose decisions depend on the past gives it to
checkpoints by `get_state` and takes it back by `set_state` (JSON types), so that a resumed run decides as an unbroken
one would.
"""

from __future__ import annotations

import csv
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, Unsupported

Logs = dict[str, float]


class Callback:
    """Base: every hook does nothing. `self.model` is the model in training, `self.params` has epochs and steps.

    Setting self.model.stop_training = True ends the training after the epoch (the batch, if set there).
    """

    model: Any = None
    params: dict[str, Any] = {}
    last = False  # True: called after all others, whose state it keeps

    def set_model(self, model: Any) -> None:
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        self.params = params

    def on_train_begin(self, logs: Logs | None = None) -> None: ...

    def on_train_end(self, logs: Logs | None = None) -> None: ...

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None: ...

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None: ...

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None: ...

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None: ...

    def get_state(self) -> Any:
        """What a checkpoint must keep of this callback, as JSON types; None for nothing."""
        return None

    def set_state(self, state: Any) -> None:
        """Take back what `get_state` gave in the run that is continued; called after on_train_begin."""

    def get_arrays(self) -> list[np.ndarray]:
        """Arrays that a checkpoint must keep of this callback."""
        return []

    def set_arrays(self, arrays: list[np.ndarray]) -> None:
        """Take back what `get_arrays` gave."""


class LambdaCallback(Callback):
    """Functions as hooks: LambdaCallback(on_epoch_end=lambda epoch, logs: print(logs)).

    Source: keras.callbacks.LambdaCallback.
    """

    def __init__(self, **hooks: Callable[..., Any]):
        for name, hook in hooks.items():
            if not name.startswith("on_") or not hasattr(Callback, name):
                known = ", ".join(key for key in vars(Callback) if key.startswith("on_"))
                raise Unsupported(f"LambdaCallback: no hook {name!r}; there are {known}")
            setattr(self, name, hook)


class History(Callback):
    """What `fit` returns: `history`, a list of each epoch's figures by name, and `epoch`, their numbers.

    Source: keras.callbacks.History.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.epoch.append(epoch)
        for key, value in (logs or {}).items():
            self.history.setdefault(key, []).append(value)

    def get_state(self) -> Any:
        return {"epoch": list(self.epoch), "history": {key: list(values) for key, values in self.history.items()}}

    def set_state(self, state: Any) -> None:
        self.epoch, self.history = list(state["epoch"]), {key: list(v) for key, v in state["history"].items()}


class ProgressBar(Callback):
    """A bar for each epoch (tqdm): loss, metrics, images per second, time left; or a line, with bar=False."""

    def __init__(self, bar: bool = True, stream: Any = None):
        self.bar, self.stream = bar, stream
        if bar:
            try:
                from tqdm import tqdm
            except ImportError:
                raise Unsupported("the progress bar is drawn with tqdm: pip install 'convkern[train]'") from None
            self._tqdm = tqdm
        self._line: Any = None

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._start, self._images = time.perf_counter(), 0
        title, steps = f"epoch {epoch + 1}/{self.params['epochs']}", self.params.get("steps")
        if self.bar:
            file = self.stream or sys.stderr
            self._line = self._tqdm(total=steps, desc=title, unit="batch", file=file, dynamic_ncols=True)
        self._title = title

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        logs = dict(logs or {})
        self._images += int(logs.pop("size", 0))
        if self._line is not None:
            speed = self._images / max(time.perf_counter() - self._start, 1e-9)
            self._line.set_postfix_str(f"{_text(logs)}, {speed:,.0f} images/s", refresh=False)
            self._line.update()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        seconds = time.perf_counter() - self._start
        speed = self._images / max(seconds, 1e-9)
        if self._line is not None:
            self._line.set_postfix_str(f"{_text(logs or {})}, {speed:,.0f} images/s")
            self._line.close()
            self._line = None
        else:
            text = f"{self._title}: {_text(logs or {})}, {seconds:.1f} s, {speed:,.0f} images/s"
            print(text, file=self.stream or sys.stdout, flush=True)

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._line is not None:  # the epoch was broken off
            self._line.close()
            self._line = None


class _Watching(Callback):
    """What watches one figure: which way is better, the best so far."""

    def __init__(self, monitor: str, mode: str = "auto", min_delta: float = 0.0):
        if mode not in ("auto", "min", "max"):
            raise Unsupported(f"{type(self).__name__}: mode={mode!r}, want 'auto', 'min' or 'max'")
        self.monitor, self.min_delta = monitor, abs(min_delta)
        bare = monitor.removeprefix("val_")
        up = mode == "max" or (mode == "auto" and (bare.endswith(("acc", "accuracy")) or bare.startswith("top")))
        self.sign = 1.0 if up else -1.0  # times the figure: larger is better
        self.best = math.nan

    def value(self, logs: Logs | None) -> float:
        logs = logs or {}
        if self.monitor not in logs:
            raise Unsupported(
                f"{type(self).__name__}: monitor={self.monitor!r} is not among this epoch's figures: {', '.join(logs)}"
            )
        return logs[self.monitor]

    def improved(self, value: float) -> bool:
        better = math.isnan(self.best) or self.sign * (value - self.best) > self.min_delta
        if better and not math.isnan(value):
            self.best = value
            return True
        return False


class EarlyStopping(_Watching):
    """End the training when a figure has not improved for `patience` epochs.

    monitor: the figure; mode: "min", "max", or "auto" ("max" for accuracies). min_delta: the least change that counts.
    baseline: what must be beaten. restore_best_weights: go back to those of the best epoch at the end.
    start_from_epoch: epochs before it are not watched. stopped_epoch says where it ended (0: it did not).
    Source: keras.callbacks.EarlyStopping.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ):
        super().__init__(monitor, mode, min_delta)
        self.patience, self.verbose, self.baseline = patience, verbose, baseline
        self.restore_best_weights, self.start_from_epoch = restore_best_weights, start_from_epoch
        self.wait = self.stopped_epoch = self.best_epoch = 0
        self.best_weights: list[np.ndarray] | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.wait = self.stopped_epoch = self.best_epoch = 0
        self.best = math.nan if self.baseline is None else self.baseline
        self.best_weights = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value = self.value(logs)
        if epoch < self.start_from_epoch:
            return
        if self.improved(value):
            self.wait, self.best_epoch = 0, epoch
            if self.restore_best_weights:
                self.best_weights = [param.value.copy() for param in self.model.weights]
            return
        self.wait += 1
        if self.wait >= max(self.patience, 1):
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.verbose and self.stopped_epoch:
            print(f"epoch {self.stopped_epoch + 1}: early stopping, best {self.monitor} {self.best:.5g}")
        if self.best_weights is not None:
            for param, value in zip(self.model.weights, self.best_weights):
                param.assign(value)

    def get_state(self) -> Any:
        best = None if math.isnan(self.best) else self.best
        return {"wait": self.wait, "best": best, "best_epoch": self.best_epoch}

    def set_state(self, state: Any) -> None:
        self.wait, self.best_epoch = state["wait"], state["best_epoch"]
        self.best = math.nan if state["best"] is None else state["best"]

    def get_arrays(self) -> list[np.ndarray]:
        return self.best_weights or []

    def set_arrays(self, arrays: list[np.ndarray]) -> None:
        self.best_weights = arrays or None


class ReduceLROnPlateau(_Watching):
    """Multiply the learning rate by `factor` when a figure has not improved for `patience` epochs.

    cooldown: epochs after a reduction that are not counted. min_lr: the least learning rate.
    Errors: Unsupported if the optimizer has a schedule.
    Source: keras.callbacks.ReduceLROnPlateau.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ):
        super().__init__(monitor, mode, min_delta)
        if not 0 < factor < 1:
            raise Unsupported(f"ReduceLROnPlateau: factor={factor}, want more than 0 and less than 1")
        self.factor, self.patience, self.verbose = factor, patience, verbose
        self.cooldown, self.min_lr = cooldown, min_lr
        self.wait = self.cooling = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        _need_constant_rate(self, self.model)
        self.wait = self.cooling = 0
        self.best = math.nan

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value, optimizer = self.value(logs), self.model.optimizer
        if self.cooling:
            self.cooling -= 1
            self.wait = 0
        if self.improved(value):
            self.wait = 0
        elif not self.cooling:
            self.wait += 1
            if self.wait >= self.patience and optimizer.rate > self.min_lr:
                optimizer.learning_rate = max(optimizer.rate * self.factor, self.min_lr)
                self.cooling, self.wait = self.cooldown, 0
                if self.verbose:
                    print(f"epoch {epoch + 1}: learning rate {optimizer.rate:.3g}")

    def get_state(self) -> Any:
        best = None if math.isnan(self.best) else self.best
        return {"wait": self.wait, "cooling": self.cooling, "best": best}

    def set_state(self, state: Any) -> None:
        self.wait, self.cooling = state["wait"], state["cooling"]
        self.best = math.nan if state["best"] is None else state["best"]


class LearningRateScheduler(Callback):
    """Set the learning rate at the beginning of each epoch: schedule(epoch) or schedule(epoch, rate) gives it.

    Errors: Unsupported if the optimizer has a schedule of its own.
    Source: keras.callbacks.LearningRateScheduler.
    """

    def __init__(self, schedule: Callable[..., float], verbose: int = 0):
        import inspect

        self.schedule, self.verbose = schedule, verbose
        wants = [p for p in inspect.signature(schedule).parameters.values() if p.default is p.empty]
        self._with_rate = len(wants) > 1

    def on_train_begin(self, logs: Logs | None = None) -> None:
        _need_constant_rate(self, self.model)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        optimizer = self.model.optimizer
        given = (epoch, optimizer.rate) if self._with_rate else (epoch,)
        optimizer.learning_rate = self.schedule(*given)
        if self.verbose:
            print(f"epoch {epoch + 1}: learning rate {optimizer.rate:.3g}")


class TerminateOnNaN(Callback):
    """Does nothing that `fit` does not do by itself: a loss that is not finite ends it with NotFinite.

    Source: keras.callbacks.TerminateOnNaN.
    """


class CSVLogger(Callback):
    """One line for each epoch in a CSV file, written at once; columns are those of the first epoch.

    append: keep what is in the file (a resumed run keeps it in any case, without the epochs that are run again).
    Errors: DataError if the file cannot be written.
    Source: keras.callbacks.CSVLogger.
    """

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False):
        self.filename, self.separator, self.append = Path(filename), separator, append

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self._columns: list[str] | None = None
        self._rows: list[list[str]] = []
        if self.append and self.filename.exists():
            self._read(math.inf)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        row = {"epoch": epoch, **(logs or {})}
        if self._columns is None:
            self._columns = list(row)
        self._rows.append([str(row.get(key, "")) for key in self._columns])
        self._write()

    def get_state(self) -> Any:
        return {}

    def set_state(self, state: Any) -> None:
        if self.filename.exists():
            self._read(len(self.model.history.epoch) and self.model.history.epoch[-1] + 1)

    def _read(self, before: float) -> None:
        with open(self.filename, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file, delimiter=self.separator))
        if rows and rows[0][:1] == ["epoch"]:
            self._columns = rows[0]
            self._rows = [row for row in rows[1:] if row and float(row[0]) < before]

    def _write(self) -> None:
        temporary = self.filename.with_name(f".{self.filename.name}.tmp")
        try:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                csv.writer(file, delimiter=self.separator).writerows([self._columns or [], *self._rows])
            os.replace(temporary, self.filename)
        except OSError as error:
            raise DataError(f"{self.filename}: cannot be written ({error.strerror or error})") from error


class ModelCheckpoint(_Watching):
    """Write the whole state of the training to a file, so that it can be continued bit for bit.

    filepath: may hold {epoch} (from 1) and figures: "run/{epoch:02d}-{val_accuracy:.3f}.ckn". The file is an ordinary
        model file (load_model reads it) that also holds the optimizer's slots, counters, the learning rate, the state
        of callbacks and data, and the place in the epoch. It is written whole or not at all.
    save_best_only: only when the figure `monitor` improved. save_weights_only: the model alone.
    save_freq: "epoch", or a number of batches. initial_value_threshold: what must be beaten first.
    Errors: WeightsError if a file cannot be written (before the training if the folder is missing).
    Source: keras.callbacks.ModelCheckpoint; `fit(resume=PATH)` continues.
    """

    last = True

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ):
        super().__init__(monitor, mode)
        if save_freq != "epoch" and (isinstance(save_freq, str) or save_freq < 1):
            raise Unsupported(f"ModelCheckpoint: save_freq={save_freq!r}, want 'epoch' or a number of batches")
        if save_best_only and save_freq != "epoch":
            raise Unsupported("ModelCheckpoint: save_best_only=True looks at epochs; save_freq must be 'epoch'")
        self.filepath, self.verbose = os.fspath(filepath), verbose
        self.save_best_only, self.save_weights_only, self.save_freq = save_best_only, save_weights_only, save_freq
        self.initial_value_threshold = initial_value_threshold
        self.last_path: str | None = None

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.best = math.nan if self.initial_value_threshold is None else self.initial_value_threshold
        self._batches = 0
        self._epoch = 0
        folder = Path(self.filepath).parent
        if not folder.is_dir():
            folder.mkdir(parents=True)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self._batches += 1
        if self.save_freq != "epoch" and self._batches % int(self.save_freq) == 0:
            self._save(self._epoch, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self.save_freq == "epoch" and (not self.save_best_only or self.improved(self.value(logs))):
            self._save(epoch, logs)

    def _save(self, epoch: int, logs: Logs | None) -> None:
        try:
            path = self.filepath.format(**{**(logs or {}), "epoch": epoch + 1})
        except (KeyError, IndexError, ValueError) as error:
            names = ", ".join(["epoch", *(logs or {})])
            raise Unsupported(f"ModelCheckpoint: {self.filepath!r} does not fit the figures {names}: {error}") from None
        if self.save_weights_only:
            self.model.save_weights(path)
        else:
            self.model.save_checkpoint(path)
        self.last_path = path
        if self.verbose:
            print(f"epoch {epoch + 1}: wrote {path}")

    def get_state(self) -> Any:
        return {"best": None if math.isnan(self.best) else self.best, "batches": self._batches}

    def set_state(self, state: Any) -> None:
        self.best = math.nan if state["best"] is None else state["best"]
        self._batches = state["batches"]


class BackupAndRestore(ModelCheckpoint):
    """Make a training survive its process: run the same program again, and it goes on where the file was written.

    filepath: one file, overwritten each time, removed at the end of a training that was not broken off (unless
        delete_checkpoint=False). save_freq: "epoch", or a number of batches.
    Source: keras.callbacks.BackupAndRestore.
    """

    def __init__(
        self, filepath: str | os.PathLike[str], save_freq: str | int = "epoch", delete_checkpoint: bool = True
    ):
        super().__init__(filepath, save_freq=save_freq)
        self.delete_checkpoint = delete_checkpoint

    @property
    def resume(self) -> str | None:
        """The file to continue from, if there is one."""
        return self.filepath if os.path.exists(self.filepath) else None

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.delete_checkpoint:
            Path(self.filepath).unlink(missing_ok=True)


class TrainingCurves(Callback):
    """Draw loss and metrics over the epochs to a picture, anew after every epoch (see `plot_history`)."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = path

    def on_train_begin(self, logs: Logs | None = None) -> None:
        from .curves import check

        check(self.path)  # now, not after an epoch

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        from .curves import plot_history

        plot_history(self.model.history, self.path)


class CallbackList:
    """Callbacks called in their order, those that keep the others' state last."""

    def __init__(self, callbacks: Sequence[Callback], model: Any, params: dict[str, Any]):
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise Unsupported(f"callbacks: got {callback!r}, want Callbacks (convkern.train.callbacks)")
        self.callbacks = sorted(callbacks, key=lambda callback: callback.last)
        for callback in self.callbacks:
            callback.set_model(model)
            callback.set_params(params)

    def __getattr__(self, hook: str) -> Callable[..., None]:
        if not hook.startswith("on_"):
            raise AttributeError(hook)

        def call(*args: Any) -> None:
            for callback in self.callbacks:
                getattr(callback, hook)(*args)

        return call


def _text(logs: Logs) -> str:
    return ", ".join(f"{key}={value:.4g}" for key, value in logs.items() if key != "size")


def _need_constant_rate(callback: Callback, model: Any) -> None:
    if callable(model.optimizer.learning_rate):
        raise Unsupported(
            f"{type(callback).__name__} sets the learning rate, but the optimizer has the schedule "
            f"{model.optimizer.learning_rate!r}: use one of them"
        )
