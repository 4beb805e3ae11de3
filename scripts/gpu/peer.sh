#!/usr/bin/env bash
# PyTorch on the work of bench.mjs, with what torch_peer.py is told; skipped (75) without it.
if ! python3 -c 'import torch, timm; raise SystemExit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "no PyTorch with a GPU and timm"
  exit 75
fi
python3 scripts/gpu/torch_peer.py "$@"
