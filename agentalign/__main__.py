"""`python -m agentalign`, which launchers of several processes need: `accelerate launch -m agentalign train dpo ...`."""

import sys

from agentalign.cli import main

sys.exit(main())
