"""SCRAM: the examples of the RFCs, and servers that are not what they should be."""

import base64

import pytest

from kafka_backup.kafka.scram import ScramClient, ScramError

NONCE = "rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def client() -> ScramClient:
    return ScramClient("SCRAM-SHA-256", "user", "pencil", nonce=NONCE)


def test_the_exchange_of_rfc_7677() -> None:
    """What: the example of section 3, message by message.

    Why: the one exchange that everybody agrees on.
    Risk: a client that only a server with the same mistake takes.
    """
    known = client()
    assert known.first() == b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
    assert known.final(SERVER_FIRST) == (
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
        b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    known.check(SERVER_FINAL)


def test_commas_and_equal_signs_in_a_name() -> None:
    """What: a user whose name holds what separates fields.

    Why: RFC 5802 writes them =2C and =3D.
    Risk: another user is asked for.
    """
    assert b",n=a=2Cb=3Dc,r=" in ScramClient("SCRAM-SHA-512", "a,b=c", "p").first()


def test_each_exchange_has_a_nonce_of_its_own() -> None:
    """What: two exchanges of the same user.

    Why: whoever listened to one must not be able to repeat it.
    Risk: a constant in its place.
    """
    assert ScramClient("SCRAM-SHA-512", "u", "p").first() != ScramClient("SCRAM-SHA-512", "u", "p").first()


@pytest.mark.parametrize(
    ("server_first", "complaint"),
    [
        (b"", "malformed"),
        (b"\xff", "no text"),
        (b"s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "malformed"),
        (SERVER_FIRST.replace(b"s=W", b"s=!"), "malformed"),
        (SERVER_FIRST.replace(b"i=4096", b"i=many"), "malformed"),
        (SERVER_FIRST.replace(b"r=rOp", b"r=xOp"), "somebody else"),
        (b"r=" + NONCE.encode() + b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096", "somebody else"),
        (SERVER_FIRST.replace(b"i=4096", b"i=1"), "1 iterations"),
        (SERVER_FIRST.replace(b"i=4096", b"i=4000000000"), "4000000000 iterations"),
    ],
)
def test_a_first_message_that_is_wrong(server_first: bytes, complaint: str) -> None:
    """What: missing and broken fields, another exchange's nonce, too few and too many iterations.

    Why: with one iteration a listener would guess the password; with billions we would be busy for an hour.
    Risk: a stack trace; or a proof sent to somebody who collects them.
    """
    with pytest.raises(ScramError, match=complaint):
        client().final(server_first)


@pytest.mark.parametrize(
    ("server_final", "complaint"),
    [
        (b"e=unknown-user", "refuses: unknown-user"),
        (b"", "malformed"),
        (b"v=!", "malformed"),
        (b"v=", "does not know"),
        (b"v=" + base64.b64encode(bytes(32)), "does not know"),
    ],
)
def test_a_server_that_does_not_know_the_password(server_final: bytes, complaint: str) -> None:
    """What: a refusal, no signature, a wrong one.

    Why: this is what tells us that the broker is the one that knows us.
    Risk: everything sent to whoever answers at the address.
    """
    known = client()
    known.final(SERVER_FIRST)
    with pytest.raises(ScramError, match=complaint):
        known.check(server_final)


def test_a_server_that_skips_the_proof() -> None:
    """What: a final message before any proof was asked for, with an empty signature.

    Why: two empty values are equal.
    Risk: as above.
    """
    with pytest.raises(ScramError, match="does not know"):
        client().check(b"v=")
