# Sourced: what a stage has done is kept in a folder of its logs, so that a later call goes on.
#
#   progress FOLDER     FOLDER as an earlier call has left it; empty where that was by another archive, on a GPU of another name or driver, or a
#                       rehearsal
progress() {
  local of
  of="$(cat version.txt sources.txt) rehearse=${EFFNET_REHEARSE:-0} $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null)"
  if [ "$of" != "$(cat "$1/of" 2>/dev/null)" ]; then
    rm -rf "$1"
    mkdir -p "$1"
    echo "$of" >"$1/of"
  fi
}
