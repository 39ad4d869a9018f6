import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from meguri_chassis.places import NotAllowed, Object, Unreachable, Unreadable
from meguri_contracts.errors import Malformed, NotFound
from meguri_inference.parts import sha256
from meguri_inference.storing import Bucket, Folder, InputChanged, Inputs, Output, Outputs, OutputUnavailable


def inputs(folder: Path) -> Inputs:
    return Inputs([folder.as_uri()])


def test_an_input_has_the_digest_of_its_bytes_also_after_it_was_changed(tmp_path):
    path, known = tmp_path / "rows.csv", inputs(tmp_path)
    path.write_text("a\n1\n")
    os.utime(path, (0, 0))
    first = known.open(path.as_uri())
    assert known.require_unchanged(path.as_uri(), first.digest) == first
    path.write_text("a\n2\n")

    assert first.digest != sha256(path) == known.open(path.as_uri()).digest
    with pytest.raises(InputChanged, match="has changed since the batch began"):
        known.require_unchanged(path.as_uri(), first.digest)


def test_a_digest_is_remembered_of_files_that_have_settled_only(tmp_path, monkeypatch):
    path, known, read = tmp_path / "rows.csv", inputs(tmp_path), []
    monkeypatch.setattr("meguri_inference.storing.sha256", lambda path: read.append(path) or "d")
    path.write_text("a\n1\n")
    for _ in range(2):
        known.open(path.as_uri())
    os.utime(path, (0, 0))
    for _ in range(3):
        known.open(path.as_uri())

    assert len(read) == 3


def test_inputs_are_plain_files_below_the_roots(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    known = inputs(tmp_path)
    with pytest.raises(Unreadable, match="not a plain file"):
        known.open((tmp_path / "pipe.csv").as_uri())
    with pytest.raises(NotFound):
        known.open((tmp_path / "none.csv").as_uri())
    with pytest.raises(NotAllowed):
        known.open("file:///etc/passwd")
    with pytest.raises(Malformed, match="surrogates"):
        known.open(f"{tmp_path.as_uri()}/\ud800.csv")
    with pytest.raises(NotAllowed):
        Outputs([tmp_path.as_uri()]).open((tmp_path / "../out").as_uri())


@pytest.fixture(params=["folder", "bucket"])
def output(request, tmp_path) -> Output:
    (tmp_path / "out").mkdir()
    uri = (tmp_path / "out").as_uri()
    # A store of objects on this machine, as its client sees any other.
    return Folder(uri, tmp_path / "out") if request.param == "folder" else Bucket(uri, Object(tmp_path.as_uri(), "out"))


def test_a_file_is_there_as_a_whole_or_not_at_all(output):
    assert output.get("x") is None
    with pytest.raises(ArithmeticError):
        write_half(output)
    assert output.get("x") is None
    with output.written("x") as path:
        path.write_bytes(b"whole")
        assert output.get("x") is None

    assert output.get("x") == b"whole"


def write_half(output: Output) -> None:
    with output.written("x") as path:
        path.write_bytes(b"half")
        raise ArithmeticError


def test_of_those_who_claim_a_folder_the_first_has_it(output):
    assert output.claim("_batch.json", b"mine") == b"mine"
    assert output.claim("_batch.json", b"theirs") == b"mine"
    assert output.claim("_batch.json", b"mine") == b"mine"


def test_tidying_leaves_what_is_whole_and_what_is_others(tmp_path):
    output = Folder(tmp_path.as_uri(), tmp_path)
    left = [f".part-00001.parquet.{'a' * 32}", f"._shard-00001.json.{'b' * 32}"]
    others = [".part-00001.parquet", ".notes", "part-00000.parquet"]
    for file in (*left, *others):
        (tmp_path / file).write_text("")
    output.tidy()

    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(others)


def test_a_place_that_takes_nothing_is_worth_another_try(tmp_path):
    (tmp_path / "file").write_text("")
    output = Folder((tmp_path / "file/out").as_uri(), tmp_path / "file/out")
    with pytest.raises(OutputUnavailable, match="cannot write to"):
        output.claim("x", b"")


class Store(BaseHTTPRequestHandler):
    body = b"a\n1\n"
    fetched = 0

    def do_GET(self):
        status = {"/in/rows.csv": 200, "/in/ill.csv": 503}.get(self.path, 404)
        Store.fetched += status == 200
        self.send_response(status)
        self.send_header("ETag", f'"{len(self.body)}"')
        self.send_header("Last-Modified", "Sat, 21 Nov 2026 12:00:00 GMT")
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

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


def test_objects_are_fetched_and_their_changes_noticed(store, monkeypatch):
    known = Inputs([store])
    first = known.open(f"{store}/rows.csv")
    assert first.path.read_bytes() == Store.body
    assert first.path.suffix == ".csv"
    assert known.open(f"{store}/rows.csv") == first
    monkeypatch.setattr(Store, "body", b"a\n1\n2\n")
    with pytest.raises(InputChanged):
        known.require_unchanged(f"{store}/rows.csv", first.digest)
    with pytest.raises(NotFound):
        known.open(f"{store}/none.csv")
    with pytest.raises(Unreachable, match="503"):
        known.open(f"{store}/ill.csv")
