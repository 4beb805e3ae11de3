# Sourced: what a stage has done is kept in a folder of its logs, so that a later call goes on.
#
#   progress FOLDER     FOLDER as an earlier call has left it; empty where that was by another archive, on a GPU of another name or
#                       driver (as smoke.mjs has seen it), or a rehearsal
progress() {
  local of gpu
  gpu=$(grep -o '"gpu":.*"cuda":[0-9]*' "$EFFNET_GPU_CHECK_LOGS/call.json")
  of="$(cat version.txt sources.txt) rehearse=${EFFNET_REHEARSE:-0} $gpu"
  if [ "$of" != "$(cat "$1/of" 2>/dev/null)" ]; then
    rm -rf "$1"
    mkdir -p "$1"
    echo "$of" >"$1/of"
  fi
}
