"""What a parser may not do while it reads: run code, open sockets, start processes, touch files elsewhere.

Python's own audit events say what is attempted, below every library, and also where somebody catches the error again.
Libraries that open files without Python (safetensors, tokenizers) are not seen: they open what they are given by name.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

FORBIDDEN = (
    *("socket.", "urllib.", "http.client", "ftplib.", "smtplib.", "webbrowser.", "subprocess.", "pty."),
    *(
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.chmod",
        "os.chown",
        "ctypes.dl",
    ),
    *("pickle.find_class", "shutil.", "sys.setprofile", "sys.settrace"),
)
# Positions of the paths among an event's arguments. What these do to a folder is writing.
CHANGES = {"os.mkdir": (0,), "os.rmdir": (0,), "os.remove": (0,), "os.truncate": (0,), "os.utime": (0,)}
CHANGES |= {"os.rename": (0, 1), "os.link": (0, 1), "os.symlink": (1,)}
LOOKS = {"os.listdir": (0,), "os.scandir": (0,), "os.chdir": (0,)}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@functools.lru_cache(512)
def _real_folder(path: str) -> str:
    return os.path.realpath(path)


def _real(*paths: str | Path) -> tuple[str, ...]:
    return tuple(dict.fromkeys(os.path.realpath(path) for path in paths))


class Guard:
    """Watches while it is on; what was attempted is in ``tried``, and does not happen."""

    def __init__(self) -> None:
        self.on = False
        self.tried: list[str] = []
        self.writable: tuple[str, ...] = ()
        self.readable: tuple[str, ...] = ()
        self._hooked = False

    def allow(self, base: Path, host: Path, repository: Path) -> None:
        """Say where ComfyUI's folders are, its own code, and ours."""
        self.writable = _real(base / "output", base / "temp")
        # A file's folder may be linked, as the small world's models are.
        code = (sys.prefix, sys.base_prefix, *sysconfig.get_paths().values())
        self.readable = (
            *self.writable,
            *_real(base / "models", base / "input", host, repository, *code),
            "/proc",
            "/sys",
        )

    @contextlib.contextmanager
    def watching(self) -> Iterator[list[str]]:
        """Nothing forbidden happens in here; yields what was attempted."""
        if not self._hooked:
            sys.addaudithook(self._hook)  # for good: it is let rest by ``on``
            self._hooked = True
        self.tried, self.on = [], True
        try:
            yield self.tried
        finally:
            self.on = False

    @contextlib.contextmanager
    def resting(self) -> Iterator[None]:
        """What the fuzzing does itself, in the middle of a case."""
        was, self.on = self.on, False
        try:
            yield
        finally:
            self.on = was

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool(isinstance(flags, int) and flags & WRITING) or bool(
                isinstance(mode, str) and set(mode) & set("wax+")
            )
            self._check(event, path, writes)
        elif event in CHANGES:
            for position in CHANGES[event]:
                self._check(event, arguments[position], True)
        elif event in LOOKS:
            self._check(event, arguments[0], False)
        elif event == "exec":
            self._check_code(arguments[0])
        elif event.startswith(FORBIDDEN):
            self._refuse(f"{event}{arguments!r:.200}")

    def _check(self, event: str, path: object, writes: bool) -> None:
        if isinstance(path, int) or path is None:  # what was opened before; the folder we are in
            return
        with self.resting():
            folder, name = os.path.split(os.fsdecode(path))  # type: ignore[arg-type]
            real = os.path.realpath(os.path.join(_real_folder(folder), name))
        allowed = self.writable if writes else self.readable
        if real == os.devnull or any(real == folder or real.startswith(f"{folder}{os.sep}") for folder in allowed):
            return
        self._refuse(f"{event} {'for writing ' if writes else ''}{path!r:.200}")

    def _check_code(self, code: object) -> None:
        """Code of installed files may run: libraries load parts of themselves late, and write some of it themselves."""
        name = getattr(code, "co_filename", "")
        if name.startswith("<"):
            name = sys._getframe(2).f_code.co_filename  # who runs it
        if name.startswith("<frozen "):
            return
        with self.resting():
            real = _real_folder(name)
        outside = real.startswith(self.writable) or not real.startswith(self.readable)
        models = real.startswith(self.readable[len(self.writable) : len(self.writable) + 2])
        if outside or models:
            self._refuse(f"exec of {name}")

    def _refuse(self, what: str) -> None:
        self.tried.append(what)
        raise PermissionError(f"{what}: a parser may not do this")


GUARD = Guard()


def scratch(prefix: str) -> Path:
    """A folder of the fuzzing's own, outside of all that parsers may touch."""
    return Path(tempfile.mkdtemp(prefix=prefix))
