"""The examples: their files say what they should to Docker Compose, to Dagster, and to each other."""

import importlib.util
import re
import shlex
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema
from packaging.requirements import Requirement

from kafka_backup import parse_config
from kafka_backup.config import load_config

EXAMPLES = Path(__file__).parents[2] / "examples"
COMPOSE = EXAMPLES / "docker-compose"
CONSTRAINTS = EXAMPLES.parent / "constraints.txt"
SET = {
    "POSTGRES_PASSWORD": "p",
    "STORE_USER": "u",
    "STORE_PASSWORD": "s",
    "KAFKA_BACKUP_START_DATE": "2026-11-24",
    "KAFKA_PASSWORD": "k",
}


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def load(path: Path, monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    """What a code location of this file loads, from its folder."""
    monkeypatch.chdir(path.parent)
    for name, value in SET.items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location(f"example_{path.parent.name.replace('-', '_')}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    defs: dg.Definitions = module.defs
    return defs


@pytest.mark.parametrize("folder", ["minimal", "docker-compose"])
def test_dagster_takes_its_settings(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests each dagster.yaml against Dagster's own schema.

    A setting that Dagster does not know stops every one of its processes at the start.
    Could go wrong: a name is misspelt, or of another release.
    """
    settings = read(EXAMPLES / folder / "dagster.yaml")
    monkeypatch.setenv("POSTGRES_PASSWORD", SET["POSTGRES_PASSWORD"])
    done = process_config(dagster_instance_config_schema(), settings)

    assert done.success, done.errors
    assert settings["run_monitoring"]["enabled"]
    assert settings["run_monitoring"]["free_slots_after_run_end_seconds"]


def test_services_of_docker_compose_fit_together() -> None:
    """Tests that each service, variable, port, network and volume that one file names is in the other.

    Whoever tries it out has no patience for the third container that does not start.
    Could go wrong: runs start in another network, without a password, or on an image that nobody builds.
    """
    compose = read(COMPOSE / "docker-compose.yaml")
    services: Mapping[str, Any] = compose["services"]
    dagster = read(COMPOSE / "dagster.yaml")
    (location,) = read(COMPOSE / "workspace.yaml")["load_from"]
    launcher = dagster["run_launcher"]["config"]

    for name, service in services.items():
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert set(service.get("depends_on", ())) <= set(services), name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source.startswith("/") or source in compose["volumes"], name
    assert launcher["network"] == compose["networks"]["kafka-backups"]["name"]
    code = services["code"]
    assert set(launcher["env_vars"]) <= set(code["environment"])
    assert code["environment"]["DAGSTER_CURRENT_IMAGE"] == code["image"]
    assert {service["image"] for name, service in services.items() if name in ("webserver", "daemon")} == {
        code["image"]
    }
    assert location["grpc_server"]["host"] == "code"
    assert f"-p {location['grpc_server']['port']} " in code["command"]
    assert (COMPOSE / code["build"]["context"] / code["build"]["dockerfile"]).is_file()
    database = dagster["storage"]["postgres"]["postgres_db"]
    assert database["hostname"] in services
    assert database["username"] == services["postgres"]["environment"]["POSTGRES_USER"]
    assert database["password"] == {"env": "POSTGRES_PASSWORD"}


def test_configuration_of_docker_compose_has_its_variables_and_hosts() -> None:
    """Tests the kafka-backup.yaml of the containers with exactly the variables that they get.

    The first run would fail in the middle of the night, hours after the demonstration.
    Could go wrong: a variable reaches the code location but not the runs.
    """
    compose = read(COMPOSE / "docker-compose.yaml")
    given = read(COMPOSE / "dagster.yaml")["run_launcher"]["config"]["env_vars"]
    config = load_config(COMPOSE / "kafka-backup.yaml", environment={name: SET[name] for name in given})

    assert config.cluster.bootstrap_servers.partition(":")[0] in compose["services"]
    store = re.fullmatch(r"http://(\w+):9000", config.repository.options["endpoint"])
    assert store is not None and store[1] in compose["services"]
    assert config.repository.options["secret_access_key"] == SET["STORE_PASSWORD"]
    assert config.repository.url.split("/")[2] in str(compose["services"]["bucket"]["entrypoint"])


@pytest.mark.parametrize(
    ("folder", "packages"),
    [
        ("docker-compose", ("dagster-webserver", "dagster-postgres", "dagster-docker")),
        ("kubernetes", ("dagster-postgres", "dagster-k8s")),
    ],
)
def test_dockerfiles_copy_what_is_there(folder: str, packages: tuple[str, ...]) -> None:
    """Tests that each file that an image takes exists, and that it installs what it starts.

    An image that cannot be built helps nobody.
    Could go wrong: a file was renamed.
    """
    text = (EXAMPLES / folder / "Dockerfile").read_text()
    let_through = (EXAMPLES.parent / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE):
        for name in line.split():
            assert (EXAMPLES.parent / name).exists(), name
            assert name == "." or f"!{name.partition('/')[0]}" in let_through, name
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt", "core", "kafka_backup_dagster"):
        assert f"!{name}" in let_through
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS.read_text().lower(), re.MULTILINE))
    (install,) = re.findall(r"^RUN pip install (.*?[^\\])$", text, re.MULTILINE | re.DOTALL)
    asked = [
        Requirement(word) for word in shlex.split(install.replace("\\\n", "")) if re.match(r"[a-z]", word)
    ]
    # -c and its file are among them: they are no requirements.
    assert {each.name for each in asked} >= set(packages)
    for each in asked:
        assert each.specifier.contains(pinned.get(each.name, "1"), prereleases=True) or not each.specifier, (
            each
        )


def test_definitions_of_docker_compose_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests what the code location of the containers loads, without a broker or a store.

    It is the whole of the user's own code.
    Could go wrong: a name of the API has changed, and the example was forgotten.
    """
    defs = load(COMPOSE / "definitions.py", monkeypatch)
    jobs = {job.name for job in defs.resolve_all_job_defs()}

    assert {"prod_kafka_backup", "prod_restore", "prod_reset_offsets", "prod_verify"} <= jobs


def test_definitions_of_kubernetes_load_with_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests sixty topics in the definitions for Kubernetes: three shards, each a step with pods of its own.

    Shards are the way beyond one machine's network.
    Could go wrong: the steps share a pod after all, or a shard is in no job.
    """
    executor = dg.multiprocess_executor.configured({}, name="k8s_job_executor")
    fake = types.ModuleType("dagster_k8s")
    fake.k8s_job_executor = executor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dagster_k8s", fake)
    content = read(EXAMPLES / "kubernetes" / "kafka-backup.yaml")
    parse_config(content, source="example", environment=SET)
    content["backup"]["topics"] = [f"t{number}" for number in range(60)]
    path = tmp_path / "kafka-backup.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("KAFKA_BACKUP_CONFIG", str(path))

    defs = load(EXAMPLES / "kubernetes" / "definitions.py", monkeypatch)
    job = defs.resolve_job_def("kafka_backup")
    assert len(job.graph.node_defs) == 3
    assert job.executor_def.name == "k8s_job_executor"
    assert all("dagster-k8s/config" in node.tags for node in job.graph.node_defs)


def test_values_for_kubernetes_fit_its_definitions() -> None:
    """Tests that the chart's values mount the configuration where it is read, and give runs enough time and memory.

    Kubernetes kills what takes too much, and what takes too long to stop.
    Could go wrong: a run is killed while it stops, or has no configuration.
    """
    values = read(EXAMPLES / "kubernetes" / "values.yaml")
    (code,) = values["dagster-user-deployments"]["deployments"]
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    definitions = (EXAMPLES / "kubernetes" / "definitions.py").read_text()

    assert code["includeConfigInLaunchedRuns"]["enabled"]
    (mount,) = code["volumeMounts"]
    assert f'"{mount["mountPath"]}/kafka-backup.yaml"' in definitions
    assert mount["name"] in {volume["name"] for volume in code["volumes"]}
    assert launcher["runK8sConfig"]["podSpecConfig"]["terminationGracePeriodSeconds"] > 20
    assert code["resources"]["limits"]["memory"] == "1Gi"
    assert {each["name"] for each in code["env"]} == {"KAFKA_BACKUP_START_DATE"}
    # Without the global one the chart of the code locations gives runs its own, which has no rights on the bucket.
    assert values["global"]["serviceAccountName"] == "kafka-backup"
    assert values["serviceAccount"] == {"create": True}
    assert values["postgresql"]["postgresqlScheme"] == "postgresql+psycopg2"
    assert code["codeServerArgs"] == ["-f", "/opt/dagster/definitions.py"]
