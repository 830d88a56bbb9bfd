"""Records to gradients."""

import logging

# On a CPU with avx512_bf16 bitsandbytes says that a kernel could not be fetched and names a package to install. The kernel has no
# backward and is switched off here (`quantize.py`); whoever followed the advice would fetch code at every start for nothing.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
