"""How many streams a process has room for under its limit of open files."""

import resource
import subprocess
import sys

import pytest

from siprec_bridge.receiver import descriptors

LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 364))
from siprec_bridge.receiver import descriptors
print(descriptors.room(1000), descriptors.allow(90), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_there_is_room_for_what_the_hard_limit_allows_and_no_more_than_is_wanted() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 94:
        pytest.skip(f"a hard limit of {hard} files")

    assert descriptors.room(10) == 10
    assert descriptors.room(0) == 0


def test_the_limit_is_raised_as_far_as_it_may_be() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True
    )

    most, allowed, soft, hard = map(int, done.stdout.split())
    assert most in (100, 1000)  # 300 descriptors; or as many as wanted, with CAP_SYS_RESOURCE
    assert allowed == 90
    assert soft == hard == 364
