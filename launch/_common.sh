# Read by the scripts of this folder: options, checks, and what DRY_RUN=1 means.
set -euo pipefail
LC_ALL=C # [a-z] means small letters

DRY_RUN=${DRY_RUN:-0}
WORDS=() # of lmjax.main, what follows --

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 2
}

DRY_RUN=${DRY_RUN:-0}
[[ $DRY_RUN == [01] ]] || die "DRY_RUN=$DRY_RUN: 1, to print the commands, or 0 is expected"

# Runs a command, or with DRY_RUN=1 prints it as a shell would take it.
run() {
  if [ "$DRY_RUN" = 1 ]; then
    printf '%q ' "$@" | sed 's/ $//'
    echo
  else
    command -v "$1" > /dev/null || die "$1 is not on the PATH; install it, or see the commands with --dry-run"
    "$@"
  fi
}

# The comment that a script begins with.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# begin 'OPTION...' WORD...: sets action to the verb, and what was given. VERBS=('VERB...: OPTION...' ...)
# has the options of each verb, besides those of all. One that ends in = has a value; -- stands for the
# arguments of lmjax.main.
begin() {
  local options=$1 entry word verbs=''
  shift
  [ $# -gt 0 ] || { usage >&2; exit 2; }
  for word in "$@"; do
    case $word in
      --) break ;;
      -h | --help) usage; exit ;;
    esac
  done
  action=$1
  shift
  for entry in "${VERBS[@]}"; do
    for word in ${entry%%:*}; do
      verbs+=", $word"
      [ "$word" != "$action" ] || { parse "$options${entry#*:}" "$@"; return; }
    done
  done
  die "$action: there is no such verb; first one of these is expected: ${verbs#, }"
}

# parse 'OPTION...' WORD...: sets a variable of each option (- becomes _).
parse() {
  local options=" $1 " word key accepted=''
  shift
  for key in $options; do # the environment may have variables of these names
    key=${key%=}
    [ "$key" = -- ] || unset "${key//-/_}"
  done
  while [ $# -gt 0 ]; do
    word=$1
    shift
    key=${word%%=*}
    key=${key#--}
    if [[ $word == -- && $options == *' -- '* ]]; then
      WORDS=("$@")
      return
    elif [ "$word" = --dry-run ]; then
      DRY_RUN=1
    elif [[ $word != --* || ! $key =~ ^[a-z][a-z-]*$ || $options != *" $key"[=\ ]* ]]; then
      for key in $options; do
        case $key in
          --) ;;
          *=) accepted+="--${key}VALUE, " ;;
          *) accepted+="--$key, " ;;
        esac
      done
      [[ $options != *' -- '* ]] || accepted+='after -- arguments of lmjax.main, '
      die "$word is unknown; $action takes ${accepted}and --dry-run"
    elif [[ $options == *" $key "* ]]; then
      [ "$word" = "--$key" ] || die "$word: no value is expected, only --$key"
      printf -v "${key//-/_}" 1
    else
      [[ $word == --*=?* ]] || die "$word needs a value, as in --$key=VALUE"
      printf -v "${key//-/_}" %s "${word#*=}"
    fi
  done
}

# check NAME 'regular expression' 'what is expected'
check() {
  local variable=${1//-/_}
  [[ ${!variable:-} =~ ^($2)$ ]] || die "--$1=${!variable:-}: $3"
}

# The value of --NAME=... among the words of lmjax.main, empty without it.
word() {
  local w found=''
  for w in ${WORDS[@]+"${WORDS[@]}"}; do
    [[ $w != --"$1"=* ]] || found=${w#*=} # the last one counts, as it does to lmjax.main
  done
  printf %s "$found"
}

# What every launch trains: a recipe, and a directory that all hosts see and that outlives them.
check_words() {
  [ -n "$(word config)" ] || die "the arguments of lmjax.main lack --config=RECIPE (after --)"
  local workdir
  workdir=$(word workdir)
  [[ $workdir =~ $1 ]] || die "--workdir=$workdir: $2"
  for w in coordinator processes process; do
    [ -z "$(word "$w")" ] || die "--$w=$(word "$w"): every worker gets the same command; lmjax finds out which one it is"
  done
}

NAME_RULE='[a-z]([-a-z0-9]{0,38}[a-z0-9])?'
NAME_HELP='a name of at most 40 small letters, digits and hyphens is expected, beginning with a letter'
ZONE_RULE='[a-z]+-[a-z]+[0-9]+-[a-z]'
ZONE_HELP='a zone is expected, as in us-west4-a'
IMAGE_RULE='[a-z0-9][-a-zA-Z0-9._/:@]*'
IMAGE_HELP='a container image that holds lmjax is expected (launch/Dockerfile)'
BUCKET='^gs://[^/]+/.+'
BUCKET_HELP='a folder in a bucket is expected, as in gs://bucket/runs/first: a TPU VM goes with its disk'
