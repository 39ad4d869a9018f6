import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from meguri_chassis.places import NotAllowed, Unreachable, Unreadable
from meguri_contracts.errors import Malformed, NotFound, TooLarge
from meguri_ingest.fetching import open_uri
from meguri_ingest.settings import Settings


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a b.csv").write_bytes(b"inside")
    (tmp_path / "secret.csv").write_bytes(b"outside")
    (tmp_path / "in-other").mkdir()
    (tmp_path / "in-other" / "a.csv").write_bytes(b"outside")
    return tmp_path / "in"


def test_a_file_under_the_root_is_opened(incoming):
    assert open_uri(f"{incoming.as_uri()}/a%20b.csv", ["s3://b/p", incoming.as_uri()], limit=100) == b"inside"


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.csv",
        "/%2e%2e/secret.csv",
        "/x/..%2f..%2fsecret.csv",
        "-other/a.csv",
        "/link.csv",
        "/linked/secret.csv",
        "/a%20b.csv%00",
    ],
)
def test_nothing_outside_of_the_root_is_opened_by_whatever_name(incoming, path):
    (incoming / "link.csv").symlink_to(incoming.parent / "secret.csv")
    (incoming / "linked").symlink_to(incoming.parent)

    with pytest.raises(NotAllowed) as refusal:
        open_uri(incoming.as_uri() + path, [incoming.as_uri()], limit=100)
    assert incoming.as_uri() in str(refusal.value)


@pytest.mark.parametrize(
    "uri",
    ["/etc/passwd", "http://127.0.0.1/x.csv", "file://elsewhere/etc/passwd", "s3://b/x", "s3://b/pre", "s3://b/p/../x"],
)
def test_other_schemes_hosts_and_prefixes_are_not_allowed(uri):
    with pytest.raises(NotAllowed):
        open_uri(uri, ["file:///srv/incoming", "s3://b/p"], limit=100)


@pytest.mark.parametrize("name", ["#1", "what?", "巡り no. 1", "50% off"])
def test_the_root_below_a_folder_of_any_name_is_that_folder(name, incoming):
    (incoming / name / "incoming").mkdir(parents=True)
    (incoming / name / "incoming" / "a.csv").write_bytes(b"inside")
    roots = [Settings(var=incoming / name).roots]

    assert open_uri((incoming / name / "incoming" / "a.csv").as_uri(), roots, limit=100) == b"inside"
    with pytest.raises(NotAllowed):
        open_uri(f"{incoming.as_uri()}/a%20b.csv", roots, limit=100)


def test_a_root_may_be_a_link_itself(incoming):
    (incoming.parent / "root").symlink_to(incoming)

    assert open_uri(f"{incoming.as_uri()}/a%20b.csv", [(incoming.parent / "root").as_uri()], limit=100) == b"inside"


def test_what_is_wrong_with_a_file_is_told(incoming):
    os.mkfifo(incoming / "pipe.csv")
    (incoming / "dir").mkdir()
    root = incoming.as_uri()

    with pytest.raises(NotFound, match=r"missing\.csv"):
        open_uri(f"{root}/missing.csv", [root], limit=100)
    with pytest.raises(NotFound):
        open_uri(f"{root}/a%20b.csv/x", [root], limit=100)
    with pytest.raises(TooLarge, match="6 bytes, at most 5"):
        open_uri(f"{root}/a%20b.csv", [root], limit=5)
    with pytest.raises(Unreadable, match="not a plain file"):
        open_uri(f"{root}/pipe.csv", [root], limit=100)
    with pytest.raises(Unreadable, match="Is a directory"):
        open_uri(f"{root}/dir", [root], limit=100)
    with pytest.raises(Malformed, match="%23"):
        open_uri(f"{root}/a#b.csv", [root], limit=100)
    with pytest.raises(Malformed, match="not a uri"):
        open_uri("http://[x", [root], limit=100)


class Store(BaseHTTPRequestHandler):
    def do_GET(self):
        status, body = {"/in/a%20b.csv": (200, b"hello"), "/in/ill.csv": (503, b"")}.get(self.path, (404, b""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def store():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/in"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_object_store_is_read_and_its_troubles_are_told_apart(store):
    assert open_uri(f"{store}/a%20b.csv", [store], limit=5) == b"hello"
    with pytest.raises(TooLarge, match="5 bytes, at most 4"):
        open_uri(f"{store}/a%20b.csv", [store], limit=4)
    with pytest.raises(NotFound, match=r"missing\.csv"):
        open_uri(f"{store}/missing.csv", [store], limit=5)
    with pytest.raises(Unreachable, match="503"):
        open_uri(f"{store}/ill.csv", [store], limit=5)


def test_a_store_that_is_down_is_worth_another_try():
    with pytest.raises(Unreachable, match="cannot be fetched now"):
        open_uri("http://127.0.0.1:9/in/a.csv", ["http://127.0.0.1:9/in"], limit=5)
