"""Runs img2dataset against a server on loopback, in its three formats that capfilt reads.

`python -m tests.inputs.run_img2dataset FOLDER` leaves `FOLDER/{files,parquet,webdataset}`, each of
two shards of 12 rows. It is a program of its own because img2dataset warns at import.
"""

import http.server
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa

ROWS = 12
SHARDS = 2


def caption(shard: int, number: int) -> str | None:
    """Return the caption of a row; every seventh has none."""
    return None if number % 7 == 6 else f"caption {shard} {number}"


def status(number: int) -> str:
    """Return what img2dataset must say of a row."""
    return {3: "failed_to_download", 4: "failed_to_resize"}.get(number % 5, "success")


def size(number: int) -> tuple[int, int]:
    """Return width and height of an image in pixels, by which a test knows it again."""
    return 40 + number, 30


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        from PIL import Image

        number = int(self.path.strip("/"))
        if status(number) == "failed_to_download":
            self.send_error(404)
            return
        out = io.BytesIO()
        Image.new("RGB", size(number)).save(out, "PNG")
        body = out.getvalue() if status(number) == "success" else b"no image"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def main(folder: Path) -> None:
    from img2dataset import writer

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _run(folder / "files", writer.FilesSampleWriter, server.server_port)
        _run(folder / "parquet", writer.ParquetSampleWriter, server.server_port)
        _run(folder / "webdataset", writer.WebDatasetSampleWriter, server.server_port)
        server.shutdown()


def _run(folder: Path, writer: type[Any], port: int) -> None:
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer

    folder.mkdir(parents=True)
    download = Downloader(
        sample_writer_class=writer,
        resizer=Resizer(32, "no", resize_only_if_bigger=False, encode_format="jpg"),
        thread_count=4, save_caption=True, extract_exif=True, output_folder=str(folder),
        column_list=["caption", "url"], timeout=5, number_sample_per_shard=ROWS,
        oom_shard_count=5, compute_hash="sha256", verify_hash_type=None, encode_format="jpg",
        retries=0, user_agent_token=None, disallowed_header_directives=None,
    )  # fmt: skip
    for shard in range(SHARDS):
        captions = [caption(shard, number) for number in range(ROWS)]
        urls = [f"http://127.0.0.1:{port}/{number}" for number in range(ROWS)]
        table = pa.table({"caption": captions, "url": urls})
        path = folder / f"{shard}.feather"
        with pa.ipc.new_file(path, table.schema) as out:
            out.write_table(table)
        done, _ = download((shard, str(path)))
        assert done


if __name__ == "__main__":
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    main(Path(sys.argv[1]))
