"""Explain a camera's frames, or a video's, as they come: each with what the network sees in it laid over it.

    python explain_video.py MODEL.onnx                                    # the first camera, in a window
    python explain_video.py MODEL.onnx --source 1                         # another camera
    python explain_video.py MODEL.onnx --source in.mp4 --output out.mp4   # on a server, without a window

Frames are explained side by side, one on each core. Of a camera the newest frame is taken whenever there is
room, and those in between are dropped, so that what is shown is never far behind. Of a file every frame is
taken. A window needs opencv-python; opencv-python-headless has none.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Generator, Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from onnxplain import Explainer, Explanation

Frame = NDArray[np.uint8]


def main() -> None:
    """Explain as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--source", default="0", help="a camera's number, or a video file")
    parser.add_argument("--output", type=Path, metavar="VIDEO", help="write a video, and show no window")
    options = parser.parse_args()
    is_camera = options.source.isdigit()
    capture = cv2.VideoCapture(int(options.source) if is_camera else options.source)
    if not capture.isOpened():
        parser.exit(1, f"Error: can't open {options.source}; name a camera's number or a video file\n")
    explainer = Explainer(options.model, threads=1)
    frames = newest(capture) if is_camera else every(capture)
    explanations = explainer.stream(frames)
    overlays = (with_label(explanation) for explanation in explanations)
    start = time.perf_counter()
    try:
        if options.output:
            count = write(overlays, options.output, capture.get(cv2.CAP_PROP_FPS) or 30)
        else:
            count = show(overlays)
    finally:
        explanations.close()
        frames.close()
        capture.release()
    print(f"{count} frames, {count / (time.perf_counter() - start):.1f} a second")


def every(capture: cv2.VideoCapture) -> Generator[Frame, None, None]:
    """Yield each frame, RGB."""
    while True:
        found, frame = capture.read()
        if not found:
            return
        yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)


def newest(capture: cv2.VideoCapture) -> Generator[Frame, None, None]:
    """Yield the frame that came last whenever one is asked for, each once.

    A thread empties the camera's queue meanwhile.
    """
    latest: list[Frame] = []
    changed = threading.Condition()
    is_open = True

    def read() -> None:
        nonlocal is_open
        for frame in every(capture):
            with changed:
                latest[:] = [frame]
                changed.notify()
            if not is_open:
                break
        with changed:
            is_open = False
            changed.notify()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: latest or not is_open)
                if not latest:
                    return
                frame = latest.pop()
            yield frame
    finally:
        is_open = False
        reader.join()


def with_label(explanation: Explanation) -> Frame:
    """Return the overlay, BGR, with the class and its probability."""
    overlay = cv2.cvtColor(explanation.overlay(), cv2.COLOR_RGB2BGR)
    text = explanation.label or f"class {explanation.index}"
    if explanation.probability is not None:
        text += f" {explanation.probability:.0%}"
    scale = overlay.shape[0] / 480
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 2)):
        place = (round(12 * scale), overlay.shape[0] - round(16 * scale))
        cv2.putText(overlay, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
    return overlay


def show(frames: Iterable[Frame]) -> int:
    """Show frames in a window until a key is pressed; return how many there were."""
    count = 0
    for frame in frames:
        cv2.imshow("onnxplain", frame)
        count += 1
        if cv2.waitKey(1) >= 0:
            break
    cv2.destroyAllWindows()
    return count


def write(frames: Iterable[Frame], path: Path, rate: float) -> int:
    """Write frames to a video (.mp4, .avi, ...); return how many there were."""
    count, writer = 0, None
    code = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    for frame in frames:
        writer = writer or cv2.VideoWriter(str(path), code, rate, frame.shape[1::-1])
        if not writer.isOpened():
            raise SystemExit(f"Error: can't write {path}; is there such a folder, and is it .mp4 or .avi?")
        writer.write(frame)
        count += 1
    if writer:
        writer.release()
    return count


if __name__ == "__main__":
    main()
