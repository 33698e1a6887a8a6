"""A sentencepiece model as a tokenizer.json.

The parts are those of the tokenizers library, put together as the model's own specification says (transformers'
SpmConverter supposes one normalization, one prefix and no byte fallback for all models); a BPE model's merges are found
by transformers. What comes out has to give the model's ids on a probe text, or it is not used.
"""

from __future__ import annotations

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from latentpt.config import ConfigError
from latentpt.data.tokenizer import Tokenizer

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# Kinds of models (TrainerSpec.ModelType) and of pieces (ModelProto.SentencePiece.Type).
_UNIGRAM, _BPE = 1, 2
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5

_PROBE = (
    "Call me Ishmael. Some years ago - never mind how long precisely - having 1,234.50 dollars in my purse...",
    "  two spaces  before,   three inside, two after  ",
    " ",
    "",
    "one line\nanother\n\n\tan indented one\r\n    def f(x):\n        return x ** 2  # 50%",
    "naïve café, Ärger, Łódź, ﬁne ligature, ½ and ２０２４, “quoted” – dash…",  # noqa: RUF001
    "Привет, мир. 你好，世界。こんにちは、カタカナ。안녕하세요. שלום مرحبا हिन्दी",  # noqa: RUF001
    "\U0001f600\U0001f680 \u2028 \x07 \xa0 e\u0301",
)


def to_tokenizers(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """The sentencepiece model of `tokenizer` (its `path` is a .model file) in the form that tokenizer.json holds.

    Control pieces become special tokens, which a Hugging Face tokenizer also finds written out in a text. Any other text
    gives the same ids, except where two segmentations are equally likely to a unigram model (.. and . or . and ..): which
    one is taken is a matter of rounding there. Raises ConfigError, in one sentence, for a model of which that cannot be said.
    """
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(tokenizer.path.read_bytes())
    if any(piece.type == _UNUSED for piece in proto.pieces):
        raise ConfigError(f"{tokenizer.path}: has unused pieces, which tokenizer.json cannot express")
    converted = tokenizers.Tokenizer(_model(proto, tokenizer))
    converted.normalizer = _normalizer(proto.normalizer_spec)
    if not any(_SPACE in piece.piece[1:] for piece in proto.pieces):
        # No piece spans words, so cutting the text into them changes nothing and is faster.
        converted.pre_tokenizer = pre_tokenizers.Split(_SPACE, "merged_with_next")
    converted.decoder = _decoder(proto)
    converted.add_tokens(
        [
            AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
            for piece in proto.pieces
            if piece.type == _CONTROL
            or (piece.type == _USER_DEFINED and proto.trainer_spec.model_type == _BPE)
        ]
    )
    _compare(converted, tokenizer, [p.piece for p in proto.pieces if p.type == _USER_DEFINED])
    return converted


def _model(proto: sentencepiece_model_pb2.ModelProto, tokenizer: Tokenizer) -> models.Unigram | models.BPE:
    trainer = proto.trainer_spec
    if trainer.model_type == _UNIGRAM:
        best = max(piece.score for piece in proto.pieces if piece.type == _NORMAL)
        scores = [
            # what sentencepiece gives a user's symbol so that it is always chosen
            (p.piece, len(p.piece.encode()) * best - 0.1 if p.type == _USER_DEFINED else p.score)
            for p in proto.pieces
        ]
        return models.Unigram(scores, unk_id=trainer.unk_id, byte_fallback=trainer.byte_fallback)
    if trainer.model_type != _BPE:
        kind = trainer.ModelType.Name(trainer.model_type).lower()
        raise ConfigError(
            f"{tokenizer.path}: is a {kind} model; tokenizer.json has unigram and bpe of sentencepiece's"
        )
    try:
        from transformers.convert_slow_tokenizer import generate_merges
    except ImportError:
        raise ConfigError(
            f"{tokenizer.path}: finding a BPE model's merges needs transformers; pip install -c constraints.txt -e '.[hub]'"
        ) from None
    ids = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    normal = [piece for piece in proto.pieces if piece.type == _NORMAL]
    merges = generate_merges(
        {piece.piece: ids[piece.piece] for piece in normal}, [(piece.piece, piece.score) for piece in normal]
    )
    return models.BPE(
        ids, merges, unk_token=trainer.unk_piece, fuse_unk=True, byte_fallback=trainer.byte_fallback
    )


def _normalizer(spec: sentencepiece_model_pb2.NormalizerSpec) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", _SPACE))
    return normalizers.Sequence(steps)


def _decoder(proto: sentencepiece_model_pb2.ModelProto) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(_SPACE, " ")]
    if proto.trainer_spec.byte_fallback:
        steps.append(decoders.ByteFallback())
    steps.append(decoders.Fuse())
    if proto.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _compare(converted: tokenizers.Tokenizer, tokenizer: Tokenizer, symbols: list[str]) -> None:
    """Raise ConfigError with the first text of the probe that gets other ids than the model's."""
    texts = list(_PROBE)
    texts += [text for symbol in symbols[:100] for text in (symbol, f"a{symbol}b", f"one {symbol} two")]
    for text in texts:
        if converted.encode(text, add_special_tokens=False).ids != tokenizer.encode(text):
            raise ConfigError(f"{tokenizer.path}: its tokenizer.json would read {text!r} as other ids")
