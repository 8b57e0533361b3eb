"""What a bare script needs to put the same bytes on the same disk with the same care: write, fsync, link, fsync.

The yardstick for the part of a broker's CPU time that no broker on a local directory can save. Through the page cache
it depends much on the state of the machine's memory; O_DIRECT from one buffer, used again and again, is the least.
"""

from __future__ import annotations

import mmap
import os
import random
import shutil
import tempfile
import time
from pathlib import Path

PAGE = mmap.PAGESIZE


def cpu_seconds(parent: Path, object_bytes: int, total_bytes: int, direct: bool = False) -> float:
    """CPU seconds this process spends on writing `total_bytes` in objects of `object_bytes` below `parent`.

    With `direct` the page cache is gone round; OSError where the file system does not do that.
    """
    padded = -(-object_bytes // PAGE) * PAGE
    buffer = mmap.mmap(-1, padded)
    buffer.write(random.Random(3).randbytes(object_bytes))
    block = memoryview(buffer)[: padded if direct else object_bytes]
    folder = Path(tempfile.mkdtemp(prefix="bare-write-", dir=parent))
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        began = time.process_time()
        for number in range(max(1, total_bytes // object_bytes)):
            temporary, final = folder / f".{number}", folder / f"{number:020d}"
            file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | (os.O_DIRECT if direct else 0), 0o644)
            written = 0
            while written < len(block):
                written += os.write(file, block[written:])
            if direct:
                os.ftruncate(file, object_bytes)
            os.fsync(file)
            os.close(file)
            os.link(temporary, final)
            os.unlink(temporary)
            os.fsync(descriptor)
        used = time.process_time() - began
        os.close(descriptor)
    finally:
        shutil.rmtree(folder)
        block.release()
        buffer.close()
    return used
