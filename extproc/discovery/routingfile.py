# SPDX-License-Identifier: Apache-2.0
"""The routing entries in a file beside the policy, where there is no cluster to keep them.

The file is never half written: what is new stands whole in a file beside it before it takes its name. Who writes holds a
lock on the folder (flock(2)), which the kernel gives back when a process dies.
"""

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from extproc.policy.document import DocumentError
from extproc.policy.routing import Edit, Refused, Routing, edited, parse_routing

NAME: Final = "owned-by-routing.yaml"
"""The name of the file, in the policy's folder."""
PATIENCE: Final = 5.0
"""Seconds for which another process may hold the lock."""
_PAUSE: Final = 0.01
_NOT_OURS: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)
"""What a file or folder answers that we may not change; EBUSY is a file that is mounted by itself."""


class FileRouting:
    """The RoutingStore of one machine; processes that share the file may write at once."""

    def __init__(self, path: Path) -> None:
        """Nothing is read yet; the file need not exist, its folder must."""
        self.path = path
        self._new = path.with_name(f".{path.name}.new")
        self._turn = asyncio.Lock()  # else those of this process would take a thread each to wait for the lock

    def __str__(self) -> str:
        return str(self.path)

    async def read(self) -> Routing | Refused:
        """What is stored now; its version is a digest of the file's content, "" if there is no file."""
        return await asyncio.to_thread(self._read)

    async def change(self, edit: Edit, version: str | None = None) -> Routing | Refused:
        """Store what `edit` makes of what is stored; see RoutingStore. `edit` is called in another thread."""
        async with self._turn:
            return await asyncio.to_thread(self._change, edit, version)

    def _read(self) -> Routing | Refused:
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):  # to read a pipe could take for ever
                return Refused("unreadable", f"{self}: it is not a file")
            content = self.path.read_bytes()
        except FileNotFoundError:
            return Routing()
        except OSError as error:
            return Refused("unavailable", f"{self}: it cannot be read: {error.strerror}")
        return self._routing(content)

    def _routing(self, content: bytes) -> Routing | Refused:
        try:
            return Routing(parse_routing(content), hashlib.sha256(content).hexdigest())
        except DocumentError as error:
            return Refused("unreadable", f"{self}: {error}")

    def _change(self, edit: Edit, version: str | None) -> Routing | Refused:
        try:
            with _alone_in(self.path.parent) as folder:
                now = self._read()
                if isinstance(now, Refused):
                    return now
                text = edited(now, edit, version, f"the file {self}")
                return self._write(text.encode(), folder) if isinstance(text, str) else text
        except TimeoutError:
            return Refused("unavailable", f"{self}: another process has kept the folder locked for {PATIENCE:g} s")
        except OSError as error:
            message = f"{self}: it cannot be written: {error.strerror}"
            return Refused("read_only" if error.errno in _NOT_OURS else "unavailable", message)

    def _write(self, content: bytes, folder: int) -> Routing | Refused:
        """Put a file with this content in the place of the old one. Raises OSError, and then that is still there."""
        if self.path.is_symlink():
            return Refused("read_only", f"{self}: it is a link, as in a mounted ConfigMap, and is not replaced")
        old = self.path.stat() if self.path.exists() else None
        if old is not None and not os.access(self.path, os.W_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._new.unlink(missing_ok=True)  # what a process left that died here
        try:
            with self._new.open("xb") as file:
                if old is not None:
                    with contextlib.suppress(OSError):  # only root may give a file away
                        os.fchown(file.fileno(), old.st_uid, old.st_gid)
                    os.fchmod(file.fileno(), stat.S_IMODE(old.st_mode))
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            self._new.replace(self.path)
        except OSError:
            self._new.unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):  # it is stored; only a power failure could still undo it
            os.fsync(folder)
        return self._routing(content)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[int]:
    """The folder's descriptor, while no other process is here. Raises TimeoutError, or another OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise TimeoutError from error
                # Not for ever in the kernel: a thread that hangs would keep this process from ending.
                time.sleep(_PAUSE)
            else:
                break
        yield descriptor
    finally:
        os.close(descriptor)
