"""MovieLens in its original layouts."""

import csv
import hashlib
import logging
import os
import re
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pyarrow as pa
import pytest

from twotower.data.movielens import MovieLensSource
from twotower.data.schema import DataError

DATA = Path(os.environ.get("TWOTOWER_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))

ML_1M = {
    "ratings.dat": "2::10::5::978300760\n1::20::3::978302109\n1::10::1::978301968\n",
    "users.dat": "1::F::1::10::02460\n2::M::56::16::70072-1234\n",
    "movies.dat": '10::Misérables, Les (1995)::Drama|Musical\n20::"Heat": 2 (1996)::Action\n',
}
ML_CSV = {
    "ratings.csv": "userId,movieId,rating,timestamp\n7,2,0.5,100\n7,1,4.0,90\n",
    "movies.csv": "movieId,title,genres\n"
    '1,"Series, The (2006–2007)",(no genres listed)\n'
    "2,1984,Drama|Sci-Fi\n"
    "3,Nothing known (),\n",
    "tags.csv": "userId,movieId,tag,timestamp\n",
}


def encoded(files):
    codecs = {".dat": "latin-1", ".csv": "utf-8"}
    return {name: text.encode(codecs[name[-4:]]) for name, text in files.items()}


def folder(path, files):
    path.mkdir(parents=True)
    for name, content in encoded(files).items():
        (path / name).write_bytes(content)
    return str(path)


def archive(path, files, inside="data/"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in encoded(files).items():
            file.writestr(inside + name, content)
    return str(path)


def read(path, **options):
    return MovieLensSource(archive=path, **options).read()


def test_the_layout_of_ml_1m(tmp_path):
    tables = read(archive(tmp_path / "ml-1m.zip", ML_1M, "ml-1m/"))
    assert tables.interactions.to_pydict() == {
        "user_id": [2, 1, 1],
        "item_id": [10, 20, 10],
        "timestamp": [978300760_000_000, 978302109_000_000, 978301968_000_000],
        "rating": [5, 3, 1],
    }
    assert tables.users.to_pydict() == {
        "user_id": [1, 2],
        "gender": ["F", "M"],
        "age": [1, 56],
        "occupation": [10, 16],
        "zip": ["02460", "70072-1234"],
    }
    assert tables.items.to_pydict() == {
        "item_id": [10, 20],
        "title": ["Misérables, Les (1995)", '"Heat": 2 (1996)'],
        "genres": [["Drama", "Musical"], ["Action"]],
        "year": [1995, 1996],
    }
    assert tables.label is None
    assert tables.items.schema.field("genres").type == pa.list_(pa.string())


def test_the_layout_of_the_others(tmp_path):
    tables = read(archive(tmp_path / "any.zip", ML_CSV), positive_from=4)
    assert tables.interactions.to_pydict() == {
        "user_id": [7, 7],
        "item_id": [2, 1],
        "timestamp": [100_000_000, 90_000_000],
        "label": [0.5, 4.0],
    }
    assert tables.users is None
    assert tables.items.to_pydict() == {
        "item_id": [1, 2, 3],
        "title": ["Series, The (2006–2007)", "1984", "Nothing known ()"],
        "genres": [[], ["Drama", "Sci-Fi"], []],
        "year": [2006, None, None],
    }
    assert (tables.label.column, tables.label.minimum) == ("rating", 0.5)
    assert (tables.label.maximum, tables.label.positive_from) == (5.0, 4)


@pytest.mark.parametrize("files", [ML_1M, ML_CSV])
def test_zipped_or_not_and_however_nested_it_is_the_same(tmp_path, files):
    sources = [
        MovieLensSource(archive=path)
        for path in (
            archive(tmp_path / "flat.zip", files, ""),
            archive(tmp_path / "deep.zip", files, "a/b/"),
            folder(tmp_path / "plain", files),
            str(Path(folder(tmp_path / "outer" / "inner", files)).parent),
        )
    ]
    first, *others = [source.read() for source in sources]
    assert all(tables.interactions.equals(first.interactions) for tables in others)
    assert all(tables.items.equals(first.items) for tables in others)
    assert len({source.fingerprint() for source in sources}) == 1
    assert [source.name for source in sources] == ["flat", "deep", "plain", "outer"]


def test_the_fingerprint_follows_contents_and_options(tmp_path):
    one = archive(tmp_path / "a.zip", ML_CSV)
    other = archive(tmp_path / "b.zip", ML_CSV | {"movies.csv": ML_CSV["movies.csv"] + "4,X,Y\n"})
    tags = archive(tmp_path / "c.zip", ML_CSV | {"tags.csv": "userId\n"})
    digests = [
        MovieLensSource(archive=one).fingerprint(),
        MovieLensSource(archive=one, positive_from=3).fingerprint(),
        MovieLensSource(archive=one, positive_from=4).fingerprint(),
        MovieLensSource(archive=other).fingerprint(),
    ]
    assert len(set(digests)) == 4
    assert MovieLensSource(archive=tags).fingerprint() == digests[0]


def test_nothing_is_written_by_an_archive_with_dangerous_names(tmp_path):
    path = tmp_path / "in" / "a.zip"
    archive(path, ML_CSV)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("../../escaped.txt", "x")
    assert read(str(path)).interactions.num_rows == 2
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "in"]


def refused(path, match, **options):
    with pytest.raises(DataError, match=match) as caught:
        read(str(path), **options)
    return caught.value.problems


def test_archives_that_are_none(tmp_path):
    refused(tmp_path / "no.zip", r"no\.zip: no such archive or folder \(data\.archive\)")
    (tmp_path / "text.zip").write_text("text")
    refused(tmp_path / "text.zip", "text.zip: not a readable zip archive or folder")
    folder(tmp_path / "empty", {})
    refused(
        tmp_path / "empty", r"must hold one of ratings\.dat .* and ratings\.csv .* found neither"
    )


def test_a_damaged_archive_is_refused(tmp_path):
    path = Path(archive(tmp_path / "a.zip", ML_CSV))
    content = bytearray(path.read_bytes())
    content[60] ^= 255  # inside the first compressed file
    path.write_bytes(content)
    refused(path, "a.zip: not a readable zip archive or folder")
    path.write_bytes(content[:100])
    refused(path, "a.zip: not a readable zip archive or folder")


def test_several_data_sets_in_one_folder_are_refused(tmp_path):
    folder(tmp_path / "one", ML_1M)
    folder(tmp_path / "two", ML_CSV)
    refused(tmp_path, r"found .*one/ratings\.dat, .*two/ratings\.csv")


@pytest.mark.parametrize("name", ["users.dat", "movies.dat"])
def test_a_missing_file_is_named(tmp_path, name):
    files = {n: text for n, text in ML_1M.items() if n != name}
    refused(archive(tmp_path / "a.zip", files), rf"a\.zip/data/{name} is missing")


def test_all_damaged_files_are_named(tmp_path):
    files = ML_1M | {"ratings.dat": "1::2::3\n", "users.dat": "1::F::1::10::1\n1::F::1::10::1\n"}
    found = refused(archive(tmp_path / "a.zip", files), "cannot be read")
    assert "data/ratings.dat: cannot be read" in found[0]
    assert "data/users.dat: column `user_id`: 1 row with an id that an earlier row has" in found[1]


def test_other_columns_are_refused(tmp_path):
    files = ML_CSV | {"movies.csv": "movieId,name\n1,x\n"}
    match = "movies.csv: its columns are movieId, name; allowed: movieId, title, genres"
    refused(archive(tmp_path / "a.zip", files), match)


def test_bad_cells_are_reported_with_their_row(tmp_path):
    files = ML_CSV | {"ratings.csv": ML_CSV["ratings.csv"] + "7,3,6.0,never\n"}
    found = refused(archive(tmp_path / "a.zip", files), "never", positive_from=4)
    assert "column `timestamp`: 1 row with a time that cannot be read, at data row 3" in found[0]
    assert "column `rating` (`label`): 1 row outside the range, at data row 3" in found[1]


def test_unknown_variants_and_impossible_positives_are_refused():
    with pytest.raises(ValueError, match="got 'ml-2m'; allowed: ml-latest-small, ml-1m, ml-20m"):
        MovieLensSource(variant="ml-2m")
    with pytest.raises(ValueError, match="`positive_from` must lie above"):
        MovieLensSource(positive_from=6)


@pytest.fixture
def host(tmp_path):
    """A server on this machine with the archives of the folder `host`."""
    directory = tmp_path / "host"
    archive(directory / "ml-latest-small.zip", ML_CSV)
    archive(directory / "ml-1m.zip", ML_1M)
    md5 = hashlib.md5((directory / "ml-latest-small.zip").read_bytes()).hexdigest()
    (directory / "ml-latest-small.zip.md5").write_text(f"MD5 (ml-latest-small.zip) = {md5}\n")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(directory))

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_without_an_archive_it_is_downloaded_once(host, tmp_path, caplog):
    def source(base):
        kept = str(tmp_path / "kept")
        return MovieLensSource(variant="ml-latest-small", download_dir=kept, host=base)

    with caplog.at_level(logging.INFO):
        tables = source(host).read()
    assert tables.interactions.num_rows == 2
    assert "No data.archive given: downloading ml-latest-small from GroupLens" in caplog.text
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["ml-latest-small.zip"]
    again = source("http://127.0.0.1:1")
    assert again.read().interactions.equals(tables.interactions)
    assert again.fingerprint() == source(host).fingerprint()
    assert again.name == "ml-latest-small"


def test_a_download_that_is_not_the_published_archive_is_refused(host, tmp_path):
    source = MovieLensSource(variant="ml-1m", download_dir=str(tmp_path / "kept"), host=host)
    published = "published is c4d9eecfca2ab87c1945afe126590906"
    with pytest.raises(DataError, match=f"cannot download .*ml-1m.zip: its MD5 is .*{published}"):
        source.fingerprint()
    assert list((tmp_path / "kept").iterdir()) == []
    archive(tmp_path / "kept" / "ml-1m.zip", ML_1M)
    with pytest.raises(DataError, match=f"{published}; delete it to download it again"):
        source.read()


@pytest.fixture
def latest_small():
    path = DATA / "ml-latest-small"
    if not path.exists():
        pytest.skip(f"{path} is not there (set TWOTOWER_DATA)")
    return path


def test_ml_latest_small(latest_small):
    tables = read(str(latest_small), positive_from=4)
    assert tables.interactions.num_rows == 100_836
    assert tables.items.num_rows == 9_742
    assert len(tables.interactions.column("user_id").unique()) == 610
    with (latest_small / "ratings.csv").open(newline="") as stream:
        ratings = list(csv.DictReader(stream))
    assert tables.interactions.to_pydict() == {
        "user_id": [int(row["userId"]) for row in ratings],
        "item_id": [int(row["movieId"]) for row in ratings],
        "timestamp": [int(row["timestamp"]) * 10**6 for row in ratings],
        "label": [float(row["rating"]) for row in ratings],
    }
    with (latest_small / "movies.csv").open(newline="", encoding="utf-8") as stream:
        movies = list(csv.DictReader(stream))
    assert tables.items.column("title").to_pylist() == [row["title"] for row in movies]
    years = [re.findall(r"\((\d{4})[–-]?\d{0,4}\)$", row["title"].strip()) for row in movies]
    expected = [int(found[0]) if found else None for found in years]
    assert tables.items.column("year").to_pylist() == expected
    none = "(no genres listed)"
    genres = [[] if row["genres"] == none else row["genres"].split("|") for row in movies]
    assert tables.items.column("genres").to_pylist() == genres
