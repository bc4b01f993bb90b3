import contextlib
import ctypes
import http.server
import json
import math
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.errors import CorruptMedia, MediaTooLarge, UnsupportedMedia
from service.media import Limits, audio, video
from service.media.audio import AudioSpec
from service.media.video import VideoSpec
from tests import synthetic as media

CODECS = {  # container, codec, rate in Hz
    "FLAC": ("flac", "flac", 44_100),
    "FLAC in OGG": ("ogg", "flac", 44_100),
    "Vorbis": ("ogg", "vorbis", 44_100),
    "Opus": ("ogg", "libopus", 48_000),
    "MP3": ("mp3", "libmp3lame", 44_100),
    "MP3 at 22 kHz": ("mp3", "libmp3lame", 22_050),
    "M4A": ("ipod", "aac", 44_100),
    "ALAC": ("ipod", "alac", 44_100),
    "MP4": ("mp4", "aac", 48_000),
    "MOV": ("mov", "pcm_s16le", 44_100),
    "ADTS": ("adts", "aac", 44_100),
    "WebM": ("webm", "libopus", 48_000),
    "MKV": ("matroska", "aac", 44_100),
    "WAV": ("wav", "pcm_s16le", 44_100),
    "WAV of A-law": ("wav", "pcm_alaw", 8_000),
    "high FLAC": ("flac", "flac", 96_000),
}


def decoded(data: bytes, sample_rate_hz: int = 16_000, limits: Limits | None = None) -> media.Sound:
    return np.concatenate(list(audio.decode(data, AudioSpec(sample_rate_hz), limits or Limits())))


def heard(sound: media.Sound, rate_hz: int) -> tuple[float, float]:
    """Frequency and amplitude of the strongest tone in the middle of a sound."""
    middle = sound[len(sound) // 4 : 3 * len(sound) // 4].astype(np.float64)
    window = np.hanning(len(middle))
    spectrum = np.abs(np.fft.rfft(middle * window))
    peak = int(spectrum.argmax())
    amplitude = np.sqrt(np.sum(spectrum[max(0, peak - 2) : peak + 3] ** 2) / (1.5 * (len(middle) / 4) ** 2))
    return peak * rate_hz / len(middle), float(amplitude)


# What comes out is what went in


@pytest.mark.parametrize("wanted_hz", [8_000, 16_000])
@pytest.mark.parametrize("name", CODECS)
def test_every_format_gives_back_the_sine_that_went_in(name: str, wanted_hz: int) -> None:
    container, codec, rate_hz = CODECS[name]
    channels = 1 if codec == "pcm_alaw" else 2
    sound = media.sine(1000, 0.8, rate_hz, (0.5,) * channels)
    shown = decoded(media.encoded_sound(sound, rate_hz, container, codec), wanted_hz)
    assert shown.dtype == np.float32
    assert shown.ndim == 1
    assert len(shown) / wanted_hz == pytest.approx(0.8, abs=0.06)  # lossy formats come in whole blocks
    frequency_hz, amplitude = heard(shown, wanted_hz)
    assert frequency_hz == pytest.approx(1000, abs=4)
    assert amplitude == pytest.approx(0.5, rel=0.08)


@pytest.mark.parametrize("rate_hz", [4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("wanted_hz", [8_000, 16_000])
def test_resampling_keeps_length_pitch_and_loudness(rate_hz: int, wanted_hz: int) -> None:
    shown = decoded(media.wav(media.sine(440, 1, rate_hz), rate_hz), wanted_hz)
    assert abs(len(shown) - wanted_hz) <= 2
    frequency_hz, amplitude = heard(shown, wanted_hz)
    assert frequency_hz == pytest.approx(440, abs=2)
    assert amplitude == pytest.approx(0.5, rel=0.01)


def test_resampling_removes_what_the_lower_rate_cannot_hold() -> None:
    shown = decoded(media.wav(media.sine(15_000, 0.5, 48_000), 48_000), 16_000)
    assert np.abs(shown[1000:-1000]).max() < 0.01


@pytest.mark.parametrize(
    "kind,step", [("u8", 2 / 127), ("s16", 2**-14), ("s24", 2**-22), ("s32", 2**-22), ("f32", 0), ("f64", 2**-23)]
)
def test_wav_of_every_sample_kind_gives_back_the_samples(kind: str, step: float) -> None:
    sound = media.sine(440, 0.25, 16_000, (0.9,))
    shown = decoded(media.wav(sound, 16_000, kind))
    assert shown.shape == sound[0].shape
    assert np.abs(shown - sound[0]).max() <= step


def test_extensible_wav_decodes() -> None:
    plain = media.wav(media.sine(440, 0.25, 16_000), 16_000)
    head = plain[20:36]
    guid = b"\1\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    extended = struct.pack("<H", 0xFFFE) + head[2:] + struct.pack("<HHI", 22, 16, 4) + guid
    data = media.riff(b"WAVE", (b"fmt ", extended), (b"data", plain[44:]))
    assert np.array_equal(decoded(data), decoded(plain))


def test_wav_with_other_chunks_before_its_samples_decodes() -> None:
    plain = media.wav(media.sine(440, 0.25, 16_000), 16_000)
    data = media.riff(b"WAVE", (b"JUNK", bytes(29)), (b"fmt ", plain[20:36]), (b"data", plain[44:]))
    assert np.array_equal(decoded(data), decoded(plain))


def test_flac_is_lossless() -> None:
    sound = media.sine(440, 0.5, 16_000)
    shown = decoded(media.encoded_sound(sound, 16_000, "flac", "flac"))
    assert shown.shape == sound[0].shape
    assert np.abs(shown - sound[0]).max() <= 2**-14


@pytest.mark.parametrize(
    "channels,expected", [((0.8, 0.2), 0.5), ((0.6, -0.6), 0.0), ((0.6, 0.0), 0.3), ((0.5, 0.5), 0.5)]
)
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_stereo_is_averaged_not_louder(rate_hz: int, channels: tuple[float, ...], expected: float) -> None:
    shown = decoded(media.wav(media.sine(440, 0.5, rate_hz, channels), rate_hz))
    assert np.abs(shown[500:-500]).max() == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("count", [3, 4, 6, 8])
def test_all_channels_count_the_same(count: int) -> None:
    sound = media.sine(440, 0.25, 16_000, (0.8, *(0.0,) * (count - 1)))
    shown = decoded(media.wav(sound, 16_000))
    assert np.abs(shown).max() == pytest.approx(0.8 / count, abs=0.001)


def test_mp3_with_and_without_a_tag_sounds_the_same() -> None:
    sound = media.sine(440, 0.5, 44_100)
    tagged = media.encoded_sound(sound, 44_100, "mp3", "libmp3lame")
    size = int.from_bytes(tagged[6:10], "big")  # seven bits a byte, and less than 128 here
    assert tagged.startswith(b"ID3")
    assert size < 128
    assert np.array_equal(decoded(tagged[10 + size :]), decoded(tagged))


def test_a_clip_with_sound_gives_its_sound() -> None:
    data = media.clip(media.numbered(20), sound=media.sine(1000, 0.8, 16_000, (0.3,)))
    frequency_hz, amplitude = heard(decoded(data), 16_000)
    assert frequency_hz == pytest.approx(1000, abs=4)
    assert amplitude == pytest.approx(0.3, rel=0.05)


def test_the_shortest_sounds_decode() -> None:
    assert len(decoded(media.wav(np.full((1, 1), 0.5), 16_000))) == 1
    assert len(decoded(media.wav(np.full((1, 16), 0.5), 16_000))) == 16


# Forged and damaged


@pytest.mark.parametrize("rate_hz", [0, 1, 3_999, 192_001, 2**31 - 1, 2**32 - 1])
def test_a_sample_rate_that_no_recording_has_is_refused(rate_hz: int) -> None:
    with pytest.raises(CorruptMedia):
        decoded(media.wav(np.zeros((1, 800)), rate_hz))


@pytest.mark.parametrize("channels", [9, 64, 500])
def test_too_many_channels_are_refused(channels: int) -> None:
    with pytest.raises(MediaTooLarge, match=f"{channels} channels; MAX_CHANNELS allows 8"):
        decoded(media.wav(np.zeros((1, 20_000)), 16_000, channels=channels))


@pytest.mark.parametrize("channels", [0, 1_000, 65_535])
def test_an_impossible_number_of_channels_is_refused(channels: int) -> None:
    forged = bytearray(media.wav(np.zeros((1, 20_000)), 16_000))
    forged[22:24] = struct.pack("<H", channels)
    with pytest.raises(CorruptMedia):
        decoded(bytes(forged))


def test_a_coding_that_no_decoder_knows_is_refused() -> None:
    forged = bytearray(media.wav(np.zeros((1, 20_000)), 16_000))
    forged[20:22] = struct.pack("<H", 0x7EEE)
    with pytest.raises(CorruptMedia, match="coding"):
        decoded(bytes(forged))


@pytest.mark.parametrize("container,codec", [("wav", "pcm_s16le"), ("flac", "flac")])
def test_a_sound_without_samples_is_refused(container: str, codec: str) -> None:
    data = media.wav(np.zeros((1, 0)), 16_000)
    if container == "flac":
        whole = media.encoded_sound(media.sine(440, 0.1, 16_000), 16_000, container, codec)
        data = whole[: 4 + 4 + 34]  # the stream's header alone
    with pytest.raises(CorruptMedia):
        decoded(data)


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate_hz", [16_000, 44_100])
def test_samples_that_are_not_finite_are_refused(kind: str, channels: int, value: float, rate_hz: int) -> None:
    sound = np.zeros((channels, 4000))
    sound[0, 1234] = value
    with pytest.raises(CorruptMedia, match="not finite"):
        decoded(media.wav(sound, rate_hz, kind))


def test_samples_too_large_for_single_precision_are_refused() -> None:
    with pytest.raises(CorruptMedia, match="not finite"):
        decoded(media.wav(np.full((2, 4000), 1e300), 16_000, "f64"))
    with pytest.raises(CorruptMedia, match="not finite"):
        decoded(media.wav(np.full((2, 4000), 3e38), 16_000, "f32"))


@cache
def encoded(name: str) -> bytes:
    if name == "float WAV":
        return media.wav(media.sine(440, 0.3, 16_000), 16_000, "f32")
    container, codec, rate_hz = CODECS[name]
    channels = 1 if codec == "pcm_alaw" else 2
    return media.encoded_sound(media.sine(440, 0.3, rate_hz, (0.5,) * channels), rate_hz, container, codec)


@pytest.mark.parametrize("name", [*CODECS, "float WAV"])
def test_a_truncated_sound_is_refused_or_gives_what_is_left(name: str) -> None:
    data = encoded(name)
    whole = decoded(data)
    for cut in media.cuts(data, 30):
        try:
            shown = decoded(cut)
        except CorruptMedia:
            continue
        assert len(shown) <= len(whole) + 16
        same = max(0, min(len(shown), len(whole)) - 2500)  # the last block may end in the middle of a tone
        assert np.abs(shown[:same] - whole[:same]).max(initial=0) < 0.01


@pytest.mark.parametrize("name", [*CODECS, "float WAV"])
def test_damaged_sounds_raise_nothing_but_refusals(name: str) -> None:
    for data in media.mutations(encoded(name), 150):
        try:
            shown = decoded(data, limits=Limits(max_seconds=30))
        except (CorruptMedia, MediaTooLarge, UnsupportedMedia):
            continue
        assert np.isfinite(shown).all()
        assert 0 < len(shown) <= 31 * 16_000


@pytest.mark.parametrize("container,codec", [("mp4", "libx264"), ("matroska", "libx264"), ("webm", "libvpx-vp9")])
def test_a_clip_without_sound_is_refused(container: str, codec: str) -> None:
    with pytest.raises(CorruptMedia, match="no audio stream"):
        decoded(media.clip(media.numbered(3), container, codec))


# Limits


def test_a_sound_that_declares_to_be_too_long_is_refused() -> None:
    with pytest.raises(MediaTooLarge, match=r"it lasts 3\.0 seconds; MAX_SECONDS allows 2"):
        decoded(media.wav(np.zeros((1, 48_000)), 16_000), limits=Limits(max_seconds=2))


def test_max_seconds_itself_is_allowed() -> None:
    assert len(decoded(media.wav(np.zeros((1, 32_000)), 16_000), limits=Limits(max_seconds=2))) == 32_000


def test_a_small_file_of_long_silence_is_refused_whatever_its_header_says(tmp_path: Path) -> None:
    flac = media.encoded_sound(np.zeros((1, 8_000 * 700), np.float32), 8_000, "flac", "flac")
    assert len(flac) < 200_000
    silent = bytearray(flac)
    silent[21] &= 0xF0  # the number of samples (RFC 9639, section 8.2): 0 says unknown
    silent[22:26] = bytes(4)
    for data in (flac, bytes(silent)):
        with pytest.raises(MediaTooLarge, match="MAX_SECONDS allows 600"):
            decoded(data)
    (tmp_path / "silence.flac").write_bytes(silent)
    program = """
import json, pathlib, resource, sys
from service.media import Limits
from service.media.audio import AudioSpec, decode
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
try:
    list(decode(pathlib.Path(sys.argv[1]).read_bytes(), AudioSpec(16_000), Limits(max_seconds=60)))
except Exception as error:
    print(json.dumps([type(error).__name__, peak() - before]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "silence.flac")], capture_output=True, timeout=60, check=True
    )
    refusal, grown = json.loads(done.stdout)
    assert refusal == "MediaTooLarge"
    assert grown < 40  # MiB; 60 seconds are 4, the whole would be 45


# Playlists: nothing that they name is opened


class Inotify:
    """Tells by inotify whether a file was opened."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        assert self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), 0x20) >= 0  # IN_OPEN

    def saw_it_opened(self) -> bool:
        try:
            return bool(os.read(self._descriptor, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)


@pytest.fixture
def bait(tmp_path: Path) -> Iterator[tuple[Path, Inotify]]:
    """A real sound, watched."""
    if sys.platform != "linux":
        pytest.skip("inotify is Linux's")
    path = tmp_path / "bait.wav"
    path.write_bytes(media.wav(media.sine(440, 0.5, 16_000), 16_000))
    watch = Inotify(path)
    yield path, watch
    watch.close()


@pytest.fixture
def web() -> Iterator[tuple[str, list[str]]]:
    """A server that serves a real sound, and the requests that reached it."""
    requests: list[str] = []
    body = media.wav(media.sine(440, 0.5, 16_000), 16_000)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/bait.wav", requests
        server.shutdown()
        thread.join()


PLAYLISTS = {
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile '{}'\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 45678 RTP/AVP 0\na=control:{}\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="0" mimeType="audio/wav"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
}
DISGUISES = {
    "WAV": b"RIFF\xff\0\0\0WAVE",
    "MP3": b"ID3\4\0\0\0\0\0\0",
    "MPEG frame": b"\xff\xfb\x90\0",
    "ADTS": b"\xff\xf1\x50\x80",
    "OGG": b"OggS",
    "FLAC": b"fLaC",
    "MP4": b"\0\0\0\x10ftypisom\0\0\0\0",
    "Matroska": b"\x1a\x45\xdf\xa3",
    "AVI": b"RIFF\xff\0\0\0AVI ",
    "GIF": b"GIF89a",
}


def refused(data: bytes) -> None:
    with pytest.raises((UnsupportedMedia, CorruptMedia, MediaTooLarge)):
        decoded(data)
    with pytest.raises((UnsupportedMedia, CorruptMedia, MediaTooLarge)):
        list(video.decode(data, VideoSpec(8, 32), Limits()))


def test_the_watch_sees_a_file_being_opened(bait: tuple[Path, Inotify]) -> None:
    path, watch = bait
    assert not watch.saw_it_opened()
    path.read_bytes()
    assert watch.saw_it_opened()


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_no_accepted_format(kind: str) -> None:
    with pytest.raises(UnsupportedMedia, match="M4A/AAC"):
        decoded(PLAYLISTS[kind].format("bait.wav").encode())


@pytest.mark.parametrize("kind", PLAYLISTS)
@pytest.mark.parametrize("disguise", ["", *DISGUISES])
def test_a_playlist_never_opens_the_file_it_names(kind: str, disguise: str, bait: tuple[Path, Inotify]) -> None:
    path, watch = bait
    for name in (str(path), f"file:{path}", f"file://{path}"):
        refused(DISGUISES.get(disguise, b"") + b"\n" * bool(disguise) + PLAYLISTS[kind].format(name).encode())
    assert not watch.saw_it_opened()


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_never_asks_the_network(kind: str, web: tuple[str, list[str]]) -> None:
    url, requests = web
    for disguise in (b"", *(each + b"\n" for each in DISGUISES.values())):
        refused(disguise + PLAYLISTS[kind].format(url).encode())
    assert requests == []


def atom(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", 8 + len(body)) + name + body


def alias(path: bytes) -> bytes:
    """A QuickTime data reference to a file outside, by absolute path and by name beside the movie."""
    record = bytes(10) + bytes([1]) + b"v".ljust(27, b"\0") + bytes(12)
    name = path.rsplit(b"/", 1)[-1]
    record += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    record += struct.pack(">hH", 2, len(path)) + path + bytes(len(path) % 2)
    record += struct.pack(">hH", 18, len(path)) + path + bytes(len(path) % 2)
    return atom(b"alis", bytes(4) + record + struct.pack(">hH", -1, 0) + bytes(64))


def grown(data: bytes, atoms: list[bytes], change: int) -> bytes:
    """Adds ``change`` to the size of each of the atoms."""
    for name in atoms:
        at = data.index(name) - 4
        size = int.from_bytes(data[at : at + 4], "big") + change
        data = data[:at] + struct.pack(">I", size) + data[at + 4 :]
    return data


@pytest.mark.parametrize("location", ["alias", "file URL", "HTTP URL"])
@pytest.mark.parametrize("container", ["mov", "mp4"])
def test_a_data_reference_to_another_file_is_not_followed(
    container: str, location: str, bait: tuple[Path, Inotify], web: tuple[str, list[str]]
) -> None:
    codec = "pcm_s16le" if container == "mov" else "aac"
    data = media.encoded_sound(media.sine(440, 0.3, 16_000), 16_000, container, codec)
    path, watch = bait
    urls = {"file URL": f"file://{path}", "HTTP URL": web[0]}
    outside = alias(bytes(path)) if location == "alias" else atom(b"url ", bytes(4) + urls[location].encode() + b"\0")
    at = data.rindex(b"dref") + 4 + 8
    assert data.index(b"mdat") < at  # the samples come first, so their offsets stay
    size = int.from_bytes(data[at : at + 4], "big")
    forged = data[:at] + outside + data[at + size :]
    forged = grown(forged, [b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"], len(outside) - size)
    with contextlib.suppress(CorruptMedia):
        decoded(forged)
    assert not watch.saw_it_opened()
    assert web[1] == []


def test_other_files_are_refused_with_the_accepted_formats() -> None:
    for data in (b"", b"hello", b"MThd\0\0\0\6", media.picture(media.smooth(8, 8), "PNG")):
        with pytest.raises(UnsupportedMedia) as refusal:
            decoded(data)
        assert "WAV, FLAC, OGG (Vorbis, Opus), MP3, M4A/AAC or WebM" in refusal.value.detail
        assert refusal.value.status == 415


# Estimates


def estimated(data: bytes, sample_rate_hz: int = 8000) -> float:
    return audio.decode_cost(data, AudioSpec(sample_rate_hz), Limits()).seconds


@pytest.mark.parametrize("kind", ["u8", "s16", "s24", "s32", "f32", "f64"])
def test_a_short_uncompressed_wav_is_estimated_from_its_header(kind: str) -> None:
    half, double = (media.wav(media.sine(440, seconds, 8000), 8000, kind) for seconds in (0.5, 1.0))
    assert 0.0005 < estimated(half) < estimated(double) < 0.0025


def with_tags(data: bytes, *, behind: bool) -> bytes:
    """A few hundred tags more in a WAV, between its format and its samples or at its end."""
    tags = b"INFO" + b"".join(f"{number:04}".encode() + b"\2\0\0\0x\0" for number in range(300))
    at = len(data) if behind else data.index(b"data")
    return data[:at] + b"LIST" + len(tags).to_bytes(4, "little") + tags + data[at:]


def test_few_tags_in_a_wav_do_not_matter() -> None:
    data = media.wav(media.sine(440, 0.5, 8000), 8000)
    at = data.index(b"data")
    tagged = data[:at] + b"LIST\x0e\0\0\0INFOISFT\2\0\0\0x\0" + data[at:]
    assert estimated(data) < estimated(tagged) < 0.0025


def test_the_estimate_counts_the_samples_made_beside_the_bytes_read() -> None:
    sound = media.wav(media.sine(440, 5, 8000), 8000)
    assert estimated(sound) < 0.0025
    assert estimated(sound, 48_000) > 0.0025
    assert 0.008 < estimated(media.wav(media.sine(440, 60, 8000), 8000)) < math.inf


@pytest.mark.parametrize(
    "data",
    [
        media.encoded_sound(media.sine(440, 0.5, 8000), 8000, "wav", "pcm_alaw"),
        media.encoded_sound(media.sine(440, 0.5, 44_100), 44_100, "flac", "flac"),
        media.wav(media.sine(440, 0.5, 8000), 8000)[:20],
        media.wav(media.sine(440, 0.5, 8000), 8000)[:22] + bytes(1000),
        with_tags(media.wav(media.sine(440, 0.5, 8000), 8000), behind=False),
        with_tags(media.wav(media.sine(440, 0.5, 8000), 8000), behind=True),
        b"",
    ],
    ids=["A-law", "FLAC", "truncated", "no rate", "tags before", "tags behind", "nothing"],
)
def test_other_sounds_are_not_estimated(data: bytes) -> None:
    assert estimated(data) == math.inf
