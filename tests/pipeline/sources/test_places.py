"""Where input may lie: folders, Hugging Face snapshots, URLs; and what is fetched to decode it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import pytest
from filelock import FileLock

from pipeline.decode_unit import DecodedUnit, decode_unit
from pipeline.encoders import load_spec
from pipeline.errors import MediaError, SourceError
from pipeline.failures import UnitFailure
from pipeline.sources import (
    UrlPath,
    VideoFolder,
    data_set_name,
    fetched_media,
    localise,
    open_source,
    parse_media_path,
)
from pipeline.sources.data_folder import DataFolder
from pipeline.work_plan import BuildTask, Unit
from tests.media import write_video
from tests.pipeline.sources.files import touch, write_rows


@pytest.fixture
def memory():
    """A file system in memory, with nothing of other tests in it."""
    file_system = fsspec.filesystem("memory")
    yield file_system
    if file_system.exists("/places"):
        file_system.rm("/places", recursive=True)


@pytest.fixture
def fetched(monkeypatch, tmp_path):
    """A fetching process that has fetched nothing, and its temporary folder."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(fetched_media.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(fetched_media, "_FETCHED", fetched_media._FetchedMedia())
    return tmp_path / "temporary"


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def snapshot(cache: Path, repository: str = "datasets--org--my--set") -> Path:
    """A Hugging Face cache folder whose files are links to blobs, as huggingface_hub writes it."""
    place = cache / repository / "snapshots" / "0a1b2c3d"
    for number, name in enumerate(("videos/größe 1.mp4", "README.md")):
        blob = cache / repository / "blobs" / f"{number:064x}"
        touch(blob)
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).symlink_to(os.path.relpath(blob, (place / name).parent))
    return place


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/data/Video-MME", "Video-MME"),
        ("/data/Video-MME/.", "Video-MME"),
        ("/hub/datasets--org--my--set/snapshots/0a1b2c3d", "my--set"),
        ("/hub/models--clip/snapshots/0a1b2c3d", "clip"),
        ("/hub/snapshots/0a1b2c3d", "0a1b2c3d"),
        ("s3://bucket/a/set", "set"),
        ("s3://bucket/a/set/", "set"),
        ("s3://bucket", "bucket"),
        ("s3://bucket/datasets--org--set/snapshots/0a1b", "set"),
        ("zip://a/set::file:///x/whole.zip", "set"),
        ("zip://::file:///x/whole.zip", "whole"),
    ],
)
def test_a_data_set_is_named_by_its_folder_or_its_repository(text, name):
    assert data_set_name(parse_media_path(text)) == name


def test_a_file_url_is_a_path_and_other_urls_join_inside_their_file_system():
    assert parse_media_path("file:///a b/ü") == Path("/a b/ü")
    assert parse_media_path("a/b") == Path("a/b")
    assert UrlPath("memory://") / "a.mp4" == UrlPath("memory://a.mp4")
    assert UrlPath("s3://b/") / "a/b.mp4" == UrlPath("s3://b/a/b.mp4")
    joined = UrlPath("zip://videos::file:///x.zip") / "a b.mp4"
    assert joined == UrlPath("zip://videos/a b.mp4::file:///x.zip")
    assert (joined.name, joined.suffix) == ("a b.mp4", ".mp4")
    assert pickle.loads(pickle.dumps(joined)) == joined


def test_a_snapshot_is_read_through_its_links_under_the_repository_s_name(tmp_path):
    source = VideoFolder(snapshot(tmp_path))
    (sample,) = source
    assert (sample.dataset, sample.video_id) == ("my--set", "größe 1")
    assert sample.path.name == "größe 1.mp4"


def test_the_cache_folder_above_the_snapshots_names_them(tmp_path):
    place = snapshot(tmp_path)
    with pytest.raises(SourceError, match=str(place)):
        VideoFolder(place.parents[1])


def test_a_file_that_a_snapshot_only_promises_is_missing(tmp_path):
    place = snapshot(tmp_path, "datasets--longvideobench--LongVideoBench")
    write_rows(place / "lvb_val.json", [{"id": "1", "video_path": "größe 1.mp4"}])
    assert [s.problem for s in open_source("long-video-bench", place)] == [None]
    # An interrupted download leaves the link without its blob.
    (place / "videos/größe 1.mp4").resolve().unlink()
    (sample,) = open_source("long-video-bench", place)
    assert "größe 1.mp4" in sample.problem


def test_a_folder_of_archives_says_how_to_unpack_them(tmp_path):
    touch(tmp_path / "set/videos_1.zip", tmp_path / "set/videos_2.zip", tmp_path / "set/notes.txt")
    with pytest.raises(SourceError, match=r"videos_1\.zip and 1 more not unpacked; run: .*unzip -n"):
        VideoFolder(tmp_path / "set")
    touch(tmp_path / "set/a.mp4")
    reasons = {entry.path.name: entry.reason for entry in VideoFolder(tmp_path / "set").ignored()}
    assert "unpack" in reasons["videos_1.zip"]
    assert "unpack" not in reasons["notes.txt"]


def test_archives_behind_a_url_are_named_without_a_command(memory):
    memory.pipe("/places/set/videos.zip", b"")
    with pytest.raises(SourceError, match=r"videos\.zip.*unpack them there") as refusal:
        VideoFolder(UrlPath("memory://places/set"))
    assert "unzip" not in str(refusal.value)


def test_the_command_for_split_archives_does_what_it_says(tmp_path):
    touch(tmp_path / "made/videos/x.mp4")
    place = tmp_path / "it's here"
    place.mkdir()
    whole = tmp_path / "whole.tar"
    subprocess.run(["tar", "-cf", whole, "-C", tmp_path / "made", "videos"], check=True)
    content = whole.read_bytes()
    (place / "videos.tar.part.aa").write_bytes(content[:700])
    (place / "videos.tar.part.ab").write_bytes(content[700:])
    with pytest.raises(SourceError) as refusal:
        VideoFolder(place)
    subprocess.run(["bash", "-c", str(refusal.value).partition("run: ")[2]], check=True)
    assert [sample.relative_path for sample in VideoFolder(place)] == ["videos/x.mp4"]


class TestDataFolder:
    @pytest.fixture(params=["folder", "memory", "zip"])
    def folder(self, request, tmp_path, memory):
        root = tmp_path / "set"
        touch(root / "b/ü 1.mp4", root / "a.json", root / "b/c/d.mp4")
        if request.param == "folder":
            return DataFolder(root)
        if request.param == "memory":
            memory.put(str(root), "/places/set", recursive=True)
            return DataFolder(UrlPath("memory://places/set"))
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for path in sorted(root.rglob("*.*")):
                archive.write(path, path.relative_to(root))
        return DataFolder(UrlPath(f"zip://::file://{tmp_path / 'set.zip'}"))

    def test_what_is_in_it_does_not_depend_on_where_it_lies(self, folder):
        assert folder.name == "set"
        assert list(folder.files()) == ["a.json", "b/c/d.mp4", "b/ü 1.mp4"]
        assert folder.glob("*.mp4") == []
        assert folder.glob("*/*.mp4") == ["b/ü 1.mp4"]
        assert [folder.has_file(path) for path in ("./b/ü 1.mp4", "b", "gone")] == [True, False, False]
        assert [folder.has_folder(path) for path in ("b/c", "a.json", "gone")] == [True, False, False]
        assert not folder.has_file("b/" + "x" * 300)
        assert not folder.has_folder("x/" * 3000)
        assert folder.read_bytes("a.json") == b"not opened by any source"

    def test_nothing_outside_is_in_it(self, folder):
        assert not folder.has_file("../set/a.json")
        assert not folder.has_file("b/../a.json")
        assert not folder.has_file("/etc/hostname")
        assert not folder.has_folder("/")

    @pytest.mark.parametrize("url", ["memory://places/nothing", "nosuch://bucket/set", "zip://::file:///no/such.zip"])
    def test_a_url_that_cannot_be_listed_is_refused_by_name(self, url):
        with pytest.raises(SourceError, match="data folder") as refusal:
            DataFolder(UrlPath(url))
        assert url in str(refusal.value)

    def test_a_name_that_fsspec_reads_as_a_chain_is_refused(self, memory):
        memory.pipe({"/places/set/x": b"one", "/places/set/x::y.mp4": b"another"})
        with pytest.raises(SourceError, match=r"x::y\.mp4.*rename"):
            VideoFolder(UrlPath("memory://places/set"))


class TestLocalise:
    def test_a_path_is_given_as_it_is(self, tmp_path, fetched):
        with localise(tmp_path / "x.mp4") as path:
            assert path == tmp_path / "x.mp4"
        assert list(fetched.iterdir()) == []

    def test_files_and_folders_keep_their_names_and_are_fetched_once(self, memory, fetched):
        memory.pipe("/places/a b.mp4", b"one")
        memory.pipe("/places/images/00001.jpg", b"two")
        with localise(UrlPath("memory://places/a b.mp4")) as first:
            assert (first.name, first.read_bytes()) == ("a b.mp4", b"one")
        with localise(UrlPath("memory://places/images")) as folder:
            assert folder.name == "images"
            assert [path.name for path in folder.iterdir()] == ["00001.jpg"]
        memory.pipe("/places/a b.mp4", b"changed")
        with localise(UrlPath("memory://places/a b.mp4")) as again:
            assert (again, again.read_bytes()) == (first, b"one")

    @pytest.mark.parametrize("url", ["local://{}/set", "zip://::file://{}/set.zip"], ids=["local", "zip"])
    def test_a_name_is_no_pattern(self, url, tmp_path, fetched):
        names = ["clip[1].mp4", "clip1.mp4", "a*.mp4", "ab.mp4", "what?.mp4", "whats.mp4"]
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for name in (*names, *(f"images[1]/{name}" for name in names), "images1/other.jpg"):
                touch(tmp_path / "set" / name)
                (tmp_path / "set" / name).write_text(name)
                archive.write(tmp_path / "set" / name, name)
        top = parse_media_path(url.format(tmp_path))
        for name in names:
            with localise(top / name) as path:
                assert (path.name, path.read_text()) == (name, name)
        with localise(top / "images[1]") as folder:
            assert {path.name: path.read_text() for path in folder.iterdir()} == {n: f"images[1]/{n}" for n in names}

    def test_a_folder_of_an_archive_writes_nothing_beside_itself(self, tmp_path, fetched):
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            archive.writestr("images/1.jpg", b"1")
            archive.writestr("images/../../outside.jpg", b"2")
        with (
            pytest.raises(MediaError, match=r"holds '../../outside.jpg', which leads out of it"),
            localise(parse_media_path(f"zip://images::file://{tmp_path}/set.zip")),
        ):
            pass
        assert files_in(fetched) == []

    def test_the_least_recently_used_make_room_and_nothing_that_is_in_use(self, memory, fetched):
        for name in "abcd":
            memory.pipe(f"/places/{name}", bytes(10))
        places = {name: UrlPath(f"memory://places/{name}") for name in "abcd"}
        with localise(places["a"], limit_bytes=30):
            for name in "bcbd":
                with localise(places[name], limit_bytes=30):
                    pass
            assert files_in(fetched) == ["a", "b", "d"]
            with localise(places["c"], limit_bytes=10):
                assert files_in(fetched) == ["a", "c"]
        with localise(places["b"], limit_bytes=10):
            assert files_in(fetched) == ["b"]

    def test_what_is_too_large_or_gone_is_a_media_error_and_leaves_nothing(self, memory, fetched):
        memory.pipe("/places/large", bytes(11))
        with pytest.raises(MediaError, match=r"places/large takes 11 bytes.*--fetch-limit"):
            localise(UrlPath("memory://places/large"), limit_bytes=10).__enter__()
        for url in ("memory://places/gone", "nosuch://bucket/x"):
            with pytest.raises(MediaError, match=url):
                localise(UrlPath(url)).__enter__()
        assert files_in(fetched) == []

    def test_a_server_that_does_not_tell_the_size_is_measured_afterwards(self, memory, fetched, monkeypatch):
        memory.pipe("/places/small", bytes(10))
        memory.pipe("/places/large", bytes(11))
        monkeypatch.setattr(type(memory), "size", lambda self, path: None)
        with localise(UrlPath("memory://places/small"), limit_bytes=10):
            pass
        with pytest.raises(MediaError, match="takes 11 bytes"):
            localise(UrlPath("memory://places/large"), limit_bytes=10).__enter__()
        assert files_in(fetched) == ["small"]

    def test_a_process_leaves_nothing_and_takes_away_what_a_killed_one_left(self, tmp_path):
        fetch = (
            "import fsspec, os, sys\n"
            "from pipeline.sources import UrlPath, localise\n"
            "fsspec.filesystem('memory').pipe('/x.mp4', b'x')\n"
            "with localise(UrlPath('memory://x.mp4')) as path:\n"
            "    print(path)\n"
            "    sys.argv[1] == 'killed' and os.kill(os.getpid(), 9)\n"
        )
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        root = Path(__file__).parents[3]

        def run(how: str) -> Path:
            command = [sys.executable, "-uc", fetch, how]
            return Path(
                subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True).stdout.strip()
            )

        left = run("killed")
        assert left.read_bytes() == b"x"
        # One that lives holds its lock.
        (tmp_path / "vlm-cache-media-alive").mkdir()
        with FileLock(tmp_path / "vlm-cache-media-alive.lock"):
            ended = run("ends")
            assert ended.name == "x.mp4"
            assert sorted(path.name for path in tmp_path.iterdir()) == [
                "vlm-cache-media-alive",
                "vlm-cache-media-alive.lock",
            ]


def test_a_video_behind_a_url_decodes_to_the_same_pixels_under_the_same_key(tmp_path, memory, fetched):
    write_video(tmp_path / "set/a b.mp4")
    memory.put(str(tmp_path / "set"), "/places/set", recursive=True)
    task = BuildTask(load_spec("longva", "small"), str(tmp_path / "store"), None, nframe=4)
    units = []
    for root in (tmp_path / "set", UrlPath("memory://places/set")):
        (sample,) = VideoFolder(root)
        units.append(Unit("a b", task.key(sample), sample))
        assert task.recipe(sample) == task.recipe(units[0].sample)
    here, there = (decode_unit(unit, task) for unit in units)
    assert isinstance(here, DecodedUnit)
    assert isinstance(there, DecodedUnit)
    assert units[0].key == units[1].key
    assert (here.pixels == there.pixels).all()
    assert here.provenance == there.provenance
    memory.rm("/places/set/a b.mp4")
    fetched_media._FETCHED._media.clear()
    failure = decode_unit(units[1], task)
    assert isinstance(failure, UnitFailure)
    assert "memory://places/set/a b.mp4 cannot be fetched" in failure.reason


def test_episodes_behind_a_url_are_refused(memory):
    memory.pipe("/places/episode_1/data.pkl", b"")
    with pytest.raises(SourceError, match="copy or mount"):
        open_source("vla", UrlPath("memory://places"))
