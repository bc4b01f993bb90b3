"""A certificate for localhost that signs itself."""

import shutil
import subprocess
from pathlib import Path

import pytest


def certificate(folder: Path) -> tuple[Path, Path]:
    """``fullchain.pem`` and ``privkey.pem``, made in ``folder``."""
    openssl = shutil.which("openssl") or pytest.fail("openssl is missing; Debian: apt-get install openssl")
    certificate, key = folder / "fullchain.pem", folder / "privkey.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    files = ["-keyout", str(key), "-out", str(certificate)]
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, *subject]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return certificate, key
