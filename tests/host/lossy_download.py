"""A pool of real pictures, and a server that lacks a quarter of them.

The metadata have DataComp's columns, and 93% of the rows have scores in the twelve published
columns. DataComp's own download_upstream.py downloads the shards from the server on the loopback
interface.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import subprocess
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.host.pool import SCORE_COLUMNS

SHARDS = Path(__file__).resolve().parents[2] / "datacomp_flyt" / "demo" / "pool" / "shards"
SCORED = 0.93
LOST = 0.26
FATES = ("404", "410", "html", "cut", "drop")


def read_images(folder: Path | None) -> dict[str, bytes]:
    """Return the pictures of a folder, or of the demo pool, by name."""
    if folder is not None:
        paths = (path for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".jpg"))
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    images = {}
    for shard in sorted(SHARDS.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                content = tar.extractfile(member)
                if member.name.endswith(".jpg") and content is not None:
                    images[member.name] = content.read()
    return images


def uid_of(name: str) -> str:
    return hashlib.md5(name.encode()).hexdigest()


def fate_of(uid: str) -> str | None:
    """Return the reason why a picture cannot be downloaded, or None."""
    lot = int(uid[:8], 16) % 1000
    return FATES[lot % len(FATES)] if lot < 1000 * LOST else None


def serve(images: dict[str, bytes]) -> http.server.ThreadingHTTPServer:
    """Serve the pictures at /UID from a thread."""
    contents = {uid_of(name): content for name, content in images.items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            uid = self.path[1:]
            body, fate = contents[uid], fate_of(uid)
            if fate in ("404", "410"):
                self.send_error(int(fate))
                return
            if fate == "drop":
                self.connection.close()
                return
            if fate == "html":
                body = b"<html>This picture has been removed.</html>"
            elif fate == "cut":
                body = body[:100]  # without pixels, since OpenCV 4.6 decodes truncated JPEGs
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def write_metadata(folder: Path, images: dict[str, bytes], port: int) -> None:
    """Write four metadata files like DataComp's, and captions.json with {uid: caption}."""
    rng = np.random.default_rng(0)
    names = sorted(images, key=uid_of)
    captions = {uid_of(name): f"picture number {row}" for row, name in enumerate(names)}
    (folder / "metadata").mkdir(parents=True)
    for rows in np.array_split(rng.permutation(len(names)), 4):
        uids = [uid_of(names[row]) for row in rows]
        table = {
            "uid": uids,
            "url": [f"http://127.0.0.1:{port}/{uid}" for uid in uids],
            "text": [captions[uid] for uid in uids],
            "original_width": np.full(len(rows), 64),
            "original_height": np.full(len(rows), 64),
            "clip_b32_similarity_score": rng.normal(0.25, 0.05, len(rows)).astype(np.float32),
            "clip_l14_similarity_score": rng.normal(0.2, 0.05, len(rows)).astype(np.float32),
            "face_bboxes": pa.array([[]] * len(rows), pa.list_(pa.list_(pa.float64()))),
            "sha256": [hashlib.sha256(images[names[row]]).hexdigest() for row in rows],
        }
        pq.write_table(pa.table(table), folder / "metadata" / f"{uids[0]}.parquet")
    scored = rng.permutation(len(names))[: int(SCORED * len(names))]
    scores: dict[str, object] = {"uid": [uid_of(names[row]) for row in scored]}
    for offset, column in enumerate(SCORE_COLUMNS):
        scores[column] = rng.normal(offset - 6, 0.1 + offset, len(scored)).astype(np.float32)
    (folder / "scores").mkdir()
    pq.write_table(pa.table(scores), folder / "scores" / "train-00000-of-00001.parquet")
    (folder / "captions.json").write_text(json.dumps(captions))


def download(folder: Path, datacomp: Path, python: str, images: Path | None = None) -> set[str]:
    """Make the pool, download it, and return the uids of the pictures that the server has.

    Raises:
        subprocess.CalledProcessError: download_upstream.py failed.
    """
    contents = read_images(images)
    server = serve(contents)
    try:
        write_metadata(folder, contents, server.server_address[1])
        words = ["--scale", "small", "--data_dir", folder, "--metadata_dir", folder / "metadata"]
        words += ["--processes_count", "2", "--thread_count", "16", "--retries", "1"]
        command = [python, datacomp / "download_upstream.py", *words]
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
    finally:
        server.shutdown()
        server.server_close()
    return {uid for uid in map(uid_of, contents) if fate_of(uid) is None}
