"""Has the bundle on the disk changed? Looked at every few seconds, by size and time of its files."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

from alexnet.deploy.server.threads import in_thread

Signature: TypeAlias = tuple[tuple[str, int, int, int], ...]


def signature(path: Path) -> Signature:
    """Name, size, time and inode of each file of a bundle, run or exported file; empty while it is not there."""
    folder = path / "bundle" if (path / "bundle" / "config.json").is_file() else path
    try:
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [path]
        stats = [(str(file), file.stat()) for file in files]
    except OSError:  # it is being replaced
        return ()
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in stats)


async def watch(path: Path, seconds: float, known: Signature, reload: Callable[[], Awaitable[object]]) -> None:
    """Call ``reload`` whenever the files are others than ``known``, and the same at two looks: copying takes time."""
    before = known
    while True:
        await asyncio.sleep(seconds)
        now = await in_thread("watch", signature, path)
        if now and now != known and now == before:
            known = now
            await reload()
        before = now
