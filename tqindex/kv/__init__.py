"""The KV cache of a language model on the index's codec, for Hugging Face transformers.

    from tqindex.kv import TurboQuantCache

    cache = TurboQuantCache(model.config, key_bits=4, value_bits=4)
    model.generate(**inputs, past_key_values=cache)

Importing this module loads torch and transformers, which the extra `kv` brings.
"""

from tqindex.kv.attention import ATTENTION
from tqindex.kv.cache import TurboQuantCache
from tqindex.kv.enable import disable_turbo_quant, enable_turbo_quant
from tqindex.kv.layer import TurboQuantLayer
from tqindex.kv.retrieve import LayerKeys

__all__ = ["ATTENTION", "LayerKeys", "TurboQuantCache", "TurboQuantLayer", "disable_turbo_quant", "enable_turbo_quant"]
