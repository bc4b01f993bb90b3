"""What a file is, by its first bytes. Content types and file names are claims; these are what decoders act on."""

from service.errors import UnsupportedMedia

IMAGES = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
SOUNDS = ("WAV", "FLAC", "OGG", "MP3", "AAC", "MP4", "Matroska")
CLIPS = ("MP4", "Matroska", "AVI", "GIF")
ACCEPTED = {
    "image": "JPEG, PNG, WebP, GIF, BMP or TIFF",
    "audio": "WAV, FLAC, OGG (Vorbis, Opus), MP3, M4A/AAC or WebM",
    "video": "MP4, MOV, WebM, MKV, AVI or GIF",
}
_FORMATS = {"image": IMAGES, "audio": SOUNDS, "video": CLIPS}
_PICTURE_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")


def recognise(head: bytes) -> str | None:
    """The name of the format that the first 64 bytes belong to, or None."""
    if head.startswith((b"RIFF", b"RF64")):
        return {b"WAVE": "WAV", b"WEBP": "WebP", b"AVI ": "AVI"}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return "HEIF" if head[8:12] in _PICTURE_BRANDS else "MP4"
    if head[4:8] in _QUICKTIME_ATOMS:
        return "MP4"
    for magic, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF87a", "GIF"),
        (b"GIF89a", "GIF"),
        (b"BM", "BMP"),
        (b"II*\0", "TIFF"),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (b"fLaC", "FLAC"),
        (b"OggS", "OGG"),
        (b"ID3", "MP3"),
        (b"\x1a\x45\xdf\xa3", "Matroska"),
        (b"%PDF", "PDF"),
    ):
        if head.startswith(magic):
            return name
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:  # an MPEG audio frame; layer 0 is ADTS, so AAC
        return "AAC" if head[1] & 0x06 == 0 else "MP3"
    return None


def accepted_format(data: bytes, media: str) -> str:
    """The format of ``data``, where ``media`` (image, audio, video) accepts it. Raises ``UnsupportedMedia``."""
    found = recognise(data[:64])
    if found in _FORMATS[media]:
        return found
    what = f"this is {found}" if found else "the bytes are of no known format"
    raise UnsupportedMedia(f"{what}; {media} is accepted as {ACCEPTED[media]}")
