"""Files that are whole or not there: written beside the target under another name, then renamed."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import DataError


def write_file(path: str | os.PathLike[str], write: Callable[[Any], Any]) -> None:
    """Give `write` an open binary file; once it is complete, it takes the name `path`, replacing what was there.

    Whatever goes wrong, the old file stays and nothing else is left. Raises: DataError if it cannot be written.

    >>> write_file("greeting.txt", lambda file: file.write(b"hello"))
    >>> Path("greeting.txt").read_text()
    'hello'
    """
    target = Path(os.path.realpath(path))  # through a symbolic link, not over it
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                write(file)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from None
