"""Signatures of artifacts, reports and baselines."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from edgekit.base import outputs, schema, words
from edgekit.base.errors import (
    EdgekitError,
    InvalidOptionError,
    MissingDependencyError,
    SignatureError,
)
from edgekit.records.artifact import MANIFEST, Artifact
from edgekit.records.results import Report

SCHEMA_VERSION = 1
SUFFIX = ".sig"
PUBLIC_SUFFIX = ".pub"


@dataclass(frozen=True)
class Signed(schema.Document):
    """A signature file.

    Attributes:
        algorithm: ``ed25519``.
        key: SHA-256 of the raw public key, which names the key that verifies.
        sha256: Of the bytes that were signed.
        signature: Base64 of the 64 bytes.
    """

    VERSION: ClassVar[int] = SCHEMA_VERSION
    ERROR: ClassVar[type[EdgekitError]] = SignatureError
    WHAT: ClassVar[str] = "a signature, as `python -m edgekit.sign sign` writes it"

    algorithm: Literal["ed25519"]
    key: str
    sha256: str
    signature: str
    schema_version: int = SCHEMA_VERSION


def keygen(path: Path, *, force: bool = False) -> Path:
    """Make a key pair: the private key at ``path``, mode 0600, and the public one at ``path.pub``.

    Both are PEM (PKCS 8 and SubjectPublicKeyInfo), the private one without a passphrase.

    Returns:
        The path of the public key.

    Raises:
        OutputExistsError: If one of them exists and ``force`` is false.
    """
    serialization, ed25519 = _cryptography()
    public = path.with_name(path.name + PUBLIC_SUFFIX)
    for file in (path, public):
        outputs.check_free(file, force=force)
    key = ed25519.Ed25519PrivateKey.generate()
    private_bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public_bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    outputs.write_bytes(path, private_bytes, force=force, mode=0o600)
    outputs.write_bytes(public, public_bytes, force=force)
    return public


def sign(path: Path, *, key: Path, force: bool = False) -> Path:
    """Vouch for an artifact folder, a report or a baseline.

    What is signed is checked first: an artifact has to load and hold no file that its manifest does
    not name, a report has to be one.

    Returns:
        The path of the signature.

    Raises:
        OutputExistsError: If there is a signature and ``force`` is false.
        EdgekitError: If the key or what is to be signed cannot be read.
    """
    target = _target(path)
    place = _signature_of(target)
    outputs.check_free(place, force=force)
    private = _private(key)
    content = target.read_bytes()
    _check(path, content)
    signature = private.sign(content)
    signed = Signed(
        algorithm="ed25519",
        key=_name(private.public_key()),
        sha256=hashlib.sha256(content).hexdigest(),
        signature=base64.b64encode(signature).decode("ascii"),
    )
    outputs.write_text(place, signed.dumps(), force=force)
    return place


def verify(path: Path, *, public: Path, artifacts: Sequence[Path] = ()) -> Signed:
    """Check that the owner of a key vouches for every byte of an artifact, report or baseline.

    Args:
        path: Artifact folder, report or baseline.
        public: Public key.
        artifacts: For a report: artifact folders that it has to name, by the sha256 of their
            manifests, and whose bytes have to be those of their manifests.

    Raises:
        SignatureError: If there is no signature, it is of another key, or a byte was changed.
        ArtifactError: If a file of an artifact was changed, is missing or was added.
        ReportError: If the report is none, or does not name an artifact.
    """
    target = _target(path)
    key = _public(public)
    signed = Signed.load(_signature_of(target))
    if signed.key != _name(key):
        raise SignatureError(
            f"{path} was signed with another key than {public} (key {signed.key[:12]}…, expected "
            f"{_name(key)[:12]}…)"
        )
    content = target.read_bytes()
    _verify_bytes(key, signed, content, target)
    report = _check(path, content)
    if artifacts and report is None:
        raise InvalidOptionError("--artifact is for reports; an artifact is verified by itself")
    if report is not None:
        named = {r.manifest_sha256: r.name for r in (report.reference, *report.artifacts)}
        for folder in artifacts:
            artifact = Artifact.load(folder)
            _nothing_added(artifact)
            if artifact.manifest_sha256 not in named:
                raise SignatureError(
                    f"{path} does not speak of {folder}: none of its results has the manifest "
                    f"sha256 {artifact.manifest_sha256[:12]}…; compare this artifact"
                )
    return signed


def _verify_bytes(key: Any, signed: Signed, content: bytes, target: Path) -> None:
    try:
        signature = base64.b64decode(signed.signature, validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    # base64 and JSON have several forms of the same; one is accepted, so that every byte counts
    same = base64.b64encode(signature).decode("ascii") == signed.signature
    if not same or _signature_of(target).read_bytes() != signed.dumps().encode():
        raise SignatureError(
            f"{_signature_of(target)} is not in the form that signing writes; sign again"
        )
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != signed.sha256:
        raise SignatureError(
            f"{target} was changed after it was signed: expected sha256 {signed.sha256[:12]}…, got "
            f"{sha256[:12]}…"
        )
    try:
        key.verify(signature, content)
    except _invalid_signature():
        raise SignatureError(
            f"{_signature_of(target)} does not hold the signature of {target}; sign again"
        ) from None


def _target(path: Path) -> Path:
    """The file whose bytes are signed."""
    if path.is_dir():
        return path / MANIFEST
    if not path.is_file():
        raise InvalidOptionError(
            f"{words.not_found(path)}; expected an artifact folder, a report or a baseline"
        )
    return path


def _signature_of(target: Path) -> Path:
    return target.with_name(target.name + SUFFIX)


def _check(path: Path, content: bytes) -> Report | None:
    """That an artifact is whole, or a report one; the report."""
    if not path.is_dir():
        report = Report.load(path)
        _unchanged(path, content)
        return report
    artifact = Artifact.load(path)
    _nothing_added(artifact)
    _unchanged(path / MANIFEST, content)
    return None


def _unchanged(file: Path, content: bytes) -> None:
    if file.read_bytes() != content:
        raise SignatureError(f"{file} was changed while it was read; try again")


def _nothing_added(artifact: Artifact) -> None:
    named_files = {MANIFEST, MANIFEST + SUFFIX, *artifact.manifest.files}
    added = sorted(file.name for file in artifact.path.iterdir() if file.name not in named_files)
    if added:
        raise SignatureError(
            f"{artifact.path} holds {added[0]}, which its manifest does not name; delete it, or "
            f"export the artifact again"
        )


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise MissingDependencyError("cryptography", "sign") from None
    return serialization, ed25519


def _invalid_signature() -> type[Exception]:
    from cryptography.exceptions import InvalidSignature

    return InvalidSignature  # type: ignore[no-any-return]


def _private(path: Path) -> Any:
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_private_key(_key_bytes(path), password=None)
    except Exception:  # many types, by what is wrong with the file
        key = None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise SignatureError(
            f"{path} is no Ed25519 private key without passphrase in PEM; make one with "
            f"`python -m edgekit.sign keygen`"
        )
    return key


def _public(path: Path) -> Any:
    serialization, ed25519 = _cryptography()
    try:
        key = serialization.load_pem_public_key(_key_bytes(path))
    except Exception:  # many types, by what is wrong with the file
        key = None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise SignatureError(
            f"{path} is no Ed25519 public key in PEM; pass the {PUBLIC_SUFFIX} file of "
            f"`python -m edgekit.sign keygen`"
        )
    return key


def _key_bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() and path.stat().st_size < 1 << 16 else b""


def _name(public: Any) -> str:
    """SHA-256 of the raw public key."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()
