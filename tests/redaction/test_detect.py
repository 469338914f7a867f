"""What makes a number one that is looked for: what was asked, how it was read, when it was said."""

from dataclasses import replace

import pytest

from harness.redaction_corpus import EVERYTHING, conversation
from siprec_bridge.redaction import detect
from siprec_bridge.redaction.conversation import redact_conversation

WORDS = (
    "well, let me see, I have been looking for it all over the house, and in the end here it is:"
)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        # A number of another kind, though it would fit.
        (
            ["1: My order number is 4111 1111, hold on, 1111 1111."],
            ["My order number is 4111 1111, hold on, 1111 1111."],
        ),
        (["1: My order number is 536-22-1234."], ["My order number is 536-22-1234."]),
        (["1: It's 536-22-1234."], ["It's [id]."]),
        # A piece of three digits is one.
        (["1: 411, wait, 11111, then 1111 1111."], ["[card], wait, [card]."]),
        # "Forty one" is 40 1, where 41 fits nothing.
        (
            ["1: forty one two" + " eight" * 8 + " one eight eight one"],
            ["[card]"],
        ),
        # Not each number behind the question is its answer.
        (
            ["1: 4242 4242 4242 4242", "2: The security code?", "1: 123, platform 17, track 4"],
            ["[card]", "The security code?", "[cvv], platform 17, track 4"],
        ),
        (
            ["1: It's 4539 5787 6362 1486.", "2: It ends with 486, right?"],
            ["It's [card].", "It ends with [card], right?"],
        ),
        (["1: gb82west12345698765432"], ["[iban]"]),
        # What was asked for is remembered; that it was some other number, only for a moment.
        ([f"1: My card, {WORDS} 4111 1111 1111 1112"], [f"My card, {WORDS} [card]"]),
        ([f"1: My order, {WORDS} 415 555 2671"], [f"My order, {WORDS} [phone]"]),
        (["1: My order is 415 555 2671"], ["My order is 415 555 2671"]),
    ],
)
def test_a_number_is_what_the_talk_is_about_or_what_it_fits(
    said: list[str], left: list[str]
) -> None:
    clean = redact_conversation(conversation(tuple(said), "en"), EVERYTHING).conversation

    assert [one.text for one in clean.utterances] == left


@pytest.mark.parametrize(
    ("kinds", "left"),
    [
        ({"ibans"}, "It is A B 77 88 99 C and [iban]"),
        ({"ids"}, "It is [id] and gb82west12345698765432"),
        ({"phones"}, "It is A B 77 88 99 C and gb82west12345698765432"),
    ],
)
def test_of_ids_and_accounts_goes_what_the_policy_names(kinds: set[str], left: str) -> None:
    said = conversation(("1: It is A B 77 88 99 C and gb82west12345698765432",), "en")

    clean = redact_conversation(said, replace(EVERYTHING, kinds=frozenset(kinds)))  # type: ignore[arg-type]

    assert [one.text for one in clean.conversation.utterances] == [left]


@pytest.mark.parametrize(
    ("texts", "kinds"),
    [
        ([(0, "4111 1111", 0.0, 2.0), (1, "1111 1111", 4.0, 6.0)], ["card"]),
        ([(0, "4111 1111", 0.0, 2.0), (1, "1111 1111", 100.0, 102.0)], []),
        # Who speaks for long is not silent when somebody on his line says something in between.
        (
            [(0, "4111 1111", 0.0, 100.0), (1, "mm", 1.0, 2.0), (2, "1111 1111", 101.0, 102.0)],
            ["card"],
        ),
    ],
)
def test_a_number_ends_with_a_long_pause(
    texts: list[tuple[int, str, float, float]], kinds: list[str]
) -> None:
    found = detect.detect([detect.stream("1", texts, "en")], EVERYTHING)

    assert [one.kind for one in found["1"]] == kinds
