"""Which faults come from the machines, so that the same work may succeed on others. No torch."""

from __future__ import annotations

import errno

# torch's own classes, by name: a lost peer or link, a broken device.
ENVIRONMENT_CLASSES = ("DistError", "DistBackendError", "DistNetworkError", "AcceleratorError")
# What gloo and NCCL say in a bare RuntimeError when a peer is gone.
LOST_PEER = ("gloo", "NCCL", "Connection closed by peer", "Connection reset", "Broken pipe")
FILE_SYSTEM_FAULTS = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EREMOTEIO)


def is_environment(error: BaseException) -> bool:
    """Whether a lost process, link, device or file system is to blame, and not code or data."""
    if isinstance(error, OSError) and error.errno in FILE_SYSTEM_FAULTS:
        return True
    if any(kind.__name__ in ENVIRONMENT_CLASSES for kind in type(error).__mro__):
        return True
    is_bare = type(error) is RuntimeError or isinstance(error, ConnectionError)
    return is_bare and any(words in str(error) for words in LOST_PEER)
