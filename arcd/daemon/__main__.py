"""`python -m arcd.daemon OPTIONS`: one life of the daemon, started by the supervisor."""

import sys

from arcd.daemon.process import main

sys.exit(main())
