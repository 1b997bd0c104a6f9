"""A bundle: files with all that a program on a device needs to run them.

Owns the input specification, the script and the snippets that go with it, and the archive. Never imports torch: the
network's outputs come as arrays.
"""

from edgeprune.bundle.archive import write_archive
from edgeprune.bundle.specification import BundleFile, read_file, specification
from edgeprune.bundle.texts import texts

__all__ = ["BundleFile", "read_file", "specification", "texts", "write_archive"]
