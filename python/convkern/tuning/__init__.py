"""Measured choices of kernels: tables that go before the cost model.

A plan takes for each convolution the kernel that the cost model finds cheapest, unless a table has a row for the
problem. Tables are read when the first plan is made:

    CONVKERN_TUNE=FILE                      this table alone; CONVKERN_TUNE=off: none
    <cache>/convkern/tune-<cpu>.json        the one that `convkern tune` wrote here, if it was ever run
    convkern/tuning/*.json                  those of the package, for the processors they name

A table is JSON: {"convkern tune": 1, "cpu": ..., "rows": {problem: {"kernel": name, "us": microseconds}}}. Rows of the
user's table come before the package's. The problem is that of one image and names the instruction set, so that neither
the batch nor the number of threads chooses (and one image gives the same bits in any batch).
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from .. import _core
from ..errors import DataError

FORMAT = 1
MOST_BYTES = 16 << 20  # of a table; a row takes about 150

Rows = dict[str, tuple[str, float]]  # problem -> (kernel, microseconds for one image)

_lock = threading.Lock()
_loaded = False


def ensure_loaded() -> None:
    """Read the tables once, before the first plan. DataError for one that is broken, each time until it is mended."""
    global _loaded
    if _loaded:
        return
    with _lock:
        if not _loaded:
            _core.set_tuning(active())
            _loaded = True


def reload() -> None:
    """Read the tables again, for plans made from now on (after `write`, or when CONVKERN_TUNE has changed)."""
    global _loaded
    with _lock:
        _loaded = False
    ensure_loaded()


def active() -> Rows:
    """The rows that hold here: of CONVKERN_TUNE, or of the package and the user's cache."""
    wish = os.environ.get("CONVKERN_TUNE", "")
    if wish.lower() in ("off", "0", "none"):
        return {}
    if wish:
        return read(wish)
    rows = _shipped()
    path = user_file()
    if path.is_file():
        rows.update(read(path))
    return rows


def _shipped() -> Rows:
    from ..bench.harness import cpu_name

    rows: Rows = {}
    for entry in sorted(resources.files(__name__).iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith(".json"):
            doc = _parsed(entry.read_text("utf-8"), entry.name)
            if doc["cpu"] == cpu_name():
                rows.update(_rows(doc, entry.name))
    return rows


def user_file() -> Path:
    """Where `convkern tune` writes and plans look: in the user's cache, one table for each processor."""
    from ..bench.harness import cpu_name

    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    slug = re.sub(r"[^a-z0-9]+", "-", cpu_name().lower()).strip("-") or "unknown"
    return Path(cache) / "convkern" / f"tune-{slug}.json"


def read(path: str | os.PathLike[str]) -> Rows:
    """The rows of a table.

    Rows of kernels that this version does not have are left out with a warning. Raises DataError, naming the file and
    the remedy, for a file that is missing, too large or not a table.

    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "tune.json")
    >>> write(path, {"a problem": ("conv_direct", 12.5)})
    >>> read(path)
    {'a problem': ('conv_direct', 12.5)}
    """
    where = os.fspath(path)
    try:
        if os.path.getsize(where) > MOST_BYTES:
            raise DataError(f"{where}: {os.path.getsize(where)} bytes; a tuning table has at most {MOST_BYTES}")
        text = Path(where).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: cannot read the tuning table: {error} (CONVKERN_TUNE=off does without)") from None
    return _rows(_parsed(text, where), where)


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        doc = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error} ({_REMEDY})") from None
    if not isinstance(doc, dict) or doc.get("convkern tune") != FORMAT:
        raise DataError(f"{where}: not a tuning table of format {FORMAT} ({_REMEDY})")
    if not isinstance(doc.get("rows"), dict) or not isinstance(doc.get("cpu"), str):
        raise DataError(f"{where}: a tuning table has a 'cpu' and 'rows' ({_REMEDY})")
    return doc


_REMEDY = "delete it and run `convkern tune` again, or set CONVKERN_TUNE=off"


def _rows(doc: Mapping[str, Any], where: str) -> Rows:
    known = {row["name"] for row in _core.kernels() if row["family"] == "conv"}
    rows: Rows = {}
    strange = set()
    for problem, row in doc["rows"].items():
        kernel, us = (row.get("kernel"), row.get("us")) if isinstance(row, dict) else (None, None)
        us = float(us) if isinstance(us, (int, float)) and not isinstance(us, bool) else math.nan
        if not isinstance(kernel, str) or not 0 < us < math.inf:
            raise DataError(
                f"{where}: the row {problem!r} is {row!r}, want a kernel's name and microseconds ({_REMEDY})"
            )
        if kernel in known:
            rows[problem] = (kernel, us)
        else:
            strange.add(kernel)
    if strange:
        warnings.warn(f"{where}: no kernel here is called {', '.join(sorted(strange))}: ignored", stacklevel=2)
    return rows


def write(path: str | os.PathLike[str], rows: Rows, **facts: Any) -> None:
    """Write a table, whole or not at all; `facts` say how it was measured. Raises DataError if it cannot be written."""
    from ..bench.harness import cpu_name

    doc = {"convkern tune": FORMAT, "cpu": cpu_name(), **facts}
    doc["rows"] = {problem: {"kernel": kernel, "us": round(us, 3)} for problem, (kernel, us) in sorted(rows.items())}
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(json.dumps(doc, indent=1) + "\n", "utf-8")
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{os.fspath(path)}: cannot write the tuning table: {error}") from None
