"""A tokenizer as text, for the `tokenizers` library alone: it cuts captions as training did."""

from __future__ import annotations

import json

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from fastt2i.text.encoder import TextEncoder

#: `fastt2i.text.normalize.separate_words` in rules of the library: each pattern, and what takes its place.
_SEPARATE_WORDS = (
    ("\u00ad", ""),
    (Regex(r"\x{fffd}|(?![\x{200c}\x{200d}])\p{Cf}"), " "),
    # Joiners outside words of the scripts that need them, and outside emoji.
    (Regex(r"(?<![\p{L}\p{M}\p{S}&&[\x{590}-\x{10ffff}]])[\x{200c}\x{200d}]"), " "),
)
#: Pictographs with what may follow them. They are cut from words, not parted by spaces: the library replaces no empty
#: match (at the end of a text it crashes).
_EMOJI = Regex(
    r"[\x{2600}-\x{27bf}\x{2b00}-\x{2bff}\x{1f000}-\x{1faff}]"
    r"[\x{2600}-\x{27bf}\x{2b00}-\x{2bff}\x{1f000}-\x{1faff}\x{fe0e}\x{fe0f}\x{20e3}\x{200d}]*"
)


def portable_tokenizer(encoder: TextEncoder) -> str:
    """The text of a `tokenizer.json`: captions go in as people write them, and come out padded and cut off.

    Unlike the file that came with the language model it parts words as `separate_words` does, pads a batch on the
    right, and cuts off at the longest caption that the encoder reads. Emoji in a row are one word here, and several in
    training.
    """
    tokenizer = Tokenizer.from_str(encoder.tokenizer.backend.to_str())
    rules = [normalizers.Replace(pattern, content) for pattern, content in _SEPARATE_WORDS]
    tokenizer.normalizer = normalizers.Sequence([*rules, *filter(None, [tokenizer.normalizer])])
    emoji = pre_tokenizers.Split(_EMOJI, "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([emoji, *filter(None, [tokenizer.pre_tokenizer])])
    tokenizer.enable_truncation(max_length=encoder.tokenizer.longest)
    padding = encoder.tokenizer.padding
    tokenizer.enable_padding(direction="right", pad_id=padding, pad_token=tokenizer.id_to_token(padding) or "")
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, separators=(",", ":"))
