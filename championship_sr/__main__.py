"""`python -m championship_sr` is `csr`."""

from __future__ import annotations

import sys

from championship_sr.command import main

if __name__ == "__main__":
    sys.exit(main())
