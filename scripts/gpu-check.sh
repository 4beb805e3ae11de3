#!/usr/bin/env bash
# Everything of the CUDA backend that only a GPU can show, in one command on a machine that has one and little else.
#
#   scripts/gpu-check.sh --pack                    here: builds, and packs into .gpu-check/ what such a machine lacks
#   scripts/gpu-check.sh [--stage A,B] [--out DIR] there: unpacks, runs the stages, prints a table last
#   ... --continue DIR                             with what an earlier call has left in DIR, where --out begins empty: table and logs go
#                                                  into --out, and its stages go on from there
#   ... --rehearse                                 the same on a few small images and without time limits: where the
#                                                  driver is the one without a GPU, to see that every stage runs
#   ... --any-pack                                 with an archive of other sources than lie here, which is refused else;
#                                                  the table says so
#
#   smoke      driver, GPU, each instruction that kernels have         fails where there is no GPU, or no answer in time
#   kernels    the kernel tests, launched through the driver          against float64
#   shapes     every layer shape of the models at its real size       op by op, against float64 on the GPU
#   model      whole steps beside the CPU backend; logits of photos
#   bench      training and inference, images/s; the longest ops; kernels by the table
#   peer       PyTorch on the same work
#   memcheck   kernel tests under compute-sanitizer, for wrong addresses
#   counters   hardware counters of a step's kernels
#   layers     the layers of B0 and V2-S on small images              op by op as in a step, against float64
# Stages are partial where their time ends before their work: bench, peer and tuned with what they had time for; shapes, chosen, rows,
# memcheck, racecheck and peers go on in a later call with the same DIR, or with --continue, on a GPU of the same name and driver. All but
# peers, and the kernels that tuned has chosen, want the same archive, too: with another they begin again.
# A second call, --stage second (or by name), has the rest of shapes and what the first has no time for:
#   libraries  convolutions and matrix products by cuDNN and cuBLASLt, wherever they can; against float64
#   chosen     as shapes, by the libraries where a plan would take them
#   rows       every graph that the table of cuDNN has             numbers against float64; the GPU as cuDNN describes it
#   finetune   a training run on the photos of models/demo, its accuracy beside the CPU's
#   decode     photos decoded by nvJPEG beside those that the CPU decodes
#   tuned      bench with measured kernels, PyTorch's anchor beside it
#   racecheck  kernel tests under compute-sanitizer's search for races
# By name alone:
#   curves     the loss of 500 steps in 16 bit beside FP32's
# A call of its own, --stage peers [--from N]: PyTorch compiled in every mode on the work of bench, from case N on; what an earlier call
# has measured is not measured again.
#
# Each stage is a process of its own under a time limit, which is the longer the fewer stages are named; the script ends by itself after
# 540 s. Results come into DIR (default gpu-check-results): table.txt, to which calls append, and logs.tar.gz, the last log of each stage
# and what its programs say. `node scripts/gpu/results.mjs DIR` puts the figures into bench/results/gpu (`--peers DIR2`, also several
# times: beside PyTorch's fastest mode in those calls).
#
# Exit code: 0 all passed, 64 wrong words, 66 no archive, 69 no GPU, 1 otherwise: something failed, had no end in time (timeout) or no time
# at all (untried). What is skipped, for want of a tool or a library, or partial is no failure: the table says it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
pack=.gpu-check
stages=smoke,kernels,shapes,model,bench,peer,memcheck,counters,layers
out=gpu-check-results
from=0
before=
any_pack=0
library_folders=(lib build/Release) # of the archive
known=smoke,kernels,shapes,model,bench,peer,memcheck,counters,layers,libraries,chosen,rows,finetune,decode,tuned,racecheck,curves,second,peers
usage() {
  echo "gpu-check.sh: $1; --pack, --stage A,B, --from N, --out DIR, --continue DIR, --rehearse, --any-pack; stages: ${known//,/ }" >&2
  exit 64
}
# What programs of an archive and scripts of a checkout must have been made of to fit one another.
sources() { find native ts scripts/gpu scripts/gpu-check.sh package.json -name __pycache__ -prune -o -type f -print0 2>/dev/null | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16; }
while [ $# -gt 0 ]; do
  case "$1" in
    --stage | --out | --from | --continue) [ $# -ge 2 ] || usage "$1 wants a word behind it" ;;
  esac
  case "$1" in
    --pack) exec node scripts/gpu/pack.mjs "$pack" ;;
    --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' scripts/gpu-check.sh; exit 0 ;;
    --stage) stages=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --continue)
      before=$2
      [ -f "$before/logs.tar.gz" ] && [ -f "$before/table.txt" ] || usage "$before has no logs.tar.gz and table.txt of an earlier call"
      shift 2 ;;
    --from)
      case "$2" in *[!0-9]* | '') usage "--from wants a number" ;; esac
      from=$2; shift 2 ;;
    --rehearse) export EFFNET_REHEARSE=1; shift ;;
    --any-pack) any_pack=1; shift ;;
    --sources) sources; exit 0 ;; # this and the next: for pack.mjs
    --library-folders) echo "${library_folders[*]}"; exit 0 ;;
    *) usage "unknown argument $1" ;;
  esac
done
[ -n "${stages//[, ]/}" ] || usage "--stage wants the names of stages"
for each in ${stages//,/ }; do
  case ",$known," in *",$each,"*) ;; *) usage "no stage is called $each" ;; esac
done
case ",$stages," in *,second,*) [ "$stages" = second ] || usage "second is a call of its own" ;; esac
[ "$stages" = second ] && stages=shapes,libraries,chosen,rows,finetune,decode,tuned,racecheck
# Whether there is a GPU decides over all others.
case ",$stages," in *,smoke,*) ;; *) stages=smoke,$stages ;; esac
if [ ! -f "$pack/pack.tar.xz" ]; then
  echo "no $pack/pack.tar.xz: run scripts/gpu-check.sh --pack where there is a network, and bring the folder" >&2
  exit 66
fi

mkdir -p "$out" && out=$(cd "$out" && pwd) || usage "--out wants a folder that can be made"
if [ -n "$before" ] && [ "$(cd "$before" && pwd)" != "$out" ]; then
  [ ! -e "$out/logs.tar.gz" ] || usage "$out has logs of its own: --continue is for a folder without"
  cp "$before/logs.tar.gz" "$before/table.txt" "$out" || exit 66
fi
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
# Python has its own xz, where the system has none.
unpack() {
  if command -v xz >/dev/null; then tar -xJf "$pack/pack.tar.xz" -C "$at" 2>&1 | sed -n 1p; else python3 -m tarfile -e "$pack/pack.tar.xz" "$at" 2>&1 | sed -n '$p'; fi
}
if ! said=$(unpack) || ! version=$(cat "$at/version.txt" 2>/dev/null); then
  echo "$pack/pack.tar.xz cannot be unpacked${said:+ ($said)}: --pack again" >&2
  exit 66
fi
if [ "$(cat "$at/sources.txt" 2>/dev/null)" != "$(sources)" ]; then
  if [ "$any_pack" = 0 ]; then
    echo "$pack/pack.tar.xz was made of other sources than lie here ($version): --pack again, or --any-pack" >&2
    exit 66
  fi
  version="$version, of other sources than its scripts"
fi
mkdir -p "$at/scripts" && cp -r bin models package.json "$at" && cp -r scripts/gpu "$at/scripts" || exit 66
cd "$at" || exit 1
# The system's own are taken unless they are older: what else runs here may need newer ones than were packed.
newest_symbol() { grep -aoE '(GLIBCXX|GOMP|GCC)_[0-9.]+' "$1" | sort -V | tail -n 1; }
for each in lib/*; do
  [ -e "$each" ] || continue
  own=$(ldconfig -p | sed -n "s|^[[:space:]]*$(basename "$each") .*=> ||p" | head -n 1)
  [ -n "$own" ] && printf '%s\n' "$(newest_symbol "$each")" "$(newest_symbol "$own")" | sort -VC && rm "$each"
done
# PyTorch's packages have NVIDIA's libraries, in no folder that a loader knows.
packages=$(python3 -c 'import glob, sys; print(":".join(d for p in sys.path for d in glob.glob(p + "/nvidia/*/lib")))' 2>/dev/null)
# Tools of a CUDA toolkit may be in no PATH. Where libraries bring several CUDA runtimes, cuDNN's headers are told which is meant.
export CUDNN_FRONTEND_CUDART_LIB_NAME=libcudart.so.13
own=$(printf ":$at/%s" "${library_folders[@]}")
export PATH="$at/bin:$PATH:/usr/local/cuda/bin" LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${own#:}${packages:+:$packages}" PYTHONUNBUFFERED=1 EFFNET_CUDA_TUNE=0 EFFNET_CACHE_DIR="$at/cache"
rehearsing=${EFFNET_REHEARSE:-0}
# A stage's programs leave there what they have, however the stage ends.
export EFFNET_GPU_CHECK_LOGS="$at/logs"
mkdir "$at/logs"
if [ -f "$out/logs.tar.gz" ] && ! tar -C "$at/logs" -xzf "$out/logs.tar.gz" 2>/dev/null; then
  echo "$out/logs.tar.gz, of an earlier call, cannot be unpacked: bring it again, or name another --out" >&2
  exit 66
fi
# Of the whole script, unpacking included.
deadline=${EFFNET_GPU_CHECK_SECONDS:-$((rehearsing ? 7200 : 540))}
failed=0
# What is measured says of which call it is (smoke.mjs writes call.json of these).
export EFFNET_GPU_CHECK_DATE EFFNET_GPU_CHECK_VERSION=$version
EFFNET_GPU_CHECK_DATE=$(date -u +%FT%TZ)
printf '%s\n' "gpu-check $EFFNET_GPU_CHECK_DATE $version" "$(printf '%-9s %-7s %6s  %s' stage result s note)" >>"$out/table.txt"

# Seconds of each stage, in their order. What comes before bench and peer may not take their time: the limits of a call's stages add up
# to less than there is, and what is left over is shared among those that are yet to come.
declare -A limits=(
  [smoke]=30 [kernels]=90 [shapes]=40 [model]=60 [bench]=110 [peer]=80 [memcheck]=40 [counters]=40 [layers]=30
  [libraries]=50 [chosen]=40 [rows]=50 [finetune]=90 [decode]=20 [tuned]=150 [racecheck]=55
  [curves]=150 [peers]=510
)
declare -A done=()
limit_of() {
  local limit=${limits[$1]} left=$2 each sum=0
  for each in ${stages//,/ }; do [ -n "${done[$each]:-}" ] || sum=$((sum + limits[$each])); done
  # A machine that has just started reads the libraries of GPUs, gigabytes, for the first time.
  if [ "$1" = smoke ]; then limit=$((2 * limit)); elif [ "$left" -gt "$sum" ]; then limit=$((left * limit / sum)); fi
  if [ "$rehearsing" = 1 ] || [ "$limit" -gt "$left" ]; then limit=$left; fi
  echo "$limit"
}

# tar ends with 1 where a log has grown meanwhile: it has what there was before.
keep_logs() {
  local said code
  said=$(tar -C "$at/logs" -czf "$out/logs.tar.gz.new" . 2>&1)
  code=$?
  [ $code -le 1 ] && mv "$out/logs.tar.gz.new" "$out/logs.tar.gz" && return
  failed=1
  printf '%-9s %-7s %6s  %s\n' logs FAILED 0 "not kept: tar ended with $code: $(tail -n 1 <<<"$said" | cut -c1-400)" >>"$out/table.txt"
}

# stage NAME COMMAND...: the last line that the command prints is its note.
stage() {
  local name=$1 begin=$SECONDS code result
  shift
  case ",$stages," in *",$name,"*) ;; *) return 0 ;; esac
  local left=$((deadline - SECONDS))
  if [ "$left" -lt 5 ]; then
    printf '%-9s %-7s %6s  %s\n' "$name" untried 0 "no time left" >>"$out/table.txt"
    failed=1
    return 1
  fi
  local limit
  limit=$(limit_of "$name" "$left")
  done[$name]=1
  # Programs of a stage that have limits of their own end before it does, so that it can tell of all.
  EFFNET_STAGE_END=$(($(date +%s) + limit - 4)) timeout -k 5 "$limit" "$@" >"$at/logs/$name.log" 2>&1
  code=$?
  case $code in 0) result=passed ;; 124 | 137) result=timeout ;; 75) result=skipped ;; 76) result=partial ;; *) result=FAILED ;; esac
  case $code in 0 | 75 | 76) ;; *) failed=1 ;; esac
  printf '%-9s %-7s %6s  %s\n' "$name" "$result" $((SECONDS - begin)) "$(tail -n 1 "$at/logs/$name.log" | cut -c1-400)" >>"$out/table.txt"
  # Whoever is stopped meanwhile has the logs of before.
  keep_logs
  return $code
}

stage smoke node scripts/gpu/smoke.mjs
smoke=$?
# An instruction that is not as defined explains what fails behind it: that is run all the same.
if [ $smoke -eq 0 ] || [ $smoke -eq 3 ]; then
  stage kernels bash scripts/gpu/kernels.sh
  stage shapes bash scripts/gpu/shapes.sh
  stage model node scripts/gpu/model.mjs
  stage bench node scripts/gpu/bench.mjs
  stage peer bash scripts/gpu/peer.sh
  stage memcheck bash scripts/gpu/memcheck.sh memcheck
  stage counters bash scripts/gpu/counters.sh
  stage layers bash scripts/gpu/layers.sh
  # The second call. Races are looked for until its end.
  stage libraries bash scripts/gpu/kernels.sh libraries
  stage chosen bash scripts/gpu/shapes.sh libraries
  stage rows bash scripts/gpu/rows.sh
  stage finetune node scripts/gpu/finetune.mjs
  stage decode node scripts/gpu/decode.mjs
  stage tuned bash scripts/gpu/tuned.sh
  stage racecheck bash scripts/gpu/memcheck.sh racecheck
  stage curves node scripts/gpu/curves.mjs
  stage peers bash scripts/gpu/peer.sh --table --from "$from"
fi
cat "$out/table.txt"
[ $smoke -eq 69 ] && exit 69
exit $failed
