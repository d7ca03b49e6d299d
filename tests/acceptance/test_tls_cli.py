"""TLS with verification, on Debian's server: whole, and refused with a reason where it is not what it seems."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from imsync.bus import Bus, Endpoint
from imsync.errors import RedisUnreachable
from tests.acceptance.driver import free_port
from tests.acceptance.inprocess import InProcess
from tests.certificates import Authority
from tests.servers import Server, StartServer, eventually

pytestmark = pytest.mark.redis_server
PASSWORD = "geheim-über-TLS"

Start = Callable[..., tuple[Server, int]]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def start(authority: Authority, start_server: StartServer) -> Start:
    """Starts a server with a certificate for these names; the server and its TLS port."""

    def start(names: str = "DNS:localhost", *, days: int = 2, **settings: object) -> tuple[Server, int]:
        certificate, key = authority.sign(names, days=days)
        port = free_port()
        server = start_server(
            "redis-7.0", tls_port=port, tls_cert_file=certificate, tls_key_file=key, tls_ca_cert_file=authority.ca,
            bind="127.0.0.1", **({"tls_auth_clients": "no"} | settings),
        )  # fmt: skip
        return server, port

    return start


@pytest.fixture
def here(here: InProcess) -> InProcess:
    here.set(CONSUMER_HEARTBEAT_MS="200")
    return here


def test_everything_works_over_tls(here: InProcess, start: Start, authority: Authority) -> None:
    server, port = start(requirepass=PASSWORD)
    here.secrets = [PASSWORD]
    here.set(URL=f"rediss://localhost:{port}/0", TLS_CA_FILE=str(authority.ca), PASSWORD=PASSWORD)
    for service in ("group", "friend"):
        here.ok("group", "create", service)
    assert here.json("publish", "user-update", "--count", 20)["published"]
    process = here.start("tail", "--from", "start")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"]["type"]
    for service in ("group", "friend"):
        assert here.json("consume", service, "--until-empty")["applied"]
    assert here.json("verify")["drift"] == 0
    assert here.end(process, signal.SIGINT).code == 0
    found = {row["check"]: row["verdict"] for row in here.run("doctor", "--json").json()["findings"]}
    assert (found["redis"], found["settings"]) == ("ok", "ok")
    with server.client(password=PASSWORD) as client:
        assert client.xlen(here.stream) >= 20
    with closing(Bus(Endpoint(here.url, password=PASSWORD, tls_ca_file=authority.ca))) as bus:
        bus.ping()


def refused(
    here: InProcess, port: int, ca: Path | None, host: str = "localhost", scheme: str = "rediss"
) -> tuple[str, str]:
    """How a command is refused: with exit code 4, by whoever asks first."""
    here.set(URL=f"{scheme}://{host}:{port}/0", TLS_CA_FILE=str(ca or ""))
    error = here.json("group", "list", code=4)["error"]
    assert error["kind"] == "redis_unreachable"
    assert error["message"].startswith(f"cannot reach Redis at {scheme}://{host}:{port}/0: ")
    row = next(row for row in here.run("doctor", "--json").expect(3).json()["findings"] if row["check"] == "redis")
    assert row["verdict"] == "bad"
    assert (row["evidence"], row["remedy"]) == (error["message"], error["hint"])
    return error["message"].split("/0: ")[1], error["hint"]


def test_a_certificate_of_somebody_else(here: InProcess, start: Start, authority: Authority, tmp_path: Path) -> None:
    server, port = start()
    other = Authority(tmp_path / "other")
    for ca in (other.ca, None):  # the system's
        message, hint = refused(here, port, ca)
        assert "not trusted" in message
        assert "tls_ca_file" in hint
    assert refused(here, port, tmp_path / "missing.pem")[0].startswith("tls_ca_file cannot be read")
    (tmp_path / "empty.pem").write_text("no certificate", encoding="ascii")
    assert refused(here, port, tmp_path / "empty.pem")[0] == "tls_ca_file holds no certificate"
    with server.client() as client:
        assert client.info("commandstats").get("cmdstat_xinfo|groups") is None, "nothing was sent"


def test_a_certificate_for_another_host(here: InProcess, start: Start, authority: Authority) -> None:
    _, port = start("DNS:redis.example.com")
    for host in ("localhost", "127.0.0.1"):
        message, hint = refused(here, port, authority.ca, host)
        assert "for another host" in message
        assert "--url" in hint


def test_a_certificate_that_has_expired(here: InProcess, start: Start, authority: Authority) -> None:
    _, port = start(days=-1)
    message, hint = refused(here, port, authority.ca)
    assert message == "its certificate has expired"
    assert "renew" in hint


def test_a_server_that_wants_a_certificate_of_the_client(here: InProcess, start: Start, authority: Authority) -> None:
    _, port = start(tls_auth_clients="yes")
    message, hint = refused(here, port, authority.ca)
    assert message == "the server ended the connection"
    assert "tls-auth-clients no" in hint


def test_tls_and_no_tls_do_not_meet(here: InProcess, start: Start, authority: Authority) -> None:
    server, port = start(port=(plain := free_port()))
    assert server.running
    endpoint = Endpoint(f"rediss://localhost:{plain}/0", tls_ca_file=authority.ca)
    with closing(Bus(endpoint)) as bus:
        bus.client = endpoint.connect(timeout_seconds=0.3)
        with pytest.raises(RedisUnreachable, match="nobody there speaks TLS") as error:
            bus.ping()
        assert "redis://" in error.value.hint
    here.set(URL=f"redis://localhost:{port}/0", TLS_CA_FILE="")
    here.json("group", "list", code=4)


def test_a_connection_is_never_made_again_without_verification(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    """A server whose certificate changes while it is away: who follows the stream does not talk to the new one."""
    server, port = start()
    with closing(Bus(Endpoint(f"rediss://localhost:{port}/0", tls_ca_file=authority.ca))) as bus:
        bus.ping()
        certificate, key = Authority(tmp_path / "other").sign("DNS:localhost")
        server.stop()
        server.start(tls_cert_file=certificate, tls_key_file=key)

        def refusal() -> str:
            with pytest.raises(RedisUnreachable) as refused:
                bus.ping()
            return refused.value.message

        eventually(lambda: "not trusted" in refusal())
        assert "not trusted" in refusal()
