"""`python -m edgeprune` is the `edgeprune` command; `torchrun -m edgeprune` starts it on several processes."""

from __future__ import annotations

import sys

from edgeprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
