"""Certificates made at test time: authorities, servers and clients, as PEM text."""

import datetime
import ipaddress
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Certificate:
    """A certificate (with its issuers, if it has any) and its private key."""

    chain: str
    _key: ec.EllipticCurvePrivateKey

    @property
    def key(self) -> str:
        """PKCS#8, not encrypted."""
        return self._pem(serialization.NoEncryption())

    def encrypted_key(self, password: str) -> str:
        """PKCS#8, encrypted."""
        return self._pem(serialization.BestAvailableEncryption(password.encode()))

    def _pem(self, encryption: serialization.KeySerializationEncryption) -> str:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
        ).decode()


class Authority:
    """A certificate authority of its own."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self._certificate = (
            _builder(self._name, self._name, self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        """Its certificate."""
        return _pem(self._certificate)

    def issue(self, common_name: str, *names: str) -> Certificate:
        """Makes a certificate for host names and addresses; without any, a client's."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(common_name), self._name, key)
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False
            )
        return Certificate(_pem(builder.sign(self._key, hashes.SHA256())) + self.pem, key)


@dataclass(frozen=True)
class Identities:
    """An authority, a broker's certificate from it, another for another name, and a client's."""

    authority: Authority
    broker: Certificate
    misnamed: Certificate
    client: Certificate

    @classmethod
    def new(cls) -> Self:
        """New ones; the broker is known as localhost, 127.0.0.1 and ::1."""
        authority = Authority("kafka-backup tests")
        return cls(
            authority,
            authority.issue("broker", "localhost", "127.0.0.1", "::1"),
            authority.issue("broker", "broker.example", "192.0.2.1"),
            authority.issue("backup"),
        )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
