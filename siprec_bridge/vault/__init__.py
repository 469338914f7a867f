"""Where recordings lie when they do not lie in the open on the recorder's disk.

Objects in a directory, S3, Google's or Azure's store, and files encrypted to public keys (age).
Refuses to know sessions and databases; all of it blocks, and belongs in a thread.
"""

from siprec_bridge.vault.age import (
    Identities,
    LockedError,
    Recipients,
    decrypt_file,
    encrypt_bytes,
    encrypt_file,
)
from siprec_bridge.vault.layout import Layout
from siprec_bridge.vault.manifest import (
    MANIFEST,
    ContentChanged,
    KeptFile,
    Manifest,
    manifest_name,
    original_name,
    originals,
    seal,
    survey,
)
from siprec_bridge.vault.objects import (
    Damaged,
    Interrupted,
    NotThere,
    ObjectError,
    ObjectStore,
    Sums,
    open_store,
    sums_of,
)

__all__ = [
    "MANIFEST",
    "ContentChanged",
    "Damaged",
    "Identities",
    "Interrupted",
    "KeptFile",
    "Layout",
    "LockedError",
    "Manifest",
    "NotThere",
    "ObjectError",
    "ObjectStore",
    "Recipients",
    "Sums",
    "decrypt_file",
    "encrypt_bytes",
    "encrypt_file",
    "manifest_name",
    "open_store",
    "original_name",
    "originals",
    "seal",
    "sums_of",
    "survey",
]
