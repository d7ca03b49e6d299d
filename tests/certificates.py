"""A certificate authority of a test's own, made with the `openssl` command."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest


class Authority:
    """Signs certificates for servers.

    Args:
        folder: where its files go; the certificate to trust is `ca`.
    """

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            if os.environ.get("CI"):
                pytest.fail("no openssl", pytrace=False)
            pytest.skip("no openssl on the PATH")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca = folder / "ca.pem"
        self._key = folder / "ca.key"
        self.run(
            "req", "-x509", *NEW_KEY, "-keyout", self._key, "-out", self.ca, "-days", 2, "-subj", "/CN=imsync test",
            "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign",
        )  # fmt: skip

    def sign(self, names: str, *, days: int = 2) -> tuple[Path, Path]:
        """A server's certificate and its key.

        Args:
            names: its subjectAltName, such as `DNS:localhost,IP:127.0.0.1`.
            days: how long it is valid; -1 has expired.
        """
        stem = f"{re.sub('[^A-Za-z0-9]', '-', names)}{days}"
        certificate, key, request, extension = (
            self.folder / f"{stem}.{suffix}" for suffix in ("pem", "key", "csr", "ext")
        )
        extension.write_text(f"subjectAltName={names}\n", encoding="ascii")
        self.run("req", *NEW_KEY, "-keyout", key, "-out", request, "-subj", "/CN=server")
        self.run(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self._key, "-CAcreateserial", "-days", days,
            "-extfile", extension, "-out", certificate,
        )  # fmt: skip
        return certificate, key

    @staticmethod
    def run(*arguments: object) -> None:
        done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr


NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
