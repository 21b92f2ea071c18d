"""Folders that a user names for results, refused before the work that they are for."""

import contextlib
import os
from pathlib import Path
from tempfile import TemporaryDirectory

from seqlab.errors import UserError


def check_place(key: str, folder: Path) -> None:
    """Check that files can be written in a folder, which need not exist; it is as before afterwards.

    Writing is tried: what permissions say does not hold for root, in ``/proc``, or on a full disk.

    Args:
        key: the setting that names it.
        folder: where results will be.

    Raises:
        UserError: it cannot be made, or nothing can be written in it.
    """
    to_make = [path for path in (folder, *folder.parents) if not os.path.lexists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        taken = isinstance(error, FileExistsError | NotADirectoryError)
        rule = f"no file can be written there ({'a file is in the way' if taken else error.strerror})"
        raise UserError(key, folder, rule, "Name another folder") from error
    finally:
        for path in to_make:
            with contextlib.suppress(OSError):  # another process writes there too
                path.rmdir()
