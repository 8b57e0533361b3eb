"""`python -m workers --control-fd N --descriptors-fd M`: a worker process, started by the supervisor."""

import sys

from workers.process import main

sys.exit(main(sys.argv[1:]))
