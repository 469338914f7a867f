"""`siprec-bridge listen` on a terminal: one line that grows, and below it the next."""

import io

import pytest
from typer.testing import CliRunner

from siprec_bridge.cli import app
from siprec_bridge.cli.listen import _Screen


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_growing_line_is_written_over_and_stays_once_it_is_over() -> None:
    out = Terminal()
    screen = _Screen(out)
    screen.show("good", over=False)
    screen.show("good morning", over=False)
    screen.show("good morning.")
    screen.show("call ended")

    written = out.getvalue().split("\r\x1b[K")
    assert written == ["good", "good morning", "good morning.\ncall ended\n"]


def test_a_growing_line_that_is_too_long_shows_its_end() -> None:
    out = Terminal()
    _Screen(out).show("x" * 500 + "the end", over=False)

    assert "\n" not in out.getvalue()
    assert out.getvalue().startswith("…")
    assert out.getvalue().endswith("the end")


def test_what_is_no_terminal_gets_whole_lines_alone() -> None:
    out = io.StringIO()
    screen = _Screen(out)
    screen.show("good", over=False)
    screen.show("good morning")

    assert out.getvalue() == "good morning\n"


@pytest.mark.parametrize("url", ["ws://bridge:port/ws/transcripts", "ws://[::1/ws/transcripts"])
def test_an_address_that_is_none_is_told_in_a_line(url: str) -> None:
    done = CliRunner().invoke(app, ["listen", url])

    assert done.exit_code == 1
    assert done.stderr.startswith(f"siprec-bridge: {url}: ")
    assert done.stderr.count("\n") == 1
