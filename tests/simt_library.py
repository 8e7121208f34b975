"""The tensor-core CUDA kernels, compiled for the CPU (tests/simt): built with the C++ compiler, called through ctypes.

What runs is the product's source: rows with their choice, packing and launches, and the kernels' bodies. What is
written anew for the CPU are the machine's instructions: mma, ldmatrix, cp.async, TMA, mbarrier, wgmma
(tests/simt/cuda/emulate.h).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import emulated
import oracle
import tolerance

ROOT = Path(__file__).resolve().parent.parent
CSRC, SIMT = ROOT / "csrc", ROOT / "tests" / "simt"
FLAGS = "-std=gnu++17 -fPIC -DCK_EMULATE -Wall -Wextra -Wno-unknown-pragmas -Wno-attributes -Werror".split()
FILES = (
    "mma mma_half mma_bfloat mma_tf32 mma_three first "
    "sm90_common sm90_persistent sm90_halo sm90_cluster sm90_first sm90_first_view"
)

PRECISIONS = {"f32": 0, "tf32": 1, "f32x3": 2, "f16": 3, "bf16": 4}  # of csrc/cuda/kernel.cuh
TENSOR = ("f16", "bf16", "tf32", "f32x3")
TIMINGS = {"eager": 0, "lazy": 1, "random": 2}
ACTS = ("none clamp silu sigmoid hard_swish hard_sigmoid gelu gelu_tanh tanh elu leaky_relu softplus exp").split()


def _struct(name: str, fields: str, **types: Any) -> type[ctypes.Structure]:
    return type(name, (ctypes.Structure,), {"_fields_": [(n, types.get(n, ctypes.c_int64)) for n in fields.split()]})


_VIEW = _struct("View", "data image depth row pixel", data=ctypes.c_void_p)
_ACT = _struct("Activation", "kind a b", kind=ctypes.c_int32, a=ctypes.c_double, b=ctypes.c_double)
_PROBLEM = _struct(
    "ConvProblem",
    "d h w c z p q k t r s stride_d stride_h stride_w pad_d_lo pad_h_lo pad_w_lo pad_d_hi pad_h_hi pad_w_hi "
    "dil_d dil_h dil_w groups transposed exact lean residual training swapped bf16 x_bf16 y_bf16 residual_bf16 act",
    **dict.fromkeys(
        "transposed exact lean residual training swapped bf16 x_bf16 y_bf16 residual_bf16".split(), ctypes.c_int32
    ),
    act=_ACT,
)
_DEVICE = _struct(
    "Device",
    "id capability multiprocessors shared_bytes l2_bytes memory_bytes",
    **dict.fromkeys(("id", "capability", "multiprocessors"), ctypes.c_int32),
)
_CONTEXT = _struct(
    "Context",
    "precision images device x_align y_align residual_align x_flat y_flat residual_flat x_channel y_channel",
    **dict.fromkeys(("precision", "x_align", "y_align", "residual_align"), ctypes.c_int32),
    **dict.fromkeys(("x_flat", "y_flat", "residual_flat"), ctypes.c_bool),
    device=ctypes.POINTER(_DEVICE),
)
_ARGS = _struct(
    "ConvArgs",
    "x y residual weights scale bias",
    **dict.fromkeys(("x", "y", "residual"), _VIEW),
    **dict.fromkeys(("weights", "scale", "bias"), ctypes.c_void_p),
)
MAP_SPEC = _struct(
    "MapSpec",
    "base type rank dim stride box im2col lower upper step unused",
    base=ctypes.c_void_p,
    **dict.fromkeys(("type", "rank", "im2col", "unused"), ctypes.c_int32),
    dim=ctypes.c_uint64 * 4,
    stride=ctypes.c_uint64 * 3,
    box=ctypes.c_uint32 * 4,
    lower=ctypes.c_int32 * 2,
    upper=ctypes.c_int32 * 2,
    step=ctypes.c_uint32 * 2,
)


def build(*extra: str) -> Path:
    """The shared library, from build/simt; files are compiled again when anything they may include has changed.

    `extra` flags are for the files of conv_mma.
    """
    out = ROOT / "build" / "simt"
    out.mkdir(parents=True, exist_ok=True)
    headers = hashlib.sha256(" ".join([emulated.compiler(), *FLAGS]).encode())
    for path in sorted(
        [*CSRC.glob("cuda/*.*h"), *CSRC.glob("cuda/kernels/*.cuh"), *CSRC.glob("core/*.h"), *SIMT.glob("cuda/*")]
    ):
        headers.update(path.read_bytes())
    sources = [CSRC / "cuda/kernels" / f"conv_{name}.cu" for name in FILES.split()]

    def compile_one(source: Path) -> Path:
        digest, flags = headers.copy(), [*FLAGS, *(extra if "mma" in source.stem else ())]
        digest.update(source.read_bytes() + " ".join(flags).encode())
        target = out / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        if not target.exists():
            scratch = target.with_suffix(f".{os.getpid()}")
            level = "-O3" if source.stem == "simt" else "-O1"
            includes = [f"-I{SIMT}", f"-I{CSRC}"]
            command = [
                emulated.compiler(),
                level,
                *flags,
                *includes,
                "-x",
                "c++",
                "-c",
                str(source),
                "-o",
                str(scratch),
            ]
            subprocess.run(command, check=True)
            scratch.rename(target)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*sources, SIMT / "simt.cpp", SIMT / "main.cpp"]))
    library = out / f"simt-{hashlib.sha256(' '.join(o.name for o in objects).encode()).hexdigest()[:16]}.so"
    if not library.exists():
        scratch = library.with_suffix(f".{os.getpid()}")
        subprocess.run([emulated.compiler(), "-shared", *map(str, objects), "-o", str(scratch)], check=True)
        scratch.rename(library)
    return library


# As struct_sizes() of tests/simt/main.cpp has them.
_STRUCTS = (_VIEW, _ACT, _PROBLEM, _DEVICE, _CONTEXT, _ARGS, MAP_SPEC)


@functools.cache
def library(*extra: str) -> ctypes.CDLL:
    lib = ctypes.CDLL(str(build(*extra)))
    sizes = (ctypes.c_int64 * len(_STRUCTS))()
    lib.struct_sizes(sizes)
    for struct, size in zip(_STRUCTS, sizes):
        if ctypes.sizeof(struct) != size:
            raise RuntimeError(
                f"tests/simt_library.py: {struct.__name__} has {ctypes.sizeof(struct)} bytes, the C++ struct {size}: "
                "a field of csrc/core or csrc/cuda/kernel.cuh has changed"
            )
    for name in ("row_name", "row_refuse", "simt_error", "variant_name", "mma_name", "map_refuse"):
        getattr(lib, name).restype = ctypes.c_char_p
    for name in ("row_packed_bytes", "row_workspace_bytes", "mma_workspace", "merge"):
        getattr(lib, name).restype = ctypes.c_int64
    lib.row_cost.restype = ctypes.c_double
    lib.descriptor.restype = ctypes.c_uint64
    return lib


@functools.cache
def rows() -> dict[str, int]:
    lib = library()
    return {lib.row_name(i).decode(): i for i in range(lib.row_count())}


def device(multiprocessors: int = 132, capability: int = 90) -> Any:
    shared = {75: 65536, 80: 166912, 86: 101376, 90: 232448}[capability]
    return _DEVICE(0, capability, multiprocessors, shared, 50 << 20, 80 << 30)


# Numbers


def to_bits(a: np.ndarray, precision: str) -> np.ndarray:
    """As the tensors of a precision hold it: float32, float16, or bfloat16 by its bits."""
    a = np.asarray(a, np.float32)
    if precision == "f16":
        return a.astype(np.float16)
    if precision == "bf16":
        u = a.view(np.uint32)
        return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return a


def from_bits(a: np.ndarray, precision: str) -> np.ndarray:
    """In float64."""
    if precision == "bf16":
        a = (a.astype(np.uint32) << 16).view(np.float32)
    return a.astype(np.float64)


def aligned(shape: tuple[int, ...], dtype: Any, fill: int = 0xFF, offset: int = 0) -> np.ndarray:
    """Memory that starts `offset` bytes after a multiple of 256, full of 0xff (floats: NaN), 4 KB more behind it."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    buffer = np.full(size + 4096 + 512, fill, np.uint8)
    start = -buffer.ctypes.data % 256 + offset
    return buffer[start : start + size].view(dtype).reshape(shape)


def placed(a: np.ndarray, pitch: int = 0, offset: int = 0) -> np.ndarray:
    """A copy in aligned memory; pitch: elements from one pixel to the next, NaN between."""
    whole = aligned((*a.shape[:-1], max(pitch, a.shape[-1])), a.dtype, offset=offset)
    whole[..., : a.shape[-1]] = a
    return whole[..., : a.shape[-1]]


def _view(a: np.ndarray | None) -> Any:
    return _VIEW(None, 0, 0, 0, 0) if a is None else _VIEW(a.ctypes.data, *(s // a.itemsize for s in a.strides[:4]))


# Calls


def described(
    c: oracle.Conv,
    precision: str,
    n: int,
    residual: bool = False,
    act: tuple[str, float, float] = ("none", 0.0, 0.0),
    sms: int = 132,
    capability: int = 90,
    pitches: tuple[int, int] | None = None,
    offset: int = 0,
) -> tuple[Any, Any]:
    """The ConvProblem and the Context of a convolution; pitches: elements between the pixels of x and of y."""
    kind = ACTS.index("clamp" if act[0] in ("relu", "relu6") else act[0])
    geometry = (c.t, c.r, c.s, *c.stride, *c.pad_lo, *c.pad_hi, *c.dilation, c.groups, int(c.transposed))
    problem = _PROBLEM(*c.x_shape, *c.y_shape, *geometry, 0, 0, int(residual), act=_ACT(kind, *act[1:]))
    x, y = pitches or (c.c, c.k)
    size = 2 if precision in ("f16", "bf16") else 4
    bits = [pitch * size | offset | 16 for pitch in (x, y, y)]
    align = [b & -b for b in bits]
    where = ctypes.pointer(device(sms, capability))
    return problem, _CONTEXT(PRECISIONS[precision], n, where, *align, True, True, True, 1, 1)


def refusal(row: str, problem: Any, context: Any) -> str:
    """Why a row does not take a problem; empty if it does."""
    return (library().row_refuse(rows()[row], byref(problem), byref(context)) or b"").decode()


def cost(row: str, problem: Any, context: Any) -> float:
    return library().row_cost(rows()[row], byref(problem), byref(context))


@dataclass
class Case:
    """One convolution on the emulated device, with the oracle's answer."""

    conv: oracle.Conv
    precision: str
    n: int = 2
    residual: bool = False
    scale: bool = False
    bias: bool = True
    act: tuple[str, float, float] = ("none", 0.0, 0.0)
    exact: bool = True
    sms: int = 5  # few: several tiles for each block
    capability: int = 90
    timing: str = "random"
    seed: int = 1
    x_pitch: int = 0
    y_pitch: int = 0
    offset: int = 0  # bytes off alignment
    limit: int = 2  # of the integers
    extra: tuple[str, ...] = ()
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def __post_init__(self) -> None:
        c = self.conv
        data = oracle.conv_data(
            c, self.rng, self.n, exact=self.exact, bias=self.bias, residual=self.residual, limit=self.limit
        )
        self.lib = library(*self.extra)
        self.x = placed(to_bits(data.x, self.precision), self.x_pitch, self.offset)
        self.w = np.ascontiguousarray(from_bits(to_bits(data.w, self.precision), self.precision), np.float32)
        self.b = data.bias
        self.r = (
            None if data.residual is None else placed(to_bits(data.residual, self.precision), self.y_pitch, self.offset)
        )
        self.s = np.exp2(self.rng.integers(-1, 2, c.k)).astype(np.float32) if self.scale else None
        residual = None if self.r is None else from_bits(self.r, self.precision)
        plain = oracle.conv(from_bits(self.x, self.precision), self.w, **c.geometry)
        self.before = plain * (1.0 if self.s is None else self.s)  # ... the activation
        self.before = self.before + (0 if self.b is None else self.b) + (0 if residual is None else residual)
        self.want = tolerance.activation(self.act[0], self.before, *self.act[1:])
        pitches = (self.x_pitch or c.c, self.y_pitch or c.k)
        self.problem, self.context = described(
            c, self.precision, self.n, self.residual, self.act, self.sms, self.capability, pitches, self.offset
        )

    def refusal(self, row: str) -> str:
        return refusal(row, self.problem, self.context)

    def run(self, row: str, call: Any = None, workspace: int = -1) -> np.ndarray:
        """y in float64 by a row, or by `call(problem, args, context, workspace)` on the row's packed weights."""
        i, p, c = rows()[row], byref(self.problem), byref(self.context)
        assert not self.refusal(row), self.refusal(row)
        packed = aligned((self.lib.row_packed_bytes(i, p, c),), np.uint8)
        w = aligned(self.w.shape, np.float32)
        w[...] = self.w
        assert self.lib.row_pack(i, p, c, ctypes.c_void_p(w.ctypes.data), ctypes.c_void_p(packed.ctypes.data)) == 0
        scratch = aligned((self.lib.row_workspace_bytes(i, p, c) if workspace < 0 else workspace,), np.uint8)
        whole = aligned((self.n, *self.conv.y_shape[:3], self.y_pitch or self.conv.k), self.x.dtype, offset=self.offset)
        guard = whole.base.copy()
        y = whole[..., : self.conv.k]
        small = [None if a is None else placed(np.asarray(a, np.float32).reshape(1, -1)) for a in (self.s, self.b)]
        pointers = [None if a is None else a.ctypes.data for a in small]
        args = _ARGS(_view(self.x), _view(y), _view(self.r), packed.ctypes.data, *pointers)
        self.lib.simt_timing(TIMINGS[self.timing], self.seed)
        space = ctypes.c_void_p(scratch.ctypes.data)
        code = self.lib.row_run(i, p, byref(args), c, space) if call is None else call(p, byref(args), c, space)
        assert code == 0, f"error {code}: {self.lib.simt_error().decode()}"
        result = from_bits(y, self.precision)
        self._check_guard(whole, y, guard)
        return result

    @staticmethod
    def _check_guard(whole: np.ndarray, y: np.ndarray, before: np.ndarray) -> None:
        """Nothing but y was written: neither between its pixels nor around it."""
        word = np.dtype(np.uint16 if y.itemsize == 2 else np.uint32)
        y.view(word)[...] = np.iinfo(word).max
        changed = np.flatnonzero(whole.base != before)
        assert not changed.size, f"{changed.size} bytes outside of y were written"
