"""agentalign as on a processor without bfloat16 products: all is computed in fp32, where the order of a sum hardly matters.

The hardware's answer is replaced, and nothing of ours: what is asked of it stays as it is.
"""

import sys

import torch

torch.cpu._is_avx512_bf16_supported = lambda: False
torch.cpu._is_amx_tile_supported = lambda: False

if __name__ == "__main__":
    from agentalign.cli import main

    sys.exit(main())
