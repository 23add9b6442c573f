"""A deployment's folder and its devices': made, let in, shut out, looked at; by the commands that people type."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from fedsim.check import Invalid
from fedsim.cli.app import app
from fedsim.deploy import enrol, pki
from fedsim.deploy.check import check
from fedsim.deploy.data import examples
from fedsim.deploy.local import free_port
from fedsim.deploy.registry import Registry
from fedsim.deploy.site import Link, Place, Site, Uplink
from fedsim.deploy.terms import Terms
from fedsim.link.identity import identity_of, node_of


def deploy(*words: object, code: int = 0, said: str | None = None) -> str:
    done = CliRunner().invoke(app, ["deploy", *map(str, words)], input=said)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def site(tmp_path: Path) -> Path:
    deploy("init", tmp_path / "site", "--host", "server.example.org", "--port", 9999)
    return tmp_path / "site"


def join(site: Path, i: int, *words: object) -> Path:
    folder = site.parent / f"device{i}"
    budget = words or ("--epsilon", "none")
    deploy("init", folder, "--join", site / "invitation.toml", "--client", i, *budget)
    return folder


def enrolled(site: Path, i: int) -> Path:
    folder = join(site, i)
    deploy("add", site, folder / "request.csr")
    shutil.copy(site / "certificates" / f"{i}.crt", folder / "device.crt")
    return folder


def test_a_device_is_let_in_by_its_request(site: Path) -> None:
    """No private key leaves its machine: what goes to and fro holds none."""
    folder = join(site, 3, "--epsilon", "8", "--delta", "1e-4", "--data", "own.npz")
    printed = deploy("add", site, folder / "request.csr")
    digest = identity_of((site / "certificates" / "3.crt").read_bytes()).digest
    assert digest in printed
    assert Site(site).registry.nodes() == {3: node_of(digest)}
    travels = [site / "invitation.toml", folder / "request.csr", site / "certificates" / "3.crt"]
    assert not any("PRIVATE" in path.read_text() for path in travels)
    assert not list(site.rglob("device.key"))
    assert folder.stat().st_mode & 0o077 == 0
    terms = Place(folder).terms
    assert (terms.client, terms.epsilon, terms.delta, terms.data) == (3, 8.0, 1e-4, str(folder / "own.npz"))


def test_data_that_lie_where_the_command_is_given_are_found(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/deploy.md has it: own.npz beside the folder that is made, or in it later."""
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", x=np.zeros((3, 2)), y=np.zeros(3))
    folder = join(site, 3, "--epsilon", "8", "--delta", "1e-4", "--data", "own.npz")
    assert Place(folder).terms.data == str(tmp_path / "own.npz")
    assert not wrong(folder).get("data")


def test_a_budget_is_asked_for(site: Path, tmp_path: Path) -> None:
    """No device answers without a budget by oversight: its owner says one, or says "none"."""
    words = ("init", tmp_path / "d", "--join", site / "invitation.toml")
    deploy(*words, said="3\n1e-5\n")
    assert (Place(tmp_path / "d").terms.epsilon, Place(tmp_path / "d").terms.delta) == (3.0, 1e-5)
    assert "epsilon = 'much'" in deploy(*words[:1], tmp_path / "e", *words[2:], said="much\n1\n", code=2)
    with pytest.raises(Invalid, match="both"):
        Terms(client=0, epsilon=1.0, delta=None)
    (tmp_path / "d" / "device.toml").write_text("client = 0\n")
    with pytest.raises(Invalid, match="epsilon is missing"):
        _ = Place(tmp_path / "d").terms


def test_a_key_belongs_to_one_client_and_a_client_has_one(site: Path) -> None:
    first, other = join(site, 0), join(site, 1)
    deploy("add", site, first / "request.csr")
    deploy("add", site, first / "request.csr")  # again: another certificate
    pki.request(other / "request.csr", other / "device.key", "client 0")
    assert "a client has one key" in deploy("add", site, other / "request.csr", code=2)
    pki.request(first / "request.csr", first / "device.key", "client 5")
    assert "a key one client" in deploy("add", site, first / "request.csr", code=2)


def test_revoked_is_revoked(site: Path) -> None:
    folder = enrolled(site, 0)
    registry = Site(site).registry
    key = next(iter(registry.known()))
    deploy("revoke", site, 0)
    assert registry.known() == frozenset()  # read again, since it changed
    assert "was revoked: make a new one" in deploy("add", site, folder / "request.csr", code=2)
    deploy("renew", folder)
    deploy("add", site, folder / "request.csr")
    assert len(registry.known()) == 1
    assert key not in registry.known()
    assert "revoked" in deploy("status", site)


def test_certificates_are_renewed(site: Path) -> None:
    enrolled(site, 0)
    before = [(site / name).read_bytes() for name in ("certificates/0.crt", "server/server.pem")]
    deploy("renew", site, 0)
    deploy("renew", site)
    after = [(site / name).read_bytes() for name in ("certificates/0.crt", "server/server.pem")]
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert identity_of(before[0]).digest == identity_of(after[0]).digest
    assert "no device was added" in deploy("renew", site, 7, code=2)


def test_a_damaged_registry_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    for content in ("{ half", "[1]", '[{"client": 1}]'):
        path.write_text(content)
        assert Registry(path).known() == frozenset()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"-----BEGIN CERTIFICATE REQUEST-----\n"])
def test_what_is_no_request_is_refused(site: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r").write_bytes(content)
    assert "not a request for a certificate" in deploy("add", site, tmp_path / "r", code=2)


def test_requests_that_are_odd_are_refused(site: Path, tmp_path: Path) -> None:
    pki.request(tmp_path / "r", tmp_path / "k", "the server")
    assert "must be of a client" in deploy("add", site, tmp_path / "r", code=2)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client 1")])
    built = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .sign(ed25519.Ed25519PrivateKey.generate(), None)
    )
    (tmp_path / "r").write_bytes(built.public_bytes(pki.Encoding.PEM))
    assert "another kind of key" in deploy("add", site, tmp_path / "r", code=2)
    text = bytearray((tmp_path / "r").read_bytes())
    forged = x509.load_pem_x509_csr(bytes(text)).public_bytes(pki.Encoding.DER)
    assert hashes  # the signature is the last part: one byte of it changed
    broken = forged[:-1] + bytes([forged[-1] ^ 1])
    (tmp_path / "r").write_bytes(x509.load_der_x509_csr(broken).public_bytes(pki.Encoding.PEM))
    deploy("add", site, tmp_path / "r", code=2)


def test_what_a_request_asks_for_is_not_granted(site: Path, tmp_path: Path) -> None:
    """A request with a host's name, or an authority's rights: the certificate has what devices get, and no more."""
    key = pki.ec.generate_private_key(pki.ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client 1")])
    built = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("server.example.org")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .sign(key, hashes.SHA384())
    )
    (tmp_path / "r").write_bytes(built.public_bytes(pki.Encoding.PEM))
    deploy("add", site, tmp_path / "r")
    given = x509.load_pem_x509_certificate((site / "certificates" / "1.crt").read_bytes())
    assert not given.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        given.extensions.get_extension_for_class(x509.SubjectAlternativeName)


# ---------------------------------------------------------------- check
def wrong(folder: Path) -> dict[str, str]:
    return {finding.what: finding.wrong for finding in check(folder, reach=False) if finding.wrong}


def test_nothing_is_wrong_with_what_init_makes(site: Path) -> None:
    folder = enrolled(site, 0)
    assert not wrong(site)
    assert not wrong(folder)
    assert "any experiment, also without noise" in deploy("check", folder, "--offline")
    assert "not reachable" in deploy("check", folder, code=2)  # a name that nobody has
    Uplink(server=f"127.0.0.1:{free_port()}").save(folder / "uplink.toml")
    assert "NOTE   server: 127.0.0.1:" in deploy("check", folder)  # there is a server while a run lasts


def test_a_device_without_a_certificate_is_told(site: Path) -> None:
    assert "none yet: have request.csr signed" in wrong(join(site, 0))["certificate"]
    assert "no device was added yet" in wrong(site)["devices (devices.json)"]


FAULTS = {
    "device.toml": ("terms (device.toml)", "nonsense = 1\n", "'nonsense' is unknown"),
    "uplink.toml": ("server address (uplink.toml)", 'server = "here"\n', "must be host:port"),
    "ledger.json": ("ledger", "{ half", "not readable"),
    "device.crt": ("certificate", "nothing", "PEM"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_a_device_is_said(site: Path, name: str) -> None:
    folder = enrolled(site, 0)
    what, content, reason = FAULTS[name]
    (folder / name).write_text(content)
    assert reason in wrong(folder)[what]


def test_keys_and_certificates_that_do_not_fit_are_said(site: Path, tmp_path: Path) -> None:
    folder, other = enrolled(site, 0), enrolled(site, 1)
    (folder / "device.key").chmod(0o644)
    assert "others on this machine may read it" in wrong(folder)["key"]
    shutil.copy(other / "device.crt", folder / "device.crt")
    assert "is not the key of" in wrong(folder)["certificate"]
    elsewhere = enrol.init(tmp_path / "elsewhere", Link())
    shutil.copy(elsewhere.server / "ca.crt", other / "ca.crt")
    assert "not signed by this authority" in wrong(other)["certificate"]
    Link(host="other.example.org").save(site / "deploy.toml")
    assert "devices connect to other.example.org" in wrong(site)["certificate and host"]
    shutil.copy(elsewhere.server / "server.key", site / "server" / "server.key")
    assert "is not the key of" in wrong(site)["certificate and key"]


def test_old_and_young_certificates_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = enrol.init(tmp_path / "site", Link(days=10))
    assert "ends on" in str(check(site.folder, reach=False)[-1])
    monkeypatch.setattr(pki, "SKEW", pki.timedelta(days=30))
    monkeypatch.setattr(pki, "timedelta", lambda days: pki.datetime.resolution * days)
    enrol.certify_server(site, site.link)
    assert "expired on" in wrong(site.folder)["server certificate"]


def test_a_folder_that_is_none_is_said(tmp_path: Path) -> None:
    for command in ("check", "status"):
        assert "neither a device's folder" in deploy(command, tmp_path, code=2)
    assert "uplink.toml: not a readable TOML file" in deploy("device", tmp_path, code=2)
    deploy("init", tmp_path / "a")
    assert "holds a deployment already" in deploy("init", tmp_path / "a", code=2)


# ---------------------------------------------------------------- data
def test_data_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    x, y = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 1, 2, 1])
    np.savez(tmp_path / "a.npz", x=x, y=y)
    table = pd.DataFrame(x, columns=["a", "b", "c"]).assign(y=y)
    table[["a", "y", "b", "c"]].to_csv(tmp_path / "a.csv", index=False)
    table.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "my_own.py").write_text(
        "import numpy as np\ndef load():\n    return np.load('a.npz')['x'], np.load('a.npz')['y']\n"
    )
    monkeypatch.chdir(tmp_path)
    for data in ("a.npz", "a.csv", "a.parquet", "my_own:load"):
        held = examples(Terms(client=0, epsilon=None, delta=None, data=data, classes=3)).train
        assert np.array_equal(held.x, x)
        assert np.array_equal(held.y, y)
    with pytest.raises(Invalid, match="labels from 0 to 1"):
        examples(Terms(client=0, epsilon=None, delta=None, data="a.csv", classes=2))


# ---------------------------------------------------------------- what keeps it running
def test_units_and_compose_files_are_valid(site: Path) -> None:
    yaml = pytest.importorskip("yaml")
    for place, role, command in (
        (site, "server", "run . experiment.toml --resume"),
        (enrolled(site, 0), "device", "device ."),
    ):
        unit = place / "units" / f"fedsim-{role}.service"
        assert f"ExecStart=/usr/bin/env fedsim deploy {command}\n" in unit.read_text()
        if shutil.which("systemd-analyze"):
            done = subprocess.run(
                ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
            )
            assert unit.name not in done.stderr, done.stderr
        service = yaml.safe_load((place / "compose.yaml").read_text())["services"][role]
        assert service["command"] == f"fedsim deploy {command}"
        assert ("ports" in service) == (role == "server")
