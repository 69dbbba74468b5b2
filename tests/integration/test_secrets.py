"""Canaries: secrets of every kind in a configuration, and every place where one could come out again."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import dagster as dg
import pytest
from click.testing import CliRunner
from moto.server import ThreadedMotoServer

from kafka_backup.cli import main
from kafka_backup.repository.stores import open_store
from kafka_backup_dagster import KafkaBackupResource, kafka_backup_assets, restore_job
from tests.support.acls import Right, allow
from tests.support.records import NewRecord
from tests.support.secure_cluster import USER, SecureCluster
from tests.support.token_endpoint import TokenEndpoint
from tests.support.topics import new_topic, produce

CANARY = "canary-7f3a"
SOURCE_USER = "canary-bird"
SECRETS = {
    "KAFKA_PASSWORD": f"{CANARY}-password",
    "CLIENT_SECRET": f"{CANARY}-client-secret",
    "KEY_PASSWORD": f"{CANARY}-key-password",
    "STORE_SECRET": f"{CANARY}-store-secret",
}


class Setting:
    """A cluster that wants secrets, a store that does, and a topic with a few records."""

    def __init__(self, kafka: SecureCluster, tokens: TokenEndpoint, store_url: str) -> None:
        self.kafka = kafka
        self.tokens = tokens
        self.store_options = {
            "endpoint": store_url,
            "access_key_id": "known",
            "region": "us-east-1",
            "allow_http": "true",
        }
        self.topic = new_topic(kafka)
        produce(kafka.bootstrap_servers, self.topic, [NewRecord(b"value")] * 10)

    def source(self, password: Any) -> dict[str, Any]:
        """SCRAM over TLS."""
        return self.kafka.properties("SASL_TLS", "SCRAM-SHA-512") | {
            "sasl.username": SOURCE_USER,
            "sasl.password": password,
        }

    def target(self, secret: Any, key_password: Any) -> dict[str, Any]:
        """A token of a token endpoint, over TLS with our certificate and an encrypted key."""
        client = self.kafka.identities.client
        return self.kafka.properties("SASL_TLS", "OAUTHBEARER") | {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": USER,
            "sasl.oauthbearer.client.secret": secret,
            "sasl.oauthbearer.token.endpoint.url": self.tokens.url,
            "ssl.certificate.pem": client.chain,
            "ssl.key.pem": client.encrypted_key(SECRETS["KEY_PASSWORD"]),
            "ssl.key.password": key_password,
        }

    def stored(self, prefix: str) -> bytes:
        """Every key and every object of a repository, one after the other."""
        options = {**self.store_options, "secret_access_key": "any"}
        store = open_store(f"s3://backups/{prefix}", options)
        return b"".join(entry.key.encode() + store.get(entry.key) for entry in store.list(""))


@pytest.fixture(scope="module")
def setting(secure: SecureCluster) -> Iterator[Setting]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    secure.add_user(SOURCE_USER, SECRETS["KAFKA_PASSWORD"])
    allow(
        secure,
        SOURCE_USER,
        Right("ALL", "*"),
        Right("ALL", "*", "GROUP"),
        Right("DESCRIBE", "kafka-cluster", "BROKER"),
    )
    with (
        urlopen(Request(f"{url}/backups", method="PUT")),
        TokenEndpoint(secure.signer, SECRETS["CLIENT_SECRET"]) as tokens,
    ):
        yield Setting(secure, tokens, url)
    server.stop()


def configuration(setting: Setting, prefix: str) -> dict[str, Any]:
    """As in a kafka-backup.yaml, each secret from its variable."""
    servers = setting.kafka.servers("SASL_TLS")
    return {
        "cluster": {
            "bootstrap_servers": servers,
            "properties": setting.source("${KAFKA_PASSWORD}"),
            "retry_seconds": 20,
        },
        "target": {
            "bootstrap_servers": servers,
            "properties": setting.target("${CLIENT_SECRET}", "${KEY_PASSWORD}"),
            "retry_seconds": 20,
        },
        "repository": {
            "url": f"s3://backups/{prefix}",
            "options": setting.store_options | {"secret_access_key": "${STORE_SECRET}"},
        },
        "backup": {"topics": [setting.topic]},
    }


def run(
    folder: Path, content: Mapping[str, Any], secrets: Mapping[str, str], *command: str
) -> tuple[int, str]:
    """Runs the command line as a process, with stack traces; exit code, and all that it says."""
    (folder / "kafka-backup.yaml").write_text(json.dumps(content))
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-m", "kafka_backup.cli", "--debug", *command],
        cwd=folder,
        env={**os.environ, **secrets},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


def ask(folder: Path, content: Mapping[str, Any], *command: str) -> str:
    """Runs the command line in this process, with stack traces: all that it says."""
    path = folder / "kafka-backup.yaml"
    path.write_text(json.dumps(content))
    arguments = ["--config", str(path), "--debug", *command]
    result = CliRunner().invoke(main, arguments, env=SECRETS)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_line_keeps_its_secrets(
    setting: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What: every command with a password, a client secret, a key's password and a store's key; what is stored.

    Why: outputs end in terminals, cron mails and tickets; repositories are read by more people than clusters.
    Risk: the keys of the cluster in the backup of the cluster.
    """
    caplog.set_level(logging.DEBUG)
    content = configuration(setting, "cli")
    restore = ("restore", "--id", "r1", "--prefix", "cli-")
    for command in (("backup",), (*restore, "--execute", "--json")):
        code, said = run(tmp_path, content, SECRETS, *command)
        assert code == 0, said
        assert CANARY not in said
    reset = ("groups", "reset", "--group", setting.topic, "--topic", setting.topic, "--to", "3", "--execute")
    moved = json.loads(ask(tmp_path, content, *reset, "--json"))
    for command in (
        ("backup", "--json"),
        ("list", "--json"),
        ("show", setting.topic),
        ("records", setting.topic, "--partition", "0"),
        ("verify", "--level", "data"),
        ("losses", "list"),
        restore,
        ("verify", "--restore", "r1"),
        ("offset-map", "--restore", "r1", "--topic", setting.topic, "--partition", "0", "5"),
        ("groups", "snapshot", "--json"),
        ("groups", "list"),
        ("groups", "show"),
        ("groups", "rollback", moved["rollback"], "--execute"),
        ("drill",),
        ("expire", "--keep-captures", "1", "--execute"),
    ):
        assert CANARY not in ask(tmp_path, content, *command)
    assert CANARY not in caplog.text
    stored = setting.stored("cli")
    for place in (b"topics/", b"captures/", b"restores/", b"groups/", b"resets/", b"drills/", b"expiries/"):
        assert place in stored
    assert CANARY.encode() not in stored


@pytest.mark.parametrize(
    ("wrong", "command", "code"),
    [
        ("KAFKA_PASSWORD", ["backup"], 2),
        ("CLIENT_SECRET", ["restore", "--id", "r2", "--prefix", "no-", "--execute"], 2),
        ("KEY_PASSWORD", ["restore", "--id", "r2", "--prefix", "no-", "--execute"], 2),
        ("unknown property", ["backup"], 2),
        ("broken key", ["restore", "--id", "r2", "--prefix", "no-", "--execute"], 2),
        ("store", ["backup"], 3),
        ("broker", ["backup"], 3),
    ],
)
def test_what_fails_keeps_its_secrets_too(
    wrong: str, command: list[str], code: int, setting: Setting, tmp_path: Path
) -> None:
    """What: each secret wrong; a property that is none; a key that is no key; a store and a broker that are away.

    Why: stack traces and the messages of libraries quote what they could not use.
    Risk: the secret in the first bug report.
    """
    content = configuration(setting, "failing")
    secrets = dict(SECRETS)
    if wrong in secrets:
        secrets[wrong] = f"{CANARY}-wrong"
    elif wrong == "unknown property":
        content["cluster"]["properties"]["sasl.kerberos.keytab"] = f"{CANARY}-keytab"
    elif wrong == "broken key":
        content["target"]["properties"]["ssl.key.pem"] = f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n"
    elif wrong == "store":
        content["repository"]["options"]["endpoint"] = "http://127.0.0.1:1"
        content["cluster"]["retry_seconds"] = 1
    else:
        content["cluster"]["bootstrap_servers"] = "127.0.0.1:1"
        content["cluster"]["retry_seconds"] = 1
    if command[0] == "restore":
        assert run(tmp_path, content, SECRETS, "backup")[0] == 0
    found, said = run(tmp_path, content, secrets, *command)
    assert found == code, said
    assert "error: " in said
    assert CANARY not in said


@pytest.mark.parametrize("wrong", ["", "KAFKA_PASSWORD", "CLIENT_SECRET"])
def test_dagster_keeps_the_secrets_of_a_resource(
    wrong: str,
    setting: Setting,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What: a backup and a restore with a resource whose secrets are EnvVars; runs, events, logs, definitions.

    Why: whoever may look at Dagster's pages sees all of these.
    Risk: a password in the run configuration, for as long as runs are kept.
    """
    caplog.set_level(logging.DEBUG)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, f"{CANARY}-wrong" if name == wrong else value)
    prefix = f"dagster-{wrong or 'right'}".replace("_", "-").lower()
    resource = KafkaBackupResource(
        bootstrap_servers=setting.kafka.servers("SASL_TLS"),
        properties=setting.source(dg.EnvVar("KAFKA_PASSWORD")),
        target_bootstrap_servers=setting.kafka.servers("SASL_TLS"),
        target_properties=setting.target(dg.EnvVar("CLIENT_SECRET"), dg.EnvVar("KEY_PASSWORD")),
        retry_seconds=20,
        repository_url=f"s3://backups/{prefix}",
        repository_options=setting.store_options | {"secret_access_key": dg.EnvVar("STORE_SECRET")},
    )

    @kafka_backup_assets(topics=[setting.topic], cluster_name="prod", partitions_def=None)
    def backups(
        context: dg.AssetExecutionContext, kafka_backup: KafkaBackupResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        yield from kafka_backup.run(context)

    defs = dg.Definitions(assets=[backups], jobs=[restore_job], resources={"kafka_backup": resource})
    instance = dg.DagsterInstance.ephemeral()
    saved = defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=instance, raise_on_error=False
    )
    assert saved.success == (wrong != "KAFKA_PASSWORD")
    form = {"restore_id": "r1", "prefix": f"{prefix}-", "mode": "execute"}
    restored = defs.resolve_job_def("restore").execute_in_process(
        run_config=form, instance=instance, raise_on_error=False
    )
    assert restored.success == (not wrong)
    shown = [
        dg.serialize_value(event) for run in instance.get_runs() for event in instance.all_logs(run.run_id)
    ]
    shown += [json.dumps(dict(run.run_config)) + json.dumps(dict(run.tags)) for run in instance.get_runs()]
    shown += [caplog.text, *capfd.readouterr()]
    assert len(shown) > 20
    assert not [text for text in shown if CANARY in text]
