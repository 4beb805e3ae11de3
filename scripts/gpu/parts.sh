# Sourced: what gpu_shapes_test has of a list is done in parts, the precisions at once, each in a process of its own. What a call has no
# time for is left to the next one. A line that fails to launch, faults or has no end ends its process: it counts as wrong, and another
# process goes on behind it.
#
#   parts FOLDER WORDS...    runs `WORDS... FROM UNTIL`, in which {} is the precision; says what each has said. Exits with 1 where
#                            something was wrong, with 76 (partial) until the last line of each precision is behind it
#
# In FOLDER, PRECISION.next is the line to go on with, or "end", PRECISION.wrong is there where some part was wrong, and PRECISION.last
# where it is not in PRECISION.log yet what a part has said.
source scripts/gpu/progress.sh
precisions=(f32 tf32 bf16 f16)
# Many times what one takes on a GPU (LINE_SECONDS, where a library's kernels have to be found too); on the driver without one nobody knows.
[ "${EFFNET_REHEARSE:-0}" = 1 ] || export EFFNET_SHAPE_SECONDS=${LINE_SECONDS:-30}

# What part FROM has said, into the log.
keep_part() { { [ "$2" = 0 ] || echo "from line $2:"; grep -v '^line [0-9]*$' "$1.last"; } >>"$1.log"; }
line_begun() { sed -n 's/^line \([0-9]*\)$/\1/p' "$1.last" | tail -n 1; }
next_of() { cat "$1.next" 2>/dev/null || echo 0; }

# A part that was stopped with its stage has no exit code: by its words, and on with the line it was in.
resume() {
  local line
  [ -f "$1.last" ] || return 0
  line=$(line_begun "$1")
  if [ -n "$line" ]; then
    keep_part "$1" "$(next_of "$1")"
    echo "$(basename "$1"): stopped in line $line" >>"$1.log"
    grep -q 'is off by\|other bits under order' "$1.last" && touch "$1.wrong"
    echo "$line" >"$1.next"
  fi
  rm "$1.last"
}

parts_of() {
  local at=$1 from until code line
  shift
  until=$((EFFNET_STAGE_END - 4))
  touch "$at.log"
  resume "$at"
  while from=$(next_of "$at") && [ "$from" != end ] && [ "$(date +%s)" -lt "$until" ]; do
    "$@" "$from" "$until" >"$at.last" 2>&1
    code=$?
    [ $code -eq 0 ] || touch "$at.wrong"
    keep_part "$at" "$from"
    case $(tail -n 1 "$at.last") in
      *", to the end") echo end >"$at.next" ;;
      *", go on with line "*)
        sed -n '$s/.*go on with line \([0-9]*\) of.*/\1/p' "$at.last" >"$at.next"
        until=0
        ;;
      *)
        touch "$at.wrong"
        line=$(line_begun "$at")
        if [ -n "$line" ]; then
          echo "BROKE OFF in line $line: exit code $code" >>"$at.log"
          echo $((line + 1)) >"$at.next"
        else # nothing to leave out: a later call begins with it
          echo "no line begun: exit code $code" >>"$at.log"
          until=0
        fi
        ;;
    esac
    rm "$at.last"
  done
}

parts() {
  local folder=$1 precision notes=() note broken
  shift
  at_end() { [ "$(cat "$folder"/*.next 2>/dev/null | grep -c end)" -eq ${#precisions[@]} ]; }
  any_wrong() { ls "$folder"/*.wrong >/dev/null 2>&1; }
  progress "$folder"
  if at_end && any_wrong; then # once more
    rm -rf "$folder"
    progress "$folder"
  fi
  for precision in "${precisions[@]}"; do parts_of "$folder/$precision" "${@//\{\}/$precision}" & done
  wait
  for precision in "${precisions[@]}"; do
    cat "$folder/$precision.log"
    note=$(tail -n 1 "$folder/$precision.log")
    broken=$(grep -c '^BROKE OFF' "$folder/$precision.log")
    note=${note:-$precision: no time}
    [ "$broken" -eq 0 ] || note="$note, $broken BROKEN OFF"
    [ ! -f "$folder/$precision.wrong" ] || note="$note, WRONG (its log says what)"
    notes+=("$note")
  done
  printf '%s\n' "${notes[@]}" | paste -sd ';' -
  if any_wrong; then exit 1; fi
  at_end || exit 76
  exit 0
}
