"""Live lines of which something is taken out: nothing of it shows, however the lines are cut."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import luhn

from harness.redaction_corpus import EVERYTHING, corpus
from harness.redaction_corpus import Talk as CorpusTalk
from siprec_bridge.redaction import Policy
from siprec_bridge.redaction.live import LiveLines, LiveText
from siprec_bridge.transcript import Word

_DIGITS = {
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "de": ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"],
    "es": ["cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"],
    "fr": ["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"],
}
_ASIDES = {
    "en": "hold on let me turn it over",
    "de": "Moment bitte",
    "es": "espera",
    "fr": "attendez",
}
_START = {"en": "my card is", "de": "die Karte ist", "es": "la tarjeta", "fr": "ma carte"}
CARD = "4242 4242 4242 4242"


class Talk:
    """Says lines, and has what was shown of them."""

    def __init__(self, policy: Policy = EVERYTHING, language: str | None = "en") -> None:
        self._lines = LiveLines(policy)
        self._language = language
        self._at = 1.0
        self.shown: list[str] = []

    def say(self, text: str, label: str = "1", *, settled: bool = True) -> str | None:
        """A line, 0.4 s a word; what may be shown of it."""
        end = self._at + 0.4 * max(1, len(text.split()))
        words = tuple(
            Word(text=f" {word}", start=self._at + 0.4 * n, end=self._at + 0.4 * n + 0.4)
            for n, word in enumerate(text.split())
        )
        line = LiveText(label, text, words, self._at, end, self._language, settled)
        clean = self._lines.clean(line)
        if settled:
            self._at = end + 0.5
        if clean is not None:
            self.shown.append(clean.text)
            assert clean.words == () or clean.text.split() == [
                part for word in clean.words for part in word.text.split()
            ]
        return clean.text if clean is not None else None


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["4", "51", "34", "6011", "2221", "36"]),
    st.randoms(use_true_random=False),
    st.sampled_from(sorted(_DIGITS)),
)
def test_no_digit_of_a_card_is_ever_shown_however_its_lines_grow_and_are_cut(
    prefix: str, dice: random.Random, language: str
) -> None:
    length = 15 if prefix == "34" else 14 if prefix == "36" else 16
    body = prefix + "".join(dice.choice("0123456789") for _ in range(length - 1 - len(prefix)))
    number = body + luhn.calc_check_digit(body)
    line, lines = _START[language] if dice.random() < 0.5 else "", []
    said = ""
    while number:
        size = dice.choice([1, 1, 2, 3, 4, 4])
        group, number = number[:size], number[size:]
        said += group
        line += f" {_said(group, language, dice)}{dice.choice(['', '', ',', '.', ' uh'])}"
        if len(said) > 4 and len(number) > 3 and dice.random() < 0.15 and size > 2:
            line += f" {_ASIDES[language]}"
            # The parts of an interrupted number are three digits and more.
            group, number = number[:3], number[3:]
            line += f" {group}"
        if dice.random() < 0.4:
            lines.append(line.strip())
            line = ""
    lines.append(f"{line} bla bla bla bla".strip())
    talk = Talk(language=language if dice.random() < 0.7 else None)

    for each in lines:
        cuts = (
            range(1, len(each))
            if dice.random() < 0.5
            else [m.start() for m in re.finditer(" ", each)]
        )
        for end in cuts:
            talk.say(each[:end], settled=False)
        talk.say(each)
        if dice.random() < 0.5:
            talk.say("mm-hm", label="2")

    everything = " ".join(talk.shown)
    assert not re.search(r"\d", everything), talk.shown
    assert not {*re.findall(r"\w+", everything.lower())} & {*_DIGITS[language]}, talk.shown


@pytest.mark.parametrize(
    "talk", [one for one in corpus() if one.gone], ids=lambda talk: " ".join(talk.said)[:150]
)
def test_what_must_go_from_the_transcript_is_in_no_live_line(talk: CorpusTalk) -> None:
    live = Talk(language=talk.language)

    for line in talk.said:
        label, _, text = line.partition(": ")
        for space in re.finditer(" ", text):
            live.say(text[: space.start()], label, settled=False)
        live.say(text, label)

    # "double" alone is no digit.
    assert [
        (one, piece)
        for one in live.shown
        for piece in talk.gone
        if piece in one and piece != "double"
    ] == []


def _said(group: str, language: str, dice: random.Random) -> str:
    if dice.random() < 0.4:
        return group
    return " ".join(_DIGITS[language][int(digit)] for digit in group)


def test_small_numbers_dates_times_and_amounts_are_shown_once_what_follows_tells() -> None:
    talk = Talk()

    line = "I have two children and a small house by the sea"
    assert talk.say(line[:24], settled=False) == "I have [number]"
    assert talk.say(line, settled=False) == "I have two children and a small house by"
    assert talk.say(line) == line
    assert talk.say("Come on 2026-05-04 at 12:30 for $1,250.50 or so") is not None
    assert talk.shown[-1] == "Come on 2026-05-04 at 12:30 for $1,250.50 or so"
    assert talk.say("Oh, I see. Oh") == "Oh, I see. Oh"


def test_other_numbers_are_masked_and_named_where_they_are_known() -> None:
    talk = Talk()

    assert talk.say("Order 47110 it is") == "Order [number] it is"
    assert talk.say("I live at number 4") == "I live at number [number]"
    assert talk.say("It is 4242 4242") == "It is [number]"
    assert talk.say("Mm-hm", "2") == "Mm-hm"
    assert talk.say("4242 4242, thanks.") == "[card], thanks."


def test_what_may_become_an_address_waits_for_the_rest_of_it() -> None:
    talk = Talk()
    line = "my mail is jane dot doe at example dot com thank you"
    for space in re.finditer(" ", line):
        talk.say(line[: space.start()], settled=False)
    talk.say(line)

    assert not {word for one in talk.shown for word in one.split()} & {"jane", "doe", "example"}
    assert talk.shown[-1] == "my mail is [email] thank you"
    assert talk.say("write to john dot smith") == "write to [email]"
    assert talk.say("at example dot com") == "[email]"


def test_spelled_letters_wait_for_what_they_become() -> None:
    talk = Talk(Policy(frozenset({"ids"})))

    assert talk.say("the reference is A B C", settled=False) == "the reference is [number]"
    assert talk.say("the reference is A B C he said", settled=False) == "the reference is A B C he"
    assert talk.say("the reference is A B C 1 2") == "the reference is [number]"


def test_of_a_line_that_grows_only_what_may_be_half_a_word_is_held_back() -> None:
    line = "we met at noon today"

    assert Talk(Policy(frozenset({"cards"}))).say(line, settled=False) == "we met at noon"
    assert Talk(Policy(frozenset({"emails"}))).say("we met by noon", settled=False) == "we met"


def test_only_what_the_policy_names_is_masked() -> None:
    talk = Talk(Policy(frozenset({"emails"})))

    assert talk.say(f"{CARD} and anna.b@example.com") == f"{CARD} and [email]"
    assert Talk(Policy()).say(CARD) == CARD


def test_words_that_are_not_those_of_the_text_are_not_shown() -> None:
    odd = tuple(Word(text=f" {text}", start=1.0, end=1.1) for text in CARD.split())

    clean = LiveLines(EVERYTHING).clean(LiveText("1", "It is that", odd, 1, 2, "en", settled=True))

    assert clean == LiveText("1", "It is that", (), 1, 2, "en", settled=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=60), st.booleans()), max_size=6))
def test_any_text_at_all_is_taken(lines: list[tuple[str, bool]]) -> None:
    talk = Talk(language=None)

    for text, settled in lines:
        talk.say(text, settled=settled)
