"""Every error that tqindex raises on purpose.

Each class derives from `TQIndexError` and from the builtin that a caller would catch anyway. A message is one
line that names the argument or file, the rule, and the value got.
"""


class TQIndexError(Exception):
    """Base of all errors raised by tqindex."""


class ArgumentError(TQIndexError, ValueError):
    """An argument breaks a stated rule (bits, k, metric, ids, ...)."""


class VectorError(ArgumentError):
    """Vectors or queries cannot be used: wrong width, dtype, NaN, inf, or zero under cosine."""


class UnknownIdError(TQIndexError, KeyError):
    """An id is not in the index."""

    def __str__(self) -> str:
        # KeyError would show the message in quotes.
        return str(self.args[0]) if self.args else ""


class FileFormatError(TQIndexError, ValueError):
    """A vector file is not of the form that its reader expects."""


class MissingFileError(TQIndexError, FileNotFoundError):
    """A file or directory that was named does not exist."""


class StorageError(TQIndexError, OSError):
    """The index cannot be written or read: disk full, permission, output that exists."""


class LockedError(StorageError):
    """Another process or thread is writing the index."""


class CorruptIndexError(TQIndexError, ValueError):
    """An index on disk is truncated, altered, or not an index at all."""


class FormatVersionError(CorruptIndexError):
    """An index was written by a newer version of tqindex."""


class MissingPackageError(TQIndexError, ImportError):
    """A package that only an extra of tqindex brings is not installed."""


class DeviceError(TQIndexError, RuntimeError):
    """A GPU cannot be used: none, no driver, out of memory, or a kernel that it refuses."""
