"""The recorded layer cases and nets, which other folders' tests read too."""

import sys
from pathlib import Path

for folder in ("layers", "."):
    sys.path.insert(0, str((Path(__file__).parents[1] / folder).resolve()))
