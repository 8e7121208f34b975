"""Iterators: a batch follows from seed, epoch and index; threads, prefetching, checkpoints, pickles change nothing."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest
from PIL import Image

import convkern
from convkern.data import Batches, ImageDataGenerator, to_categorical
from convkern.errors import DataError, DTypeError, ShapeError, Unsupported

AUGMENT = dict(
    rotation_range=40,
    width_shift_range=0.2,
    zoom_range=0.2,
    horizontal_flip=True,
    channel_shift_range=20,
    rescale=1 / 255,
)


@pytest.fixture
def x(rng) -> np.ndarray:
    return rng.integers(0, 256, (23, 12, 14, 3), np.uint8)


def flow(x, y=None, settings=None, **options):
    options = dict(dict(batch_size=5, seed=11), **options)
    return ImageDataGenerator(**(AUGMENT if settings is None else settings)).flow(x, y, **options)


def same(a, b) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())


# The sequence


def test_batches_are_float32_with_int64_labels(x):
    batches = flow(x, np.arange(23, dtype=np.uint8))
    assert len(batches) == 5 and batches.n == 23
    images, labels = batches[0]
    assert images.shape == (5, 12, 14, 3) and images.dtype == np.float32 and labels.dtype == np.int64
    assert 0 <= images.min() and images.max() <= 1
    assert len(batches[4][0]) == 3 and same(batches[-1], batches[4])
    for index in (5, -6):
        with pytest.raises(IndexError):
            batches[index]
    with pytest.raises(TypeError):
        batches["first"]


def test_what_is_given_comes_back(x):
    weights = np.linspace(0, 1, 23)
    y = np.arange(46, dtype=np.float32).reshape(23, 2)
    images, labels, w = flow(x, y, settings={}, sample_weight=weights)[2]
    for image, label, weight in zip(images, labels, w):
        index = int(label[0]) // 2
        assert (image == x[index]).all() and label[1] == label[0] + 1 and weight == weights[index]
    assert len(flow(x, sample_weight=weights)[0]) == 2
    assert isinstance(flow(x)[0], np.ndarray)
    assert flow(x, [True] * 23)[0][1].dtype == np.int64


@pytest.mark.parametrize("shuffle", [False, True])
def test_an_epoch_holds_every_image_once(shuffle, x):
    batches = flow(x, np.arange(23), shuffle=shuffle)
    epochs = []
    for _ in range(2):
        epochs.append(np.concatenate([batches[i][1] for i in range(len(batches))]))
        assert sorted(epochs[-1]) == list(range(23))
        assert (batches.indices() == epochs[-1]).all()
        batches.on_epoch_end()
    assert (epochs[0] == epochs[1]).all() == (not shuffle)
    assert (epochs[0] == np.arange(23)).all() == (not shuffle)


def test_epochs_and_seeds_differ_and_repeat(x):
    one, two, other = flow(x, shuffle=False), flow(x, shuffle=False), flow(x, shuffle=False, seed=12)
    first = one[0]
    assert same(first, two[0]) and not same(first, other[0])
    one.on_epoch_end()
    assert not same(first, one[0])
    two.on_epoch_end()
    assert same(one[0], two[0])


def test_without_a_seed_one_is_drawn(x):
    a, b = flow(x, seed=None), flow(x, seed=None)
    assert a.seed != b.seed and not same(a[0], b[0])
    assert same(a[0], flow(x, seed=a.seed)[0])


def test_an_images_transform_does_not_depend_on_its_batch(x):
    small, large = flow(x, shuffle=False, batch_size=1), flow(x, shuffle=False, batch_size=23)
    whole = large[0]
    for i in (0, 7, 22):
        assert same(small[i][0], whole[i])


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("prefetch", [0, 2, 40])
def test_threads_and_prefetching_do_not_change_a_bit(workers, prefetch, x):
    settings = dict(AUGMENT, cutmix=1.0, mixup=0.3)
    y = to_categorical(np.arange(23) % 4)
    plain = flow(x, y, settings, workers=0)
    threaded = flow(x, y, settings, workers=workers, prefetch=prefetch)
    for _ in range(12):
        assert same(next(plain), next(threaded))
    for i in (3, 0, 4, 4, 1):
        assert same(plain[i], threaded[i])
    threaded.close()


def test_next_goes_on_through_the_epochs(x):
    batches, twin = flow(x), flow(x)
    assert iter(batches) is batches
    for epoch in range(3):
        for i in range(len(twin)):
            assert same(next(batches), twin[i])
        assert (batches.epoch, batches.batch_index) == (epoch, 5)
        twin.on_epoch_end()
    batches.reset()
    assert same(next(batches), flow_at(x, 2)[0])


def flow_at(x, epoch):
    batches = flow(x)
    for _ in range(epoch):
        batches.on_epoch_end()
    return batches


def test_on_epoch_end_after_the_last_batch_skips_nothing(x):
    batches = flow(x)
    for _ in range(len(batches)):
        next(batches)
    batches.on_epoch_end()
    assert batches.epoch == 1 and same(next(batches), flow_at(x, 1)[0])


def test_whole_batches_at_once_give_the_bits_of_single_images(x, monkeypatch):
    settings = dict(rescale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), featurewise_std_normalization=True)
    generator = ImageDataGenerator(**settings).fit(x)
    assert not generator.per_image
    fast = generator.flow(x, seed=1)[0]
    monkeypatch.setattr(ImageDataGenerator, "per_image", True)
    assert same(fast, generator.flow(x, seed=1)[0])


def test_the_arrays_are_not_changed(x):
    before = x.copy()
    x.flags.writeable = False
    batches = flow(x.astype(np.float32), settings=dict(AUGMENT, samplewise_std_normalization=True))
    batches[0][...] = 0
    flow(x)[0][...] = 0
    assert (x == before).all() and not (batches[0] == 0).all()


def test_what_is_made_ahead_is_used(x, monkeypatch):
    begun = []
    real = Batches._begin
    monkeypatch.setattr(Batches, "_begin", lambda self, *key: begun.append(key) or real(self, *key))
    batches = flow(x, prefetch=2)
    for _ in range(8):
        next(batches)
    assert begun == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4)]
    batches.close()


# Checkpoints


def test_restore_goes_on_bit_for_bit(x):
    batches = flow(x, np.arange(23))
    for _ in range(7):
        next(batches)
    state = json.loads(json.dumps(batches.state()))
    rest = [next(batches) for _ in range(9)]
    for workers in (0, 3):
        fresh = flow(x, np.arange(23), seed=99, workers=workers)
        next(fresh)
        fresh.restore(state)
        assert fresh.seed == 11 and all(same(next(fresh), batch) for batch in rest)
    batches.restore(state)
    assert all(same(next(batches), batch) for batch in rest)
    other = flow(x, np.arange(23), seed=99)
    next(other)
    other.restore(flow(x, np.arange(23)).state())  # the same epoch in another order
    assert same(next(other), flow(x, np.arange(23))[0])
    end = flow(x)
    for _ in range(5):
        next(end)
    resumed = flow(x)
    resumed.restore(end.state())
    assert same(next(resumed), next(end)) and resumed.epoch == 1


def test_a_state_of_something_else_is_refused(x):
    batches = flow(x)
    for other in (flow(x[:20]), flow(x, batch_size=4), flow(x, shuffle=False)):
        with pytest.raises(DataError, match="this iterator"):
            batches.restore(other.state())
    with pytest.raises(DataError, match="batch 6 of 5"):
        batches.restore(dict(batches.state(), batch=6))
    with pytest.raises(DataError, match="want batch"):
        batches.restore({"epoch": 1})
    with pytest.raises(ShapeError, match="epoch"):
        batches.restore(dict(batches.state(), epoch=-1))


def test_pickles_go_on(x):
    batches = flow(x)
    next(batches), next(batches)
    copy = pickle.loads(pickle.dumps(batches))
    assert all(same(next(copy), next(batches)) for _ in range(5))


# Threads


def data_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("convkern-data")]


def wait_for_no_threads() -> bool:
    end = time.monotonic() + 10
    while data_threads() and time.monotonic() < end:
        time.sleep(0.01)
    return not data_threads()


def test_threads_end(x):
    assert wait_for_no_threads()
    batches = flow(x, workers=3)
    first = batches[0]
    assert data_threads()
    batches.close()
    assert wait_for_no_threads()
    assert same(batches[0], first)
    gone = weakref.ref(batches)
    del batches
    assert wait_for_no_threads() and gone() is None


def test_a_failure_in_a_thread_is_told_and_passes(x):
    fail = threading.Event()
    fail.set()

    def preprocess(image):
        if fail.is_set():
            raise ZeroDivisionError("mine")
        return image

    batches = flow(x, settings=dict(preprocessing_function=preprocess), prefetch=1)
    with pytest.raises(ZeroDivisionError, match="mine"):
        batches[0]
    fail.clear()
    assert (batches[3] == x[batches.indices()[15:20]]).all()


def test_many_callers_at_once(x):
    plain, shared = flow(x, workers=0), flow(x, workers=2)
    want = [plain[i] for i in range(5)]
    wrong = []

    def read(order):
        for i in order:
            if not same(shared[i], want[i]):
                wrong.append(i)

    callers = [threading.Thread(target=read, args=(np.random.default_rng(k).permutation(5),)) for k in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


def test_a_forked_child_has_threads_of_its_own():
    code = """
    import os, sys, warnings
    import numpy as np
    from convkern.data import ImageDataGenerator
    warnings.simplefilter("ignore", DeprecationWarning)
    batches = ImageDataGenerator(rotation_range=20).flow(np.arange(1200, dtype=np.uint8).reshape(25, 6, 8, 1), seed=1)
    first = batches[0]
    child = os.fork()
    same = (batches[0] == first).all()
    if child == 0:
        os._exit(0 if same else 1)
    assert same and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """
    path = os.pathsep.join([os.path.dirname(os.path.dirname(convkern.__file__)), os.environ.get("PYTHONPATH", "")])
    env = dict(os.environ, PYTHONPATH=path)
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60, env=env)


# Mixing


def test_mixing_follows_from_the_batch(x):
    y = to_categorical(np.arange(23))
    for settings in (dict(mixup=0.4), dict(cutmix=1.0), dict(mixup=0.4, cutmix=1.0)):
        images, labels = flow(x, y, settings)[1]
        assert same((images, labels), flow(x, y, settings)[1])
        shares = [np.sort(flow(x, y, settings)[i][1].max(1)) for i in (0, 1)]
        assert (shares[0] != shares[1]).any()
        assert np.allclose(labels.sum(1), 1) and ((labels > 0).sum(1) == 2).any()
        assert set(np.nonzero(labels)[1]) <= set(flow(x).indices()[5:10])
        values = np.einsum("bn,n...->b...", labels, x.astype(np.float32))
        if settings == dict(mixup=0.4):
            assert np.abs(images - values).max() < 1e-3


# Parts


def test_validation_is_the_first_part(x):
    y = np.arange(23) % 2
    settings = dict(validation_split=0.3)
    validation = flow(x, y, settings, subset="validation", shuffle=False, batch_size=99)[0]
    training = flow(x, y, settings, subset="training", shuffle=False, batch_size=99)[0]
    assert (validation[0] == x[:6]).all() and (training[0] == x[6:]).all() and (validation[1] == y[:6]).all()


def test_parts_that_make_no_sense(x):
    y = np.sort(np.arange(23) % 3)
    settings = dict(validation_split=0.3)
    with pytest.raises(DataError, match="classes of the training"):
        flow(x, y, settings, subset="validation")
    assert flow(x, y, settings, subset="validation", ignore_class_split=True).n == 6
    with pytest.raises(DataError, match="leaves none for validation"):
        flow(x[:3], None, settings, subset="validation")
    with pytest.raises(DataError, match="needs a validation_split"):
        flow(x, None, {}, subset="training")
    with pytest.raises(Unsupported, match="'test'"):
        flow(x, None, settings, subset="test")


# Saving


def test_every_image_made_is_saved(x, tmp_path):
    batches = flow(
        x[:4], settings=dict(rescale=1 / 255), save_to_dir=tmp_path, save_prefix="aug", shuffle=False, prefetch=0
    )
    batches[0]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"aug_{i}_0.png" for i in range(4)]
    for i, name in enumerate(names):
        with Image.open(tmp_path / name) as image:
            assert (np.asarray(image) == x[i]).all()
    with pytest.raises(DataError, match="not a folder"):
        flow(x, save_to_dir=tmp_path / "missing")
    with pytest.raises(Unsupported, match="tiff"):
        flow(x, save_to_dir=tmp_path, save_format="tiff")


# Arguments


def test_arrays_need_no_pillow(x, monkeypatch, tmp_path):
    want = flow(x)[0]
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert same(flow(x)[0], want)
    (tmp_path / "0.png").write_bytes(b"")
    for needs in (
        lambda: ImageDataGenerator(rand_augment=(2, 9)),
        lambda: flow(x, save_to_dir=tmp_path),
        lambda: ImageDataGenerator().flow_from_directory(tmp_path, class_mode=None),
    ):
        with pytest.raises(ImportError, match=r"convkern\[image\]"):
            needs()


def test_wrong_arguments(x):
    for y in (np.arange(22), np.float32(3)):
        with pytest.raises(ShapeError, match="23 images"):
            flow(x, y)
    with pytest.raises(DTypeError, match="y"):
        flow(x, ["cat"] * 23)
    with pytest.raises(ShapeError, match="sample_weight"):
        flow(x, sample_weight=np.ones((23, 2)))
    with pytest.raises(DataError, match="no images"):
        flow(x[:0])
    for name, value in (("batch_size", 0), ("workers", -1), ("prefetch", -1)):
        with pytest.raises(ShapeError, match=name):
            flow(x, **{name: value})
    with pytest.raises(DTypeError, match="batch_size"):
        flow(x, batch_size=2.5)
