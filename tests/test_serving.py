"""What a bridge does to its own process."""

import subprocess
import sys

SCRIPT = """
import resource
from siprec_bridge.serving import use_all_files

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512))
use_all_files()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_it_opens_as_many_files_as_it_may_not_as_it_was_started_with() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)

    assert done.stdout.split() == ["512", "512"], done.stderr
