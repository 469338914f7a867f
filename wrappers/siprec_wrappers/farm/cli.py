"""`whisper-farm`: the client, unless the first argument names another part."""

import os
import sys
from collections.abc import Sequence

_PARTS = ("worker", "status", "dead", "dispatcher", "node", "exporter", "tidy", "token")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the part that the first argument names; anything else is the CLI contract."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:
        print(f"whisper-farm: {error.name} is missing: siprec-bridge[farm] has it", file=sys.stderr)
        return 127


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in _PARTS:
        from siprec_wrappers.farm.parts import run_part

        return run_part(arguments)
    from siprec_wrappers.farm.client import main as client

    if arguments in (["--help"], ["-h"]):
        print(f"Other parts: whisper-farm {{{','.join(_PARTS)}}} --help\n")
    return client(arguments)


def program() -> None:
    """The console script. Ends without taking the interpreter apart, which costs up to 10 ms a job."""
    try:
        code = main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    program()
