import pytest

from service.errors import UnsupportedMedia
from service.media.formats import ACCEPTED, accepted_format, recognise
from tests import synthetic as media

PICTURE = media.smooth(16, 16)
SOUND = media.sine(440, 0.1, 48_000, (0.5, 0.5))
CLIP = media.numbered(2, 32, 32)
FILES: dict[str, tuple[str, bytes]] = {
    "JPEG": ("JPEG", media.picture(PICTURE, "JPEG")),
    "JPEG with EXIF": ("JPEG", media.picture(PICTURE, "JPEG", exif=media.orientation(6))),
    "MPO": ("JPEG", media.picture(PICTURE, "MPO")),
    "PNG": ("PNG", media.picture(PICTURE, "PNG")),
    "WebP": ("WebP", media.picture(PICTURE, "WEBP")),
    "GIF": ("GIF", media.picture(PICTURE, "GIF")),
    "GIF87a": ("GIF", b"GIF87a\1\0\1\0"),
    "BMP": ("BMP", media.picture(PICTURE, "BMP")),
    "TIFF": ("TIFF", media.picture(PICTURE, "TIFF")),
    "big-endian TIFF": ("TIFF", b"MM\0*\0\0\0\x08"),
    "BigTIFF": ("TIFF", media.picture(PICTURE, "TIFF", big_tiff=True)),
    "AVIF": ("HEIF", media.picture(PICTURE, "AVIF")),
    "HEIC": ("HEIF", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
    "PDF": ("PDF", media.picture(PICTURE, "PDF")),
    "WAV": ("WAV", media.wav(SOUND, 48_000)),
    "RF64": ("WAV", b"RF64\xff\xff\xff\xffWAVEds64"),
    "FLAC": ("FLAC", media.encoded_sound(SOUND, 48_000, "flac", "flac")),
    "Opus": ("OGG", media.encoded_sound(SOUND, 48_000, "ogg", "libopus")),
    "MP3": ("MP3", media.encoded_sound(SOUND, 48_000, "mp3", "libmp3lame")),
    "MP3 without a tag": ("MP3", media.encoded_sound(SOUND, 48_000, "mp3", "libmp3lame", id3v2_version="0")),
    "ADTS": ("AAC", media.encoded_sound(SOUND, 48_000, "adts", "aac")),
    "M4A": ("MP4", media.encoded_sound(SOUND, 48_000, "ipod", "aac")),
    "MP4": ("MP4", media.clip(CLIP)),
    "MOV": ("MP4", media.clip(CLIP, "mov")),
    "old QuickTime": ("MP4", b"\0\0\0\x08wide\0\0\0\x08mdat"),
    "WebM": ("Matroska", media.clip(CLIP, "webm", "libvpx-vp9")),
    "MKV": ("Matroska", media.clip(CLIP, "matroska")),
    "AVI": ("AVI", media.clip(CLIP, "avi", "mpeg4")),
}
TAKEN = {
    "image": {"JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF"},
    "audio": {"WAV", "FLAC", "OGG", "MP3", "AAC", "MP4", "Matroska"},
    "video": {"MP4", "Matroska", "AVI", "GIF"},
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_real_encoders_are_recognised_by_their_first_bytes(name: str) -> None:
    expected, data = FILES[name]
    assert recognise(data[:64]) == expected


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"RIFF",
        b"RIFF\0\0\0\0",
        b"RIFF\0\0\0\0sfbk",
        b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"<?xml version='1.0'?><MPD/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"\0\0\1\0\1\0\x10\x10",
        b"PK\3\4",
        b"\x7fELF\2\1\1",
        b"MThd\0\0\0\6",
        b"\x47\x40\0\x10" + bytes(184),
        b"FLV\1",
        b"8BPS\0\1",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"some text that is nothing else",
    ],
)
def test_what_is_none_of_the_formats_is_not_recognised(data: bytes) -> None:
    assert recognise(data[:64]) is None


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("name", FILES)
def test_each_kind_of_media_takes_its_own_formats_and_names_them_to_the_others(name: str, kind: str) -> None:
    format, data = FILES[name]
    if format in TAKEN[kind]:
        assert accepted_format(data, kind) == format
    else:
        with pytest.raises(UnsupportedMedia) as refusal:
            accepted_format(data, kind)
        assert refusal.value.detail == f"this is {format}; {kind} is accepted as {ACCEPTED[kind]}"
        assert refusal.value.status == 415


@pytest.mark.parametrize("kind", TAKEN)
def test_unknown_bytes_are_refused_with_what_is_accepted(kind: str) -> None:
    with pytest.raises(UnsupportedMedia, match="no known format"):
        accepted_format(b"nothing that is known", kind)
