"""What is taken out of a conversation: the corpus, and numbers however they are said."""

import random
import re
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stdnum import luhn

from harness.redaction_corpus import EVERYTHING, Talk, conversation, corpus, score
from siprec_bridge.redaction import Policy
from siprec_bridge.redaction.conversation import redact_conversation, redact_text
from siprec_bridge.transcript import Conversation, Suppressed, Word

_DIGITS = {
    "en": ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
    "de": ["null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"],
    "es": ["cero", "uno", "dos", "tres", "cuatro", "cinco", "seis", "siete", "ocho", "nueve"],
    "fr": ["zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf"],
}
CARD = "4242 4242 4242 4242"


@pytest.mark.parametrize("talk", corpus(), ids=lambda talk: " ".join(talk.said)[:150])
def test_what_must_go_goes_and_the_rest_stays(talk: Talk) -> None:
    before = conversation(talk.said, talk.language)

    clean = redact_conversation(before, EVERYTHING).conversation

    words = " ".join(word.text for one in clean.utterances for word in one.words)
    for text in (clean.text, words):
        assert [piece for piece in talk.gone if piece in text] == []
    assert [piece for piece in talk.stays if piece not in clean.text] == []
    assert {one.kind for one in clean.redactions} == set(talk.kinds)
    if not talk.kinds:
        assert clean.utterances == before.utterances


def test_the_corpus_is_told_apart_as_the_documentation_says() -> None:
    assert all(found == there and not wrong for _, there, found, wrong in score())


@pytest.mark.parametrize("text", ["1" * 10_000, "x" * 60_000, "a" + " " * 60_000 + "b"], ids=len)
def test_what_a_recogniser_repeats_without_end_is_looked_through_at_once(text: str) -> None:
    begun = time.process_time()

    redact_text(text, EVERYTHING)

    assert time.process_time() - begun < 3  # live lines are looked through beside the calls


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["4", "51", "34", "6011", "2221", "36"]),
    st.randoms(use_true_random=False),
    st.sampled_from(sorted(_DIGITS)),
)
def test_no_card_number_survives_however_it_is_said(
    prefix: str, dice: random.Random, language: str
) -> None:
    length = 15 if prefix == "34" else 14 if prefix == "36" else 16
    body = prefix + "".join(dice.choice("0123456789") for _ in range(length - 1 - len(prefix)))
    number = body + luhn.calc_check_digit(body)
    said, line = [], ""
    for group in _groups(number, dice):
        line += " " + _say(group, language, dice)
        if dice.random() < 0.4:
            said += [f"1:{line}{dice.choice(['', ',', '.', ' uh'])}", "2: mm-hm"]
            line = ""
    said.append(f"1:{line or ' that is all'}")

    before = conversation(tuple(one.replace(": ", ": ", 1) for one in said), language)
    clean = redact_conversation(before, EVERYTHING).conversation

    left = [word.text for one in clean.utterances if one.label == "1" for word in one.words]
    assert not any(re.search(r"\d", word) for word in left)
    assert not {word.strip(" ,.").lower() for word in left} & set(_DIGITS[language])
    assert [one.kind for one in clean.redactions][:1] == ["card"]


_NAMES = st.sampled_from(["anna", "miller", "quux", "zorn"])
_LETTERS = st.lists(st.sampled_from("kqvxz"), min_size=3, max_size=5).map(" ".join)
_NUMBERS = st.sampled_from(["92", "nine two", "ninety two", "seven"])


@settings(max_examples=150, deadline=None)
@given(
    first=_NAMES | _LETTERS,
    more=st.lists(
        st.tuples(st.sampled_from(["dot", "underscore", "dash", "hyphen"]), _NAMES | _LETTERS),
        max_size=2,
    ),
    number=st.none() | _NUMBERS,
    sign=st.sampled_from(["at", "@", "at sign"]),
    domain=st.sampled_from(["example dot com", "mail dot example dot co dot uk", "gmail.com"]),
    after=st.sampled_from(["", " thank you", ", that is all."]),
)
def test_no_part_of_an_address_survives_however_it_is_spelled(
    first: str,
    more: list[tuple[str, str]],
    number: str | None,
    sign: str,
    domain: str,
    after: str,
) -> None:
    local = " ".join([first, *(f"{by} {part}" for by, part in more), *([number] if number else [])])

    clean = redact_text(f"my email is {local} {sign} {domain}{after}", EVERYTHING)

    assert clean == f"my email is [email]{after}"


@pytest.mark.parametrize(
    "text",
    ["look at gmail dot com", "we meet at noon", "at example dot com", "write to us at the office"],
)
def test_a_place_on_the_web_is_nobody_s_address(text: str) -> None:
    assert redact_text(text, EVERYTHING) == text


def test_words_keep_their_times_and_the_place_of_the_number_has_its_own() -> None:
    before = conversation((f"1: It is {CARD}, thanks.",))

    clean = redact_conversation(before, EVERYTHING)

    (one,) = clean.conversation.utterances
    assert [(found.start, found.end) for found in clean.redactions] == [(1.6, 3.6)]  # 0.2 around it

    assert one.text == "It is [card], thanks."
    assert [word.text for word in one.words] == [" It", " is", " [card],", " thanks."]
    assert [(word.start, word.end) for word in one.words] == [
        (1.0, 1.4), (1.4, 1.8), (1.8, 3.4), (3.4, 3.8),
    ]  # fmt: skip


def test_where_no_word_has_a_time_the_whole_utterance_is_where_it_was_said() -> None:
    before = _changed(conversation((f"1: It is {CARD}",)), words=())

    (found,) = redact_conversation(before, EVERYTHING).redactions

    utterance = before.utterances[0]
    assert found.start == pytest.approx(utterance.start - 0.2)
    assert found.end == pytest.approx(utterance.end + 0.2)


def test_words_that_are_not_those_of_the_text_hide_nothing() -> None:
    odd = tuple(Word(text=f" {text}", start=1.0, end=1.1) for text in CARD.split())
    only_in_words = _changed(conversation(("1: It is, well, that number",)), words=odd)
    only_in_text = _changed(
        conversation((f"1: It is {CARD}",)), words=(Word(text=" hello", start=1.0, end=1.2),)
    )

    for before in (only_in_words, only_in_text):
        clean = redact_conversation(before, EVERYTHING).conversation
        assert "4242" not in clean.model_dump_json()
        assert [one.kind for one in clean.redactions] == ["card"]


def test_only_what_the_policy_names_is_taken_out() -> None:
    before = conversation((f"1: {CARD} and my email is anna.b@example.com",))

    clean = redact_conversation(before, Policy(frozenset({"emails"}))).conversation

    assert clean.text == f"{CARD} and my email is [email]"
    assert redact_conversation(before, Policy()).conversation is before


def test_what_was_set_aside_loses_its_numbers() -> None:
    texts = {
        "four two four two, call 4242": "[number], call [number]",
        "code 123, room 12": "code [number], room 12",
        f"my card {CARD} and code 999": "my card [card] and code [number]",
    }
    before = conversation(("1: hello",)).model_copy(
        update={
            "suppressed": tuple(
                Suppressed(text=one, start=1.0, end=2.0, reason="repeated", label="1")
                for one in texts
            )
        }
    )

    clean = redact_conversation(before, EVERYTHING)

    assert [one.text for one in clean.conversation.suppressed] == list(texts.values())
    assert [(one.kind, one.label) for one in clean.redactions] == [("card", "1")]


def test_any_text_can_be_cleaned() -> None:
    assert redact_text(f"error near '{CARD}'", EVERYTHING) == "error near '[card]'"
    assert redact_text(f"error near '{CARD}'", Policy()) == f"error near '{CARD}'"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=6), st.sampled_from(["en", "de", "es", "fr", None]))
def test_any_text_at_all_is_taken(texts: list[str], language: str | None) -> None:
    before = conversation(tuple(f"{n % 2}: {text}" for n, text in enumerate(texts)), language)

    clean = redact_conversation(before, EVERYTHING).conversation

    assert len(clean.utterances) == len(texts)


def _changed(before: Conversation, *, words: tuple[Word, ...]) -> Conversation:
    one = before.utterances[0].model_copy(update={"words": words})
    return before.model_copy(update={"utterances": (one,)})


def _groups(number: str, dice: random.Random) -> list[str]:
    groups = []
    while number:
        size = dice.choice([1, 2, 3, 4, 4, 4])
        groups.append(number[:size])
        number = number[size:]
    return groups


def _say(group: str, language: str, dice: random.Random) -> str:
    if dice.random() < 0.4:
        return group if dice.random() < 0.7 else "-".join(group)
    return " ".join(_DIGITS[language][int(digit)] for digit in group)


def test_a_leg_may_begin_before_its_session() -> None:
    before = conversation((f"1: {CARD}",))
    one = before.utterances[0]
    early = one.model_copy(update={"start": -0.5, "end": 1.0, "words": ()})

    (found,) = redact_conversation(
        before.model_copy(update={"utterances": (early,)}), EVERYTHING
    ).redactions

    assert (found.start, found.end) == (-0.7, 1.2)


@pytest.mark.parametrize(
    "script",
    ["ARABIC-INDIC", "EXTENDED ARABIC-INDIC", "DEVANAGARI", "BENGALI", "THAI", "FULLWIDTH"],
)
def test_numbers_in_the_digits_of_any_script_go(script: str) -> None:
    zero = ord(unicodedata.lookup(f"{script} DIGIT ZERO"))

    def written(text: str) -> str:
        return "".join(chr(zero + int(one)) if one.isdecimal() else one for one in text)

    said = (
        f"a: x {written(CARD)} x",
        f"a: call me at {written('030 901820')}, room {written('12')}",
    )

    clean = redact_conversation(conversation(said, None), EVERYTHING).conversation

    assert clean.text == f"x [card] x\ncall me at [phone], room {written('12')}"
    words = " ".join(word.text.strip() for one in clean.utterances for word in one.words)
    assert words == clean.text.replace("\n", " ")
