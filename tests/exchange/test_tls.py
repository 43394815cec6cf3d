"""Encryption: who is let in, what is seen on the wire, and what strangers cost a listener that encrypts."""

from __future__ import annotations

import builtins
import dataclasses
import os
import pickle
import socket
import ssl
import struct
import tempfile
import threading
import time
from contextlib import ExitStack

import pytest

from fatwood.errors import AuthenticationError, OptionError, PeerLost
from fatwood.exchange import Listener
from fatwood.exchange import listener as listener_module
from fatwood.exchange.auth import MESH, OTHER_KIND, dial
from fatwood.exchange.tls import Identity, TlsSide, new_identity

SECRET = os.urandom(32)
OURS, THEIRS = new_identity(), new_identity()


@pytest.fixture
def listener():
    with Listener(host="127.0.0.1", secret=SECRET, purpose=MESH, tls=OURS) as made:
        yield made


def _dial(listener, tls=OURS, secret=SECRET, timeout_seconds=5.0, **options):
    return dial(
        *listener.address, secret, MESH, peer="rank 1", timeout_seconds=timeout_seconds, tls=tls, **options
    )


def _honest(listener):
    """Seconds that an honest peer needs to get in."""
    begin = time.monotonic()
    with _dial(listener) as connection:
        accepted = listener.accept(5)
        seconds = time.monotonic() - begin
        assert accepted is not None
        with accepted[0] as theirs:
            connection.sendall(b"after the handshake")
            theirs.settimeout(2)
            assert theirs.recv(19) == b"after the handshake"
    return seconds


def test_members_of_a_job_meet_in_tls_1_3_without_tickets(listener):
    with _dial(listener) as connection, listener.accept(5)[0] as accepted:
        for side in (connection, accepted):
            assert isinstance(side, ssl.SSLSocket)
            assert side.version() == "TLSv1.3"
            assert side.getpeercert(binary_form=True) == ssl.PEM_cert_to_DER_cert(OURS.certificate.decode())
        assert connection.gettimeout() is None
        assert accepted.gettimeout() == 0
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.setblocking(False)
        with pytest.raises(ssl.SSLWantReadError):
            connection.recv(1)
        assert not connection.session.has_ticket


def test_nothing_is_readable_on_the_wire(listener):
    """A relay in the middle sees neither the handshake of the secret nor what follows."""
    seen = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as front, ExitStack() as stack:

        def relay(source, sink):
            while data := source.recv(65536):
                seen.extend(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

        def serve():
            client = stack.enter_context(front.accept()[0])
            server = stack.enter_context(socket.create_connection(listener.address))
            back = threading.Thread(target=relay, args=(server, client))
            back.start()
            relay(client, server)
            back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        with dial(*front.getsockname(), SECRET, MESH, peer="x", timeout_seconds=5, tls=OURS) as connection:
            accepted = listener.accept(5)[0]
            connection.sendall(b"a gradient " * 100)
            accepted.settimeout(5)
            assert accepted.recv(1100).startswith(b"a gradient a gradient")
        accepted.close()
        thread.join()
    assert len(seen) > 2000
    assert b"gradient" not in seen
    assert b"FATWOOD" not in seen
    assert b"fatwood" not in seen  # the certificate's name


def test_another_jobs_listener_is_refused_at_once(listener):
    begin = time.monotonic()
    with pytest.raises(AuthenticationError, match=r"rank 1 at 127\.0\.0\.1:\d+: .*certificate"):
        _dial(listener, tls=THEIRS)
    assert time.monotonic() - begin < 1
    assert listener.accept(0.05) is None


def _is_hung_up_on(stranger):
    """Whether it reads an end, an alert or a reset."""
    try:
        return stranger.recv(1) == b""
    except OSError as error:
        return not isinstance(error, TimeoutError)


def _has_refused(listener, count):
    """Whether so many were refused; what they were told may reach them before they are counted."""
    deadline = time.monotonic() + 5
    while listener.refused < count and time.monotonic() < deadline:
        time.sleep(0.001)
    return listener.refused == count


def _bare_client(identity, trusted):
    """A connector that presents `identity` (or nothing) and trusts the listener's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=trusted.certificate.decode())
    if identity is not None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(identity.certificate + identity.key)
            file.flush()
            context.load_cert_chain(file.name)
    return context


@pytest.mark.parametrize("certificate", ["none", "another job's"])
def test_a_newcomer_without_the_jobs_certificate_is_refused(listener, certificate):
    """It knows even the secret; it is hung up on before it can say so."""
    context = _bare_client(None if certificate == "none" else THEIRS, OURS)
    with (
        socket.create_connection(listener.address, timeout=5) as plain,
        context.wrap_socket(plain) as stranger,
    ):
        stranger.settimeout(5)
        assert _is_hung_up_on(stranger)
    assert _has_refused(listener, 1)
    assert listener.accept(0) is None
    assert _honest(listener) < 1.5


def test_a_certificate_that_the_jobs_key_signed_is_another_one(listener):
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    own = x509.load_pem_x509_certificate(OURS.certificate)
    key = serialization.load_pem_private_key(OURS.key, None)
    again = x509.CertificateBuilder(
        own.issuer, own.subject, own.public_key(), 7, own.not_valid_before_utc, own.not_valid_after_utc
    ).sign(key, hashes.SHA256())
    twin = Identity(certificate=again.public_bytes(serialization.Encoding.PEM), key=OURS.key)
    side = TlsSide(OURS, accepts=False)

    class ShowsTwin:
        def getpeercert(self, binary_form):
            return ssl.PEM_cert_to_DER_cert(twin.certificate.decode())

    with pytest.raises(AuthenticationError, match="rank 2: expected this job's certificate"):
        side.check(ShowsTwin(), "rank 2")
    with pytest.raises(AuthenticationError):
        _dial(listener, tls=twin)


def test_a_wrong_secret_is_refused_inside_tls(listener):
    with pytest.raises(AuthenticationError, match="does not know this job's secret"):
        _dial(listener, secret=bytes(32))
    assert listener.accept(0.05) is None


def test_one_side_that_does_not_encrypt_is_told_so_at_once(listener):
    with Listener(host="127.0.0.1", secret=SECRET, purpose=MESH) as plain:
        for target, tls, match in (
            (listener, None, "it asks for encryption, and this side does not"),
            (plain, OURS, "it does not encrypt as the members of this job do"),
        ):
            begin = time.monotonic()
            with pytest.raises(AuthenticationError, match=rf"rank 1 at 127\.0\.0\.1:\d+: {match}") as caught:
                _dial(target, tls=tls)
            assert "all members of a job encrypt or none does" in str(caught.value)
            assert time.monotonic() - begin < 1
            assert _has_refused(target, 1)
            assert target.accept(0) is None


@pytest.mark.parametrize("says", ["nothing", "half a server's hello"])
def test_the_handshake_of_tls_counts_within_the_deadline(says):
    begin = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            with server.accept()[0] as connection:
                connection.sendall(b"" if says == "nothing" else b"\x16\x03\x03\x01\x00\x02")
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=accept)
        thread.start()
        with pytest.raises(PeerLost, match=r"rank 1 at .* no answer in 0\.7 seconds"):
            dial(*server.getsockname(), SECRET, MESH, peer="rank 1", timeout_seconds=0.7, tls=OURS)
        thread.join()
    assert 0.6 < time.monotonic() - begin < 2


def test_the_handshake_of_tls_is_called_off():
    called_off = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            with server.accept()[0] as connection:
                assert connection.recv(1) == b"\x16"
                called_off.set()
                while connection.recv(4096):
                    pass

        thread = threading.Thread(target=accept)
        thread.start()
        with pytest.raises(PeerLost, match="superseded"):
            dial(
                *server.getsockname(),
                SECRET,
                MESH,
                peer="x",
                timeout_seconds=60,
                tls=OURS,
                cancelled=called_off.is_set,
            )
        thread.join()


def _hello():
    """What a connector of this job says first."""
    ours, theirs = socket.socketpair()
    with theirs:
        client = TlsSide(OURS, accepts=False).wrap(ours)
        client.setblocking(False)
        with client, pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        return theirs.recv(65536)


HELLO = _hello()
HOSTILE = {
    "nothing": b"",
    "one byte of TLS": HELLO[:1],
    "half a hello": HELLO[: len(HELLO) // 2],
    "a hello and no more": HELLO,
    "a hello of 16 KiB that does not come": b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc" + bytes(100),
    "a spoilt hello": HELLO[:40] + os.urandom(len(HELLO) - 40),
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "a plain hello": b"FATWOOD\x01" + bytes(32),
    "a web request": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_two_hundred_strangers_at_once_do_not_delay_an_honest_peer(listener, data):
    with ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(socket.create_connection(listener.address, timeout=5))
            try:
                connection.sendall(data)
            except OSError:
                continue  # hung up on already
        assert _honest(listener) < 2
        assert listener.accept(0) is None  # no stranger came through
        assert len(listener._pending) <= 128
        assert threading.active_count() < 20


def test_strangers_that_reset_the_connection_leave_the_listener_alive(listener):
    for data in [*HOSTILE.values()] * 5:
        with socket.create_connection(listener.address, timeout=5) as stranger:
            stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            stranger.sendall(data)
    assert _honest(listener) < 2


def test_a_connection_that_breaks_before_tls_begins_leaves_the_listener_alive(listener, monkeypatch):
    """`wrap_socket` takes the descriptor out of the socket it is given, and closes it when it fails."""
    wrap = TlsSide.wrap

    def broken(self, connection):
        monkeypatch.setattr(TlsSide, "wrap", wrap)
        os.close(connection.detach())
        raise ConnectionResetError

    monkeypatch.setattr(TlsSide, "wrap", broken)
    with socket.create_connection(listener.address, timeout=5) as stranger:
        stranger.sendall(HELLO)
        assert _is_hung_up_on(stranger)
    assert _honest(listener) < 2
    assert _has_refused(listener, 1)
    assert not listener._pending


def test_mute_and_slow_strangers_are_hung_up_on_after_the_deadline(monkeypatch, listener):
    monkeypatch.setattr(listener_module, "HANDSHAKE_SECONDS", 0.3)
    with ExitStack() as stack:
        begin = time.monotonic()
        for data in (b"", HELLO[:1], HELLO):
            stranger = stack.enter_context(socket.create_connection(listener.address, timeout=5))
            stranger.sendall(data)
            stack.callback(stranger.close)
            while stranger.recv(4096):
                pass
        assert 0.2 < time.monotonic() - begin < 3
    assert _has_refused(listener, 3)
    monkeypatch.undo()
    assert _honest(listener) < 1.5


def test_who_does_not_speak_tls_is_told_one_word(listener):
    with socket.create_connection(listener.address, timeout=5) as stranger:
        stranger.sendall(HOSTILE["a plain hello"])
        assert stranger.recv(100, socket.MSG_WAITALL) == OTHER_KIND
    assert _has_refused(listener, 1)


def test_an_identity_travels_and_does_not_show_its_key():
    assert pickle.loads(pickle.dumps(OURS)) == OURS
    for text in (repr(OURS), str(OURS)):
        assert "PRIVATE" not in text
        assert OURS.key.split()[4].decode() not in text
    assert OURS != THEIRS
    with pytest.raises(dataclasses.FrozenInstanceError):
        OURS.key = b""


def test_the_key_is_private_on_disk_and_gone_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    modes = []

    load = ssl.SSLContext.load_cert_chain

    def watching(self, path, password):
        modes.extend([os.stat(path).st_mode & 0o777, os.stat(path.parent).st_mode & 0o777])
        load(self, path, password=password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watching)
    TlsSide(OURS, accepts=True)
    assert modes == [0o600, 0o700]
    with pytest.raises(OptionError):
        TlsSide(Identity(certificate=OURS.certificate, key=THEIRS.key), accepts=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "broken", ["no certificate", "no key", "another key", "not text", "a key with a password"]
)
def test_what_is_no_identity_is_an_option_error(broken):
    from cryptography.hazmat.primitives import serialization

    locked = serialization.load_pem_private_key(OURS.key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )
    changes = {
        "no certificate": {"certificate": b""},
        "no key": {"key": b""},
        "another key": {"key": THEIRS.key},
        "not text": {"certificate": b"\xff\xfe"},
        "a key with a password": {"key": locked},
    }
    identity = dataclasses.replace(OURS, **changes[broken])
    with pytest.raises(OptionError, match="expected a certificate and its private key") as caught:
        Listener(host="127.0.0.1", secret=SECRET, purpose=MESH, tls=identity)
    assert "PRIVATE" not in str(caught.value)
    with pytest.raises(OptionError):
        dial("127.0.0.1", 1, SECRET, MESH, peer="x", timeout_seconds=1, tls=identity)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("cryptography"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OptionError, match=r'pip install "fatwood\[encrypt\]"'):
        new_identity()
    TlsSide(OURS, accepts=False)  # executors do without it
