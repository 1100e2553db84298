# The slices of TPUs that there are. lmjax/planning/topologies.py knows the same, but whoever launches may
# not have lmjax: tests/launch/test_slices_offered.py holds both equal. v2 and v3, which lmjax does not
# plan, are those of https://cloud.google.com/tpu/docs/v2 and .../v3.

TYPE_RULE='(v2|v3|v4|v5p|v5litepod|v6e)-[1-9][0-9]{0,5}'
TYPE_HELP='v2, v3, v4, v5p, v5litepod (which is v5e) or v6e and a size are expected, as in v5litepod-16'
TOPOLOGY_RULE='[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}'
FLAT='1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16'
SMALL='1x1x1 2x2x1 2x2x2 2x2x4 2x4x4'

# The sizes of a generation as Google Cloud counts them: cores up to v5p, chips since.
sizes() {
  case $1 in
    v2) echo 8 32 128 256 512 ;;
    v3) echo 8 32 64 128 256 512 1024 2048 ;;
    v4) echo 8 16 32 64 && seq 128 128 8192 ;;
    v5p) echo 8 16 32 64 && seq 128 128 12288 ;;
    *) echo 1 4 8 16 32 64 128 256 ;;
  esac
}

# --type
check_type() {
  check type "$TYPE_RULE" "$TYPE_HELP"
  local generation=${type%-*} size below='' above=''
  for size in $(sizes "$generation"); do
    if [ "$size" = "${type#*-}" ]; then
      return
    elif [ "$size" -lt "${type#*-}" ]; then
      below=$generation-$size
    else
      above=$generation-$size
      break
    fi
  done
  die "--type=$type: there is no such slice; the nearest: $below${below:+${above:+ and }}$above"
}

# --tpu and --topology, as GKE labels its nodes.
check_topology() {
  check topology "$TOPOLOGY_RULE" 'chips by chips are expected, as in 4x4'
  local most
  case $tpu in
    tpu-v5-lite-podslice | tpu-v6e-slice)
      [[ " $FLAT " == *" $topology "* ]] || die "--topology=$topology: there is no such slice of $tpu; there are ${FLAT// /, }"
      return
      ;;
    tpu-v4-podslice) most=4096 ;;
    tpu-v5p-slice) most=6144 ;;
    *) die "--tpu=$tpu: tpu-v4-podslice, tpu-v5-lite-podslice (v5e), tpu-v5p-slice or tpu-v6e-slice is expected" ;;
  esac
  [[ " $SMALL " == *" $topology "* ]] || cubes "$most" || die "--topology=$topology: there is no such slice of $tpu; there are \
${SMALL// /, } and AxBxC of multiples of 4, the smallest first, up to $most chips"
}

# Whether --topology is made of cubes of 64 chips, at most so many chips.
cubes() {
  local a b c
  IFS=x read -r a b c <<< "$topology"
  [ -n "$c" ] && [ $((a % 4 + b % 4 + c % 4)) = 0 ] && [ "$a" -le "$b" ] && [ "$b" -le "$c" ] &&
    [ $((a * b * c)) -le "$1" ]
}
