"""The affine warp: bit for bit what NumPy computes from its definition, and SciPy's and Keras' results to rounding."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import ndimage

import tolerance
from convkern.data import affine_matrix, warp
from convkern.data.transforms import FILL_MODES, box_matrix
from convkern.errors import DTypeError, ShapeError, Unsupported

SIZES = [(1, 1), (1, 9), (7, 1), (2, 3), (16, 16), (23, 31)]


def numpy_warp(x, m, size, fill, cval, order):
    """The definition, in the kernel's order of operations: positions in float64, mixing in float32."""
    h, w = x.shape[:2]
    i, j = np.arange(size[0], dtype=np.float64)[:, None], np.arange(size[1], dtype=np.float64)[None]
    outside = np.zeros(size, bool)
    taps = []
    for (slope_i, slope_j, offset), n in zip(m[:2], (h, w)):
        u = (offset + slope_i * i) + slope_j * j
        out = (u < 0) | (u > n - 1)
        if fill == "constant":
            outside |= out
            u = np.where(out, 0.0, u)
        elif fill == "nearest":
            u = np.clip(u, 0, n - 1)
        elif fill == "wrap":
            turned = np.clip(u - (n - 1) * np.floor(u / (n - 1)), 0, n - 1) if n > 1 else np.zeros_like(u)
            u = np.where(out, turned, u)
        else:
            u = np.where(out, u - 2.0 * n * np.floor(u / (2.0 * n)), u)
            u = np.where(u >= 2.0 * n, 0.0, u)
        if order == 0:
            u = np.floor(u + 0.5)
        low = np.floor(u)
        part = (u - low).astype(np.float32)[..., None]
        low = low.astype(np.int64)
        if fill == "reflect":
            line = np.r_[0, 0:n, n - 1 : -1 : -1, 0, 0]  # places -1, 0 .. 2n-1, 2n, and one that is not used
            taps.append((line[low + 1], line[low + 2], part))
        else:
            taps.append((low, np.minimum(low + 1, n - 1), part))
    (top, bottom, across), (left, right, along) = taps
    x = x.astype(np.float32)
    if order == 0:
        y = x[top, left]
    else:
        a = x[top, left] + along * (x[top, right] - x[top, left])
        b = x[bottom, left] + along * (x[bottom, right] - x[bottom, left])
        y = a + across * (b - a)
    y[outside] = cval
    return y


def scipy_warp(x, m, size, fill, cval, order):
    return np.stack(
        [
            ndimage.affine_transform(
                channel.astype(np.float64), m[:2, :2], m[:2, 2], output_shape=size, order=order, mode=fill, cval=cval
            )
            for channel in np.moveaxis(x, -1, 0)
        ],
        -1,
    )


def matrices(rng, h, w):
    """Turned, squeezed, far away and singular."""
    for scale in (0.3, 1.0, 3.0):
        yield np.column_stack([rng.normal(size=(2, 2)) * scale, rng.normal(size=2) * 10 + [h / 2, w / 2]])
    yield np.column_stack([np.eye(2), rng.normal(size=2) * 300])
    yield np.array([[0, 0, h / 3], [0.5, 0, 0.25]])
    yield affine_matrix(h, w, theta=33, tx=1.5, zx=1.2, shear=9)[:2]


@pytest.mark.parametrize("fill", FILL_MODES)
@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("size", SIZES)
def test_bit_for_bit_as_defined(fill, order, size, rng):
    for channels in (1, 2, 3, 4):
        x = rng.integers(0, 256, (*size, channels), np.uint8)
        for m in matrices(rng, *size):
            result = (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
            want = numpy_warp(x, m, result, fill, 7.5, order)
            options = dict(fill_mode=fill, cval=7.5, order=order)
            assert (warp(x, m, result, **options) == want).all()
            assert (warp(x.astype(np.float32), m, result, threads=3, **options) == want).all()


@pytest.mark.parametrize("fill", FILL_MODES)
@pytest.mark.parametrize("order", [0, 1])
def test_as_scipy(fill, order, rng):
    for size in SIZES:
        x = rng.normal(size=(*size, 3)).astype(np.float32)
        for m in matrices(rng, *size):
            result = (int(rng.integers(1, 30)), int(rng.integers(1, 30)))
            want = scipy_warp(x, m, result, fill, -2.0, order)
            got = warp(x, m, result, fill_mode=fill, cval=-2.0, order=order)
            assert np.abs(got - want).max() <= (tolerance.bilinear(np.abs(x).max()) if order else 0)


@pytest.mark.parametrize("fill", FILL_MODES)
def test_a_constant_image_stays_exactly_constant(fill, rng):
    x = np.full((9, 12, 3), 0.1, np.float32)
    for m in matrices(rng, 9, 12):
        assert (warp(x, m, (20, 20), fill_mode=fill, cval=0.1) == np.float32(0.1)).all()


def test_whole_pixels_are_exact(rng):
    x = rng.normal(size=(8, 10, 3)).astype(np.float32)
    assert (warp(x, np.eye(3)) == x).all()
    shifted = warp(x, affine_matrix(8, 10, tx=3, ty=-2), fill_mode="constant", cval=5)
    assert (shifted[2:, :7] == x[:6, 3:]).all() and (shifted[:2] == 5).all() and (shifted[:, 7:] == 5).all()
    assert (warp(x[:, :8], affine_matrix(8, 8, theta=180)) == x[::-1, 7::-1]).sum() > 150  # sin(pi) is not quite 0
    assert (warp(x, box_matrix((2, 3, 4, 5), 4, 5), (4, 5)) == x[2:6, 3:8]).all()


@pytest.mark.parametrize("fill", FILL_MODES)
def test_positions_a_hair_outside(fill):
    for n in (1, 2, 5):
        x = np.arange(1, n + 1, dtype=np.float32).reshape(1, n, 1)
        for offset in (-1e-17, -0.0, np.nextafter(2.0 * n, 0), 2.0 * n, n - 1 + 1e-15, 1e9, -1e9):
            m = np.array([[0, 0, 0], [0, 0, offset]])
            for order in (0, 1):
                got = warp(x, m, (1, 1), fill_mode=fill, order=order)
                assert (got == numpy_warp(x, m, (1, 1), fill, 0.0, order)).all()
                assert fill == "constant" or 1 <= got <= n


def test_the_fill_modes_as_documented():
    x = np.arange(4, dtype=np.float32).reshape(1, 4, 1)
    m = np.array([[1, 0, 0], [0, 1, -5]])
    shown = {fill: warp(x, m, (1, 14), fill_mode=fill, cval=9)[0, :, 0].astype(int).tolist() for fill in FILL_MODES}
    assert shown == {
        "constant": [9, 9, 9, 9, 9, 0, 1, 2, 3, 9, 9, 9, 9, 9],
        "nearest": [0, 0, 0, 0, 0, 0, 1, 2, 3, 3, 3, 3, 3, 3],
        "reflect": [3, 3, 2, 1, 0, 0, 1, 2, 3, 3, 2, 1, 0, 0],
        "wrap": [1, 2, 0, 1, 2, 0, 1, 2, 3, 1, 2, 0, 1, 2],
    }


def test_strides_of_both_sides(rng):
    big = rng.integers(0, 256, (20, 30, 4), np.uint8)
    m = affine_matrix(10, 15, theta=20, zy=1.3)
    for x in (big[::2, ::2, :3], big[9::-1, 14::-1], big[5:15, 3:18, 1:2]):
        want = warp(np.ascontiguousarray(x), m)
        assert (warp(x, m) == want).all()
        out = np.full((10, 15, x.shape[2]), np.nan, np.float32)
        warp(x, m, out=out[::-1, ::-1])
        assert (out[::-1, ::-1] == want).all()
        wide = np.zeros((10, 15, 6), np.float32)
        warp(x, m, out=wide[..., 1 : 1 + x.shape[2]])
        assert (wide[..., 1 : 1 + x.shape[2]] == want).all()
        assert (wide[..., 0] == 0).all() and (wide[..., 1 + x.shape[2] :] == 0).all()


def test_any_number_of_threads_at_once(rng):
    x = rng.integers(0, 256, (64, 64, 3), np.uint8)
    ms = [affine_matrix(64, 64, theta=3 * k, zx=0.9) for k in range(24)]
    want = [warp(x, m) for m in ms]
    with ThreadPoolExecutor(4) as pool:
        for got, expected in zip(pool.map(lambda m: warp(x, m, threads=2), ms), want):
            assert (got == expected).all()


def test_read_only_images_are_read():
    x = np.ones((4, 4, 1), np.uint8)
    x.flags.writeable = False
    assert (warp(x, np.eye(3)) == 1).all()


def test_wrong_arguments(rng):
    x, eye = np.zeros((4, 5, 3), np.float32), np.eye(3)
    for bad in (x[0], x[:0], x[:, :0], x[..., :0]):
        with pytest.raises(ShapeError):
            warp(bad, eye)
    for size in ((0, 3), (4, 0)):
        with pytest.raises(ShapeError, match="empty"):
            warp(x, eye, size)
    with pytest.raises(ShapeError, match=r"\(2, 2\)"):
        warp(x, np.eye(2))
    for value in (np.nan, np.inf, 1e10):
        with pytest.raises(ShapeError, match="1e9"):
            warp(x, np.full((3, 3), value))
    for dtype in (np.float64, np.int16, bool):
        with pytest.raises(DTypeError, match=np.dtype(dtype).name):
            warp(x.astype(dtype), eye)
    with pytest.raises(Unsupported, match="mirror"):
        warp(x, eye, fill_mode="mirror")
    with pytest.raises(Unsupported, match="order=3"):
        warp(x, eye, order=3)
    with pytest.raises(Unsupported, match="contiguous"):
        warp(x[..., ::-1], eye)
    with pytest.raises(Unsupported, match="overlaps"):
        warp(x, eye, out=x)
    with pytest.raises(ShapeError, match="3 channels, the result 4"):
        warp(x, eye, out=np.zeros((4, 5, 4), np.float32))
    with pytest.raises(DTypeError, match="float32"):
        warp(x, eye, out=np.zeros((4, 5, 3)))
    frozen = np.zeros((4, 5, 3), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(DTypeError, match="writable"):
        warp(x, eye, out=frozen)
    with pytest.raises(ShapeError, match="size"):
        warp(x, eye, (3, 3), out=np.zeros((4, 5, 3), np.float32))
    with pytest.raises(ShapeError, match="threads"):
        warp(x, eye, threads=0)


def test_the_matrix_of_keras():
    """Written out from the definition, in (x, y) about the centre."""
    h, w, theta, tx, ty, shear, zx, zy = 7, 12, 25.0, 1.5, -2.0, 8.0, 1.3, 0.8
    m = affine_matrix(h, w, theta, tx, ty, shear, zx, zy)
    for i, j in ((0, 0), (3, 11), (6, 4)):
        x, y = zx * (j - (w - 1) / 2), zy * (i - (h - 1) / 2)
        x, y = x - math.sin(math.radians(shear)) * y, math.cos(math.radians(shear)) * y
        x, y = x + tx, y + ty
        c, s = math.cos(math.radians(theta)), math.sin(math.radians(theta))
        x, y = c * x - s * y, s * x + c * y
        assert np.allclose(m @ [i, j, 1], [y + (h - 1) / 2, x + (w - 1) / 2, 1], atol=1e-12)
