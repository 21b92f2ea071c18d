"""seqlab: compare sequence architectures on the same data with the same budget."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("seqlab")
except PackageNotFoundError:  # imported from a source tree that was never installed
    __version__ = "0+source"
