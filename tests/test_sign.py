from __future__ import annotations

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Done
from test_artifact import write as write_artifact
from test_gate import artifact as result
from test_gate import make
from test_gate import write as write_report

from edgekit.base.errors import (
    ArtifactError,
    EdgekitError,
    InvalidOptionError,
    OutputExistsError,
    SignatureError,
)
from edgekit.records.artifact import Artifact
from edgekit.records.signing import keygen, verify
from edgekit.sign import main, sign

try:
    import cryptography  # noqa: F401

    HAS_KEYS = True
except ImportError:
    HAS_KEYS = False
needs_keys = pytest.mark.skipif(not HAS_KEYS, reason="the extra sign is not installed")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    keygen(tmp_path / "a.key")
    return tmp_path / "a.key"


@pytest.fixture
def public(key: Path) -> Path:
    return key.with_name("a.key.pub")


@pytest.fixture
def folder(tmp_path: Path, key: Path) -> Path:
    """A signed artifact."""
    write_artifact(tmp_path / "artifact")
    sign(tmp_path / "artifact", key=key)
    return tmp_path / "artifact"


@pytest.fixture
def baseline(tmp_path: Path, key: Path) -> Path:
    """A signed baseline."""
    path = write_report(tmp_path / "baseline.json", make(result("a", 60)))
    sign(path, key=key)
    return path


@needs_keys
def test_keys_are_kept_and_the_private_one_is_for_its_owner(key: Path, public: Path) -> None:
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert b"PRIVATE" not in public.read_bytes()
    before = key.read_bytes()
    with pytest.raises(OutputExistsError):
        keygen(key)
    key.rename(key.with_name("b.key"))
    with pytest.raises(OutputExistsError):  # the public one alone keeps it, too
        keygen(key)
    assert not key.exists()
    keygen(key, force=True)
    assert key.read_bytes() != before
    assert stat.S_IMODE(key.stat().st_mode) == 0o600


@needs_keys
def test_what_was_signed_is_verified(folder: Path, baseline: Path, public: Path) -> None:
    assert verify(folder, public=public).key == verify(baseline, public=public).key
    assert Artifact.load(folder)  # a signature is no foreign file
    copied = shutil.copytree(folder, folder.with_name("moved"))
    verify(copied, public=public)


@needs_keys
def test_openssl_says_the_same(baseline: Path, public: Path, tmp_path: Path) -> None:
    """The signature is plain Ed25519 of the file's bytes."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here")
    raw = tmp_path / "raw"
    raw.write_bytes(
        base64.b64decode(json.loads((tmp_path / "baseline.json.sig").read_text())["signature"])
    )
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(public), "-rawin"]
    done = subprocess.run(
        [*command, "-in", str(baseline), "-sigfile", str(raw)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@needs_keys
def test_every_byte_counts(folder: Path, baseline: Path, public: Path) -> None:
    """One bit changed, anywhere in any file, signature and key too: never verified."""
    for target in (folder, baseline):
        files = [baseline] if target is baseline else sorted(folder.iterdir())
        files += [baseline.with_name("baseline.json.sig")] if target is baseline else []
        for file in files:
            content = file.read_bytes()
            for at in range(0, len(content), max(1, len(content) // 150)):
                changed = bytearray(content)
                changed[at] ^= 1
                file.write_bytes(bytes(changed))
                with pytest.raises(EdgekitError):
                    verify(target, public=public)
            file.write_bytes(content)
        verify(target, public=public)


@needs_keys
def test_files_that_are_missing_or_added(folder: Path, public: Path) -> None:
    (folder / "extra").write_bytes(b"")
    with pytest.raises(SignatureError, match="holds extra, which its manifest does not name"):
        verify(folder, public=public)
    (folder / "extra").unlink()
    (folder / "more").mkdir()
    with pytest.raises(SignatureError, match="holds more"):
        verify(folder, public=public)
    (folder / "more").rmdir()
    (folder / "model.onnx").rename(folder.parent / "away")
    with pytest.raises(ArtifactError, match="is missing"):
        verify(folder, public=public)
    (folder.parent / "away").rename(folder / "model.onnx")
    verify(folder, public=public)
    (folder / "manifest.json.sig").unlink()
    with pytest.raises(SignatureError, match="not found.*expected a signature"):
        verify(folder, public=public)


@needs_keys
def test_a_model_swapped_together_with_its_manifest(folder: Path, public: Path) -> None:
    """An artifact that is whole in itself, but is not what was signed."""
    other = write_artifact(folder.with_name("other"), model_id="other")
    for name in ("manifest.json", "model.onnx"):
        shutil.copy(other.path / name, folder / name)
    Artifact.load(folder)
    with pytest.raises(SignatureError, match="was changed after it was signed"):
        verify(folder, public=public)


@needs_keys
def test_another_key(folder: Path, baseline: Path, tmp_path: Path, public: Path) -> None:
    stranger = keygen(tmp_path / "b.key")
    for path in (folder, baseline):
        with pytest.raises(SignatureError, match="signed with another key"):
            verify(path, public=stranger)
    # one who writes the right key's name over a signature of his own
    place = sign(baseline, key=tmp_path / "b.key", force=True)
    document = json.loads(place.read_text())
    sign(baseline, key=tmp_path / "a.key", force=True)
    real = json.loads(place.read_text())
    place.write_text(json.dumps({**document, "key": real["key"]}, indent=2) + "\n")
    with pytest.raises(SignatureError, match="does not hold the signature"):
        verify(baseline, public=public)


@needs_keys
def test_a_report_speaks_of_its_artifacts(folder: Path, key: Path, public: Path) -> None:
    artifact = Artifact.load(folder)
    linked = Artifact.load(folder).manifest_sha256
    import dataclasses

    found = dataclasses.replace(result("a", 60), manifest_sha256=linked)
    path = write_report(folder.with_name("report.json"), make(found))
    sign(path, key=key)
    verify(path, public=public, artifacts=[folder])
    other = write_artifact(folder.with_name("other"), model_id="other")
    with pytest.raises(SignatureError, match="does not speak of"):
        verify(path, public=public, artifacts=[other.path])
    artifact.model_path.write_bytes(b"changed")
    with pytest.raises(ArtifactError, match="was changed"):
        verify(path, public=public, artifacts=[folder])
    with pytest.raises(InvalidOptionError, match="for reports"):
        verify(other.path, public=public, artifacts=[other.path]) if sign(
            other.path, key=key
        ) else None


@needs_keys
@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----", b"\xff" * 99, None])
def test_what_is_no_key(content: bytes | None, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "bad.key"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(SignatureError, match="is no Ed25519 public key"):
        verify(folder, public=path)
    with pytest.raises(SignatureError, match="is no Ed25519 private key"):
        sign(folder, key=path, force=True)


@needs_keys
def test_what_is_broken_is_not_signed(folder: Path, key: Path, tmp_path: Path) -> None:
    (folder / "manifest.json.sig").unlink()
    (folder / "model.onnx").write_bytes(b"changed")
    (tmp_path / "x.json").write_text("{}")
    for path in (folder, tmp_path / "x.json", tmp_path / "none"):
        with pytest.raises(EdgekitError):
            sign(path, key=key)
    assert not list(tmp_path.rglob("*.json.sig"))


@needs_keys
def test_the_command(tmp_path: Path, edgekit: Callable[..., Done]) -> None:
    write_artifact(tmp_path / "artifact")
    key, public = tmp_path / "k", tmp_path / "k.pub"
    assert edgekit("sign", "keygen", key).document["public"] == str(public)
    assert edgekit("sign", "sign", tmp_path / "artifact", "--key", key).status == 0
    done = edgekit("sign", "verify", tmp_path / "artifact", "--public", public)
    assert done.status == 0 and done.document["verified"]
    assert "exists already" in edgekit("sign", "sign", tmp_path / "artifact", "--key", key).error
    (tmp_path / "artifact" / "model.onnx").write_bytes(b"weightz")
    done = edgekit("sign", "verify", tmp_path / "artifact", "--public", public)
    assert done.status == 2 and "was changed" in done.error and not done.stdout


def test_the_missing_package_names_its_extra(tmp_path: Path, capsys: Any) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None; from edgekit.sign import main; "
        "raise SystemExit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "keygen", str(tmp_path / "k")],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 2
    assert "pip install 'edgekit[sign]'" in done.stderr
    assert not (tmp_path / "k").exists()


@pytest.mark.parametrize("arguments", [[], ["--help"], ["keygen"], ["sign", "x"], ["shred", "x"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == (0 if "--help" in arguments else 2)
    assert len(capsys.readouterr().err.splitlines()) == (0 if "--help" in arguments else 1)
