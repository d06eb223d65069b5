"""A tokenizer of 30 letters, for models that are random or pretended."""

from typing import ClassVar

EOS = 2


class Special(str):
    special = True


class Letters:
    """A tokenizer of 30 letters; token 2 ends a text, and token 5 is another special token."""

    added_tokens_decoder: ClassVar = {5: Special("<five>")}
    unk_token_id = unk_token = None

    def __init__(self, pad_token_id=0, eos_token_id=EOS):
        self.pad_token_id, self.eos_token_id = pad_token_id, eos_token_id

    def convert_tokens_to_ids(self, token):
        return ord(token) - 97

    def decode(self, tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False):
        special = (0, 1, EOS) if skip_special_tokens else ()
        return "".join(chr(97 + token) for token in tokens if token not in special)
