"""Numbers that name a person, a card or an account, by their check digits or unmistakable form."""

import re
from typing import Final

import phonenumbers
from stdnum import iban, luhn
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.it import codicefiscale
from stdnum.us import ssn

# Prefix and lengths of those that issue cards; ISO/IEC 7812.
_ISSUERS: Final = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"
    r"|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}"
    r"|3[47]\d{13}"
    r"|(?:6011|64[4-9]\d|65\d{2})\d{12,15}"
    r"|(?:30[0-5]|36|38|39)\d{11,17}"
    r"|35(?:2[89]|[3-8]\d)\d{12,15}"
    r"|62\d{14,17}"
    r"|220[0-4]\d{12,15}"
    r"|(?:50|5[6-9]|6\d)\d{11,17}"
)
# HMRC's rule: letters that are not used, prefixes that are not given.
_NINO: Final = re.compile(
    r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]", re.IGNORECASE
)


def is_card(digits: str) -> bool:
    """13 to 19 digits whose check digit is right (Luhn)."""
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and luhn.is_valid(digits)


def is_issued_card(digits: str) -> bool:
    """A card number that begins as those of a known issuer and is as long."""
    return _ISSUERS.fullmatch(digits) is not None and is_card(digits)


def certain_id(text: str) -> bool:
    """An id that its form and check alone tell from other numbers. Capital letters and digits."""
    if re.fullmatch(r"[12]\d{4}(?:\d|A|B)\d{9}|[12]\d{5}[AB]?\d{8,9}", text) and len(text) == 15:
        return bool(nir.is_valid(text))
    if re.fullmatch(
        r"[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPR-T][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z]", text
    ):
        return bool(codicefiscale.is_valid(text))
    if re.fullmatch(r"\d{8}[A-Z]", text):
        return bool(dni.is_valid(text))
    if re.fullmatch(r"[XYZ]\d{7}[A-Z]", text):
        return bool(nie.is_valid(text))
    return _NINO.fullmatch(text) is not None


def is_german_id(digits: str) -> bool:
    """A Steuer-Identifikationsnummer; check digit and rule of repetition."""
    return len(digits) == 11 and bool(idnr.is_valid(digits))


def is_social_security(digits: str) -> bool:
    """Nine digits of an area and group that are given out (US)."""
    return len(digits) == 9 and bool(ssn.is_valid(digits))


def is_iban(text: str) -> bool:
    """An account's number with the right check digits (ISO 13616)."""
    return 15 <= len(text) <= 34 and bool(iban.is_valid(text, check_country=False))


def is_phone(digits: str, *, international: bool, regions: tuple[str, ...]) -> bool:
    """A number that is given out, in international form or in that of one of these countries."""
    if international or digits.startswith("00"):
        return _is_valid("+" + digits.removeprefix("00"), None)
    for region in regions:
        # Without the trunk prefix, most digits are a number of somewhere.
        if region in ("US", "CA"):
            right = len(digits) == 10 or (len(digits) == 11 and digits[0] == "1")
        else:
            right = digits[0] == "0" and 9 <= len(digits) <= 13
        if right and _is_valid(digits, region):
            return True
    return False


def is_local_phone(digits: str, regions: tuple[str, ...]) -> bool:
    """A number that is given out in a country that has no trunk prefix, of nine digits."""
    return 8 <= len(digits) <= 9 and any(
        _is_valid(digits, region)
        for region in regions
        if region in ("ES", "PT", "DK", "NO", "PL", "CZ", "GR")
    )


def _is_valid(digits: str, region: str | None) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(digits, region)))
    except phonenumbers.NumberParseException:
        return False
