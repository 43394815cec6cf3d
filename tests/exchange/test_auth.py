"""The handshake: mutual, bound to roles, nonces and purpose, and bounded in time."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack

import pytest

from fatwood.errors import AuthenticationError, OptionError, PeerLost, ProtocolError
from fatwood.exchange import Listener, new_secret
from fatwood.exchange.auth import CONTROL, MESH, OTHER_KIND, AcceptorHandshake, connector_handshake, dial
from fatwood.exchange.connecting import Patience

SECRET = bytes(range(32))
OTHER = bytes(32)


def _handshake(connector_secret, acceptor_secret, connector_purpose=MESH, acceptor_purpose=MESH):
    """Run both sides; return the connector's error, the acceptor's error and what the acceptor received."""
    ours, theirs = socket.socketpair()
    heard = bytearray()
    acceptor_error = []

    def accept():
        handshake = AcceptorHandshake(acceptor_secret, acceptor_purpose, "newcomer")
        try:
            while handshake.wanted:
                data = b""
                while len(data) < handshake.wanted:
                    piece = theirs.recv(handshake.wanted - len(data))
                    if not piece:
                        return
                    data += piece
                heard.extend(data)
                theirs.sendall(handshake.advance(data))
        except (AuthenticationError, ProtocolError) as error:
            acceptor_error.append(error)
        finally:
            theirs.close()

    thread = threading.Thread(target=accept)
    thread.start()
    error = None
    try:
        connector_handshake(ours, connector_secret, connector_purpose, Patience("rank 1 at h:1", 2))
    except Exception as caught:
        error = caught
    ours.close()
    thread.join()
    return error, acceptor_error, bytes(heard)


def test_the_same_secret_convinces_both():
    error, acceptor_error, heard = _handshake(SECRET, SECRET)
    assert error is None
    assert acceptor_error == []
    assert len(heard) == 8 + 32 + 32
    assert SECRET not in heard


def test_the_connector_says_nothing_to_an_acceptor_without_the_secret():
    error, _, heard = _handshake(SECRET, OTHER)
    assert isinstance(error, AuthenticationError)
    assert "rank 1 at h:1" in str(error)
    assert len(heard) == 8 + 32  # magic and nonce, no proof


def test_a_proof_for_another_purpose_is_worthless():
    error, _, _ = _handshake(SECRET, SECRET, CONTROL, MESH)
    assert isinstance(error, AuthenticationError)


def test_two_handshakes_share_no_bytes_but_the_magic():
    _, _, first = _handshake(SECRET, SECRET)
    _, _, second = _handshake(SECRET, SECRET)
    assert first[:8] == second[:8]
    assert first[8:40] != second[8:40]
    assert first[40:] != second[40:]


def test_a_wrong_proof_is_refused_by_the_acceptor():
    handshake = AcceptorHandshake(SECRET, MESH, "newcomer")
    handshake.advance(b"FATWOOD\x01")
    answer = handshake.advance(bytes(32))
    # the acceptor's own proof, reflected
    with pytest.raises(AuthenticationError, match="newcomer"):
        handshake.advance(answer[-32:])


def test_a_reflected_hello_and_proof_do_not_convince_the_connector():
    """A stranger that echoes what it hears knows nothing."""
    ours, theirs = socket.socketpair()

    def reflect():
        hello = theirs.recv(40)
        theirs.sendall(hello + hello[8:])  # its nonce, and its nonce as a proof

    thread = threading.Thread(target=reflect)
    thread.start()
    with pytest.raises(AuthenticationError):
        connector_handshake(ours, SECRET, MESH, Patience("mirror", 2))
    thread.join()
    ours.close()
    theirs.close()


def test_a_handshake_relayed_back_to_its_own_listener_fails():
    """A stranger opens two connections to one acceptor and answers each with the other's words."""
    with Listener(host="127.0.0.1", secret=SECRET, purpose=MESH) as listener:
        first, second = (socket.create_connection(listener.address, timeout=2) for _ in range(2))
        first.sendall(b"FATWOOD\x01" + bytes(32))
        answer = first.recv(72, socket.MSG_WAITALL)
        second.sendall(b"FATWOOD\x01" + answer[8:40])
        proof = second.recv(72, socket.MSG_WAITALL)[40:]
        first.sendall(proof)
        assert first.recv(1) == b""  # hung up, no welcome
        assert listener.accept(0) is None
        first.close()
        second.close()


def test_another_version_is_named_with_our_own():
    ours, theirs = socket.socketpair()
    theirs.sendall(b"FATWOOD\x09" + bytes(64))
    with pytest.raises(ProtocolError, match=r"expected version 1 .* received version 9"):
        connector_handshake(ours, SECRET, MESH, Patience("x", 2))
    ours.close()
    theirs.close()


def test_another_program_is_recognised():
    ours, theirs = socket.socketpair()
    theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(AuthenticationError, match="HTTP"):
        connector_handshake(ours, SECRET, MESH, Patience("x", 2))
    ours.close()
    theirs.close()


def test_an_acceptor_that_asks_for_encryption_is_recognised():
    ours, theirs = socket.socketpair()
    theirs.sendall(OTHER_KIND)
    with pytest.raises(AuthenticationError, match="x: it asks for encryption"):
        connector_handshake(ours, SECRET, MESH, Patience("x", 2))
    ours.close()
    theirs.close()


def test_a_mute_or_trickling_acceptor_is_given_up_in_time():
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def trickle():
        for byte in b"FATWOOD\x01" + bytes(64):
            if stop.wait(0.05):
                return
            theirs.send(bytes([byte]))

    thread = threading.Thread(target=trickle)
    thread.start()
    begin = time.monotonic()
    with pytest.raises(PeerLost, match="x"):
        connector_handshake(ours, SECRET, MESH, Patience("x", 0.3))
    assert 0.2 < time.monotonic() - begin < 1.5
    stop.set()
    thread.join()
    ours.close()
    theirs.close()


def test_dial_names_an_address_where_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(PeerLost, match=rf"rank 4 at 127\.0\.0\.1:{port}"):
        dial("127.0.0.1", port, SECRET, MESH, peer="rank 4", timeout_seconds=0.2)


def test_a_dropped_connection_is_dialled_again():
    with Listener(host="127.0.0.1", secret=SECRET, purpose=MESH) as real, socket.socket() as front:
        front.bind(("127.0.0.1", 0))
        front.listen()

        def drop_then_relay():
            front.accept()[0].close()
            client = front.accept()[0]
            server = socket.create_connection(real.address)
            for source, sink, count in ((client, server, 40), (server, client, 72), (client, server, 32)):
                sink.sendall(source.recv(count, socket.MSG_WAITALL))
            client.sendall(server.recv(1))
            client.close()
            server.close()

        thread = threading.Thread(target=drop_then_relay)
        thread.start()
        connection = dial(*front.getsockname(), SECRET, MESH, peer="x", timeout_seconds=5)
        connection.close()
        thread.join()
        accepted = real.accept(2)
        assert accepted is not None
        accepted[0].close()


class _Switch:
    """Says False, and True from the moment it is turned on."""

    def __init__(self):
        self.on = False
        self.asked = 0

    def __call__(self):
        self.asked += 1
        return self.on


def _seconds_until_superseded(address, cancelled):
    begin = time.monotonic()
    with pytest.raises(PeerLost, match=r"rank 4 at .* superseded"):
        dial(*address, SECRET, MESH, peer="rank 4", timeout_seconds=60, cancelled=cancelled)
    return time.monotonic() - begin


def test_a_dial_that_nobody_wants_is_not_begun():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert _seconds_until_superseded(server.getsockname(), lambda: True) < 1
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()[0].close()


def test_a_dial_that_waits_for_an_answer_is_called_off():
    cancelled = _Switch()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept_and_say_nothing():
            with server.accept()[0] as connection:
                assert len(connection.recv(40, socket.MSG_WAITALL)) == 40
                cancelled.on = True
                assert connection.recv(1) == b""

        thread = threading.Thread(target=accept_and_say_nothing)
        thread.start()
        assert _seconds_until_superseded(server.getsockname(), cancelled) < 3
        thread.join()


def test_a_dial_that_waits_for_the_connection_is_called_off():
    """A full backlog drops what knocks, as a firewall does."""
    cancelled = _Switch()
    with socket.socket() as server, ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        begin = time.monotonic()

        def later():
            while cancelled.asked < 3:
                time.sleep(0.01)
            cancelled.on = True

        thread = threading.Thread(target=later)
        thread.start()
        _seconds_until_superseded(server.getsockname(), cancelled)
        thread.join()
        assert time.monotonic() - begin < 5


def test_a_dial_that_pauses_is_called_off():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    attempts = []

    def cancelled():
        attempts.append(time.monotonic())
        return len(attempts) > 1

    begin = time.monotonic()
    with pytest.raises(PeerLost, match="rank 4"):  # refused, then not tried again
        dial(*address, SECRET, MESH, peer="rank 4", timeout_seconds=60, cancelled=cancelled)
    assert time.monotonic() - begin < 1


@pytest.mark.parametrize("secret", [b"short", bytes(33), "x" * 32])
def test_a_secret_is_32_bytes(secret):
    with pytest.raises(OptionError, match="32 random bytes"):
        Listener(host="127.0.0.1", secret=secret, purpose=MESH)


def test_secrets_are_fresh():
    assert len(new_secret()) == 32
    assert new_secret() != new_secret()
