"""`python -m arcd.daemon OPTIONS`: one life of the daemon, started by the supervisor.

Opens the backends that the options name. Knows nothing of what they do.
"""

import sys

from arcd.daemon.options import Options
from arcd.daemon.process import main

if Options.model_validate_json(sys.argv[1]).backend == "fake":
    from arcd.daemon import fake_runtime

    sys.exit(main(fake_runtime.open_runtime, fake_runtime.find_platform))
sys.exit(main())
