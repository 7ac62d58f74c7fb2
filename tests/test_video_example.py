"""The video example, on a short video and a shipped explainer."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import util
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from onnxplain import Explainer
from onnxplain_models.catalog import explainer_file, samples

SCRIPT = Path(__file__).parents[1] / "examples" / "video" / "explain_video.py"
MODEL = str(explainer_file("vgg_mlp"))


def load_script():
    spec = util.spec_from_file_location("explain_video", SCRIPT)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    return list(load_script().every(capture))


@pytest.fixture
def video(tmp_path):
    """Twelve frames, a scene each, enlarged."""
    path = tmp_path / "in.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (320, 240))
    assert writer.isOpened()
    pictures = [cv2.imdecode(np.frombuffer(one.picture.read_bytes(), np.uint8), 1) for one in samples()]
    for number in range(12):
        writer.write(cv2.resize(pictures[number % len(pictures)], (320, 240)))
    writer.release()
    return path


def run(*arguments):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("name", ["out.avi", "out.mp4"])
def test_each_frame_of_a_video_is_explained(video, tmp_path, name):
    done = run(MODEL, "--source", video, "--output", tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("12 frames, ")
    given, found = frames_of(video), frames_of(tmp_path / name)
    assert len(found) == 12
    explainer = Explainer(MODEL)
    for frame, overlay in zip(given, found, strict=True):
        expected = explainer.explain(frame).overlay()
        away = slice(0, 200)  # from the label
        assert np.abs(overlay[away].astype(int) - expected[away]).mean() < 3  # what the video's coding loses
        assert np.abs(overlay[away].astype(int) - frame[away]).mean() > 2


def test_what_can_not_be_opened(tmp_path):
    done = run(MODEL, "--source", tmp_path / "none.mp4", "--output", tmp_path / "out.mp4")
    assert done.returncode == 1
    assert "Error: can't open" in done.stderr


def test_of_a_camera_the_newest_frame_is_taken():
    class Camera:
        count = 0

        def read(self):
            time.sleep(0.01)
            self.count += 1
            return self.count < 500, np.full((4, 4, 3), self.count % 256, np.uint8)

    camera = Camera()
    frames = load_script().newest(camera)
    numbers = []
    for frame in islice(frames, 5):
        numbers.append(int(frame[0, 0, 0]))
        time.sleep(0.1)  # the network is slower than the camera
        assert camera.count - numbers[-1] >= 2
    frames.close()
    assert numbers == sorted(set(numbers))
    assert numbers[-1] > 15
    after = camera.count
    time.sleep(0.05)
    assert camera.count == after
