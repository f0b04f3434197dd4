"""Container files, held against the server: options, ports, probes, mounts and secrets. No image is built here."""

from __future__ import annotations

import re
import shlex
import stat
import subprocess
import tomllib
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from fastapi import FastAPI

from serve.keys import verb_of
from tests.command import parse

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
MANIFESTS: list[dict[str, Any]] = [
    one for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())
]


def _kind(kind: str) -> list[dict[str, Any]]:
    return [one for one in MANIFESTS if one["kind"] == kind]


POD: dict[str, Any] = _kind("Deployment")[0]["spec"]["template"]
CONTAINER: dict[str, Any] = POD["spec"]["containers"][0]
FILL: dict[str, Any] = _kind("Job")[0]["spec"]["template"]
CMD: list[str] = yaml.safe_load(re.findall(r"^CMD (.*)", CONTAINERFILE, flags=re.MULTILINE)[-1])
COMMANDS = {"Containerfile": CMD, "compose": SERVICES["foveal"]["command"], "kubernetes": CONTAINER["args"]}
# Where each may write: volumes and file systems in memory.
WRITABLE = {
    "Containerfile": ["/data", "/models", "/tmp"],
    "compose": [
        *(volume.split(":")[1] for volume in SERVICES["foveal"]["volumes"] if not volume.endswith(":ro")),
        *(mount.split(":")[0] for mount in SERVICES["foveal"]["tmpfs"]),
    ],
    "kubernetes": [mount["mountPath"] for mount in CONTAINER["volumeMounts"] if not mount.get("readOnly")],
}


@pytest.mark.parametrize("where", COMMANDS)
def test_commands_are_what_foveal_serve_takes(where: str) -> None:
    program, *line = COMMANDS[where]
    assert program == "foveal"
    given: dict[str, Any] = parse(line).params
    assert given["port"] == 8000
    assert given["host"] == "0.0.0.0"
    assert given["keys"] == Path("/tmp/foveal/keys.sqlite")  # others reach it: never without keys
    for path in (value for value in given.values() if isinstance(value, Path) and value.is_absolute()):
        assert any(PurePosixPath(place) in path.parents for place in WRITABLE[where]), f"{path} cannot be written"


def _routes(app: FastAPI) -> set[str]:
    return {path for path, operations in app.openapi()["paths"].items() if "get" in operations}


def test_probes_ask_routes_that_exist_and_want_no_key(app: FastAPI) -> None:
    probes = [CONTAINER[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert [probe["path"] for probe in probes] == ["/livez", "/livez", "/readyz"]
    port, path = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", CONTAINERFILE)[0]
    assert (port, path) == ("8000", "/readyz")
    for asked in {"/livez", "/readyz"}:
        assert asked in _routes(app)
        assert verb_of("GET", asked) is None
    assert {probe["port"] for probe in probes} == {CONTAINER["ports"][0]["name"]}


def test_ports_agree(app: FastAPI) -> None:
    assert re.findall(r"^EXPOSE (\d+)", CONTAINERFILE, flags=re.MULTILINE) == ["8000"]
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": 8000}]
    (service,) = _kind("Service")
    assert service["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": "http"}]
    assert service["spec"]["selector"].items() <= POD["metadata"]["labels"].items()
    notes = POD["metadata"]["annotations"]
    assert notes["prometheus.io/port"] == "8000"
    assert notes["prometheus.io/path"] in _routes(app)
    for service in SERVICES.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_the_image_holds_the_packages_and_nothing_else() -> None:
    copied = [line.split()[1:-1] for line in re.findall(r"^COPY (?!-).*", CONTAINERFILE, flags=re.MULTILINE)]
    sources = {source for line in copied for source in line}
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert sources >= set(wheel["packages"]) | {"pyproject.toml", "constraints.txt"}
    assert all((ROOT / source).exists() for source in sources)
    allowed = set(re.findall(r"^!(.*)", (DEPLOY / "Containerfile.dockerignore").read_text(), flags=re.MULTILINE))
    assert allowed == sources | {"deploy/entrypoint.sh"}
    assert "-c constraints.txt" in CONTAINERFILE
    assert re.findall(r"^FROM (\S+)", CONTAINERFILE, flags=re.MULTILINE) == ["python:3.11-slim"] * 2
    (user,) = re.findall(r"^USER (\d+):\d+", CONTAINERFILE, flags=re.MULTILINE)
    assert int(user) == POD["spec"]["securityContext"]["runAsUser"] > 0
    assert "/tmp" in SERVICES["foveal"]["tmpfs"]


def test_pods_are_locked_down() -> None:
    for pod in (POD["spec"], FILL["spec"]):
        (container,) = pod["containers"]
        assert pod["securityContext"] == POD["spec"]["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
    for name in ("foveal", "prometheus", "grafana"):
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["cap_drop"] == ["ALL"]


def test_the_job_fills_the_archive_that_the_server_reads() -> None:
    (container,) = FILL["spec"]["containers"]
    program, *line = container["args"]
    assert program == "foveal"
    (archive,) = parse(COMMANDS["kubernetes"][1:]).params["archive"]
    assert str(parse(line).params["archive"]) == archive
    assert container["image"] == CONTAINER["image"]
    server = {one["name"]: one for one in POD["spec"]["volumes"]}
    filled = {one["name"]: one for one in FILL["spec"]["volumes"]}
    assert filled["archive"] == server["archive"]
    assert [one for one in container["volumeMounts"] if one["name"] == "archive"] == [
        one for one in CONTAINER["volumeMounts"] if one["name"] == "archive"
    ]
    (service,) = _kind("Service")
    assert not service["spec"]["selector"].items() <= FILL["metadata"]["labels"].items()


def test_what_is_mounted_is_declared() -> None:
    claims = {claim["metadata"]["name"] for claim in _kind("PersistentVolumeClaim")}
    for pod, others in ((POD["spec"], set[str]()), (FILL["spec"], {"foveal-images"})):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == set(volumes)
        claimed = [
            one["persistentVolumeClaim"]["claimName"] for one in volumes.values() if "persistentVolumeClaim" in one
        ]
        assert sorted(claimed) == sorted(claims | others)
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    secrets = {secret["metadata"]["name"]: secret["data"] for secret in _kind("Secret")}
    assert volumes["keys"]["secret"]["secretName"] in secrets
    assert not any(value for data in secrets.values() for value in data.values()), "a secret in the repository"
    (kustomization,) = _kind("Kustomization")
    files = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert set(kustomization["resources"]) == files - {"kustomization.yaml", "secret.yaml", "fill.yaml"}

    named = {volume.split(":")[0] for one in SERVICES.values() for volume in one.get("volumes", ())}
    ours = {name for name in named if name.startswith("./") and "models" not in name}
    assert all((DEPLOY / name).exists() for name in ours)
    assert {name for name in named if not name.startswith("./")} == set(COMPOSE["volumes"])
    assert {name for one in SERVICES.values() for name in one.get("secrets", ())} == set(COMPOSE["secrets"])
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "deploy/secrets/" in ignored
    for one in SERVICES.values():
        assert one["image"] == "foveal" or re.search(r":v?\d+\.\d+\.\d+$", one["image"]), "an image without version"


def test_prometheus_and_grafana_find_each_other() -> None:
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"][0]
    assert scrape["static_configs"][0]["targets"] == ["foveal:8000"]
    secret = PurePosixPath(scrape["authorization"]["credentials_file"])
    assert secret.parent == PurePosixPath("/run/secrets")
    assert secret.name in SERVICES["prometheus"]["secrets"]
    provisioning = DEPLOY / "grafana" / "provisioning"
    source = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    boards = yaml.safe_load((provisioning / "dashboards" / "foveal.yaml").read_text())["providers"][0]
    assert f"./grafana/foveal.json:{boards['options']['path']}/foveal.json:ro" in SERVICES["grafana"]["volumes"]


def test_the_entry_point_takes_secrets_and_becomes_the_command(tmp_path: Path) -> None:
    secrets, state = tmp_path / "secrets", tmp_path / "state"
    secrets.mkdir()
    (secrets / "keys.sqlite").write_bytes(b"keys \x00 of others")
    (secrets / "keys.sqlite").chmod(0o444)
    (secrets / "label_studio_api_key").write_text("abc\n")
    environment = {"PATH": "/usr/bin:/bin", "FOVEAL_SECRETS": str(secrets), "FOVEAL_STATE": str(state)}
    script = [str(DEPLOY / "entrypoint.sh"), "sh", "-c", 'echo "$LABEL_STUDIO_API_KEY" "$1"; exit 7', "sh", "a b"]
    for _ in range(2):  # a restart too, after one that was killed while it wrote
        state.mkdir(exist_ok=True)
        (state / "keys.sqlite-journal").write_bytes(b"of another file")
        ran = subprocess.run(script, env=environment, capture_output=True, text=True)
        assert (ran.returncode, ran.stdout, ran.stderr) == (7, "abc a b\n", "")
    copied = state / "keys.sqlite"
    assert copied.read_bytes() == b"keys \x00 of others"
    assert stat.S_IMODE(copied.stat().st_mode) == 0o600
    assert [path.name for path in state.iterdir()] == ["keys.sqlite"]
    nothing = subprocess.run(
        [str(DEPLOY / "entrypoint.sh"), "true"], env=environment | {"FOVEAL_SECRETS": str(tmp_path)}, check=False
    )
    assert nothing.returncode == 0


def test_what_the_page_prints_can_be_typed() -> None:
    text = (DEPLOY / "README.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL) for line in block.splitlines()]
    typed = [line.split("|")[0].split("#")[0].split(">")[0] for line in lines]
    commands = [found[1] for line in typed if (found := re.search(r"(?:^| foveal )foveal (\w+ .*)", line))]
    assert len(commands) >= 3
    for command in commands:
        parse(shlex.split(command))
    for name in re.findall(r"^\| `([\w.-]+)/?`", text, flags=re.MULTILINE):
        assert (DEPLOY / name).exists(), name
