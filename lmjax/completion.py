"""python -m lmjax.completion bash|zsh: a script by which the shell completes the flags of
`python -m lmjax.main`, keys of the config, recipes, evals and kinds of parts.

  python -m lmjax.completion bash > ~/.lmjax.bash; echo '. ~/.lmjax.bash' >> ~/.bashrc
  python -m lmjax.completion zsh > ~/.lmjax.zsh; echo '. ~/.lmjax.zsh' >> ~/.zshrc

In ~/.zshrc it stands behind compinit.

The words are in the script, so that a shell asks no Python; make it again after an upgrade. Other
uses of python are completed as they were before.
"""

import argparse
import pathlib
import sys

from lmjax import exits

PYTHONS = 'python python3 python3.11 python3.12 python3.13 python3.14'
BASH = """\
# Completes `python -m lmjax.main`; made by python -m lmjax.completion bash.
_lmjax_modules='@MODULES@'
_lmjax_words='@WORDS@'
# What completed python before, which bash-completion loads when it is first asked for.
for _lmjax_load in _comp_load _completion_loader; do
  declare -F $_lmjax_load >/dev/null && $_lmjax_load python &>/dev/null
done
_lmjax_before=$(complete -p python 2>/dev/null | sed -n 's/.* -F \\([^ ]*\\) .*/\\1/p')
[[ $_lmjax_before == _lmjax ]] && _lmjax_before=
_lmjax() {
  local line=${COMP_LINE:0:COMP_POINT} list word
  local last=${line##*[[:space:]]}
  COMPREPLY=()
  if [[ $line =~ [[:space:]]-m[[:space:]]+lmjax\\.main[[:space:]] ]]; then list=$_lmjax_words
  elif [[ $line =~ [[:space:]]-m[[:space:]]+l[a-z._]*$ ]]; then list=$_lmjax_modules
  elif [[ $_lmjax_before ]]; then "$_lmjax_before" "$@"; return
  else return; fi
  local cut=${last%"${last##*[=:]}"}  # bash ends a word at = and :
  [[ $COMP_WORDBREAKS == *=* && $COMP_WORDBREAKS == *:* ]] || cut=
  for word in $list; do
    [[ $word == "$last"* ]] && COMPREPLY+=("${word#"$cut"}")
  done
  [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
}
complete -o bashdefault -o default -F _lmjax @PYTHONS@
"""
ZSH = """\
# Completes `python -m lmjax.main`; made by python -m lmjax.completion zsh.
_lmjax_modules=(@MODULES@)
_lmjax_words=(@WORDS@)
[[ $_comps[python] == _lmjax ]] || _lmjax_before=$_comps[python]
_lmjax() {
  local -i at=${words[(i)-m]}
  if (( at < CURRENT - 1 )) && [[ $words[at+1] == lmjax.main ]]; then
    local -a open=(${(M)_lmjax_words:#*=}) whole=(${_lmjax_words:#*=})
    compadd -Q -S '' -a open
    local -i found=$?
    compadd -Q -a whole && found=0
    (( found )) || return 0
    [[ $PREFIX == *=* ]] && compset -P '*='
    _files
  elif (( at == CURRENT - 1 )) && [[ $PREFIX == l* ]]; then
    compadd -Q -a _lmjax_modules
  else
    ${_lmjax_before:-_default} "$@"
  fi
}
compdef _lmjax @PYTHONS@
"""
SHELLS = dict(bash=BASH, zsh=ZSH)


def words() -> list[str]:
  """What may stand behind `python -m lmjax.main`; a word that goes on ends with `=`."""
  from lmjax import config
  from lmjax import groups
  from lmjax import kinds
  from lmjax import main as main_lib
  from lmjax import registry

  keys = list(groups.flat(config.default()))
  keys += [f'model.{part}' for part in config.BLOCK_PARTS]  # of the only block
  out = [f'--config.{key}=' for key in keys]
  for action in main_lib.parser()._actions:
    name = action.option_strings[-1]
    out += [name] if action.nargs in (0, '?') else []
    out += [f'{name}='] if action.nargs != 0 and not action.choices else []
    out += [f'{name}={choice}' for choice in action.choices or ()]
  out += [f'--config={name}' for name in config.recipes()]
  out += [f'--eval={name}' for name in registry.names('eval')]
  out += [f'--list={kind}' for kind in kinds.KINDS]
  return sorted(out)


def modules() -> list[str]:
  """The commands, as `python -m` takes them."""
  here = pathlib.Path(__file__).parent
  files = [p for p in here.glob('*.py') if '\nif __name__ ==' in p.read_text('utf-8')]
  folders = [p.parent for p in here.glob('*/__main__.py')]
  return sorted(f'lmjax.{p.stem}' for p in files + folders)


def script(shell: str) -> str:
  parts = dict(MODULES=' '.join(modules()), WORDS=' '.join(words()), PYTHONS=PYTHONS)
  out = SHELLS[shell]
  for key, text in parts.items():
    out = out.replace(f'@{key}@', text)
  return out


def main(argv: list[str] | None = None) -> int:
  p = argparse.ArgumentParser(
    prog='python -m lmjax.completion',
    formatter_class=argparse.RawDescriptionHelpFormatter,
    description=__doc__,
    epilog=exits.PLAIN,
  )
  p.add_argument('shell', choices=tuple(SHELLS))
  print(script(p.parse_args(argv).shell), end='')
  return 0


if __name__ == '__main__':
  sys.exit(main())
