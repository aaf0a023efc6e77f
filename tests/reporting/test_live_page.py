"""The live page as a server: who may see it, what it sends, what its buttons do, that it gets in nobody's way."""

import http.client
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from library.errors import ConfigError
from library.reporting.page import blocks_of
from library.reporting.record import Outline, RunRecord
from library.reporting.reporter import invitation
from library.reporting.server import FIRST_PORT, Source, check_port, start

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028<!--"


@contextmanager
def served(folder, record=None, port=None):
    record = record or RunRecord()
    record.begin(Outline(name=HOSTILE, total_steps=9))
    server = start(port, Source(record, folder, lambda: 3))
    try:
        yield server
    finally:
        server.close()


def ask(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): v for name, v in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), dict(answer.getheaders())


def events(server, after, path="events") -> list[dict]:
    """Everything that is sent until the end."""
    _, text, _ = ask(server, f"/{server.token}/{path}?after={after}")
    parts = [dict(line.split(": ", 1) for line in part.splitlines()) for part in text.split("\n\n") if part]
    return [{**part, "data": json.loads(part["data"])} for part in parts]


@pytest.fixture
def server(tmp_path):
    with served(tmp_path) as running:
        yield running


@pytest.mark.parametrize("path", ["/", "/wrong/", "/events", "/%2e%2e/", "/?token=x"])
def test_without_the_token_there_is_nothing_to_see(server, path):
    assert ask(server, path)[0] == ask(server, path, "POST")[0] == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost.", ""])
def test_another_name_for_this_machine_is_refused(server, host):
    """A site whose name was made to lead here could read what its own script asks for."""
    assert ask(server, f"/{server.token}/", Host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:1", "[::1]:8765", "LOCALHOST"])
def test_a_tunnel_may_end_at_any_port(server, host):
    assert ask(server, f"/{server.token}/", Host=host)[0] == 200


def test_only_this_machine_is_listened_to(server):
    assert server.server_address[0] == "127.0.0.1"


def test_the_page_holds_the_record_and_no_mark_of_html_of_others(server):
    status, text, headers = ask(server, f"/{server.token}/")
    assert status == 200 and headers["Referrer-Policy"] == "no-referrer"
    (name, document), = blocks_of(text)
    assert name == "record" and document["outline"]["name"] == HOSTILE
    assert "<img" not in text and "onerror" in text
    assert "default-src 'none'" in text and "unsafe" not in text.split("</head>")[0].split("<style>")[0]


def test_buttons_make_the_files_that_a_run_looks_for(server, tmp_path):
    assert ask(server, f"/{server.token}/save", "GET")[0] == 404 and not list(tmp_path.iterdir())
    own = f"http://127.0.0.1:{server.server_port}"
    assert ask(server, f"/{server.token}/save", "POST", Origin=own)[:2] == (200, "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["save"]
    assert ask(server, f"/{server.token}/save_quit", "POST", Origin="http://evil.example")[0] == 403
    assert ask(server, f"/{server.token}/../../x", "POST")[0] == 404
    assert [path.name for path in tmp_path.iterdir()] == ["save"]


def test_a_folder_that_is_gone_is_told_on_the_page(tmp_path):
    with served(tmp_path / "gone") as server:
        status, text, _ = ask(server, f"/{server.token}/save", "POST")
    assert status == 200 and "No such file" in json.loads(text)["error"]


def test_readers_get_what_changed_and_hear_of_the_end(tmp_path):
    record = RunRecord()
    with served(tmp_path, record) as server:
        version = record.version
        record.add_values(1, {"loss/current": 2.0, "alert/any": 1.0, "alert/loss_spike": 1.0})
        got: list[list[dict]] = []
        reader = threading.Thread(target=lambda: got.append(events(server, version)))
        reader.start()
        while not server.open_readers:
            time.sleep(0.005)
        record.end("done", "done: 9 steps")
        server.close()
        reader.join(20)
    told = [(part.get("event"), part["data"]) for part in got[0]]
    assert (None, {"alert": [1, "loss_spike"]}) in told
    assert (None, {"values": [1, {"loss/current": 2.0}]}) in told
    assert any("end" in data and data["end"]["ended"] == "done: 9 steps" for _, data in told)
    assert told[-1][0] == "over" and any(kind == "moment" for kind, _ in told)


def test_a_reader_that_is_too_late_is_sent_to_the_page_again(server):
    assert [part["event"] for part in events(server, 99)] == ["again"]
    assert [part["event"] for part in events(server, "x")] == ["again"]


def test_a_request_that_is_none_ends_nothing(server):
    with socket.create_connection(("127.0.0.1", server.server_port)) as connection:
        connection.sendall(b"\x16\x03\x01 nonsense\r\n\r\n")
        connection.recv(100)
    assert ask(server, f"/{server.token}/")[0] == 200


def test_a_port_in_use_is_said_if_it_was_named_and_passed_over_if_not(tmp_path, caplog):
    with served(tmp_path) as server, served(tmp_path) as next_one:
        assert next_one.server_port != server.server_port
        assert FIRST_PORT <= server.server_port < next_one.server_port
        (problem,) = check_port(server.server_port)
        assert "in use" in problem.message and problem.where == "live"
        with pytest.raises(ConfigError, match="is in use"):
            start(server.server_port, server.source)


def test_who_sits_elsewhere_is_told_of_a_tunnel():
    address = "http://127.0.0.1:8765/x/"
    assert len(invitation(address, 8765, {})) == 1
    assert "ssh -N -L 8765:127.0.0.1:8765" in invitation(address, 8765, {"SSH_CONNECTION": "a"})[1]
