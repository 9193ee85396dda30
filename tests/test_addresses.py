"""Tests of runtime/addresses.py, and that no way in which an address comes into a script shows its password."""

import traceback
from pathlib import Path

import av.error
import pytest

import ablate
import evaluate
import extract_features
import predict
import train
from videoanomaly.live import streams, webhook
from videoanomaly.runtime.addresses import public_name, refuse_addresses
from videoanomaly.runtime.console import InputError, run_script

SECRET = "s3cr3t"
BROKEN = (  # of which nothing can ever come
    f"rtsp://admin:{SECRET}#x@127.0.0.1:8554/s",
    f"rtsp://admin:{SECRET}/x@127.0.0.1:8554/s",
    f"rtsp://admin:x?{SECRET}@127.0.0.1:8554/s",
    f"rtsp://admin:12#{SECRET}@127.0.0.1/s",
    f"RTSP://admin:12/{SECRET}@127.0.0.1/s",
    f"rtsp://admin#{SECRET}@127.0.0.1/s",
    f"rtsp://admin:a {SECRET} b@127.0.0.1/s",
    f"rtsp://admin:{SECRET}\n@127.0.0.1/s",
    f"http://admin:{SECRET}@",
    f"http://admin:{SECRET}@:80/x",
    f"https://admin:{SECRET}@host:port/x",
    f"http://host:?token={SECRET}",
    f"http://admin:{SECRET}@host:99999/",
    f"http://admin:{SECRET}@::1/x",
    f"http://admin:{SECRET}@[::g]/x",
    f"foo://admin:{SECRET}@host/x",
    f"data://{SECRET}@host",
    f"://admin:{SECRET}@host",
    f"rtsp:/admin:{SECRET}@host/x",
    f"rtsp:admin:{SECRET}@host/x",
    f"rtsp//admin:{SECRET}@host/x",
    f"admin:{SECRET}@host/x",
    f"host/x?password={SECRET}",
)
WAYS = (
    (predict, "--ckpt c.pt --out o ADDRESS"),
    (predict, "--ckpt c.pt --out o a.mp4 ADDRESS b.mp4"),
    (predict, "--ckpt c.pt --live ADDRESS"),
    (predict, "--ckpt c.pt --live 0 --webhook ADDRESS"),
    (predict, "--ckpt c.pt --out o --features ADDRESS"),
    (predict, "--ckpt c.pt --out ADDRESS a.mp4"),
    (predict, "--ckpt ADDRESS --out o a.mp4"),
    (predict, "--ckpt c.pt --out o a.mp4 --clip ADDRESS"),
    (predict, "--ckpt c.pt --export ADDRESS"),
    (predict, "--ckpt c.pt --out o a.mp4 --root ADDRESS"),
    (predict, "--ckpt c.pt --out o a.mp4 --fps ADDRESS"),
    (predict, "--ckpt c.pt --out o a.mp4 --dataset ADDRESS"),
    (predict, "--ckpt c.pt --lvie ADDRESS"),
    (extract_features, "--out o --videos ADDRESS"),
    (extract_features, "--out ADDRESS --videos v"),
    (extract_features, "--out o --videos v --encoder ADDRESS"),
    (extract_features, "--out o --videos v ADDRESS"),
    (extract_features, "--out o --videos v --crops ADDRESS"),
    (train, "--dataset custom --root ADDRESS"),
    (train, "--dataset custom --root r --features ADDRESS"),
    (evaluate, "--ckpt ADDRESS"),
    (evaluate, "--ckpt a.pt b.pt --videos ADDRESS"),
    (ablate, "--table 10 --dataset custom --root ADDRESS"),
    (ablate, "--table 10 --dataset custom --root r -- --clip ADDRESS"),
)


@pytest.mark.parametrize("way", range(len(WAYS)))
def test_no_broken_address_is_taken_and_none_shows_its_password(way, capfd):
    script, command = WAYS[way]
    for address in BROKEN:
        argv = [address if part == "ADDRESS" else part for part in command.split()]
        with pytest.raises(InputError) as caught:
            script.main(argv)
        assert SECRET not in "".join(traceback.format_exception(caught.value)) + repr(caught.value), address
        with pytest.raises(SystemExit) as ended:
            run_script(lambda: script.main(argv))
        out, err = capfd.readouterr()
        assert (ended.value.code, out, err.count("\n")) == (2, "", 1) and SECRET not in err, err


@pytest.mark.parametrize("address", [a for a in BROKEN if "admin:" in a and "@" in a])
def test_sources_and_webhooks_refuse_them_in_python_as_well(address):
    for take in (streams.find_source, webhook.make_request):
        with pytest.raises(InputError) as caught:
            take(address)
        assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_the_reason_and_the_way_out_are_told():
    for address, reason in (
        ("rtsp://a:b#c@h/s", "with an @ behind a #, / or ?|port is no number"),
        ("rtsp://a:1#c@h/s", "with an @ behind a #, / or ?"),
        ("rtsp://a b@h/s", "with a blank"),
        ("rtsp://h:x/s", "port is no number"),
        ("rtsp://h:0/s", "a port that is not 1 to 65535"),
        ("udp://h", "without a port"),
        ("rtsp:///s", "without a host"),
        ("rtsp://[1::2::3]/s", "something else than an IPv6 address"),
        ("concat://a", "does not begin with one of rtsp://"),
        ("subfile,,start,0,end,0,,:/a", "no such file"),
        ("rtsp:/h/s", "does not begin with one of rtsp://"),
    ):
        with pytest.raises(InputError, match=f"^--live.*({reason}).*expected") as caught:
            streams.find_source(address)
        assert "no such file" in reason or "write %23 for #, %2F for /" in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://h/s",
        "RTSP://u:p@h:554/S",
        "rtsp://u:p@ss@h/s",
        "rtsp://u:%23%2F@h/s",
        "rtsp://[::1]:8554/s",
        "rtsp://u:p@[fe80::1%eth0]/s",
        "Http://h/a?b=c@d#e",
        "http://1.2.3.4:80/@name/live",
        "udp://:1234",
        "udp://@239.0.0.1:1234?pkt_size=1316",
        "srt://:9000?mode=listener&passphrase=p@ss",
        "tcp://[::1]:9",
        "rtsp://h_1.example/ü",
    ],
)
def test_addresses_that_can_be_right_go_to_ffmpeg_with_a_lower_case_scheme(address):
    scheme, _, rest = address.partition("://")
    source = streams.find_source(address)
    assert source.options["file"] == f"{scheme.lower()}://{rest}" and not source.ends
    assert ("rtsp_flags" in source.options["options"]) == (scheme.lower() == "rtsp")
    assert source.bursts == (scheme.lower() == "http")


@pytest.mark.parametrize("form", ["file:{}", "file://{}", "FILE://{}", "file://localhost{}", "{}"])
def test_a_file_is_a_file_in_every_form(form, tmp_path):
    path = tmp_path / "a b%.mp4"
    path.touch()
    for text in {str(path), path.as_uri().removeprefix("file://") if "//" in form else str(path)}:
        source = streams.find_source(form.format(text))
        assert source.ends and source.options["file"].startswith("file:")
        assert Path(source.options["file"].removeprefix("file:")) == path


def test_names_of_files_that_look_like_addresses_are_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["a:b@c.mp4", "concat:a.mp4", "file:a.mp4", "http:/host/a.mp4", "subfile,,start,0,end,0,,:a.mp4"]
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
        assert streams.find_source(name).options["file"] == f"file:{name}"
    refuse_addresses({"videos": [Path(name) for name in names], "ckpt": "runs/last.pt", "clip": "ViT-B/16", "fps": 1.0})


def test_a_video_that_is_an_address_leads_to_live():
    with pytest.raises(InputError) as caught:
        predict.main(["--ckpt", "c.pt", "rtsp://admin:secret@127.0.0.1:8554/x", "--out", "o"])
    found = "videos: found the address rtsp://127.0.0.1:8554/x"
    assert str(caught.value) == f"{found}, expected a file or folder; predict.py --live takes addresses"


@pytest.mark.parametrize(
    "url, shown",
    [
        ("rtsp://cam/live", "rtsp://cam/live"),
        ("rtsp://user:pass@cam:554/a/b", "rtsp://cam:554/a/b"),
        ("rtsp://user:p:a@[::1]:8554/live?x=pass", "rtsp://[::1]:8554/live"),
        ("http://cam/a?password=pass#pass", "http://cam/a"),
        ("tcp://1.2.3.4:5?password=pass", "tcp://1.2.3.4:5"),
        ("tcp://1.2.3.4:5?pass@pass", "tcp://..."),
        ("rtsp://user:p/pass@cam/x", "rtsp://..."),
        ("rtsp://user:p?pass@cam/x", "rtsp://..."),
        ("rtsp://u:p@pass@cam/x", "rtsp://..."),
        ("rtsp://u:a pass@cam", "rtsp://..."),
        ("rtsp://user:12/pass@cam", "rtsp://..."),
        ("rtsp://user:1#pass@cam", "rtsp://..."),
        ("rtsp:/user:pass@cam", "..."),
        ("user:pass@cam", "..."),
        ("rtsp://cam/user=admin_password=pass_channel=1.sdp", "rtsp://cam/..."),
        ("rtsp://cam/a/user=admin&password=pass/b", "rtsp://cam/a/..."),
    ],
)
def test_addresses_are_shown_without_credentials(url, shown):
    assert public_name(url) == shown


def read(monkeypatch, address, *errors, frames=0) -> list[str]:
    """The notes of a reader whose attempts raise these errors, and which is then stopped."""
    notes, left = [], list(errors)
    reader = streams.Reader(streams.find_source(address), 1.0, 1)
    reader.num_frames = frames
    monkeypatch.setattr(reader.stopping, "wait", lambda seconds: None if left else reader.stopping.set())
    monkeypatch.setattr(streams, "note", notes.append)

    def fail():
        raise left.pop(0)

    monkeypatch.setattr(reader, "read", fail)
    reader.run()
    assert not left or reader.error
    return [*notes, *([str(reader.error)] if reader.error else [])]


def test_notes_of_a_stream_that_fails_do_not_show_the_password(monkeypatch):
    address = f"rtsp://admin:{SECRET}@cam/{SECRET}=1?{SECRET}"
    errors = [
        av.error.ConnectionRefusedError(111, f"{SECRET} refused", address),
        OSError(5, "Input/output error", address),
    ]
    notes = read(monkeypatch, address, *errors)
    assert len(notes) == 2 and notes[1] == "rtsp://cam/...: Input/output error; trying again in 2 s"
    assert SECRET not in notes[1]


def test_an_argument_that_ffmpeg_refuses_is_final_unless_the_stream_has_been_read(monkeypatch):
    wrong = av.error.ArgumentError(22, "Invalid argument", "rtsp://u:p@cam")
    (told,) = read(monkeypatch, "rtsp://u:p@cam", wrong)
    assert told == "--live rtsp://cam: Invalid argument, expected an address that FFmpeg can open"
    assert len(read(monkeypatch, "rtsp://u:p@cam", wrong, wrong, frames=9)) == 2
