"""Indexes on disk: segments, manifest, checksums."""

from tqindex.storage.load import Verification, load, verify

__all__ = ["Verification", "load", "verify"]
