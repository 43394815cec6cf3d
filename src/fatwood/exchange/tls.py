"""Encryption on request: TLS 1.3 with one certificate and key per job, made on the driver and given to its members.

Both sides of a connection present this certificate and accept no other; the proof of the secret (`auth`) is made
inside. After the handshake a read never waits for room to write, nor a write for bytes to read: TLS 1.3 does not
negotiate again, and session tickets are off. A record never holds bytes of two sends. `Link` relies on both.
"""

from __future__ import annotations

import datetime
import functools
import os
import socket
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from fatwood.errors import AuthenticationError, OptionError

__all__ = ["Identity", "TlsSide", "new_identity"]

# Clocks of a cluster may differ, and the certificate is worthless after the job: it is valid at all times.
_BEGIN: Final = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc)
_END: Final = datetime.datetime(9999, 12, 31, tzinfo=datetime.timezone.utc)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What the members of a job present to each other; whoever has the key belongs to the job.

    Attributes:
        certificate: An X.509 certificate, PEM.
        key: Its private key, PEM without a password.
    """

    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)


def new_identity() -> Identity:
    """Return a fresh identity for one job: an elliptic curve key (P-256) and a certificate signed with it.

    Raises:
        OptionError: The package `cryptography` is not installed here.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        message = f"encryption needs the package cryptography on the driver: {error}"
        raise OptionError(message, hint='pip install "fatwood[encrypt]"') from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a fatwood job")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), _BEGIN, _END)
    certificate = builder.sign(key, hashes.SHA256())
    return Identity(
        certificate=certificate.public_bytes(serialization.Encoding.PEM),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


@final
class TlsSide:
    """Puts TLS on the connections of one side.

    Args:
        identity: The job's identity.
        accepts: Whether this side accepts connections or makes them.

    Raises:
        OptionError: The identity is not a certificate and its key.
    """

    def __init__(self, identity: Identity, *, accepts: bool) -> None:
        self._accepts = accepts
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if accepts else ssl.PROTOCOL_TLS_CLIENT)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.check_hostname = False  # a member is known by the job's key, wherever it runs
        self._context.verify_mode = ssl.CERT_REQUIRED
        if accepts:
            self._context.num_tickets = 0
        try:
            certificate = identity.certificate.decode("ascii")
            self._certificate = ssl.PEM_cert_to_DER_cert(certificate)
            self._context.load_verify_locations(cadata=certificate)
            _load_key(self._context, identity)
        except (ValueError, ssl.SSLError) as error:
            message = f"identity: expected a certificate and its private key as PEM: {error}"
            raise OptionError(
                message, hint="make one per job with fatwood.exchange.tls.new_identity()"
            ) from error

    @classmethod
    @functools.lru_cache(maxsize=1)
    def connecting(cls, identity: Identity) -> TlsSide:
        """Return the side that makes connections; it is kept for the next one.

        Raises:
            OptionError: The identity is not a certificate and its key.
        """
        return cls(identity, accepts=False)

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """Return the socket with TLS on it, the handshake still to be done; `connection` is empty afterwards.

        Raises:
            OSError: The connection is broken.
        """
        return self._context.wrap_socket(connection, server_side=self._accepts, do_handshake_on_connect=False)

    def check(self, connection: ssl.SSLSocket, peer: str) -> None:
        """Check after the handshake that the other side showed the job's own certificate.

        Args:
            connection: A socket whose handshake is done.
            peer: The other side in words, for messages.

        Raises:
            AuthenticationError: It showed another one, which this one's key has signed.
        """
        if connection.getpeercert(binary_form=True) != self._certificate:
            message = f"{peer}: expected this job's certificate, received another"
            raise AuthenticationError(message)


def _load_key(context: ssl.SSLContext, identity: Identity) -> None:
    """The library reads keys only from files: this one is private and gone at once."""
    with tempfile.TemporaryDirectory(prefix="fatwood-") as directory:
        path = Path(directory, "identity.pem")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(identity.certificate + b"\n" + identity.key)
        context.load_cert_chain(
            path, password=""
        )  # a key with a password fails instead of asking at the terminal
