"""Makes tiny models of Whisper's architecture that always say one text, in three formats.

    python tests/harness/tiny_whisper.py "thank you for calling" --ggml tiny.bin --ct2 folder --pt tiny.pt

No weights are downloaded or trained; what loads and runs them is the real thing: whisper.cpp
(`--ggml`, needs only numpy), CTranslate2 and faster-whisper (`--ct2`, needs ctranslate2 here),
openai-whisper (`--pt`, needs torch and whisper here). What is heard changes nothing: silence gets the
text, too, and each window of 30 s gets it once.

How it says it: all weights are zero but a few. The embedding of each token of the text is a unit
vector of its own. The decoder's only MLP detects that vector and adds the next token's, so that
the next token has by far the highest logit: a chain from <|startoftranscript|> to <|endoftext|>.
It has no memory, so no token may come twice in a text.
"""

import argparse
import itertools
import json
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_LANGUAGES = [
    "en",
    "zh",
    "de",
    "es",
    "ru",
    "ko",
    "fr",
    "ja",
    "pt",
    "tr",
    "pl",
    "ca",
    "nl",
    "ar",
    "sv",
    "it",
    "id",
    "hi",
    "fi",
    "vi",
    "he",
    "uk",
    "el",
    "ms",
    "cs",
    "ro",
    "da",
    "hu",
    "ta",
    "no",
    "th",
    "ur",
    "hr",
    "bg",
    "lt",
    "la",
    "mi",
    "ml",
    "cy",
    "sk",
    "te",
    "fa",
    "lv",
    "bn",
    "sr",
    "az",
    "sl",
    "kn",
    "et",
    "mk",
    "br",
    "eu",
    "is",
    "hy",
    "ne",
    "mn",
    "bs",
    "kk",
    "sq",
    "sw",
    "gl",
    "mr",
    "pa",
    "si",
    "km",
    "sn",
    "yo",
    "so",
    "af",
    "oc",
    "ka",
    "be",
    "tg",
    "sd",
    "gu",
    "am",
    "yi",
    "lo",
    "uz",
    "fo",
    "ht",
    "ps",
    "tk",
    "nn",
    "mt",
    "sa",
    "lb",
    "my",
    "bo",
    "tl",
    "mg",
    "as",
    "tt",
    "haw",
    "ln",
    "ha",
    "ba",
    "jw",
    "su",
]
_SPECIAL = (
    ["<|endoftext|>", "<|startoftranscript|>"]
    + [f"<|{language}|>" for language in _LANGUAGES]
    + ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    + ["<|notimestamps|>"]
    + [f"<|{0.02 * step:.2f}|>" for step in range(1501)]
)
_PLAIN = 50257  # tokens before the special ones, in every multilingual Whisper
_VOCABULARY = _PLAIN + len(_SPECIAL)
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))  # as GPT-2 has it
_MELS, _AUDIO, _TEXT, _HEADS = 80, 1500, 448, 2


@dataclass(frozen=True)
class Model:
    """A text as weights. `words` are the ids of the plain tokens, `state` the width."""

    words: tuple[int, ...]
    state: int
    weights: dict[str, Array]

    @property
    def dimensions(self) -> dict[str, int]:
        """openai-whisper's ModelDimensions."""
        return {
            "n_mels": _MELS,
            "n_audio_ctx": _AUDIO,
            "n_audio_state": self.state,
            "n_audio_head": _HEADS,
            "n_audio_layer": 1,
            "n_vocab": _VOCABULARY,
            "n_text_ctx": _TEXT,
            "n_text_state": self.state,
            "n_text_head": _HEADS,
            "n_text_layer": 1,
        }


def special(name: str) -> int:
    """Id of a token such as <|en|> or <|2.00|>. Raises ValueError."""
    return _PLAIN + _SPECIAL.index(name)


def vocabulary_of(text: str) -> tuple[list[bytes], tuple[int, ...]]:
    """A vocabulary of our own, each word of the text a token, and the text in it."""
    words = [f" {word}".encode() for word in text.split()]
    octets = [*_PRINTABLE, *(octet for octet in range(256) if octet not in _PRINTABLE)]
    tokens = [bytes([octet]) for octet in octets] + list(dict.fromkeys(words))
    ids = tuple(tokens.index(word) for word in words)
    tokens += [f" unused{number}".encode() for number in range(len(tokens), _PLAIN - 1)]
    # Whisper's last is empty, and CTranslate2 takes a model without it for an English-only one.
    return [*tokens, b""], ids


def scripted(
    words: Sequence[int], end_s: float = 2.0, later: Sequence[int] = (), later_s: float = 14.5
) -> Model:
    """The model that says these tokens, from 0 to `end_s` seconds (a multiple of 0.02).

    Then it says `later`, for half a second from `later_s` on. Raises ValueError when a token comes
    twice.
    """
    said = [*words, *later]
    if len(set(said)) != len(said) or not words:
        raise ValueError("each token may come once: use other words")
    start, end = special("<|0.00|>"), special(f"<|{end_s:.2f}|>")
    again, last = special(f"<|{later_s:.2f}|>"), special(f"<|{later_s + 0.5:.2f}|>")
    rest = [end, again, *later, last] if later else [end]
    chain = [
        (special("<|startoftranscript|>"), special("<|en|>")),
        (special("<|en|>"), special("<|transcribe|>")),
        (special("<|transcribe|>"), start),
        (special("<|translate|>"), start),
        (special("<|notimestamps|>"), words[0]),
        (start, words[0]),
        *itertools.pairwise(words),
        (words[-1], end),
        *itertools.pairwise(rest),
        (rest[-1], special("<|endoftext|>")),
    ]
    tokens = list(dict.fromkeys(token for link in chain for token in link))
    state = -(-max(len(tokens), 16) // 16) * 16
    weights = _silent(state)
    place = {token: number for number, token in enumerate(tokens)}
    for token, number in place.items():
        weights["decoder.token_embedding.weight"][token, number] = 5.0
    # After layer norm the token's own coordinate is sqrt(state - 1), and all others are below 0.
    peak = np.sqrt(state - 1)
    detect = np.arange(state)
    weights["decoder.blocks.0.mlp.0.weight"][detect, detect] = 8.0
    weights["decoder.blocks.0.mlp.0.bias"][detect] = -8.0 * peak / 2
    for token, following in chain:
        weights["decoder.blocks.0.mlp.2.weight"][place[following], place[token]] = 12.0
    return Model(tuple(said), state, weights)


def _silent(state: int) -> dict[str, Array]:
    """All tensors, by openai-whisper's names; none has any influence on the text."""
    random = np.random.default_rng(0)

    def zeros(*shape: int) -> Array:
        return np.zeros(shape, np.float32)

    def some(*shape: int) -> Array:
        return 0.3 * random.standard_normal(shape, dtype=np.float32)

    weights = {
        "encoder.conv1.weight": some(state, _MELS, 3),
        "encoder.conv1.bias": zeros(state),
        "encoder.conv2.weight": some(state, state, 3),
        "encoder.conv2.bias": zeros(state),
        "encoder.positional_embedding": some(_AUDIO, state),
        "encoder.ln_post.weight": np.ones(state, np.float32),
        "encoder.ln_post.bias": zeros(state),
        "decoder.token_embedding.weight": zeros(_VOCABULARY, state),
        "decoder.positional_embedding": zeros(_TEXT, state),
        "decoder.ln.weight": np.ones(state, np.float32),
        "decoder.ln.bias": zeros(state),
    }
    for side in ("encoder", "decoder"):
        block = f"{side}.blocks.0"
        for attention in ("attn",) if side == "encoder" else ("attn", "cross_attn"):
            for part in ("query", "key", "value", "out"):
                # Word times need attention that is not the same everywhere; with values of zero
                # it adds nothing.
                looks = attention == "cross_attn" and part in ("query", "key")
                make = some if looks else zeros
                weights[f"{block}.{attention}.{part}.weight"] = make(state, state)
                if part != "key":
                    weights[f"{block}.{attention}.{part}.bias"] = zeros(state)
            weights[f"{block}.{attention}_ln.weight"] = np.ones(state, np.float32)
            weights[f"{block}.{attention}_ln.bias"] = zeros(state)
        weights[f"{block}.mlp_ln.weight"] = np.ones(state, np.float32)
        weights[f"{block}.mlp_ln.bias"] = zeros(state)
        weights[f"{block}.mlp.0.weight"] = zeros(4 * state, state)
        weights[f"{block}.mlp.0.bias"] = zeros(4 * state)
        weights[f"{block}.mlp.2.weight"] = zeros(state, 4 * state)
        weights[f"{block}.mlp.2.bias"] = zeros(state)
    return weights


def write_ggml(model: Model, tokens: Sequence[bytes], path: Path) -> None:
    """whisper.cpp's file: header, mel filters, vocabulary, tensors; little-endian."""
    full = {"encoder.positional_embedding", "decoder.positional_embedding"}
    with path.open("wb") as file:
        file.write(struct.pack("<I", 0x67676D6C))
        file.write(struct.pack("<10i", *(model.dimensions[name] for name in _GGML_HEADER)))
        file.write(struct.pack("<i", 1))  # matrices in 16-bit floats
        filters = _mel_filters()
        file.write(struct.pack("<2i", *filters.shape) + filters.tobytes())
        file.write(struct.pack("<i", len(tokens)))
        for token in tokens:
            file.write(struct.pack("<i", len(token)) + token)
        for name, tensor in model.weights.items():
            shaped = (
                tensor.reshape(-1, 1) if name.endswith(("conv1.bias", "conv2.bias")) else tensor
            )
            half = tensor.ndim > 1 and name not in full
            file.write(struct.pack("<3i", shaped.ndim, len(name), int(half)))
            file.write(struct.pack(f"<{shaped.ndim}i", *reversed(shaped.shape)))
            file.write(name.encode() + shaped.astype("<f2" if half else "<f4").tobytes())


_GGML_HEADER = (
    "n_vocab",
    "n_audio_ctx",
    "n_audio_state",
    "n_audio_head",
    "n_audio_layer",
    "n_text_ctx",
    "n_text_state",
    "n_text_head",
    "n_text_layer",
    "n_mels",
)


def _mel_filters() -> Array:
    """Triangles over the 201 bins of a 400-point transform, shape (80, 201)."""
    edges = 700 * (10 ** (np.linspace(0, 2840, _MELS + 2) / 2595) - 1)  # 0..8 kHz, mel apart
    bins = np.linspace(0, 8000, 201)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall)).astype(np.float32)


def write_ctranslate2(model: Model, tokens: Sequence[bytes], folder: Path) -> None:
    """A folder as faster-whisper takes it. Needs ctranslate2."""
    from ctranslate2.specs import whisper_spec

    weights = model.weights
    spec = whisper_spec.WhisperSpec(1, _HEADS, 1, _HEADS)

    def norm(layer: Any, name: str) -> None:
        layer.gamma, layer.beta = weights[f"{name}.weight"], weights[f"{name}.bias"]

    def linear(layer: Any, *names: str) -> None:
        layer.weight = np.concatenate([weights[f"{name}.weight"] for name in names])
        nothing = np.zeros(model.state, np.float32)  # keys have no bias
        layer.bias = np.concatenate([weights.get(f"{name}.bias", nothing) for name in names])

    for side, stack in (("encoder", spec.encoder), ("decoder", spec.decoder)):
        layer, block = stack.layer[0], f"{side}.blocks.0"
        inner = [f"{block}.attn.{part}" for part in ("query", "key", "value")]
        linear(layer.self_attention.linear[0], *inner)
        linear(layer.self_attention.linear[1], f"{block}.attn.out")
        norm(layer.self_attention.layer_norm, f"{block}.attn_ln")
        if side == "decoder":
            outer = f"{block}.cross_attn"
            linear(layer.attention.linear[0], f"{outer}.query")
            linear(layer.attention.linear[1], f"{outer}.key", f"{outer}.value")
            linear(layer.attention.linear[2], f"{outer}.out")
            norm(layer.attention.layer_norm, f"{outer}_ln")
        linear(layer.ffn.linear_0, f"{block}.mlp.0")
        linear(layer.ffn.linear_1, f"{block}.mlp.2")
        norm(layer.ffn.layer_norm, f"{block}.mlp_ln")
        stack.position_encodings.encodings = weights[f"{side}.positional_embedding"]
    for number in (1, 2):
        conv = getattr(spec.encoder, f"conv{number}")
        conv.weight = weights[f"encoder.conv{number}.weight"]
        conv.bias = weights[f"encoder.conv{number}.bias"]
    norm(spec.encoder.layer_norm, "encoder.ln_post")
    norm(spec.decoder.layer_norm, "decoder.ln")
    spec.decoder.embeddings.weight = weights["decoder.token_embedding.weight"]
    spec.decoder.projection.weight = weights["decoder.token_embedding.weight"]
    spec.decoder.scale_embeddings = False
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = [special("<|endoftext|>")]
    spec.config.lang_ids = [special(f"<|{language}|>") for language in _LANGUAGES]
    spec.config.alignment_heads = [[0, head] for head in range(_HEADS)]
    written = [_visible(token) for token in tokens]
    spec.register_vocabulary(written + _SPECIAL)
    spec.validate()
    spec.optimize()
    folder.mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))
    _write_tokenizer(written, folder / "tokenizer.json")


def make_ctranslate2(folder: Path, text: str, end_s: float = 2.0) -> Path:
    """Write a model that says `text` into `folder`, for CTranslate2; returns the folder."""
    tokens, words = vocabulary_of(text)
    write_ctranslate2(scripted(words, end_s), tokens, folder)
    return folder


def _write_tokenizer(tokens: Sequence[str], path: Path) -> None:
    """The file of Hugging Face's tokenizers: byte-level BPE without merges."""
    level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    first_time = _SPECIAL.index("<|0.00|>")
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": _PLAIN + number,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": number < first_time,
            }
            for number, name in enumerate(_SPECIAL)
        ],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [],
        },
    }
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


@lru_cache
def _letters() -> dict[int, str]:
    """GPT-2's way to write octets: printable ones as they are, the rest from U+0100 on."""
    others = [octet for octet in range(256) if octet not in _PRINTABLE]
    table = {octet: chr(octet) for octet in _PRINTABLE}
    return table | {octet: chr(256 + number) for number, octet in enumerate(others)}


def _visible(token: bytes) -> str:
    letters = _letters()
    return "".join(letters[octet] for octet in token)


def write_openai(text: str, path: Path, end_s: float, later: str = "") -> None:
    """A checkpoint of openai-whisper, whose own vocabulary it must use. Needs torch, whisper."""
    import torch
    from whisper.tokenizer import get_tokenizer

    tokenizer = get_tokenizer(True, num_languages=len(_LANGUAGES))
    model = scripted(
        tokenizer.encode(f" {text}"), end_s, tokenizer.encode(f" {later}") if later else ()
    )
    state = {name: torch.from_numpy(tensor) for name, tensor in model.weights.items()}
    torch.save({"dims": model.dimensions, "model_state_dict": state}, path)


def main() -> int:
    """See `--help`; exit code 2 for a text that cannot be said."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", help="what the model says")
    parser.add_argument("--end", type=float, default=2.0, help="when the text ends, seconds")
    parser.add_argument("--later", default="", help="what it says at 14.5 s (only --pt)")
    parser.add_argument("--ggml", type=Path, help="file for whisper.cpp")
    parser.add_argument("--ct2", type=Path, help="folder for CTranslate2 and faster-whisper")
    parser.add_argument("--pt", type=Path, help="file for openai-whisper")
    wanted = parser.parse_args()
    tokens, words = vocabulary_of(wanted.text)
    try:
        model = scripted(words, wanted.end)
        if wanted.pt is not None:
            write_openai(wanted.text, wanted.pt, wanted.end, wanted.later)
    except ValueError as error:
        parser.error(str(error))
    if wanted.ggml is not None:
        write_ggml(model, tokens, wanted.ggml)
    if wanted.ct2 is not None:
        write_ctranslate2(model, tokens, wanted.ct2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
