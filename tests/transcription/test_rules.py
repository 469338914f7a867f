"""Which vendor, model, language, prompt and priority a call gets."""

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from siprec_bridge.provider import ConfigurationError
from siprec_bridge.siprec import Presence, SessionDocument, StreamDocument
from siprec_bridge.transcript import Participant
from siprec_bridge.transcription import Rules, facts_of_call, load_rules
from siprec_bridge.transcription.rules import Ruling

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
RULES = """
[[rule]]
name = "board"
aor = ["sip:ceo@*", "sip:cfo@*"]
priority = "urgent"

[[rule]]
name = "German trunk"
peer = ["10.1.0.0/16", "2001:db8::/32"]
language = "de"
prompt = "Kundennummer, Storno"

[[rule]]
name = "callers at the sales desk"
label = "1"
aor = "sip:+41*"
language = "fr"

[[rule]]
group = "g-*"
call_ids = {ucid = "0001*"}
metadata = {queue = ["sales", "support"]}
vendor = "acme"
model = "large"

[[rule]]
participant = "Bob*"
model = "small"
priority = "low"
"""


def document(
    *people: tuple[str, str, str],
    group: str | None = None,
    call_ids: dict[str, str] | None = None,
    extensions: tuple[str, ...] = (),
) -> SessionDocument:
    """A session of (label, name, AoR)."""
    return SessionDocument(
        session_id="s1",
        group_id=group,
        call_ids=call_ids or {},
        extensions=extensions,
        participants=tuple(
            Participant(id=f"p{number}", name=name, aor=aor)
            for number, (_, name, aor) in enumerate(people)
        ),
        streams=tuple(
            StreamDocument(
                index=number,
                label=label,
                state="closed",
                opened_at=NOW,
                presences=(Presence(participant_id=f"p{number}", since=NOW),),
            )
            for number, (label, _, _) in enumerate(people)
        ),
    )


def rules(folder: Path, text: str = RULES) -> Rules:
    path = folder / "rules.toml"
    path.write_text(text)
    return load_rules(path, ("whisper", "acme"))


def chosen(found: Rules, call: SessionDocument, peer: str = "tcp:192.0.2.1:5060") -> Ruling:
    return found.choose(facts_of_call(call, peer)).wish


def test_without_rules_all_is_left_open() -> None:
    assert chosen(load_rules(None, ()), document()) == Ruling()


def test_each_field_is_decided_by_the_first_rule_that_matches_and_names_it(tmp_path: Path) -> None:
    call = document(("1", "Ann", "sip:CEO@example.com"), ("2", "Bob B.", "sip:+4122@example.com"))

    choice = rules(tmp_path).choose(facts_of_call(call, "udp:10.1.2.3:5060"))

    assert choice.wish == Ruling(
        priority="urgent", language="de", prompt="Kundennummer, Storno", model="small"
    )
    assert choice.because == {
        "priority": "board",
        "language": "German trunk",
        "prompt": "German trunk",
        "model": "rule 5",
    }


@pytest.mark.parametrize(
    ("peer", "language"),
    [
        ("udp:10.1.255.255:5060", "de"),
        ("tls:2001:db8::7:5061", "de"),
        ("tls:[2001:db8::7]:5061", "de"),
        ("udp:::ffff:10.1.0.1:5060", "de"),
        ("udp:10.2.0.0:5060", None),
        ("", None),
        ("nonsense", None),
    ],
)
def test_a_trunk_is_known_by_its_address(tmp_path: Path, peer: str, language: str | None) -> None:
    assert chosen(rules(tmp_path), document(), peer).language == language


def test_with_a_label_only_participants_of_that_stream_count(tmp_path: Path) -> None:
    found = rules(tmp_path)

    assert chosen(found, document(("1", "A", "sip:+4122@x"))).language == "fr"
    assert chosen(found, document(("2", "A", "sip:+4122@x"))).language is None


def test_group_vendors_names_and_metadata_must_all_match(tmp_path: Path) -> None:
    found = rules(tmp_path)
    extension = '<x:data xmlns:x="urn:acme"><x:Queue>support</x:Queue></x:data>'
    whole = document(group="g-7", call_ids={"ucid": "000123"}, extensions=(extension,))

    assert chosen(found, whole) == Ruling(vendor="acme", model="large")
    for lacking in (
        document(group="h", call_ids={"ucid": "000123"}, extensions=(extension,)),
        document(group="g-7", call_ids={"ucid": "1"}, extensions=(extension,)),
        document(group="g-7", call_ids={"ucid": "000123"}, extensions=("<x:broken",)),
        document(),
    ):
        assert chosen(found, lacking) == Ruling()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[[rule]]\nlangauge = 'de'", "rule 1: langauge: there is no such field"),
        ("[[rule]]\nname = 'a'\naor = '*'", "rule 1 (a): it names none of vendor, model"),
        ("[[rule]]\nlanguage = 'de'\n[[rule]]\nvendor = 'other'", "rule 2: vendor: other is not"),
        ("[[rule]]\npriority = 'high'", "rule 1: priority: Input should be 'urgent'"),
        ("[[rule]]\npeer = '10.0.0.1/8'\nlanguage = 'de'", "rule 1: peer.0"),
        ('[[rule]]\nprompt = "a\\u0000b"', "rule 1: prompt: must not have NUL in it"),
        ("[[rule]]\nmodel = '--output_dir'", "rule 1: model: must not begin with a dash"),
        ("[[rule]]\nlanguage = 'de; rm'", "rule 1: language: String should match"),
        ("[[rules]]\nlanguage = 'de'", "only [[rule]] tables are known, not rules"),
        ("rule = 3", "only [[rule]] tables"),
        ("rule = [3]", "rule 1: "),
        ("[[rule]", "cannot be read"),
    ],
)
def test_a_mistake_stops_the_start_and_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        rules(tmp_path, text)

    assert caught.value.setting == f"TRANSCRIPTION_RULES={tmp_path / 'rules.toml'}"
    assert complaint in caught.value.reason
    assert "\n" not in caught.value.reason


def test_the_example_that_operators_copy_is_accepted(tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "config" / "transcription-rules.toml"
    text = re.sub(r"^#(?=\S)", "", example.read_text(), flags=re.M)

    assert len(rules(tmp_path, text)) == 3


def test_a_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_rules(tmp_path / "none.toml", ())


def test_a_rule_may_say_whether_a_call_is_heard_live(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(
        '[[rule]]\nlabel = "9"\nlive = false\n[[rule]]\nname = "all"\nlive = true\n'
    )
    found = load_rules(tmp_path / "rules.toml", ())

    choice = found.choose(facts_of_call(document(), "tcp:192.0.2.1:5060"))

    assert (choice.wish.live, choice.because["live"]) == (True, "all")
    assert load_rules(None, ()).choose(facts_of_call(document(), "")).wish.live is None
