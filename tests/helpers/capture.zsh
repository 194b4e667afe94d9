# zsh capture.zsh SCRIPT LINE: what the completion system of an interactive zsh offers at the end of a line.
zmodload zsh/zpty
zpty z zsh -f -i
() {
  zpty -w z "PS1= PS2= RPS1=; unset zle_bracketed_paste; autoload -Uz compinit; compinit -u -D; source $1"
  zpty -w z 'compadd() {
    if [[ ${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd "$@"; return; fi
    local -a offered; builtin compadd -O offered "$@"
    (( $#offered )) && print -l -- "offered:"${^offered}
    builtin compadd "$@"
  }'
  zpty -w z 'null() {}; zle -N null; finish() { print "the""-end"; }; compostfuncs=(); comppostfuncs=(finish); precomp() { compostfuncs=(finish); comppostfuncs=(finish); }; compprefuncs=(precomp); zstyle ":completion:*" list-prompt ""; LISTMAX=1000; bindkey "^I" complete-word; print re""ady'
} $1
local line
while zpty -r z line; do [[ $line == *ready* ]] && break; done
zpty -w -n z "$2"$'\t'
while zpty -r z line '*
*'; do
  [[ $line == *offered:* ]] && print -rn -- ${line#*offered:}
  [[ $line == *the-end* ]] && break
done
zpty -d z
