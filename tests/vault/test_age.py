"""Encryption to public keys: what age itself can open, and nobody without a key."""

import hashlib
import os
import resource
import subprocess
import threading
from pathlib import Path

import pytest

from siprec_bridge.vault import (
    ContentChanged,
    Identities,
    Interrupted,
    LockedError,
    Recipients,
    decrypt_file,
    encrypt_file,
    seal,
)


def keygen(folder: Path, name: str = "key.txt") -> tuple[Path, str]:
    """A key pair by age's own program: the file of the secret one, and the public one."""
    path = folder / name
    subprocess.run(["age-keygen", "-o", path], check=True, capture_output=True)
    public = subprocess.run(["age-keygen", "-y", path], check=True, capture_output=True, text=True)
    return path, public.stdout.strip()


def test_age_opens_what_we_wrote_and_we_open_what_age_wrote(tmp_path: Path) -> None:
    key, public = keygen(tmp_path)
    other, other_public = keygen(tmp_path, "other.txt")
    audio = os.urandom(200_001)
    (tmp_path / "a.wav").write_bytes(audio)

    passed = encrypt_file(
        tmp_path / "a.wav", tmp_path / "a.wav.age", Recipients.read(f"{public},{other_public}")
    )
    by_age = [
        subprocess.run(
            ["age", "-d", "-i", one, tmp_path / "a.wav.age"], check=True, capture_output=True
        ).stdout
        for one in (key, other)
    ]
    subprocess.run(["age", "-r", public, "-o", tmp_path / "b.age", tmp_path / "a.wav"], check=True)
    back = decrypt_file(tmp_path / "b.age", tmp_path / "b.wav", Identities(key))

    assert by_age == [audio, audio]
    assert (tmp_path / "b.wav").read_bytes() == audio
    assert passed.plain_sha256 == back.plain_sha256 == hashlib.sha256(audio).hexdigest()
    sealed = (tmp_path / "a.wav.age").read_bytes()
    assert (passed.cipher_size, passed.cipher_sha256) == (
        len(sealed), hashlib.sha256(sealed).hexdigest(),
    )  # fmt: skip
    assert audio[:32] not in sealed


def test_an_ssh_key_does_as_well(tmp_path: Path) -> None:
    key = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (tmp_path / "a").write_bytes(b"audio")
    public = key.with_suffix(".pub").read_text()

    encrypt_file(tmp_path / "a", tmp_path / "a.age", Recipients.read(f"# auditors\n{public}\n"))
    decrypt_file(tmp_path / "a.age", tmp_path / "b", Identities(key))

    assert (tmp_path / "b").read_bytes() == b"audio"


def test_another_key_and_a_damaged_file_open_nothing_and_leave_nothing(tmp_path: Path) -> None:
    key, public = keygen(tmp_path)
    other, _ = keygen(tmp_path, "other.txt")
    (tmp_path / "a").write_bytes(os.urandom(100_000))
    sealed = tmp_path / "a.age"
    encrypt_file(tmp_path / "a", sealed, Recipients.read(public))
    whole = sealed.read_bytes()

    with pytest.raises(LockedError, match="No matching keys"):
        decrypt_file(sealed, tmp_path / "b", Identities(other))
    for broken in (whole[:50_000], whole[:90_000] + b"x" + whole[90_001:], b"", b"RIFF"):
        sealed.write_bytes(broken)
        with pytest.raises(LockedError):
            decrypt_file(sealed, tmp_path / "b", Identities(key))

    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "a.age", "key.txt", "other.txt"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("age1nonsense", "age1nonsense: invalid Bech32"),
        ("ssh-ed25519 AAAA", "invalid SSH recipient"),
        ("AGE-SECRET-KEY-1QQQ", "a secret key has no place here"),
        ("# nobody\n", "names no key"),
    ],
)
def test_what_is_no_public_key_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Recipients.read(text)


def test_a_full_disk_is_told_as_such_and_leaves_the_plain_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, public = keygen(tmp_path)
    (tmp_path / "a").write_bytes(bytes(1 << 20))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            encrypt_file(tmp_path / "a", tmp_path / "a.age", Recipients.read(public))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert sorted(one.name for one in tmp_path.iterdir()) == ["a", "key.txt"]


def test_a_session_is_sealed_as_a_whole_and_again_if_need_be(tmp_path: Path) -> None:
    _, public = keygen(tmp_path)
    folder = tmp_path / "s1"
    folder.mkdir()
    for name in ("s1-0.wav", "s1-0.spool", "s1.audio.json", ".s1-0.wav.part"):
        (folder / name).write_bytes(name.encode())
    noted = {"s1-0.wav": hashlib.sha256(b"s1-0.wav").hexdigest()}
    keys, go_on = Recipients.read(public), threading.Event()

    first = seal(folder, noted, keys, go_on)
    again = seal(folder, noted, keys, go_on)

    assert [one.name for one in again] == ["s1-0.spool", "s1-0.wav", "s1.audio.json"]
    assert [one.sha256 for one in first] == [one.sha256 for one in again]
    assert {one.kept_name for one in again} == {one.name for one in folder.glob("*.age")}
    for one in again:
        sealed = (folder / one.kept_name).read_bytes()
        assert hashlib.sha256(sealed).hexdigest() == one.kept_sha256
    with pytest.raises(ContentChanged, match=r"s1-0\.wav: its content was changed"):
        seal(folder, {"s1-0.wav": "0" * 64}, keys, go_on)
    with pytest.raises(ContentChanged, match=r"s1-1\.wav: gone"):
        seal(folder, noted | {"s1-1.wav": "0" * 64}, keys, go_on)
    go_on.set()
    with pytest.raises(Interrupted):
        seal(folder, noted, keys, go_on)
