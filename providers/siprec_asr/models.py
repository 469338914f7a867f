"""Which models there are, where their files lie, and how one is loaded."""

from collections.abc import Callable
from pathlib import Path

import structlog

from siprec_asr.device import Device
from siprec_asr.engine import Engine, FasterWhisper, Standin
from siprec_asr.errors import Refused
from siprec_asr.settings import Settings

log = structlog.get_logger()

STANDIN = "standin"


class ModelShelf:
    """Names to engines. What a client may name: models of ASR_MODELS_DIR and the known sizes.

    The operator's own settings may name any folder and any repository besides.
    """

    def __init__(self, settings: Settings, device: Device, known: Callable[[], list[str]]) -> None:
        self._settings = settings
        self._device = device
        self._known = known
        self._trusted = {settings.model, *settings.preload}
        self._root = settings.models_dir.resolve() if settings.models_dir else None

    def name(self, wanted: str) -> str:
        """The one name of a model, however it was asked for. Raises Refused (404)."""
        if wanted == STANDIN or wanted in self._trusted:
            return wanted
        folder = self._local(wanted)
        if folder is not None and self._root is not None:
            return str(folder.relative_to(self._root))
        if wanted in self._known():
            return wanted
        raise Refused(404, "unknown_model", f"there is no model {wanted!r}; see /v1/models")

    def names(self) -> list[str]:
        """Models on this machine, and those that the settings name."""
        local: set[str] = set()
        if self._root is not None:
            local = {
                str(one.parent.relative_to(self._root)) for one in self._root.glob("*/model.bin")
            }
        return sorted(local | self._trusted)

    def size(self, name: str) -> int:
        """Memory that it will need, in octets: an estimate on the safe side.

        Fetches the model when it is not here. Raises Refused (503).
        """
        if name == STANDIN:
            return 0
        stored = (self._folder(name) / "model.bin").stat().st_size
        # Stored as float16 as a rule; smaller types share the room with buffers.
        return stored * 2 if self._device.compute_type == "float32" else stored

    def load(self, name: str) -> Engine:
        """Load and warm up. Raises Refused (503)."""
        if name == STANDIN:
            return Standin()
        return FasterWhisper(
            name,
            self._folder(name),
            self._device,
            cpu_threads=self._settings.cpu_threads,
            workers=self._settings.workers,
            memory=self.size(name),
        )

    def _local(self, wanted: str) -> Path | None:
        if self._root is None or not wanted or "\0" in wanted:
            return None
        try:
            folder = (self._root / wanted).resolve()
            inside = folder.is_relative_to(self._root) and (folder / "model.bin").is_file()
        except OSError:  # a name too long, a loop of links
            return None
        return folder if inside else None

    def _folder(self, name: str) -> Path:
        folder = self._local(name)
        if folder is not None:
            return folder
        if name in self._trusted and (Path(name) / "model.bin").is_file():
            return Path(name)
        if name.startswith(("/", ".")):
            raise Refused(503, "model_failed", f"{name}: no model.bin in this folder")
        from faster_whisper.utils import download_model

        try:
            return Path(download_model(name, local_files_only=not self._settings.download))
        except Exception as error:
            # huggingface_hub raises its own, its HTTP library's and OSErrors; none is ours to mend.
            log.warning("model.fetch_failed", model=name, cause=str(error))
            first = str(error).partition("\n")[0]
            raise Refused(
                503, "model_unavailable", f"{name} is not on this machine and not to be had: {first}",
                retry_after=60,
            ) from error  # fmt: skip
